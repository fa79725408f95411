/*
 * In-flight regions: which requests of a queue were taken and not answered,
 * in memory that the front end keeps when we vanish (vhost-user.rst, "Inflight
 * I/O tracking"; the layouts are given there).
 *
 * Written by the queue's loop only. A killed process leaves the stores that it
 * made in their order, so between them only the compiler must be held.
 *
 * A region is marked as unused (version 0) when its queue stops in good order,
 * so that what it says never meets a ring of another life. When the front end
 * goes away it stays: it says where the ring goes on.
 */
#ifndef DAEMON_VHOST_USER_INFLIGHT_H
#define DAEMON_VHOST_USER_INFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VHOST_INFLIGHT_ALIGN 64u

/* In `features` of the first queue's region, all of which the specification reserves: the driver has chosen
 * write-through. Front ends do not say so again to the next back end, and the driver no longer flushes. */
#define VHOST_INFLIGHT_WRITETHROUGH (UINT64_C(1) << 63)

struct error;

struct vhost_inflight_split_entry {
    uint8_t inflight, padding[5];
    uint16_t next;
    uint64_t counter;
};

struct vhost_inflight_split {
    uint64_t features;
    uint16_t version, desc_num, last_batch_head, used_idx;
    struct vhost_inflight_split_entry desc[];
};

struct vhost_inflight_packed_entry {
    uint8_t inflight, padding;
    uint16_t next, last, num;
    uint64_t counter;
    uint16_t id, flags;
    uint32_t len;
    uint64_t addr;
};

struct vhost_inflight_packed {
    uint64_t features;
    uint16_t version, desc_num, free_head, old_free_head, used_idx, old_used_idx;
    uint8_t used_wrap_counter, old_used_wrap_counter, padding[7];
    struct vhost_inflight_packed_entry desc[];
};

_Static_assert(sizeof(struct vhost_inflight_split) == 16 && sizeof(struct vhost_inflight_split_entry) == 16, "layout");
_Static_assert(offsetof(struct vhost_inflight_packed, desc) == 32 && sizeof(struct vhost_inflight_packed_entry) == 32,
               "layout");

/* A queue's part, and what is only ours. */
struct vhost_inflight {
    union {
        struct vhost_inflight_split *split;     /* NULL: not tracked */
        struct vhost_inflight_packed *packed;
        void *region;
    };
    uint64_t counter;
    uint16_t *again;                /* heads or entries to be submitted once more, oldest first */
    unsigned again_count;
    uint16_t *batch;                /* split: heads of what ended in this turn */
    unsigned batch_count;
    uint16_t *next;                 /* packed: the links between entries, as the region has them; the front end might */
    uint16_t free_head;             /* change those there */
};

/* Where a packed ring is. */
struct vhost_inflight_place {
    uint16_t index;
    bool wrap;
};

static inline void vhost_inflight_order(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Bytes of a queue's region. */
size_t vhost_inflight_size(unsigned queue_size, bool packed);

/*
 * A new life of a split ring whose used index is used_idx. 1: the region told
 * what was in flight, and `again` is set; 0: it was a fresh one; -EINVAL: it is
 * nonsense.
 */
int vhost_inflight_split_begin(struct vhost_inflight *inflight, unsigned size, uint16_t used_idx, struct error *err);

/* The same for a packed ring; used is where the ring goes on to be used, and is set if the region tells it. avail_ahead:
 * entries of the ring from there to the next available one. */
struct vring_packed_desc;
int vhost_inflight_packed_begin(struct vhost_inflight *inflight, struct vring_packed_desc *ring, unsigned size,
                                struct vhost_inflight_place *used, unsigned *avail_ahead, struct error *err);

/* The queue has stopped with nothing in flight, or has not started. */
void vhost_inflight_end(struct vhost_inflight *inflight, bool packed);

static inline void vhost_inflight_split_take(struct vhost_inflight *inflight, uint16_t head)
{
    struct vhost_inflight_split_entry *entry = &inflight->split->desc[head];

    entry->counter = inflight->counter++;
    vhost_inflight_order();
    entry->inflight = 1;
    vhost_inflight_order();
}

static inline void vhost_inflight_split_put(struct vhost_inflight *inflight, uint16_t head)
{
    inflight->split->desc[head].next = inflight->split->last_batch_head;
    vhost_inflight_order();
    inflight->split->last_batch_head = head;
    inflight->batch[inflight->batch_count++] = head;
    vhost_inflight_order();
}

/* The driver has been shown the batch, up to used_idx. */
static inline void vhost_inflight_split_publish(struct vhost_inflight *inflight, uint16_t used_idx)
{
    vhost_inflight_order();
    for (unsigned i = 0; i < inflight->batch_count; i++)
        inflight->split->desc[inflight->batch[i]].inflight = 0;
    inflight->batch_count = 0;
    vhost_inflight_order();
    inflight->split->used_idx = used_idx;
}

/* Packed: one more descriptor of a chain that begins at entry first; returns its entry. */
static inline uint16_t vhost_inflight_packed_add(struct vhost_inflight *inflight, uint64_t addr, uint32_t len,
                                                 uint16_t id, uint16_t flags)
{
    uint16_t index = inflight->free_head;
    struct vhost_inflight_packed_entry *entry = &inflight->packed->desc[index];

    entry->addr = addr;
    entry->len = len;
    entry->id = id;
    entry->flags = flags;
    inflight->free_head = inflight->next[index];
    return index;
}

/* The chain of count entries from first to last is taken. Until old_free_head moves on, nothing has happened. */
static inline void vhost_inflight_packed_take(struct vhost_inflight *inflight, uint16_t first, uint16_t last,
                                              uint16_t count)
{
    struct vhost_inflight_packed_entry *entry = &inflight->packed->desc[first];

    entry->num = count;
    entry->last = last;
    entry->counter = inflight->counter++;
    entry->inflight = 1;
    inflight->packed->free_head = inflight->free_head;
    vhost_inflight_order();
    inflight->packed->old_free_head = inflight->free_head;
    vhost_inflight_order();
}

/* The chain from first to last has ended; it is committed with the batch. */
static inline void vhost_inflight_packed_put(struct vhost_inflight *inflight, uint16_t first, uint16_t last)
{
    inflight->packed->desc[last].next = inflight->free_head;
    inflight->next[last] = inflight->free_head;
    inflight->free_head = first;
}

#endif
