/* See vhost_world.h. */
#include "tests/fuzz/vhost_world.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/timer.h"
#include "generated/options.h"

#define WORLD_POLLS 16u
#define WORLD_REST 8u       /* turns without anything after which nothing will move */
#define WORLD_LIMIT 100000u /* turns that one input may take */

static const char *world_name;

void world_ensure(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s: %s\n", world_name, what);
    abort();
}

/* The ring. Null disks ask for nothing but polls. */

static struct world_poll {
    struct ring_op *op;
    int fd;
    short events;
    bool cancelled;
} polls[WORLD_POLLS];
static unsigned poll_count;
static uint64_t clock_ns = 1000000;

static void ring_poll(struct ring *ring, struct ring_op *op, int fd, unsigned events)
{
    (void)ring;
    world_ensure(poll_count < WORLD_POLLS, "too many polls");
    polls[poll_count++] = (struct world_poll){.op = op, .fd = fd, .events = (short)events};
}

static void ring_cancel_poll(struct ring *ring, struct ring_op *op)
{
    (void)ring;
    for (unsigned i = 0; i < poll_count; i++)
        polls[i].cancelled |= polls[i].op == op;
}

static unsigned ring_reap(struct ring *ring)
{
    struct world_poll then[WORLD_POLLS];
    unsigned count = poll_count, done = 0;

    (void)ring;
    memcpy(then, polls, sizeof(then));
    poll_count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct pollfd look = {.fd = then[i].fd, .events = then[i].events};

        if (!then[i].cancelled && poll(&look, 1, 0) == 0)
            polls[poll_count++] = then[i];
        else
            then[done++] = then[i];
    }
    for (unsigned i = 0; i < done; i++)
        then[i].op->complete(then[i].op, then[i].cancelled ? -ECANCELED : then[i].events);
    return done;
}

static uint64_t ring_now(struct ring *ring)
{
    (void)ring;
    return clock_ns += 1000;
}

static const struct ring_ops ring_ops = {
    .name = "fuzz", .poll = ring_poll, .cancel_poll = ring_cancel_poll, .reap = ring_reap, .now = ring_now};
static struct ring ring = {.ops = &ring_ops};

/* Exports. */

static struct loop *loop, *world_loops[WORLD_QUEUES];
static struct socket_address world_address = {.type = SOCKET_ADDRESS_TYPE_UNIX};
static struct export_options export_options = {
    .u.vhost_user_blk = {
        .addr = &world_address, .num_queues = WORLD_QUEUES, .queue_size = 64, .logical_block_size = 512}};
static struct export exports[2];
static struct vhost_export vhosts[2], *vhost;

static const char *world_consumer_name(const struct consumer *consumer)
{
    (void)consumer;
    return world_name;
}

static void world_resumed(struct consumer *consumer, struct loop *where)
{
    struct vhost_queue *queue;

    list_for_each(queue, &vhosts[consumer == &exports[1].consumer].by_loop[where->index], in_loop)
        vhost_queue_resumed(queue);
}

static const struct consumer_ops world_consumer_ops = {
    .kind = "export", .name = world_consumer_name, .resumed = world_resumed};

static void world_check(int result, const struct error *err)
{
    world_ensure(result == 0, err->text);
}

static void world_export(unsigned i, const char *name, uint64_t latency)
{
    AUTO_ERROR struct error err = {0};
    struct export *export = &exports[i];
    struct change *change = change_new();
    struct node *node;
    struct node_options options = {.driver = NODE_DRIVER_NULL_CO,
                                   .node_name = (char *)(uintptr_t)name,
                                   .u.null_co = {.size = 1 << 20, .read_zeroes = true, .latency_ns = latency}};

    world_check(node_add(change, &options, &node, &err), &err);
    consumer_init(&export->consumer, &world_consumer_ops, export,
                  (struct permission){.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL});
    world_check(consumer_attach(change, &export->consumer, name, &err), &err);
    world_check(change_apply(change, &err), &err);
    snprintf(export->id, sizeof(export->id), "%s", name);
    export->loops = &loop;
    export->loop_count = 1;
    export->writable = true;
    export->options = &export_options;
    vhosts[i] = (struct vhost_export){
        .export = export,
        .options = &export_options.u.vhost_user_blk,
        .waiting = -1,
        .disk = {.id = export->id, .block_mask = 511, .scratch = consumer_scratch(&export->consumer)}};
    vhosts[i].loops = world_loops;
    comutex_init(&vhosts[i].lock);
    for (unsigned q = 0; q < WORLD_QUEUES; q++)
        world_loops[q] = loop;
    for (unsigned l = 0; l < LOOP_MAX; l++)
        list_init(&vhosts[i].by_loop[l]);
}

static void world_fill(void *ready)
{
    world_export(0, "fast", 0);
    world_export(1, "slow", 3000);
    *(bool *)ready = true;
}

void world_create(const char *name)
{
    AUTO_ERROR struct error err = {0};
    bool ready = false;

    world_name = name;
    log_set_level(LOG_LEVEL_ERROR);
    world_check(loop_create(&loop, "main", &ring, &err), &err);
    loop_set_current(loop);
    coroutine_start(loop, world_fill, &ready);
    while (!ready)
        loop_turn(loop);
}

/* The front end. */

void world_connect(struct world_front *front, bool slow)
{
    int fds[2];

    vhost = &vhosts[slow];
    *front = (struct world_front){.memory_fd = memfd_create("guest", MFD_CLOEXEC),
                                  .kick = eventfd(0, EFD_NONBLOCK),
                                  .call = eventfd(0, EFD_NONBLOCK),
                                  .broken = eventfd(0, EFD_NONBLOCK)};
    world_ensure(front->memory_fd >= 0 && front->broken >= 0 && ftruncate(front->memory_fd, WORLD_MEMORY) == 0,
                 "no memory");
    front->memory = mmap(NULL, WORLD_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, front->memory_fd, 0);
    world_ensure(front->memory != MAP_FAILED, "no memory");
    world_ensure(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0, "no socket");
    world_ensure(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, front->channel) == 0, "no socket");
    front->fd = fds[1];
    vhost_session_start(vhost, fds[0]);
}

/* Reads all that came, and closes what came along. */
static bool front_read(struct world_front *front)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    char data[4096];
    bool any = false;

    for (;;) {
        struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};

        if (recvmsg(front->fd, &message, MSG_DONTWAIT) <= 0)
            return any;
        any = true;
        for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
            int fd;

            memcpy(&fd, CMSG_DATA(part), sizeof(fd));
            close(fd);
        }
    }
}

void world_send(struct world_front *front, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                const int *fds, unsigned count)
{
    struct vhost_header header = {.request = request, .flags = flags, .size = size};
    struct iovec iov[2] = {{.iov_base = &header, .iov_len = sizeof(header)},
                           {.iov_base = (void *)(uintptr_t)payload, .iov_len = size > 1024 ? 1024 : size}};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(16 * sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    if (count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);

        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(part), fds, count * sizeof(int));
    }
    if (sendmsg(front->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return;
}

static void front_say(struct world_front *front, uint32_t request, const void *payload, size_t size, int fd)
{
    world_send(front, request, VHOST_FLAGS_VERSION, payload, (uint32_t)size, &fd, fd >= 0);
}

static void front_share(struct world_front *front)
{
    static const uint32_t starts[] = {0, WORLD_SECOND, WORLD_SECOND + WORLD_REGION};
    struct vhost_table_desc table = {.count = 3};
    int fds[3];

    for (unsigned i = 0; i < 3; i++) {
        table.regions[i] = (struct vhost_region_desc){.guest_address = starts[i],
                                                      .size = WORLD_REGION,
                                                      .user_address = starts[i] + WORLD_USER,
                                                      .mmap_offset = i * WORLD_REGION};
        fds[i] = front->memory_fd;
    }
    world_send(front, VHOST_SET_MEM_TABLE, VHOST_FLAGS_VERSION, &table, 8 + 3 * sizeof(table.regions[0]), fds, 3);
}

static void front_start_queue(struct world_front *front, unsigned index)
{
    uint32_t at = WORLD_USER + WORLD_QUEUE_OFFSET(index);
    struct vhost_vring_state size = {index, WORLD_QUEUE_SIZE}, base = {index, front->packed ? 0x80008000 : 0},
                             enable = {index, 1};
    struct vhost_vring_addr address = {
        .index = index, .descriptor = at + WORLD_DESC, .available = at + WORLD_AVAIL, .used = at + WORLD_USED};
    uint64_t number = index;

    front_say(front, VHOST_SET_VRING_NUM, &size, sizeof(size), -1);
    front_say(front, VHOST_SET_VRING_BASE, &base, sizeof(base), -1);
    front_say(front, VHOST_SET_VRING_ADDR, &address, sizeof(address), -1);
    front_say(front, VHOST_SET_VRING_ERR, &number, sizeof(number), front->broken);
    front_say(front, VHOST_SET_VRING_CALL, &number, sizeof(number), front->call);
    front_say(front, VHOST_SET_VRING_KICK, &number, sizeof(number), front->kick);
    front_say(front, VHOST_SET_VRING_ENABLE, &enable, sizeof(enable), -1);
}

void world_set_up(struct world_front *front, uint64_t features, bool inflight)
{
    uint64_t number = VHOST_BIT(VHOST_PROTOCOL_MQ) | VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK) |
                      VHOST_BIT(VHOST_PROTOCOL_INFLIGHT_SHMFD) | VHOST_BIT(VHOST_PROTOCOL_CONFIG) |
                      VHOST_BIT(VHOST_PROTOCOL_RESET_DEVICE) | VHOST_BIT(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS) |
                      VHOST_BIT(VHOST_PROTOCOL_STATUS) | VHOST_BIT(VHOST_PROTOCOL_BACKEND_REQ);
    /* In the third region, which the fuzzers write as well. */
    struct vhost_inflight_desc desc = {.mmap_size = WORLD_REGION / 2,
                                       .mmap_offset = 2 * WORLD_REGION + WORLD_REGION / 2,
                                       .queue_count = WORLD_QUEUES,
                                       .queue_size = WORLD_QUEUE_SIZE};

    front_say(front, VHOST_SET_PROTOCOL_FEATURES, &number, sizeof(number), -1);
    front->packed = features & VHOST_BIT(VIRTIO_F_RING_PACKED);
    features |= VHOST_BIT(VIRTIO_F_VERSION_1) | VHOST_BIT(VHOST_F_PROTOCOL_FEATURES);
    front_say(front, VHOST_SET_FEATURES, &features, sizeof(features), -1);
    front_share(front);
    if (inflight)
        front_say(front, VHOST_SET_INFLIGHT_FD, &desc, sizeof(desc), front->memory_fd);
    for (unsigned i = 0; i < WORLD_QUEUES; i++)
        front_start_queue(front, i);
}

struct vhost_session *world_session(void)
{
    return vhost->session;
}

/* As a loop that goes to sleep does. */
static void world_arm(void)
{
    struct vhost_queue *queue;

    list_for_each(queue, &vhost->by_loop[loop->index], in_loop)
        queue->poller.arm(&queue->poller);
}

void world_rest(struct world_front *front)
{
    unsigned quiet = 0;

    for (unsigned turns = 0; quiet < WORLD_REST; turns++) {
        bool any = front->fd >= 0 && front_read(front);

        world_ensure(turns < WORLD_LIMIT, "it does not come to rest");
        any |= loop_turn(loop);
        quiet = any ? 0 : quiet + 1;
        if (quiet == WORLD_REST / 2)
            world_arm();
        uint64_t next = timer_next(loop);

        if (quiet && next != UINT64_MAX) {
            clock_ns = next > clock_ns ? next : clock_ns;
            quiet = 0;
        }
    }
}

void world_pause(bool begin)
{
    struct consumer *consumer = &vhost->export->consumer;

    if (begin)
        consumer->loops[loop->index].paused = true;
    else if (consumer->loops[loop->index].paused)
        consumer_resume_loop(consumer, loop);
}

void world_disconnect(struct world_front *front)
{
    struct consumer *consumer = &vhost->export->consumer;

    close(take_fd(&front->fd));
    world_rest(front);
    world_pause(false);
    world_rest(front);
    world_ensure(!vhost->session, "the session does not end");
    world_ensure(consumer->loops[loop->index].inflight == 0, "a request is left");
    world_ensure(poll_count == 0 && list_is_empty(&vhost->by_loop[loop->index]), "something is left of the session");
    close(front->memory_fd);
    close(front->channel[0]);
    close(front->channel[1]);
    close(front->kick);
    close(front->call);
    close(front->broken);
    munmap(front->memory, WORLD_MEMORY);
}
