/*
 * In-flight regions: which requests of a queue were taken and not answered,
 * in memory that the front end keeps when we vanish (vhost-user.rst, "Inflight
 * I/O tracking"; the layouts are given there).
 *
 * Written by the queue's loop only. A killed process leaves the stores that it
 * made in their order, so between them only the compiler must be held.
 *
 * A region is marked as unused (version 0) when its queue stops in good order,
 * so that what it says never meets a ring of another life.
 */
#ifndef DAEMON_VHOST_USER_INFLIGHT_H
#define DAEMON_VHOST_USER_INFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VHOST_INFLIGHT_ALIGN 64u

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
    uint16_t *batch;                /* what ended in this turn: likewise */
    unsigned batch_count;
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

/* The queue has stopped with nothing in flight. */
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

#endif
