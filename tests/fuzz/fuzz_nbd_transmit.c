/*
 * libFuzzer target: NBD transmission over a socket pair, on null disks, with
 * all that a client can do about it. Byte 0 of the input says what was
 * negotiated, byte 1 how the client behaves; then come its bytes as they are,
 * or (FUZZ_BUILT) records of 8 bytes that are made requests.
 *
 * Nothing here depends on time: one thread steps the loop, whose ring has a
 * clock of its own and looks at descriptors when it is asked. When neither
 * side can do anything more the clock jumps to the next timer, then a pause
 * ends, then the client hangs up; a connection that is still there after that
 * hangs, which is a fault. So is a reply that the client cannot understand,
 * one that it did not ask for, and, if it waits for them, one that is missing.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/timer.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/handshake.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"
#include "generated/options.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Byte 0. */
enum {
    FUZZ_STRUCTURED = 1,
    FUZZ_EXTENDED = 2,
    FUZZ_CONTEXT = 4,
    FUZZ_READ_ONLY = 8,
    FUZZ_LAYERS = 16,       /* a window and a filter that holds requests, instead of a null disk */
    FUZZ_BUILT = 32,
    FUZZ_EARLY = 64,        /* the first bytes came along with the negotiation */
    FUZZ_WRITETHROUGH = 128
};
/* Byte 1. */
enum {
    FUZZ_DEAF = 1,          /* reads no reply before it hangs up */
    FUZZ_PAUSE = 2,         /* a drain is under way when it begins */
    FUZZ_GROW = 4,          /* which ends with a graph that needs larger slots */
    FUZZ_STOP = 8,          /* the export goes away at the end */
    FUZZ_VANISH = 16,       /* closes, instead of saying that it will send no more */
    FUZZ_PIECES = 32,       /* sends little at a time */
    FUZZ_LARGE = 64         /* asks for more than the server keeps for a client; else for little, which is faster */
};

#define FUZZ_DISK (4u << 20)      /* the largest read; larger ones only take longer */
#define FUZZ_INPUT_MAX(large) ((large) ? 1u << 20 : 1u << 17)  /* bytes of what is built, and one payload more */
#define FUZZ_READ_MAX(large) ((large) ? 72u << 20 : 1u << 20)  /* bytes asked for */
#define FUZZ_POLLS 8u
#define FUZZ_REST 40u               /* turns without anything after which every poller has gone cold */

static void ensure(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "fuzz_nbd_transmit: %s\n", what);
    abort();
}

/* The ring. Null disks ask for nothing but polls. */

static struct fuzz_poll {
    struct ring_op *op;
    int fd;
    short events;
    bool cancelled;
} polls[FUZZ_POLLS];
static unsigned poll_count;
static uint64_t clock_ns = 1000000;

static void ring_poll(struct ring *ring, struct ring_op *op, int fd, unsigned events)
{
    (void)ring;
    ensure(poll_count < FUZZ_POLLS, "too many polls");
    polls[poll_count++] = (struct fuzz_poll){.op = op, .fd = fd, .events = (short)events};
}

static void ring_cancel_poll(struct ring *ring, struct ring_op *op)
{
    (void)ring;
    for (unsigned i = 0; i < poll_count; i++)
        polls[i].cancelled |= polls[i].op == op;
}

static unsigned ring_reap(struct ring *ring)
{
    struct fuzz_poll then[FUZZ_POLLS];
    unsigned count = poll_count, done = 0;

    (void)ring;
    memcpy(then, polls, sizeof(then));
    poll_count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct pollfd look = {.fd = then[i].fd, .events = then[i].events};

        if (!then[i].cancelled && poll(&look, 1, 0) == 0)
            polls[poll_count++] = then[i];
        else
            then[done++] =
                (struct fuzz_poll){.op = then[i].op, .events = then[i].cancelled ? -ECANCELED : look.revents};
    }
    for (unsigned i = 0; i < done; i++)
        then[i].op->complete(then[i].op, then[i].events);
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

/* The world: two exports of one server. */

static struct loop *loop;
static struct export exports[2];
static struct nbd_export nbd[2];
static struct nbd_server_options server_options;
static struct nbd_server server = {.options = &server_options, .exports = LIST_INIT(server.exports)};
static struct export_options export_options;

static const char *fuzz_name(const struct consumer *consumer)
{
    (void)consumer;
    return "fuzz";
}

static void fuzz_resumed(struct consumer *consumer, struct loop *where)
{
    struct nbd_connection *connection;

    list_for_each(connection, &nbd[consumer == &exports[1].consumer].by_loop[where->index], in_loop)
        nbd_connection_resumed(connection);
}

static const struct consumer_ops fuzz_consumer_ops = {.kind = "export", .name = fuzz_name, .resumed = fuzz_resumed};

static void fuzz_check(int result, const struct error *err)
{
    ensure(result == 0, err->text);
}

static void fuzz_node(const char *name, struct node_options options)
{
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();
    struct node *node;

    options.node_name = (char *)(uintptr_t)name;
    fuzz_check(node_add(change, &options, &node, &err), &err);
    fuzz_check(change_apply(change, &err), &err);
}

static const struct object_type fuzz_object_type = {.name = "export"};

static void fuzz_export(unsigned i, const char *node)
{
    AUTO_ERROR struct error err = {0};
    struct export *export = &exports[i];
    struct change *change = change_new();

    consumer_init(&export->consumer, &fuzz_consumer_ops, export,
                  (struct permission){.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL});
    fuzz_check(consumer_attach(change, &export->consumer, node, &err), &err);
    fuzz_check(change_apply(change, &err), &err);
    fuzz_check(object_attach(&export->object, &fuzz_object_type, object_container("exports"), node, &err), &err);
    export->loops = &loop;
    export->loop_count = 1;
    export->options = &export_options;
    nbd[i] = (struct nbd_export){.export = export, .server = &server, .name = node};
    list_init(&nbd[i].connections);
    for (unsigned l = 0; l < LOOP_MAX; l++)
        list_init(&nbd[i].by_loop[l]);
}

static void fuzz_world(void *ready)
{
    static char lower_name[] = "lower", window_name[] = "window";
    struct node_ref lower = {.name = lower_name}, window = {.name = window_name};
    struct null_co_options null = {.size = FUZZ_DISK, .read_zeroes = true};

    fuzz_node("null", (struct node_options){.driver = NODE_DRIVER_NULL_CO, .u.null_co = null});
    fuzz_export(0, "null");
    null.latency_ns = 3000;
    fuzz_node("lower", (struct node_options){.driver = NODE_DRIVER_NULL_CO, .u.null_co = null});
    fuzz_node("window", (struct node_options){.driver = NODE_DRIVER_RAW, .u.raw = {.file = &lower, .offset = 4096}});
    fuzz_node("held",
              (struct node_options){.driver = NODE_DRIVER_DELAY, .u.delay = {.file = &window, .latency_ns = 5000}});
    fuzz_export(1, "held");
    *(bool *)ready = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    AUTO_ERROR struct error err = {0};
    bool ready = false;

    (void)argc;
    (void)argv;
    fuzz_check(loop_create(&loop, "main", &ring, &err), &err);
    loop_set_current(loop);
    coroutine_start(loop, fuzz_world, &ready);
    while (!ready)
        loop_turn(loop);
    return 0;
}

/* The client. */

struct fuzz_asked {
    uint64_t offset, length;
    uint16_t type, flags;
    bool answered;
};

struct fuzz_client {
    int fd;
    uint8_t mode, manner;
    bool ended;
    unsigned char *input;
    size_t size, room, sent, piece;
    struct fuzz_asked *asked;   /* what is built, by cookie - 1 */
    size_t asked_count, answered;
    unsigned char head[32];     /* of the reply that comes */
    size_t head_size;
    uint64_t skip;              /* bytes of it that follow */
};

static void client_add(struct fuzz_client *client, const void *data, size_t size)
{
    if (client->room <= client->size + size) {
        client->room = 2 * (client->size + size) + 1;
        client->input = memory_grow(client->input, client->room, 1);
    }
    if (data)
        memcpy(client->input + client->size, data, size);
    else
        memset(client->input + client->size, 0x5a, size);
    client->size += size;
}

static void client_build_request(struct fuzz_client *client, const struct fuzz_asked *asked, uint64_t payload,
                                 unsigned context)
{
    bool extended = client->mode & FUZZ_EXTENDED;
    bool status = asked->type == NBD_CMD_BLOCK_STATUS && payload;
    unsigned char head[NBD_EXTENDED_REQUEST_SIZE + 12], *at = head;

    client->asked[client->asked_count++] = *asked;
    at = nbd_put32(at, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    at = nbd_put16(at, asked->flags);
    at = nbd_put16(at, asked->type);
    at = nbd_put64(at, client->asked_count);
    at = nbd_put64(at, asked->offset);
    at = extended ? nbd_put64(at, asked->length) : nbd_put32(at, (uint32_t)asked->length);
    client_add(client, head, (size_t)(at - head));
    if (status) {
        size_t size = payload < 12 ? payload : 12;

        nbd_put32(nbd_put64(head, payload << 12), context);
        client_add(client, head, size);
        payload -= size;
    }
    client_add(client, NULL, payload);
}

/* Records: command, its highest bit for units of 64 bytes in the length; flags; offset in units of 512 (2 bytes);
 * length (2 bytes); what disturbs the offset, and the length of what has no payload, and by how many bits it is moved. */
static void client_build(struct fuzz_client *client, const uint8_t *data, size_t size)
{
    bool extended = client->mode & FUZZ_EXTENDED;
    bool large = client->manner & FUZZ_LARGE;
    uint64_t read = 0;

    client->asked = memory_array(size / 8 + 1, sizeof(*client->asked));
    for (; size >= 8 && client->size < FUZZ_INPUT_MAX(large); data += 8, size -= 8) {
        uint64_t disturbance = (uint64_t)data[6] << (data[7] & 63);
        struct fuzz_asked asked = {
            .type = data[0] & 15,
            .flags = data[1] & 63,
            .offset = (uint64_t)(data[2] << 8 | data[3]) << 9,
            .length = (uint64_t)(data[4] << 8 | data[5]) << (data[0] & 0x80 ? 6 : 0),
        };
        bool carries = asked.type == NBD_CMD_WRITE || (extended && asked.flags & NBD_CMD_FLAG_PAYLOAD_LEN);

        if (data[0] & 0x40)
            asked.offset ^= disturbance;
        else if (!carries)
            asked.length ^= disturbance;
        if (!extended)
            asked.length &= UINT32_MAX;
        if (asked.type == NBD_CMD_READ && asked.length <= FUZZ_DISK) {
            asked.length &= read + asked.length > FUZZ_READ_MAX(large) ? 511 : UINT64_MAX;
            read += asked.length;
        }
        client_build_request(client, &asked, carries ? asked.length : 0, data[7] & 3);
    }
}

/* The request that a reply is for; NULL where the input is not built. */
static struct fuzz_asked *client_asked(struct fuzz_client *client, uint64_t cookie)
{
    if (!(client->mode & FUZZ_BUILT))
        return NULL;
    ensure(cookie && cookie <= client->asked_count, "a reply to nothing");
    struct fuzz_asked *asked = &client->asked[cookie - 1];

    ensure(!asked->answered, "a second reply");
    asked->answered = true;
    client->answered++;
    return asked;
}

static void client_check_error(uint32_t error)
{
    static const uint32_t known[] = {NBD_EPERM,  NBD_EIO,       NBD_ENOMEM,  NBD_EINVAL,
                                     NBD_ENOSPC, NBD_EOVERFLOW, NBD_ENOTSUP, NBD_ESHUTDOWN};
    bool is_known = false;

    for (unsigned i = 0; i < array_size(known); i++)
        is_known |= error == known[i];
    ensure(is_known, "an error that the protocol does not have");
}

static uint64_t client_simple(struct fuzz_client *client)
{
    const unsigned char *head = client->head;
    uint32_t error = nbd_get32(head + 4);
    const struct fuzz_asked *asked = client_asked(client, nbd_get64(head + 8));

    ensure(!(client->mode & FUZZ_EXTENDED), "a simple reply to a client with extended headers");
    if (error)
        client_check_error(error);
    if (!asked)
        return 0;
    ensure(asked->type != NBD_CMD_READ || !(client->mode & FUZZ_STRUCTURED), "a simple reply to a read");
    ensure(asked->type != NBD_CMD_BLOCK_STATUS || error, "a simple reply to a block status");
    return asked->type == NBD_CMD_READ && !error ? asked->length : 0;
}

/* What a chunk of that size can be, and whether the request may have it as its only one. */
static void client_check_chunk(struct fuzz_client *client, const struct fuzz_asked *asked, uint16_t type, uint64_t size)
{
    bool extended = client->mode & FUZZ_EXTENDED;

    switch (type) {
    case NBD_REPLY_NONE:
        ensure(size == 0, "an empty chunk that is not");
        ensure(!asked || (asked->type == NBD_CMD_READ ? asked->length == 0 : asked->type != NBD_CMD_BLOCK_STATUS),
               "an empty reply to what has an answer");
        break;
    case NBD_REPLY_OFFSET_DATA:
        ensure(size >= 9 && size <= 8 + NBD_PAYLOAD_MAX, "data of a wrong size");
        ensure(!asked || (asked->type == NBD_CMD_READ && asked->length == size - 8), "data that was not asked for");
        break;
    case NBD_REPLY_BLOCK_STATUS:
        ensure(!extended && size >= 12 && (size - 4) % 8 == 0, "a status of a wrong size");
        break;
    case NBD_REPLY_BLOCK_STATUS_EXT:
        ensure(extended && size >= 24 && (size - 8) % 16 == 0, "an extended status of a wrong size");
        break;
    default:
        ensure(type == NBD_REPLY_ERROR && size >= 6 && size <= 6 + 4096, "an unknown chunk");
    }
    if (type == NBD_REPLY_BLOCK_STATUS || type == NBD_REPLY_BLOCK_STATUS_EXT)
        ensure(client->mode & FUZZ_CONTEXT && (!asked || asked->type == NBD_CMD_BLOCK_STATUS), "an unwanted status");
}

/* Bytes that follow the header in client->head, or UINT64_MAX if that is not complete. */
static uint64_t client_reply_size(struct fuzz_client *client)
{
    const unsigned char *head = client->head;
    bool extended = client->mode & FUZZ_EXTENDED;

    if (client->head_size < 16)
        return UINT64_MAX;
    if (nbd_get32(head) == NBD_SIMPLE_REPLY_MAGIC)
        return client_simple(client);
    ensure(client->mode & (FUZZ_STRUCTURED | FUZZ_EXTENDED), "a chunk for a client that does not know them");
    ensure(nbd_get32(head) == (extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC), "no reply");
    ensure(nbd_get16(head + 4) == NBD_REPLY_FLAG_DONE, "a chunk that is not the last");
    if (client->head_size < (extended ? 32 : 20))
        return UINT64_MAX;
    uint64_t size = extended ? nbd_get64(head + 24) : nbd_get32(head + 16);
    const struct fuzz_asked *asked = client_asked(client, nbd_get64(head + 8));

    if (extended && asked)
        ensure(nbd_get64(head + 16) == asked->offset, "a reply with another offset");
    client_check_chunk(client, asked, nbd_get16(head + 6), size);
    return size;
}

static void client_check(struct fuzz_client *client, const unsigned char *data, size_t size)
{
    /* Simple replies to reads do not say how long they are. */
    if (!(client->mode & (FUZZ_STRUCTURED | FUZZ_EXTENDED | FUZZ_BUILT)))
        return;
    while (size) {
        size_t skip = size < client->skip ? size : client->skip;
        uint64_t follows;

        client->skip -= skip;
        data += skip;
        size -= skip;
        if (size == 0)
            return;
        client->head[client->head_size++] = *data++;
        size--;
        follows = client_reply_size(client);
        if (follows != UINT64_MAX) {
            client->skip = follows;
            client->head_size = 0;
        }
    }
}

/* Both: whether anything went over the line. */

static bool client_read(struct fuzz_client *client)
{
    static unsigned char buf[1 << 20];
    ssize_t got;
    bool any = false;

    while ((got = recv(client->fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
        client_check(client, buf, (size_t)got);
        any = true;
    }
    return any;
}

static bool client_write(struct fuzz_client *client)
{
    size_t left = client->size - client->sent, piece = left < client->piece ? left : client->piece;
    ssize_t sent = piece ? send(client->fd, client->input + client->sent, piece, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

    if (sent > 0)
        client->sent += (size_t)sent;
    return sent > 0;
}

static bool client_act(struct fuzz_client *client)
{
    bool any = false;

    if (client->fd < 0)
        return false;
    if (!client->ended)
        any = client_write(client);
    if (client->ended || !(client->manner & FUZZ_DEAF))
        any |= client_read(client);
    return any;
}

static void client_end(struct fuzz_client *client, struct nbd_export *export)
{
    struct nbd_connection *connection = list_first(&export->connections, struct nbd_connection, in_export);

    client->ended = true;
    if (client->manner & FUZZ_STOP && connection)
        nbd_connection_stop(connection);
    if (client->manner & FUZZ_VANISH) {
        close(client->fd);
        client->fd = -1;
    } else {
        shutdown(client->fd, SHUT_WR);
    }
}

static void fuzz_resume(struct fuzz_client *client, struct nbd_export *export)
{
    if (client->manner & FUZZ_GROW)
        atomic_store(&export->scratch, consumer_scratch(&export->export->consumer) + 256);
    consumer_resume_loop(&export->export->consumer, loop);
}

/* Neither side can go on by itself: what happens next in the world. */
static void fuzz_at_rest(struct fuzz_client *client, struct nbd_export *export)
{
    uint64_t next = timer_next(loop);

    if (next != UINT64_MAX)
        clock_ns = next > clock_ns ? next : clock_ns;
    else if (client->manner & FUZZ_STOP && !client->ended)
        client_end(client, export);
    else if (export->export->consumer.loops[loop->index].paused)
        fuzz_resume(client, export);
    else if (!client->ended)
        client_end(client, export);
    else
        ensure(false, "the connection does not end");
}

static void fuzz_run(struct fuzz_client *client, struct nbd_export *export)
{
    struct consumer *consumer = &export->export->consumer;
    unsigned quiet = 0;

    consumer->loops[loop->index].paused = client->manner & FUZZ_PAUSE;
    while (export->connection_count) {
        struct nbd_connection *connection = list_first(&export->connections, struct nbd_connection, in_export);
        bool any = client_act(client);

        /* One request that was taken below the limit always gets its buffer. */
        ensure(connection->pool.used + connection->pool.idle <= NBD_MEMORY_MAX + 2 * NBD_PAYLOAD_MAX, "much memory");
        any |= loop_turn(loop);
        quiet = any ? 0 : quiet + 1;
        if (quiet == FUZZ_REST) {
            quiet = 0;
            fuzz_at_rest(client, export);
        }
    }
    if (consumer->loops[loop->index].paused)
        consumer_resume_loop(consumer, loop);
    ensure(consumer->loops[loop->index].inflight == 0, "a request is left");
    ensure(poll_count == 0 && server.connections == 0, "something refers to a connection that is gone");
}

/* One that says how much it sends and then listens hears about all of it, unless it has said goodbye. */
static void fuzz_check_answers(struct fuzz_client *client)
{
    size_t expected = 0;

    if (!(client->mode & FUZZ_BUILT) || client->manner & (FUZZ_STOP | FUZZ_VANISH) || client->sent < client->size)
        return;
    client_read(client);
    ensure(client->skip == 0 && client->head_size == 0, "half a reply");
    while (expected < client->asked_count && client->asked[expected].type != NBD_CMD_DISC)
        expected++;
    ensure(client->answered == expected, "requests without an answer");
}

static bool fuzz_start(struct fuzz_client *client, struct nbd_export *export)
{
    struct nbd_handshake handshake = {.export = export,
                                      .context = client->mode & FUZZ_CONTEXT ? export : NULL,
                                      .structured = client->mode & (FUZZ_STRUCTURED | FUZZ_EXTENDED),
                                      .extended = client->mode & FUZZ_EXTENDED};
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
        return false;
    client->fd = fds[1];
    if (client->mode & FUZZ_EARLY)
        client->sent = client->size < client->piece ? client->size : client->piece;
    export_options.writethrough = client->mode & FUZZ_WRITETHROUGH;
    atomic_store(&export->scratch, consumer_scratch(&export->export->consumer));
    export->export->writable = !(client->mode & FUZZ_READ_ONLY);
    server.connections = 1;
    ensure(nbd_connection_start(&handshake, fds[0], client->input, client->sent) == 0, "no memory");
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    struct fuzz_client client = {
        .fd = -1, .mode = data[0], .manner = data[1], .piece = data[1] & FUZZ_PIECES ? 37 : NBD_CHUNK_SIZE};
    struct nbd_export *export = &nbd[client.mode & FUZZ_LAYERS ? 1 : 0];

    if (client.mode & FUZZ_BUILT)
        client_build(&client, data + 2, size - 2);
    else
        client_add(&client, data + 2, size - 2);
    /* Many pieces of a large input take long and show nothing new. */
    if (client.size > 1u << 18)
        client.piece = NBD_CHUNK_SIZE;
    if (fuzz_start(&client, export)) {
        fuzz_run(&client, export);
        fuzz_check_answers(&client);
    }
    if (client.fd >= 0)
        close(client.fd);
    free(client.input);
    free(client.asked);
    return 0;
}
