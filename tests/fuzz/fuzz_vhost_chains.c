/*
 * libFuzzer target: rings, chains of descriptors, and in-flight regions. Byte
 * 0 of the input says what is negotiated, byte 1 how the disk is; then come
 * rounds. A round writes bytes into the guest's memory, and lets the device go
 * on. Addresses of the guest are small numbers, so that the fuzzer guesses
 * them; see vhost_world.h for what is where.
 */
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/fuzz/vhost_world.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Byte 0. */
enum {
    CHAINS_PACKED = 1,
    CHAINS_INDIRECT = 2,
    CHAINS_EVENT_IDX = 4,
    CHAINS_INFLIGHT = 8,
    CHAINS_SLOW = 16,
    CHAINS_EARLY = 32 /* the first round is written before the queues start */
};
/* The first byte of a round: its highest bits. */
enum { ROUND_GOES_ON = 0x40, ROUND_PAUSES = 0x80 };

#define ROUND_BYTES 63u

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    world_create("fuzz_vhost_chains");
    return 0;
}

static uint64_t chains_features(uint8_t mode)
{
    return (mode & CHAINS_PACKED ? VHOST_BIT(VIRTIO_F_RING_PACKED) : 0) |
           (mode & CHAINS_INDIRECT ? VHOST_BIT(VIRTIO_RING_F_INDIRECT_DESC) : 0) |
           (mode & CHAINS_EVENT_IDX ? VHOST_BIT(VIRTIO_RING_F_EVENT_IDX) : 0) | VHOST_BIT(VIRTIO_BLK_F_DISCARD) |
           VHOST_BIT(VIRTIO_BLK_F_WRITE_ZEROES) | VHOST_BIT(VIRTIO_BLK_F_FLUSH);
}

/* Writes one round; returns what is left. *how: its first byte. */
static const uint8_t *chains_round(struct world_front *front, const uint8_t *at, const uint8_t *end, uint8_t *how)
{
    *how = *at++;
    size_t count = *how & ROUND_BYTES, offset;

    if (end - at < 2)
        return end;
    offset = (size_t)(at[0] | at[1] << 8);
    at += 2;
    if (count > (size_t)(end - at))
        count = (size_t)(end - at);
    /* The third region, with the in-flight regions in its second half, is reached by what is odd. */
    if (offset & 1)
        offset = (offset & 0xfffe) + 2 * WORLD_REGION;
    if (offset + count > WORLD_MEMORY)
        count = WORLD_MEMORY - offset;
    memcpy(front->memory + offset, at, count);
    return at + count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *at = data + 1, *end = data + size;
    struct world_front front;
    uint8_t how = 0;

    if (size < 4)
        return 0;
    world_connect(&front, data[0] & CHAINS_SLOW);
    do {
        if (data[0] & CHAINS_EARLY)
            at = chains_round(&front, at, end, &how);
    } while (how & ROUND_GOES_ON && data[0] & CHAINS_EARLY && at < end);
    world_set_up(&front, chains_features(data[0]), data[0] & CHAINS_INFLIGHT);
    world_rest(&front);
    while (at < end) {
        at = chains_round(&front, at, end, &how);
        if (how & ROUND_PAUSES)
            world_pause(true);
        if (how & ROUND_GOES_ON)
            continue;
        eventfd_write(front.kick, 1);
        world_rest(&front);
        world_pause(false);
        world_rest(&front);
    }
    world_disconnect(&front);
    return 0;
}
