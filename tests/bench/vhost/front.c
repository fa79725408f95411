/* See front.h. */
#include "tests/bench/vhost/front.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/memory.h"

#define FRONT_KNOWN                                                                                               \
    (FRONT_BIT(FRONT_PROTOCOL_MQ) | FRONT_BIT(FRONT_PROTOCOL_REPLY_ACK) | FRONT_BIT(FRONT_PROTOCOL_BACKEND_REQ) | \
     FRONT_BIT(FRONT_PROTOCOL_CONFIG) | FRONT_BIT(FRONT_PROTOCOL_INFLIGHT_SHMFD) |                                \
     FRONT_BIT(FRONT_PROTOCOL_RESET_DEVICE) | FRONT_BIT(FRONT_PROTOCOL_CONFIGURE_MEM_SLOTS) |                     \
     FRONT_BIT(FRONT_PROTOCOL_STATUS))
/* Both wrap counters begin as 1 (virtio 1.2, 2.8.1). */
#define FRONT_PACKED_BEGIN 0x80008000u

int front_create(struct front *front, unsigned patience, struct error *err)
{
    *front = (struct front){.fd = -1, .backend = -1, .inflight_fd = -1, .patience = patience};
    front->broken = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return front->broken < 0 ? error_set(err, -errno, "eventfd: %s", strerror(errno)) : 0;
}

void front_destroy(struct front *front)
{
    front_disconnect(front);
    if (front->inflight_fd >= 0)
        close(front->inflight_fd);
    if (front->broken >= 0)
        close(front->broken);
}

int front_connect(struct front *front, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = front->patience};

    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(err, -ENAMETOOLONG, "the socket's path is too long: %s", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    front->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (front->fd < 0)
        return error_set(err, -errno, "socket: %s", strerror(errno));
    if (setsockopt(front->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
        setsockopt(front->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
        connect(front->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
        front_disconnect(front);
        return rc;
    }
    return 0;
}

void front_disconnect(struct front *front)
{
    if (front->fd >= 0)
        close(take_fd(&front->fd));
    if (front->backend >= 0)
        close(take_fd(&front->backend));
    front->memory_shared = false;
}

/* Sends, and waits for the answer if there must be one, or, when it can be had, for the acknowledgement. */
static int front_call(struct front *front, uint32_t request, union front_payload *payload, uint32_t size,
                      const int *fds, unsigned fd_count, struct error *err)
{
    bool ack = front_has(front, FRONT_PROTOCOL_REPLY_ACK);
    struct front_header header;
    uint64_t result;
    uint32_t room = sizeof(result);

    int rc = front_send(front->fd, request, FRONT_VERSION | (ack ? FRONT_FLAG_NEED_REPLY : 0), payload, size, fds,
                        fd_count, err);
    if (rc < 0 || !ack)
        return rc;
    rc = front_receive(front->fd, &header, &result, &room, NULL, err);
    if (rc < 0)
        return rc;
    if (header.request != request || header.flags != (FRONT_VERSION | FRONT_FLAG_REPLY) || room != sizeof(result))
        return error_set(err, -EPROTO, "the acknowledgement of message %u is malformed", request);
    return result ? error_set(err, -EIO, "the server refuses message %u", request) : 0;
}

static int front_tell(struct front *front, uint32_t request, uint64_t number, struct error *err)
{
    union front_payload payload = {.number = number};

    return front_call(front, request, &payload, sizeof(payload.number), NULL, 0, err);
}

/* The reply has the size of the payload that is sent, or of a number. */
static int front_ask(struct front *front, uint32_t request, union front_payload *payload, uint32_t sent, uint32_t due,
                     int *fd, struct error *err)
{
    struct front_header header;
    uint32_t size = sizeof(*payload);

    int rc = front_send(front->fd, request, FRONT_VERSION, payload, sent, NULL, 0, err);
    if (rc == 0)
        rc = front_receive(front->fd, &header, payload, &size, fd, err);
    if (rc == 0 && (header.request != request || header.flags != (FRONT_VERSION | FRONT_FLAG_REPLY) || size != due)) {
        if (fd && *fd >= 0)
            close(take_fd(fd));
        rc = error_set(err, -EPROTO, "the reply to message %u is malformed: message %u, flags 0x%x, %u bytes", request,
                       header.request, header.flags, size);
    }
    return rc;
}

static int front_ask_number(struct front *front, uint32_t request, uint64_t *number, struct error *err)
{
    union front_payload payload;

    int rc = front_ask(front, request, &payload, 0, sizeof(payload.number), NULL, err);
    if (rc == 0)
        *number = payload.number;
    return rc;
}

/* The device's status: bits are added, and 0 resets it. */
static int front_add_status(struct front *front, uint64_t bits, struct error *err)
{
    uint64_t status = 0;

    if (!front_has(front, FRONT_PROTOCOL_STATUS))
        return 0;
    int rc = bits ? front_ask_number(front, FRONT_GET_STATUS, &status, err) : 0;
    if (rc == 0)
        rc = front_tell(front, FRONT_SET_STATUS, bits ? status | bits : 0, err);
    if (rc == 0 && bits)
        rc = front_ask_number(front, FRONT_GET_STATUS, &status, err);
    if (rc == 0 && (status & bits) != bits)
        return error_set(err, -EIO, "the device does not take status 0x%llx", (unsigned long long)bits);
    return rc;
}

static int front_open_backend_channel(struct front *front, struct error *err)
{
    int pair[2];

    if (!front_has(front, FRONT_PROTOCOL_BACKEND_REQ))
        return 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set(err, -errno, "socketpair: %s", strerror(errno));
    front->backend = pair[0];
    int rc = front_call(front, FRONT_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1, err);
    close(pair[1]);
    return rc;
}

static int front_negotiate_protocol(struct front *front, struct error *err)
{
    front->protocol = 0;
    front->queues_max = 1;
    front->slots_max = FRONT_TABLE_REGIONS;     /* of a table */
    int rc = front_ask_number(front, FRONT_GET_PROTOCOL_FEATURES, &front->protocol_offered, err);
    if (rc == 0)
        rc = front_tell(front, FRONT_SET_PROTOCOL_FEATURES, front->protocol_offered & FRONT_KNOWN, err);
    if (rc < 0)
        return rc;
    front->protocol = front->protocol_offered & FRONT_KNOWN;
    if (front_has(front, FRONT_PROTOCOL_MQ))
        rc = front_ask_number(front, FRONT_GET_QUEUE_NUM, &front->queues_max, err);
    if (rc == 0 && front_has(front, FRONT_PROTOCOL_CONFIGURE_MEM_SLOTS))
        rc = front_ask_number(front, FRONT_GET_MAX_MEM_SLOTS, &front->slots_max, err);
    return rc < 0 ? rc : front_open_backend_channel(front, err);
}

int front_negotiate(struct front *front, uint64_t wanted, struct error *err)
{
    uint64_t needed = FRONT_BIT(VIRTIO_F_VERSION_1) | FRONT_BIT(FRONT_F_PROTOCOL_FEATURES);

    int rc = front_ask_number(front, FRONT_GET_FEATURES, &front->offered, err);
    if (rc < 0)
        return rc;
    if ((front->offered & needed) != needed)
        return error_set(err, -ENOTSUP, "the server offers features 0x%llx, without version 1 or protocol features",
                         (unsigned long long)front->offered);
    front->features = front->offered & (wanted | needed);
    rc = front_negotiate_protocol(front, err);
    if (rc == 0 && !front_has(front, FRONT_PROTOCOL_CONFIG))
        return error_set(err, -ENOTSUP, "the server does not offer its configuration");
    if (rc == 0)
        rc = front_call(front, FRONT_SET_OWNER, NULL, 0, NULL, 0, err);
    return rc < 0 ? rc : front_read_config(front, err);
}

static struct front_region front_region_of(const struct front *front, unsigned index)
{
    const struct front_memory_region *region = &front->memory->region[index];
    unsigned char *start = front->memory->base + region->start;

    return (struct front_region){
        .guest = front_memory_guest(front->memory, start), .size = region->size, .user = (uintptr_t)start};
}

static int front_tell_region(struct front *front, uint32_t request, unsigned index, struct error *err)
{
    union front_payload payload = {.region.region = front_region_of(front, index)};
    bool add = request == FRONT_ADD_MEM_REG;

    return front_call(front, request, &payload, sizeof(payload.region), add ? &front->memory->region[index].fd : NULL,
                      add, err);
}

static int front_share_table(struct front *front, struct error *err)
{
    const struct front_memory *memory = front->memory;
    union front_payload payload = {.table.count = memory->regions};
    int fds[FRONT_TABLE_REGIONS];

    for (unsigned i = 0; i < memory->regions; i++) {
        payload.table.regions[i] = front_region_of(front, i);
        fds[i] = memory->region[i].fd;
    }
    return front_call(front, FRONT_SET_MEM_TABLE, &payload,
                      (uint32_t)(offsetof(struct front_table, regions) + memory->regions * sizeof(struct front_region)),
                      fds, memory->regions, err);
}

static int front_share_memory(struct front *front, struct error *err)
{
    unsigned regions = front->memory->regions;
    int rc = 0;

    if (front->memory_shared)
        return 0;
    if (regions > front->slots_max)
        return error_set(err, -EINVAL, "%u memory regions, and the server takes %llu", regions,
                         (unsigned long long)front->slots_max);
    if (!front_has(front, FRONT_PROTOCOL_CONFIGURE_MEM_SLOTS))
        rc = front_share_table(front, err);
    else
        for (unsigned i = 0; i < regions && rc == 0; i++)
            rc = front_tell_region(front, FRONT_ADD_MEM_REG, i, err);
    front->memory_shared = rc == 0;
    return rc;
}

int front_replug_memory(struct front *front, struct error *err)
{
    unsigned last = front->memory->regions - 1;

    if (!front_has(front, FRONT_PROTOCOL_CONFIGURE_MEM_SLOTS) || !last)
        return 0;
    int rc = front_tell_region(front, FRONT_REM_MEM_REG, last, err);
    return rc < 0 ? rc : front_tell_region(front, FRONT_ADD_MEM_REG, last, err);
}

static int front_share_inflight(struct front *front, struct error *err)
{
    union front_payload payload;

    if (!front_has(front, FRONT_PROTOCOL_INFLIGHT_SHMFD))
        return 0;
    if (front->inflight_fd < 0) {
        payload.inflight =
            (struct front_inflight){.queues = (uint16_t)front->queue_count, .queue_size = front->queues[0].shape.size};
        int rc = front_ask(front, FRONT_GET_INFLIGHT_FD, &payload, sizeof(payload.inflight), sizeof(payload.inflight),
                           &front->inflight_fd, err);
        if (rc < 0)
            return rc;
        if (front->inflight_fd < 0 || !payload.inflight.size)
            return error_set(err, -EPROTO, "the server has no memory for requests in flight");
        front->inflight = payload.inflight;
    }
    payload.inflight = front->inflight;
    return front_call(front, FRONT_SET_INFLIGHT_FD, &payload, sizeof(payload.inflight), &front->inflight_fd, 1, err);
}

static int front_tell_state(struct front *front, uint32_t request, unsigned index, uint32_t num, struct error *err)
{
    union front_payload payload = {.state = {index, num}};

    return front_call(front, request, &payload, sizeof(payload.state), NULL, 0, err);
}

static int front_tell_fd(struct front *front, uint32_t request, unsigned index, int fd, struct error *err)
{
    union front_payload payload = {.number = index};

    return front_call(front, request, &payload, sizeof(payload.number), &fd, 1, err);
}

static int front_tell_address(struct front *front, unsigned index, struct error *err)
{
    const struct front_queue *queue = &front->queues[index];
    union front_payload payload = {.address.index = index};

    if (queue->shape.packed) {
        payload.address.descriptor = (uintptr_t)queue->packed.desc;
        payload.address.available = (uintptr_t)queue->packed.driver;
        payload.address.used = (uintptr_t)queue->packed.device;
    } else {
        payload.address.descriptor = (uintptr_t)queue->split.desc;
        payload.address.available = (uintptr_t)queue->split.avail;
        payload.address.used = (uintptr_t)queue->split.used;
    }
    return front_call(front, FRONT_SET_VRING_ADDR, &payload, sizeof(payload.address), NULL, 0, err);
}

static int front_start_queue(struct front *front, unsigned index, uint32_t base, struct error *err)
{
    const struct front_queue *queue = &front->queues[index];

    int rc = front_tell_state(front, FRONT_SET_VRING_NUM, index, queue->shape.size, err);
    if (rc == 0)
        rc = front_tell_state(front, FRONT_SET_VRING_BASE, index, base, err);
    if (rc == 0)
        rc = front_tell_address(front, index, err);
    if (rc == 0)
        rc = front_tell_fd(front, FRONT_SET_VRING_ERR, index, front->broken, err);
    if (rc == 0)
        rc = front_tell_fd(front, FRONT_SET_VRING_CALL, index, queue->call, err);
    if (rc == 0)
        rc = front_tell_fd(front, FRONT_SET_VRING_KICK, index, queue->kick, err);
    return rc < 0 ? rc : front_tell_state(front, FRONT_SET_VRING_ENABLE, index, 1, err);
}

int front_start(struct front *front, const uint32_t *bases, struct error *err)
{
    int rc = front_add_status(front, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, err);

    if (rc == 0)
        rc = front_tell(front, FRONT_SET_FEATURES, front->features, err);
    if (rc == 0)
        rc = front_add_status(front, VIRTIO_CONFIG_S_FEATURES_OK, err);
    if (rc == 0)
        rc = front_share_memory(front, err);
    if (rc == 0)
        rc = front_share_inflight(front, err);
    for (unsigned i = 0; i < front->queue_count && rc == 0; i++) {
        uint32_t begin = front->queues[i].shape.packed ? FRONT_PACKED_BEGIN : 0;

        rc = front_start_queue(front, i, bases ? bases[i] : begin, err);
    }
    if (rc == 0)
        rc = front_add_status(front, VIRTIO_CONFIG_S_DRIVER_OK, err);
    /* A ring starts by a kick, and kicks of before may have been lost with the back end. */
    for (unsigned i = 0; i < front->queue_count && rc == 0; i++)
        front_queue_kick(&front->queues[i]);
    return rc;
}

int front_stop(struct front *front, uint32_t *bases, struct error *err)
{
    int rc = 0;

    for (unsigned i = 0; i < front->queue_count && rc == 0; i++) {
        union front_payload payload = {.state = {i, 0}};

        rc = front_tell_state(front, FRONT_SET_VRING_ENABLE, i, 0, err);
        if (rc == 0)
            rc = front_ask(front, FRONT_GET_VRING_BASE, &payload, sizeof(payload.state), sizeof(payload.state), NULL,
                           err);
        if (rc == 0 && payload.state.index != i)
            rc = error_set(err, -EPROTO, "the base of queue %u was asked for, that of %u came", i, payload.state.index);
        if (rc == 0)
            bases[i] = payload.state.num;
    }
    return rc;
}

int front_reset(struct front *front, struct error *err)
{
    int rc = 0;

    if (front_has(front, FRONT_PROTOCOL_RESET_DEVICE))
        rc = front_call(front, FRONT_RESET_DEVICE, NULL, 0, NULL, 0, err);
    return rc < 0 ? rc : front_add_status(front, 0, err);
}

int front_read_config(struct front *front, struct error *err)
{
    union front_payload payload = {.config.size = FRONT_CONFIG_SIZE};
    uint32_t size = (uint32_t)offsetof(struct front_config, data) + FRONT_CONFIG_SIZE;

    int rc = front_ask(front, FRONT_GET_CONFIG, &payload, size, size, NULL, err);
    if (rc == 0 && payload.config.size != FRONT_CONFIG_SIZE)
        return error_set(err, -EPROTO, "the server does not tell its configuration");
    if (rc == 0)
        memcpy(&front->config, payload.config.data, FRONT_CONFIG_SIZE);
    return rc;
}

int front_write_config(struct front *front, uint32_t offset, const void *data, uint32_t size, struct error *err)
{
    union front_payload payload = {.config = {.offset = offset, .size = size}};

    if (size > FRONT_CONFIG_MAX)
        return error_set(err, -EINVAL, "%u bytes of configuration are too many", size);
    memcpy(payload.config.data, data, size);
    return front_call(front, FRONT_SET_CONFIG, &payload, (uint32_t)offsetof(struct front_config, data) + size, NULL, 0,
                      err);
}

int front_serve_backend(struct front *front, struct error *err)
{
    struct front_header header;
    struct pollfd ready = {.fd = front->backend, .events = POLLIN};
    union front_payload payload;
    uint32_t size = sizeof(payload);

    if (front->backend < 0 || poll(&ready, 1, 0) <= 0)
        return 0;
    int rc = front_receive(front->backend, &header, &payload, &size, NULL, err);
    if (rc < 0)
        return rc;
    bool changed = header.request == FRONT_BACKEND_CONFIG_CHANGE;
    if (header.flags & FRONT_FLAG_NEED_REPLY) {
        uint64_t result = !changed;

        rc = front_send(front->backend, header.request, FRONT_VERSION | FRONT_FLAG_REPLY, &result, sizeof(result), NULL,
                        0, err);
    }
    return rc < 0 ? rc : changed;
}
