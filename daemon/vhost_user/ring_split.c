/*
 * Split rings (virtio 1.2, section 2.7). A slot belongs to each descriptor,
 * and carries the requests whose chains begin there.
 */
#include <endian.h>
#include <errno.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/vhost_user/queue.h"

static uint16_t *split_avail_event(const struct vhost_ring *ring)
{
    return (uint16_t *)(void *)&ring->split.used->ring[ring->size];
}

static uint16_t *split_used_event(const struct vhost_ring *ring)
{
    return &ring->split.avail->ring[ring->size];
}

static int split_map(struct vhost_queue *queue, struct error *err)
{
    const struct vhost_queue_setup *setup = &queue->setup;
    struct vhost_ring_split_state *split = &queue->ring.split;
    uint64_t size = setup->size;

    if ((size & (size - 1)) || setup->descriptor & 15 || setup->available & 1 || setup->used & 3)
        return error_set(err, -EINVAL, "queue %u: a split ring must be aligned, and its size (%u) a power of two",
                         queue->index, setup->size);
    split->desc = vhost_memory_user(queue->memory, setup->descriptor, 16 * size);
    split->avail = vhost_memory_user(queue->memory, setup->available, 6 + 2 * size);
    split->used = vhost_memory_user(queue->memory, setup->used, 6 + 8 * size);
    if (!split->desc || !split->avail || !split->used)
        return error_set(err, -EINVAL, "queue %u: the ring does not lie inside of a memory region", queue->index);
    if ((uintptr_t)split->desc & 15 || (uintptr_t)split->avail & 1 || (uintptr_t)split->used & 3)
        return error_set(err, -EINVAL, "queue %u: the memory region is not aligned", queue->index);
    return 0;
}

static int split_begin(struct vhost_queue *queue, struct error *err)
{
    struct vhost_ring *ring = &queue->ring;
    int result = split_map(queue, err);

    if (result < 0)
        return result;
    ring->next_used = le16toh(__atomic_load_n(&ring->split.used->idx, __ATOMIC_ACQUIRE));
    ring->published = ring->next_used;
    ring->next_avail = (uint16_t)queue->setup.base;
    if (!queue->inflight.region)
        return 0;
    result = vhost_inflight_split_begin(&queue->inflight, ring->size, ring->next_used, err);
    /* All that was ever taken is either answered or in flight. */
    if (result > 0)
        ring->next_avail = (uint16_t)(ring->next_used + queue->inflight.again_count);
    return result < 0 ? result : 0;
}

static void split_end(struct vhost_queue *queue)
{
    vhost_inflight_end(&queue->inflight, false);
}

static uint32_t split_base(const struct vhost_queue *queue)
{
    return queue->ring.next_avail;
}

/* The rest of a chain that begins with desc. */
static bool split_read_rest(struct vhost_queue *queue, struct vhost_chain *chain, struct vring_desc desc)
{
    const struct vhost_ring *ring = &queue->ring;

    for (unsigned left = ring->size;;) {
        uint16_t flags = le16toh(desc.flags);

        if (flags & VRING_DESC_F_INDIRECT) {
            if (flags & VRING_DESC_F_NEXT || !ring->indirect) {
                vhost_queue_break(queue, "descriptor flags 0x%x", flags);
                return false;
            }
            return vhost_chain_add_table(queue, chain, le64toh(desc.addr), le32toh(desc.len), true);
        }
        if (!vhost_chain_add(queue, chain, le64toh(desc.addr), le32toh(desc.len), flags & VRING_DESC_F_WRITE))
            return false;
        if (!(flags & VRING_DESC_F_NEXT))
            return true;
        uint16_t next = le16toh(desc.next);

        if (next >= ring->size || --left == 0) {
            vhost_queue_break(queue,
                              next >= ring->size ? "descriptor %u is not in the ring"
                                                 : "a chain that goes on at descriptor %u is longer than the ring",
                              next);
            return false;
        }
        desc = vhost_desc_once(&ring->split.desc[next]);
    }
}

static bool split_submit(struct vhost_queue *queue, uint16_t head)
{
    struct vhost_chain chain = {.iov = queue->chain};
    struct vhost_slot *slot = vhost_slot_at(queue, head);

    if (unlikely(slot->busy)) {
        vhost_queue_break(queue, "descriptor %u is available twice", head);
        return false;
    }
    if (unlikely(!split_read_rest(queue, &chain, vhost_desc_once(&queue->ring.split.desc[head]))))
        return false;
    slot->busy = true;
    queue->slots.busy++;
    if (queue->inflight.region)
        vhost_inflight_split_take(&queue->inflight, head);
    if (likely(vhost_blk_submit(queue, slot, &chain)))
        return true;
    slot->busy = false;
    queue->slots.busy--;
    return false;
}

static unsigned split_take(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;
    const struct vring_avail *avail = ring->split.avail;
    uint16_t mask = (uint16_t)(ring->size - 1), taken = 0;
    uint16_t count = (uint16_t)(le16toh(__atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE)) - ring->next_avail);

    /* What the driver has not been shown as used, it cannot have made available again. */
    if (unlikely((uint16_t)(ring->next_used - ring->published) + queue->slots.busy + count > ring->size)) {
        vhost_queue_break(queue, "%u available entries in a ring of %u", count, ring->size);
        return 0;
    }
    while (taken < count) {
        uint16_t head = le16toh(__atomic_load_n(&avail->ring[ring->next_avail & mask], __ATOMIC_RELAXED));

        if (unlikely(head >= ring->size)) {
            vhost_queue_break(queue, "available descriptor %u is not in the ring", head);
            return taken;
        }
        if (unlikely(!split_submit(queue, head)))
            return taken;
        ring->next_avail++;
        taken++;
    }
    return taken;
}

static void split_resubmit(struct vhost_queue *queue)
{
    struct vhost_inflight *inflight = &queue->inflight;
    unsigned count = inflight->again_count;

    inflight->again_count = 0;
    for (unsigned i = 0; i < count && split_submit(queue, inflight->again[i]); i++)
        continue;
}

static void split_put(struct vhost_queue *queue, struct vhost_slot *slot, uint32_t written)
{
    struct vhost_ring *ring = &queue->ring;

    ring->split.used->ring[ring->next_used & (ring->size - 1)] =
        (struct vring_used_elem){.id = htole32(slot->head), .len = htole32(written)};
    ring->next_used++;
    if (queue->inflight.region)
        vhost_inflight_split_put(&queue->inflight, slot->head);
}

static bool split_publish(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;
    uint16_t old = ring->published, now = ring->next_used;

    if (now == old)
        return false;
    ring->published = now;
    /* Shown, then looked whether the driver waits: the driver does it the other way round. */
    __atomic_store_n(&ring->split.used->idx, htole16(now), __ATOMIC_SEQ_CST);
    if (queue->inflight.region)
        vhost_inflight_split_publish(&queue->inflight, now);
    if (!ring->event_idx)
        return !(le16toh(__atomic_load_n(&ring->split.avail->flags, __ATOMIC_SEQ_CST)) & VRING_AVAIL_F_NO_INTERRUPT);
    uint16_t event = le16toh(__atomic_load_n(split_used_event(ring), __ATOMIC_SEQ_CST));

    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

static bool split_arm(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;

    if (ring->event_idx)
        __atomic_store_n(split_avail_event(ring), htole16(ring->next_avail), __ATOMIC_SEQ_CST);
    else
        __atomic_store_n(&ring->split.used->flags, 0, __ATOMIC_SEQ_CST);
    return le16toh(__atomic_load_n(&ring->split.avail->idx, __ATOMIC_SEQ_CST)) == ring->next_avail;
}

static void split_disarm(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;

    /* With event indices, one that lies behind asks for nothing. */
    if (!ring->event_idx)
        __atomic_store_n(&ring->split.used->flags, htole16(VRING_USED_F_NO_NOTIFY), __ATOMIC_RELAXED);
}

const struct vhost_ring_ops vhost_ring_split = {
    .begin = split_begin,
    .end = split_end,
    .base = split_base,
    .take = split_take,
    .resubmit = split_resubmit,
    .put = split_put,
    .publish = split_publish,
    .arm = split_arm,
    .disarm = split_disarm,
};
