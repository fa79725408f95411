/*
 * libFuzzer target: messages of a vhost-user front end. The input is a
 * sequence of records: what is sent (a good message of a kind, or any bytes),
 * with which file descriptors, and which bytes of it are other ones. Between
 * some of them the daemon runs; at the end the front end hangs up.
 */
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/fuzz/vhost_world.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first byte of a record: the request, and */
enum {
    RECORD_REST = 0x40,
    RECORD_SET_UP = 63,
    RECORD_RAW = 62,
    RECORD_KICK = 61,
    RECORD_SHRINK = 60,
    RECORD_REQUEST = 0x3f
};
/* The second: flags of the message, in its lowest four bits as they are, and */
enum { RECORD_FDS_SHIFT = 4 };

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    world_create("fuzz_vhost_messages");
    return 0;
}

/* What a good front end would send; returns its size. */
static uint32_t messages_good(uint32_t request, union vhost_payload *payload)
{
    memset(payload, 0, sizeof(*payload));
    switch (request) {
    case VHOST_SET_FEATURES:
        payload->number = VHOST_BIT(VIRTIO_F_VERSION_1) | VHOST_BIT(VHOST_F_PROTOCOL_FEATURES) |
                          VHOST_BIT(VIRTIO_RING_F_INDIRECT_DESC);
        return sizeof(payload->number);
    case VHOST_SET_PROTOCOL_FEATURES:
        payload->number = 0x1b229;
        return sizeof(payload->number);
    case VHOST_SET_MEM_TABLE:
        payload->table.count = 1;
        payload->table.regions[0] = (struct vhost_region_desc){.size = WORLD_REGION, .user_address = WORLD_USER};
        return 8 + sizeof(payload->table.regions[0]);
    case VHOST_ADD_MEM_REG:
    case VHOST_REM_MEM_REG:
        payload->region.region = (struct vhost_region_desc){
            .guest_address = WORLD_SECOND, .size = WORLD_REGION, .user_address = WORLD_USER + WORLD_SECOND};
        return sizeof(payload->region);
    case VHOST_SET_VRING_NUM:
    case VHOST_SET_VRING_ENABLE:
        payload->state.num = request == VHOST_SET_VRING_NUM ? WORLD_QUEUE_SIZE : 1;
        return sizeof(payload->state);
    case VHOST_SET_VRING_BASE:
    case VHOST_GET_VRING_BASE:
        return sizeof(payload->state);
    case VHOST_SET_VRING_ADDR:
        payload->address = (struct vhost_vring_addr){.descriptor = WORLD_USER + WORLD_DESC,
                                                     .available = WORLD_USER + WORLD_AVAIL,
                                                     .used = WORLD_USER + WORLD_USED};
        return sizeof(payload->address);
    case VHOST_GET_CONFIG:
    case VHOST_SET_CONFIG:
        payload->config.offset = request == VHOST_SET_CONFIG ? 32 : 0;
        payload->config.size = request == VHOST_SET_CONFIG ? 1 : 60;
        return 12 + payload->config.size;
    case VHOST_GET_INFLIGHT_FD:
    case VHOST_SET_INFLIGHT_FD:
        payload->inflight = (struct vhost_inflight_desc){
            .mmap_size = WORLD_REGION, .queue_count = WORLD_QUEUES, .queue_size = WORLD_QUEUE_SIZE};
        return sizeof(payload->inflight);
    case VHOST_SET_VRING_KICK:
    case VHOST_SET_VRING_CALL:
    case VHOST_SET_VRING_ERR:
    case VHOST_SET_STATUS:
        return sizeof(payload->number);
    default:
        return 0;
    }
}

/* Up to four file descriptors: by two bits how many, by the others of which kind. */
static unsigned messages_fds(struct world_front *front, uint32_t request, uint8_t how, int *fds)
{
    static const uint8_t counts[] = {0, 1, 2, 9};
    unsigned count = counts[how & 3];
    int kinds[] = {front->memory_fd, front->kick, front->channel[1]};
    bool eventfds = request >= VHOST_SET_VRING_KICK && request <= VHOST_SET_VRING_ERR;
    int good = eventfds ? front->kick : request == VHOST_SET_BACKEND_REQ_FD ? front->channel[1] : front->memory_fd;

    for (unsigned i = 0; i < count; i++)
        fds[i] = how & 4 ? kinds[how >> 3 & 1 ? 2 : eventfds ? 0 : 1] : good;
    return count;
}

static const uint8_t *messages_record(struct world_front *front, const uint8_t *at, const uint8_t *end)
{
    uint8_t head = at[0], how = at[1], changes = at[2];
    uint32_t request = head & RECORD_REQUEST;
    union vhost_payload payload;
    int fds[16];

    at += 3;
    if (request == RECORD_SET_UP) {
        world_set_up(front, how & 1 ? VHOST_BIT(VIRTIO_F_RING_PACKED) : 0, how & 2);
        return at;
    }
    if (request == RECORD_KICK) {
        eventfd_write(front->kick, 1);
        return at;
    }
    if (request == RECORD_SHRINK) {
        world_ensure(ftruncate(front->memory_fd, how & 1 ? WORLD_MEMORY : how << 8) == 0, "ftruncate");
        return at;
    }
    if (request == RECORD_RAW) {
        size_t count = changes < end - at ? changes : (size_t)(end - at);

        send(front->fd, at, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        return at + count;
    }
    uint32_t size = messages_good(request, &payload);

    /* Each change: which byte, and what it becomes; the first one may be the size. */
    for (unsigned i = 0; i < (changes & 7u) && end - at >= 2; i++, at += 2) {
        if (i == 0 && changes & 0x80)
            size = (uint32_t)(size + at[0] - 128);
        else
            payload.bytes[at[0]] = at[1];
    }
    world_send(front, request, how & 15u, &payload, size, fds,
               messages_fds(front, request, how >> RECORD_FDS_SHIFT, fds));
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *at = data + 1, *end = data + size;
    struct world_front front;

    if (size < 4)
        return 0;
    world_connect(&front, data[0] & 1);
    while (end - at >= 3) {
        bool rests = *at & RECORD_REST;

        at = messages_record(&front, at, end);
        if (rests)
            world_rest(&front);
    }
    world_rest(&front);
    world_disconnect(&front);
    return 0;
}
