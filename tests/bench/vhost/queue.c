/*
 * See queue.h. Both sides may be out of step by any order that the memory
 * model allows: what the other side polls is stored with release and loaded
 * with acquire, and a full barrier stands between telling something and looking
 * whether the other side wants to be woken for it.
 */
#include "tests/bench/vhost/queue.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/memory.h"

/* Rings are little-endian with VIRTIO_F_VERSION_1. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are written in the machine's byte order");

#define QUEUE_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define QUEUE_USED (1u << VRING_PACKED_DESC_F_USED)
#define QUEUE_ALIGN 64u

static size_t queue_aligned(size_t size)
{
    return (size + QUEUE_ALIGN - 1) & ~(size_t)(QUEUE_ALIGN - 1);
}

static size_t queue_avail_bytes(const struct front_queue_shape *shape)
{
    return queue_aligned(sizeof(struct vring_avail) + (shape->size + 1u) * sizeof(uint16_t));
}

size_t front_queue_ring_bytes(const struct front_queue_shape *shape)
{
    size_t descriptors = queue_aligned(shape->size * sizeof(struct vring_desc));

    if (shape->packed)
        return descriptors + 2 * QUEUE_ALIGN;
    return descriptors + queue_avail_bytes(shape) +
           queue_aligned(sizeof(struct vring_used) + shape->size * sizeof(struct vring_used_elem) + sizeof(uint16_t));
}

size_t front_queue_table_bytes(const struct front_queue_shape *shape)
{
    return shape->indirect ? (size_t)shape->slots * shape->pieces * sizeof(struct vring_desc) : 0;
}

static int queue_check(const struct front_queue_shape *shape, struct error *err)
{
    uint32_t size = shape->size, needed = shape->slots * (shape->indirect ? 1u : shape->pieces);

    if (size < 1 || size > FRONT_QUEUE_SIZE_MAX || (!shape->packed && (size & (size - 1)) != 0))
        return error_set(err, -EINVAL, "a %s ring cannot have %u descriptors", shape->packed ? "packed" : "split",
                         size);
    if (shape->slots < 1 || shape->pieces < 1 || needed > size)
        return error_set(err, -EINVAL, "%u requests of %u descriptors do not fit into a ring of %u", shape->slots,
                         shape->indirect ? 1 : shape->pieces, size);
    if (shape->in_order && !shape->packed && (!shape->indirect || shape->slots != size))
        return error_set(err, -EINVAL, "a split ring in order needs indirect descriptors, and all of them");
    return 0;
}

static void queue_place(struct front_queue *queue, unsigned char *at)
{
    const struct front_queue_shape *shape = &queue->shape;
    unsigned char *behind = at + queue_aligned(shape->size * sizeof(struct vring_desc));

    if (shape->packed)
        queue->packed = (struct front_queue_packed){(void *)at, (void *)behind, (void *)(behind + QUEUE_ALIGN)};
    else
        queue->split =
            (struct front_queue_split){(void *)at, (void *)behind, (void *)(behind + queue_avail_bytes(shape))};
}

int front_queue_create(struct front_queue *queue, struct front_memory *memory, void *rings,
                       const struct front_queue_shape *shape, struct error *err)
{
    *queue = (struct front_queue){.shape = *shape, .memory = memory, .kick = -1, .call = -1};
    int rc = queue_check(shape, err);
    if (rc < 0)
        return rc;
    /* The back end may make its end of these non-blocking, and with it ours: who reads polls first. */
    queue->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->kick < 0 || queue->call < 0)
        return error_set(err, -errno, "eventfd: %s", strerror(errno));
    queue_place(queue, rings);
    if (shape->indirect)
        queue->tables = front_memory_take(memory, front_queue_table_bytes(shape), QUEUE_ALIGN);
    else if (shape->packed)
        queue->tables = memory_array((size_t)shape->slots * shape->pieces, sizeof(*queue->tables));
    queue->counts = memory_array(shape->slots, sizeof(*queue->counts));
    queue->flying = memory_array(shape->slots, sizeof(*queue->flying));
    queue->free_slots = memory_array(shape->slots, sizeof(*queue->free_slots));
    queue->order = memory_array(shape->slots, sizeof(*queue->order));
    queue->slot_of = memory_array(shape->size, sizeof(*queue->slot_of));
    front_queue_reset(queue);
    return 0;
}

void front_queue_destroy(struct front_queue *queue)
{
    if (queue->kick >= 0)
        close(queue->kick);
    if (queue->call >= 0)
        close(queue->call);
    if (!queue->shape.indirect)
        free(queue->tables);
    free(queue->counts);
    free(queue->flying);
    free(queue->free_slots);
    free(queue->order);
    free(queue->slot_of);
    *queue = (struct front_queue){.kick = -1, .call = -1};
}

void front_queue_reset(struct front_queue *queue)
{
    const struct front_queue_shape *shape = &queue->shape;
    unsigned stride = shape->indirect ? 1 : shape->pieces;

    memset(shape->packed ? (void *)queue->packed.desc : (void *)queue->split.desc, 0, front_queue_ring_bytes(shape));
    memset(queue->flying, 0, shape->slots * sizeof(*queue->flying));
    memset(queue->slot_of, 0xff, shape->size * sizeof(*queue->slot_of));
    for (unsigned i = 0; i < shape->slots; i++) {
        queue->free_slots[i] = (uint16_t)i;
        if (!shape->packed)
            queue->slot_of[i * stride] = (uint16_t)i;
    }
    queue->free_first = queue->order_first = queue->order_count = queue->flying_count = 0;
    queue->free_count = shape->slots;
    queue->avail = queue->published = queue->used = queue->added = 0;
    queue->avail_wrap = queue->used_wrap = true;
    front_queue_disarm(queue);
}

int front_queue_take(struct front_queue *queue)
{
    if (!queue->free_count)
        return -1;
    queue->free_count--;
    uint16_t slot = queue->free_slots[queue->free_first];
    if (++queue->free_first == queue->shape.slots)
        queue->free_first = 0;
    return slot;
}

void front_queue_give(struct front_queue *queue, uint16_t slot)
{
    unsigned at = queue->free_first + queue->free_count++;

    queue->free_slots[at < queue->shape.slots ? at : at - queue->shape.slots] = slot;
}

/* A row of descriptors that are linked by `next`, the first being number base of its table. */
static void queue_set_split(struct vring_desc *row, unsigned base, const struct front_piece *pieces, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned more = i + 1 < count;

        row[i] = (struct vring_desc){
            .addr = pieces[i].guest,
            .len = pieces[i].size,
            .flags = (uint16_t)((more ? VRING_DESC_F_NEXT : 0) | (pieces[i].writable ? VRING_DESC_F_WRITE : 0)),
            .next = (uint16_t)(more ? base + i + 1 : 0)};
    }
}

/* Indirect: flags other than WRITE are reserved there (2.8.8). Direct: NEXT is kept for the push. */
static void queue_set_packed(struct vring_packed_desc *row, uint16_t id, bool indirect,
                             const struct front_piece *pieces, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned more = !indirect && i + 1 < count;

        row[i] = (struct vring_packed_desc){
            .addr = pieces[i].guest,
            .len = pieces[i].size,
            .id = id,
            .flags = (uint16_t)((more ? VRING_DESC_F_NEXT : 0) | (pieces[i].writable ? VRING_DESC_F_WRITE : 0))};
    }
}

void front_queue_set(struct front_queue *queue, uint16_t slot, const struct front_piece *pieces, unsigned count)
{
    const struct front_queue_shape *shape = &queue->shape;
    struct vring_desc *row = queue->tables + (size_t)slot * shape->pieces;

    queue->counts[slot] = (uint16_t)count;
    if (shape->packed)
        queue_set_packed((struct vring_packed_desc *)row, slot, shape->indirect, pieces, count);
    else if (shape->indirect)
        queue_set_split(row, 0, pieces, count);
    else
        queue_set_split(queue->split.desc + slot * shape->pieces, slot * shape->pieces, pieces, count);
    if (!shape->packed && shape->indirect)
        queue->split.desc[slot] = (struct vring_desc){.addr = front_memory_guest(queue->memory, row),
                                                      .len = count * (uint32_t)sizeof(*row),
                                                      .flags = VRING_DESC_F_INDIRECT};
}

/* Descriptors of the ring itself that the slot's chain takes. */
static unsigned queue_taken(const struct front_queue *queue, uint16_t slot)
{
    return queue->shape.indirect ? 1 : queue->counts[slot];
}

/* One descriptor at the end of the ring; the flags of a batch's first one are held back, for they publish all. */
static void queue_push_packed(struct front_queue *queue, uint64_t guest, uint32_t size, uint16_t id, unsigned flags)
{
    struct vring_packed_desc *desc = &queue->packed.desc[queue->avail];

    desc->addr = guest;
    desc->len = size;
    desc->id = id;
    flags |= queue->avail_wrap ? QUEUE_AVAIL : QUEUE_USED;
    if (queue->added++)
        desc->flags = (uint16_t)flags;
    else
        queue->first_flags = (uint16_t)flags;
    if (++queue->avail == queue->shape.size) {
        queue->avail = 0;
        queue->avail_wrap = !queue->avail_wrap;
    }
}

void front_queue_push(struct front_queue *queue, uint16_t slot)
{
    const struct front_queue_shape *shape = &queue->shape;

    queue->flying[slot] = true;
    queue->flying_count++;
    if (shape->in_order) {
        unsigned at = queue->order_first + queue->order_count++;

        queue->order[at < shape->slots ? at : at - shape->slots] = slot;
    }
    if (!shape->packed) {
        unsigned head = shape->indirect ? slot : (unsigned)slot * shape->pieces;

        queue->split.avail->ring[queue->avail++ & (shape->size - 1)] = (uint16_t)head;
        return;
    }
    const struct vring_desc *table = queue->tables + (size_t)slot * shape->pieces;
    const struct vring_packed_desc *row = (const struct vring_packed_desc *)table;
    if (shape->indirect)
        queue_push_packed(queue, front_memory_guest(queue->memory, row), queue->counts[slot] * (uint32_t)sizeof(*row),
                          slot, VRING_DESC_F_INDIRECT);
    else
        for (unsigned i = 0; i < queue->counts[slot]; i++)
            queue_push_packed(queue, row[i].addr, row[i].len, slot, row[i].flags);
}

/* Does the device want to hear of the last `added` entries? */
static bool queue_wants_kick(const struct front_queue *queue, unsigned added)
{
    if (!queue->shape.packed) {
        const struct vring_used *used = queue->split.used;

        if (!queue->shape.event_idx)
            return !(__atomic_load_n(&used->flags, __ATOMIC_SEQ_CST) & VRING_USED_F_NO_NOTIFY);
        uint16_t event = __atomic_load_n((const uint16_t *)&used->ring[queue->shape.size], __ATOMIC_SEQ_CST);
        return vring_need_event(event, queue->avail, (uint16_t)(queue->avail - added));
    }
    /* One load, for the two halves belong together. */
    uint32_t both = __atomic_load_n((const uint32_t *)queue->packed.device, __ATOMIC_SEQ_CST);
    uint16_t place = (uint16_t)both, flags = (uint16_t)(both >> 16) & 3u;
    if (flags != VRING_PACKED_EVENT_FLAG_DESC)
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    uint16_t event = place & ((1u << VRING_PACKED_EVENT_F_WRAP_CTR) - 1);
    if ((place >> VRING_PACKED_EVENT_F_WRAP_CTR) != queue->avail_wrap)
        event = (uint16_t)(event - queue->shape.size);
    return vring_need_event(event, queue->avail, (uint16_t)(queue->avail - added));
}

/*
 * What is published, or armed below, must be visible before the look at what the device wants: sequentially consistent
 * stores and loads say so, and ThreadSanitizer, which knows no fences, understands them.
 */
bool front_queue_publish(struct front_queue *queue)
{
    unsigned added;

    if (queue->shape.packed) {
        added = queue->added;
        if (!added)
            return false;
        __atomic_store_n(&queue->packed.desc[queue->published].flags, queue->first_flags, __ATOMIC_SEQ_CST);
        queue->added = 0;
    } else {
        added = (uint16_t)(queue->avail - queue->published);
        if (!added)
            return false;
        __atomic_store_n(&queue->split.avail->idx, queue->avail, __ATOMIC_SEQ_CST);
    }
    queue->published = queue->avail;
    return queue_wants_kick(queue, added);
}

void front_queue_kick(const struct front_queue *queue)
{
    uint64_t one = 1;

    /* EAGAIN would mean that 2^64 - 2 kicks are pending. */
    while (write(queue->kick, &one, sizeof(one)) < 0 && errno == EINTR)
        continue;
}

/* In order, one entry may stand for all that was sent before it as well. */
static int queue_landed_before(struct front_queue *queue, uint16_t slot, struct front_done *done)
{
    int count = 0;

    for (uint16_t other = UINT16_MAX; other != slot; count++) {
        if (!queue->order_count)
            return -EPROTO;
        other = queue->order[queue->order_first];
        queue->order_count--;
        if (++queue->order_first == queue->shape.slots)
            queue->order_first = 0;
        done[count] = (struct front_done){other, FRONT_WRITTEN_UNKNOWN};
    }
    return count;
}

/* Fills done with what one used entry stands for, and returns how many that are. */
static int queue_landed(struct front_queue *queue, uint32_t slot, uint32_t written, struct front_done *done)
{
    int count = 1;

    if (slot >= queue->shape.slots || !queue->flying[slot])
        return -EPROTO;
    if (queue->shape.in_order)
        count = queue_landed_before(queue, (uint16_t)slot, done);
    if (count < 0)
        return count;
    done[count - 1] = (struct front_done){(uint16_t)slot, written};
    for (int i = 0; i < count; i++)
        queue->flying[done[i].slot] = false;
    queue->flying_count -= (unsigned)count;
    return count;
}

static int queue_reap_split(struct front_queue *queue, struct front_done *done)
{
    uint16_t end = __atomic_load_n(&queue->split.used->idx, __ATOMIC_ACQUIRE);
    int count = 0;

    if ((uint16_t)(end - queue->used) > queue->flying_count)
        return -EPROTO;
    while (queue->used != end) {
        const struct vring_used_elem *entry = &queue->split.used->ring[queue->used & (queue->shape.size - 1)];
        uint32_t id = entry->id;
        uint32_t slot = queue->shape.indirect || id >= queue->shape.size ? id : queue->slot_of[id];
        int landed = queue_landed(queue, slot, entry->len, done + count);

        if (landed < 0 || landed > (uint16_t)(end - queue->used))
            return -EPROTO;
        count += landed;
        queue->used = (uint16_t)(queue->used + landed);
    }
    return count;
}

static bool queue_is_used(const struct front_queue *queue)
{
    uint16_t flags = __atomic_load_n(&queue->packed.desc[queue->used].flags, __ATOMIC_SEQ_CST);

    return !(flags & QUEUE_AVAIL) == !queue->used_wrap && !(flags & QUEUE_USED) == !queue->used_wrap;
}

static int queue_reap_packed(struct front_queue *queue, struct front_done *done)
{
    int count = 0;

    while (queue->flying_count && queue_is_used(queue)) {
        const struct vring_packed_desc *desc = &queue->packed.desc[queue->used];
        int landed = queue_landed(queue, desc->id, desc->len, done + count);

        if (landed < 0)
            return landed;
        for (int i = 0; i < landed; i++) {
            unsigned next = queue->used + queue_taken(queue, done[count + i].slot);

            queue->used_wrap ^= next >= queue->shape.size;
            queue->used = (uint16_t)(next >= queue->shape.size ? next - queue->shape.size : next);
        }
        count += landed;
    }
    return count;
}

int front_queue_reap(struct front_queue *queue, struct front_done *done)
{
    return queue->shape.packed ? queue_reap_packed(queue, done) : queue_reap_split(queue, done);
}

bool front_queue_arm(struct front_queue *queue)
{
    const struct front_queue_shape *shape = &queue->shape;

    if (shape->packed) {
        uint32_t place = queue->used | (uint32_t)queue->used_wrap << VRING_PACKED_EVENT_F_WRAP_CTR;
        uint32_t flags = shape->event_idx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;

        __atomic_store_n((uint32_t *)queue->packed.driver, place | flags << 16, __ATOMIC_SEQ_CST);
        return !queue_is_used(queue) || !queue->flying_count;
    }
    if (shape->event_idx)
        __atomic_store_n(&queue->split.avail->ring[shape->size], queue->used, __ATOMIC_SEQ_CST);
    else
        __atomic_store_n(&queue->split.avail->flags, 0, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&queue->split.used->idx, __ATOMIC_SEQ_CST) == queue->used;
}

void front_queue_disarm(struct front_queue *queue)
{
    const struct front_queue_shape *shape = &queue->shape;

    /* With event indices, one that lies behind is met once in 2^16 requests. */
    if (shape->packed)
        __atomic_store_n(&queue->packed.driver->flags, VRING_PACKED_EVENT_FLAG_DISABLE, __ATOMIC_RELAXED);
    else if (!shape->event_idx)
        __atomic_store_n(&queue->split.avail->flags, VRING_AVAIL_F_NO_INTERRUPT, __ATOMIC_RELAXED);
    else
        __atomic_store_n(&queue->split.avail->ring[shape->size], (uint16_t)(queue->used - 1), __ATOMIC_RELAXED);
}

uint32_t front_queue_base(const struct front_queue *queue)
{
    if (!queue->shape.packed)
        return queue->used;
    uint32_t place = queue->used | (uint32_t)queue->used_wrap << VRING_PACKED_EVENT_F_WRAP_CTR;
    return place | place << 16;
}
