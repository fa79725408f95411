/*
 * The driver's side of a virtqueue, split or packed (virtio 1.2, 2.7 and 2.8).
 *
 * A queue has slots, one for each request that may be in flight. What a slot's
 * chain consists of is set once and pushed as often as wanted: with indirect
 * descriptors or a split ring, pushing writes one entry of the ring. Pushes are
 * published together, so that the device sees a batch at once.
 *
 * Invariants: a slot is free, held by the caller, or in flight, and what the
 * device returns is believed only if that slot is in flight. Each queue belongs
 * to one thread; nothing here allocates or makes a system call after
 * front_queue_create(), but front_queue_kick().
 */
#ifndef TESTS_BENCH_VHOST_QUEUE_H
#define TESTS_BENCH_VHOST_QUEUE_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/bench/vhost/memory.h"

#define FRONT_QUEUE_SIZE_MAX 32768u
#define FRONT_WRITTEN_UNKNOWN UINT32_MAX

/* One buffer of a chain; those that the device reads come first. */
struct front_piece {
    uint64_t guest;
    uint32_t size;
    bool writable;
};

struct front_queue_shape {
    uint16_t size;      /* descriptors in the ring; a power of two if it is a split one */
    uint16_t slots;     /* requests in flight at most */
    uint16_t pieces;    /* buffers in a chain at most; without indirect, slots * pieces <= size */
    bool packed, indirect, event_idx;
    bool in_order;      /* needs packed or indirect; with a split ring slots == size */
};

/* A request that came back: its slot, and how many bytes the device says it wrote; FRONT_WRITTEN_UNKNOWN if an entry
 * for a later request stands for this one too. */
struct front_done {
    uint16_t slot;
    uint32_t written;
};

struct front_queue_split {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
};

struct front_queue_packed {
    struct vring_packed_desc *desc;
    struct vring_packed_desc_event *driver, *device;
};

struct front_queue {
    struct front_queue_shape shape;
    union {
        struct front_queue_split split;
        struct front_queue_packed packed;
    };
    struct vring_desc *tables;          /* indirect: in shared memory; packed without: private. One row per slot */
    uint16_t *counts;                   /* descriptors of each slot's chain */
    bool *flying;                       /* for each slot */
    uint16_t *free_slots, *order;       /* circular, of `slots` entries; order: what flies, oldest first */
    uint16_t *slot_of;                  /* by the head of a direct split chain */
    unsigned free_first, free_count, order_first, order_count, flying_count;
    uint16_t avail, published, used;    /* split: indices that run freely; packed: places in the ring */
    bool avail_wrap, used_wrap;
    uint16_t first_flags, added;        /* packed: what publishes the batch, and its descriptors */
    const struct front_memory *memory;
    int kick, call;                     /* eventfds; -1 before front_queue_create() */
};

/* Shared memory that the rings, and the indirect tables, take. Rings must lie in one region. */
size_t front_queue_ring_bytes(const struct front_queue_shape *shape);
size_t front_queue_table_bytes(const struct front_queue_shape *shape);

/* Takes its memory: rings from rings, indirect tables by front_memory_take(). -EINVAL for a shape that breaks the
 * rules above. */
int front_queue_create(struct front_queue *queue, struct front_memory *memory, void *rings,
                       const struct front_queue_shape *shape, struct error *err);
void front_queue_destroy(struct front_queue *queue);

/* Back to empty rings at their beginning; requests in flight are forgotten. */
void front_queue_reset(struct front_queue *queue);

/* A free slot, now held by the caller, or -1. They come in a circle. */
int front_queue_take(struct front_queue *queue);

/* Gives back a slot that is held. */
void front_queue_give(struct front_queue *queue, uint16_t slot);

/* What the slot's chain consists of, from now on: 1 to shape.pieces buffers. The slot is held. */
void front_queue_set(struct front_queue *queue, uint16_t slot, const struct front_piece *pieces, unsigned count);

/* Sends a slot that is held and whose chain is set. The device sees it with the next front_queue_publish(). */
void front_queue_push(struct front_queue *queue, uint16_t slot);

/* Shows the device what was pushed; true when it wants a kick. */
bool front_queue_publish(struct front_queue *queue);
void front_queue_kick(const struct front_queue *queue);

/* Takes all requests that came back; their slots are held by the caller. Returns how many; done has room for
 * shape.slots. -EPROTO when the device returned what it does not have. */
int front_queue_reap(struct front_queue *queue, struct front_done *done);

/* Asks for a call when the next request comes back. False if one has come meanwhile, or a call was not asked for in
 * time: then reap before sleeping. */
bool front_queue_arm(struct front_queue *queue);

/* Calls are not wanted until the next front_queue_arm(). */
void front_queue_disarm(struct front_queue *queue);

/* What SET_VRING_BASE says about a ring whose device has vanished: the device goes on behind the last request that
 * it returned. Everything that came back must have been reaped. */
uint32_t front_queue_base(const struct front_queue *queue);

#endif
