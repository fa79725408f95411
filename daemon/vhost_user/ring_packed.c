/*
 * Packed rings (virtio 1.2, section 2.8). What ended in a turn is kept aside
 * until publish(), which writes the entries and makes the first one used last:
 * so the driver sees all of the batch or nothing, and so does a back end that
 * comes after a crash.
 */
#include <endian.h>
#include <errno.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/vhost_user/queue.h"

#define PACKED_WRAP 0x8000u

static void packed_advance(const struct vhost_ring *ring, uint16_t *place, bool *wrap, unsigned count)
{
    unsigned next = *place + count;

    if (next >= ring->size) {
        next -= ring->size;
        *wrap = !*wrap;
    }
    *place = (uint16_t)next;
}

static int packed_map(struct vhost_queue *queue, struct error *err)
{
    const struct vhost_queue_setup *setup = &queue->setup;
    struct vhost_ring_packed_state *packed = &queue->ring.packed;

    if (setup->descriptor & 15 || setup->available & 3 || setup->used & 3)
        return error_set(err, -EINVAL, "queue %u: the ring is not aligned", queue->index);
    packed->desc = vhost_memory_user(queue->memory, setup->descriptor, 16ull * setup->size);
    packed->driver = vhost_memory_user(queue->memory, setup->available, sizeof(*packed->driver));
    packed->device = vhost_memory_user(queue->memory, setup->used, sizeof(*packed->device));
    if (!packed->desc || !packed->driver || !packed->device)
        return error_set(err, -EINVAL, "queue %u: the ring does not lie inside of a memory region", queue->index);
    if ((uintptr_t)packed->desc & 15 || (uintptr_t)packed->driver & 3 || (uintptr_t)packed->device & 3)
        return error_set(err, -EINVAL, "queue %u: the memory region is not aligned", queue->index);
    return 0;
}

/* The base has both places: the available one below the used one. */
static int packed_begin(struct vhost_queue *queue, struct error *err)
{
    struct vhost_ring *ring = &queue->ring;
    uint32_t base = queue->setup.base;
    struct vhost_inflight_place used = {.index = base >> 16 & ~PACKED_WRAP, .wrap = base >> 31};
    unsigned ahead = 0;
    int result = packed_map(queue, err);

    if (result < 0)
        return result;
    ring->packed.done = memory_array(ring->size, sizeof(*ring->packed.done));
    ring->next_avail = base & ~PACKED_WRAP & UINT16_MAX;
    ring->avail_wrap = base & PACKED_WRAP;
    if (ring->next_avail >= ring->size || used.index >= ring->size)
        return error_set(err, -EINVAL, "queue %u: base 0x%x is outside of a ring of %u", queue->index, base,
                         ring->size);
    if (queue->inflight.region)
        result = vhost_inflight_packed_begin(&queue->inflight, ring->packed.desc, ring->size, &used, &ahead, err);
    ring->next_used = used.index;
    ring->used_wrap = used.wrap;
    if (result > 0) {
        /* All that was ever taken is either answered or in flight. */
        ring->next_avail = used.index;
        ring->avail_wrap = used.wrap;
        packed_advance(ring, &ring->next_avail, &ring->avail_wrap, ahead);
    }
    return result < 0 ? result : 0;
}

static void packed_end(struct vhost_queue *queue)
{
    vhost_inflight_end(&queue->inflight, true);
    free(take_ptr(&queue->ring.packed.done));
}

static uint32_t packed_base(const struct vhost_queue *queue)
{
    const struct vhost_ring *ring = &queue->ring;
    uint32_t avail = ring->next_avail | (ring->avail_wrap ? PACKED_WRAP : 0);
    uint32_t used = ring->next_used | (ring->used_wrap ? PACKED_WRAP : 0);

    return avail | used << 16;
}

static struct vring_packed_desc packed_desc_once(const struct vring_packed_desc *shared)
{
    struct vring_desc raw = vhost_desc_once(shared);
    struct vring_packed_desc desc;

    memcpy(&desc, &raw, sizeof(desc));
    return desc;
}

static bool packed_is_available(const struct vhost_ring *ring)
{
    uint16_t flags = le16toh(__atomic_load_n(&ring->packed.desc[ring->next_avail].flags, __ATOMIC_SEQ_CST));

    return (flags & vhost_packed_flags(true, true)) == vhost_packed_flags(ring->avail_wrap, !ring->avail_wrap);
}

/* One descriptor of a chain; *last: whether it is the last one. */
static bool packed_add(struct vhost_queue *queue, struct vhost_chain *chain, const struct vring_packed_desc *desc,
                       bool *last)
{
    uint16_t flags = le16toh(desc->flags);

    *last = !(flags & VRING_DESC_F_NEXT);
    if (!(flags & VRING_DESC_F_INDIRECT))
        return vhost_chain_add(queue, chain, le64toh(desc->addr), le32toh(desc->len), flags & VRING_DESC_F_WRITE);
    if (!*last || chain->count || !queue->ring.indirect) {
        vhost_queue_break(queue, "descriptor flags 0x%x", flags);
        return false;
    }
    return vhost_chain_add_table(queue, chain, le64toh(desc->addr), le32toh(desc->len), false);
}

/* Reads the chain at next_avail, and notes it in the in-flight region. The count of its descriptors; 0: broken. */
static unsigned packed_read(struct vhost_queue *queue, struct vhost_slot *slot, struct vhost_chain *chain)
{
    struct vhost_ring *ring = &queue->ring;
    uint16_t place = ring->next_avail;
    bool wrap = false, last = false;

    slot->entry = queue->inflight.free_head;
    for (unsigned count = 1; count <= ring->size; count++) {
        struct vring_packed_desc desc = packed_desc_once(&ring->packed.desc[place]);

        if (unlikely(!packed_add(queue, chain, &desc, &last)))
            return 0;
        if (unlikely(queue->inflight.region && queue->inflight.free_head >= ring->size)) {
            vhost_queue_break(queue, "more than %u descriptors in flight", ring->size);
            return 0;
        }
        if (queue->inflight.region)
            slot->last = vhost_inflight_packed_add(&queue->inflight, le64toh(desc.addr), le32toh(desc.len),
                                                   le16toh(desc.id), le16toh(desc.flags));
        if (last) {
            slot->head = le16toh(desc.id);
            return count;
        }
        packed_advance(ring, &place, &wrap, 1);
    }
    vhost_queue_break(queue, "a chain at %u is longer than the ring", ring->next_avail);
    return 0;
}

/* A slot for one more request; the driver cannot have more in flight than there are entries. */
static struct vhost_slot *packed_slot(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;

    if (unlikely(ring->packed.done_count + queue->slots.busy >= ring->size)) {
        vhost_queue_break(queue, "more than %u requests in a ring of %u", ring->size, ring->size);
        return NULL;
    }
    return vhost_slot_at(queue, queue->slots.free);
}

static bool packed_submit(struct vhost_queue *queue, struct vhost_slot *slot, const struct vhost_chain *chain)
{
    queue->slots.free = slot->next_free;
    queue->slots.busy++;
    if (likely(vhost_blk_submit(queue, slot, chain)))
        return true;
    queue->slots.busy--;
    return false;
}

static unsigned packed_take(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;
    unsigned taken = 0;

    /* Not more than a lap at once, so that others have their turn. */
    while (taken < ring->size && packed_is_available(ring)) {
        struct vhost_chain chain = {.iov = queue->chain};
        struct vhost_slot *slot = packed_slot(queue);
        unsigned count = slot ? packed_read(queue, slot, &chain) : 0;

        if (unlikely(count == 0))
            return taken;
        slot->count = (uint16_t)count;
        if (queue->inflight.region)
            vhost_inflight_packed_take(&queue->inflight, slot->entry, slot->last, slot->count);
        packed_advance(ring, &ring->next_avail, &ring->avail_wrap, count);
        if (unlikely(!packed_submit(queue, slot, &chain)))
            return taken;
        taken++;
    }
    return taken;
}

/* A chain out of the in-flight region, from entry on. False when the queue is broken. */
static bool packed_submit_again(struct vhost_queue *queue, uint16_t entry)
{
    struct vhost_inflight *inflight = &queue->inflight;
    struct vhost_chain chain = {.iov = queue->chain};
    struct vhost_slot *slot = packed_slot(queue);
    bool last = false;

    if (!slot)
        return false;
    slot->entry = entry;
    for (slot->count = 1; slot->count <= queue->ring.size; slot->count++) {
        struct vhost_inflight_packed_entry noted = inflight->packed->desc[entry];
        struct vring_packed_desc desc = {.addr = htole64(noted.addr),
                                         .len = htole32(noted.len),
                                         .id = htole16(noted.id),
                                         .flags = htole16(noted.flags)};

        vhost_inflight_order();
        if (!packed_add(queue, &chain, &desc, &last))
            return false;
        slot->last = entry;
        slot->head = noted.id;
        if (last)
            return packed_submit(queue, slot, &chain);
        entry = inflight->next[entry];
        if (entry >= queue->ring.size)
            break;
    }
    vhost_queue_break(queue, "the in-flight region has a chain without an end");
    return false;
}

static void packed_resubmit(struct vhost_queue *queue)
{
    struct vhost_inflight *inflight = &queue->inflight;
    unsigned count = inflight->again_count;

    inflight->again_count = 0;
    for (unsigned i = 0; i < count && packed_submit_again(queue, inflight->again[i]); i++)
        continue;
}

static void packed_put(struct vhost_queue *queue, struct vhost_slot *slot, uint32_t written)
{
    struct vhost_ring_packed_state *packed = &queue->ring.packed;

    packed->done[packed->done_count++] = (struct vhost_packed_done){
        .id = slot->head, .count = slot->count, .entry = slot->entry, .last = slot->last, .written = written};
    slot->next_free = queue->slots.free;
    queue->slots.free = (uint16_t)vhost_slot_index(queue, slot);
}

/* Writes the batch behind next_used; the flags that show its first entry are returned, and not written. */
static uint16_t packed_write(struct vhost_ring *ring, uint16_t *place, bool *wrap)
{
    struct vhost_ring_packed_state *packed = &ring->packed;
    uint16_t first = 0;

    for (unsigned i = 0; i < packed->done_count; i++) {
        struct vring_packed_desc *desc = &packed->desc[*place];
        uint16_t flags = htole16(vhost_packed_flags(*wrap, *wrap) | VRING_DESC_F_WRITE);

        desc->id = htole16(packed->done[i].id);
        desc->len = htole32(packed->done[i].written);
        if (i == 0)
            first = flags;
        else
            __atomic_store_n(&desc->flags, flags, __ATOMIC_RELEASE);
        packed_advance(ring, place, wrap, packed->done[i].count);
    }
    return first;
}

/* In flight are the same requests as before, until first is shown. */
static void packed_announce(struct vhost_queue *queue, uint16_t place, bool wrap)
{
    struct vhost_ring_packed_state *packed = &queue->ring.packed;
    struct vhost_inflight_packed *region = queue->inflight.packed;

    for (unsigned i = 0; i < packed->done_count; i++)
        vhost_inflight_packed_put(&queue->inflight, packed->done[i].entry, packed->done[i].last);
    region->free_head = queue->inflight.free_head;
    region->used_wrap_counter = wrap;
    vhost_inflight_order();
    region->used_idx = place;
    vhost_inflight_order();
}

static void packed_commit(struct vhost_queue *queue)
{
    struct vhost_ring_packed_state *packed = &queue->ring.packed;
    struct vhost_inflight_packed *region = queue->inflight.packed;

    vhost_inflight_order();
    for (unsigned i = 0; i < packed->done_count; i++)
        region->desc[packed->done[i].entry].inflight = 0;
    region->old_free_head = queue->inflight.free_head;
    region->old_used_wrap_counter = queue->ring.used_wrap;
    vhost_inflight_order();
    region->old_used_idx = queue->ring.next_used;
    vhost_inflight_order();
}

static bool packed_wants_call(const struct vhost_ring *ring, unsigned entries)
{
    uint16_t flags = le16toh(__atomic_load_n(&ring->packed.driver->flags, __ATOMIC_SEQ_CST));

    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !ring->event_idx)
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    uint16_t wanted = le16toh(__atomic_load_n(&ring->packed.driver->off_wrap, __ATOMIC_SEQ_CST));
    uint16_t event = wanted & (uint16_t)~PACKED_WRAP;

    if (!(wanted & PACKED_WRAP) == ring->used_wrap)
        event = (uint16_t)(event - ring->size);
    return (uint16_t)(ring->next_used - event - 1) < entries;
}

static bool packed_publish(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;
    uint16_t first = ring->next_used, place = first;
    bool wrap = ring->used_wrap;
    unsigned entries = 0;

    if (ring->packed.done_count == 0)
        return false;
    for (unsigned i = 0; i < ring->packed.done_count; i++)
        entries += ring->packed.done[i].count;
    if (queue->inflight.region) {
        packed_advance(ring, &place, &wrap, entries);
        packed_announce(queue, place, wrap);
    }
    uint16_t shown = packed_write(ring, &ring->next_used, &ring->used_wrap);

    __atomic_store_n(&ring->packed.desc[first].flags, shown, __ATOMIC_SEQ_CST);
    if (queue->inflight.region)
        packed_commit(queue);
    ring->packed.done_count = 0;
    return packed_wants_call(ring, entries);
}

static bool packed_arm(struct vhost_queue *queue)
{
    struct vhost_ring *ring = &queue->ring;
    struct vring_packed_desc_event *event = ring->packed.device;
    uint16_t place = (uint16_t)(ring->next_avail | (ring->avail_wrap ? PACKED_WRAP : 0));
    uint16_t flags = ring->event_idx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;

    __atomic_store_n(&event->off_wrap, htole16(place), __ATOMIC_RELAXED);
    __atomic_store_n(&event->flags, htole16(flags), __ATOMIC_SEQ_CST);
    return !packed_is_available(ring);
}

static void packed_disarm(struct vhost_queue *queue)
{
    __atomic_store_n(&queue->ring.packed.device->flags, htole16(VRING_PACKED_EVENT_FLAG_DISABLE), __ATOMIC_RELAXED);
}

const struct vhost_ring_ops vhost_ring_packed = {
    .begin = packed_begin,
    .end = packed_end,
    .base = packed_base,
    .take = packed_take,
    .resubmit = packed_resubmit,
    .put = packed_put,
    .publish = packed_publish,
    .arm = packed_arm,
    .disarm = packed_disarm,
};
