/*
 * A virtqueue on its I/O loop. The main loop sets it up, starts and stops it;
 * in between it belongs to the loop alone.
 *
 * Per turn of the loop: take() takes all that the driver has made available
 * and submits it; what completes is written into the ring at once, but shown
 * to the driver (publish()) by the hook at the end of the turn, with at most
 * one call. While the loop looks at the ring by itself, kicks are suppressed;
 * before it sleeps it asks for one (arm()) and looks once more.
 *
 * What the driver writes is read once and then checked. A driver that breaks
 * the rules breaks its queue: nothing more is taken, the main loop is told why,
 * and it stops the device.
 *
 * Slots, one for each entry of the ring, are made when the queue starts; there
 * is no allocation, lock or atomic operation for a request.
 */
#ifndef DAEMON_VHOST_USER_QUEUE_H
#define DAEMON_VHOST_USER_QUEUE_H

#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "core/consumer.h"
#include "core/list.h"
#include "core/loop.h"
#include "core/request.h"
#include "daemon/vhost_user/inflight.h"
#include "daemon/vhost_user/memory.h"

#define VHOST_QUEUE_SIZE_DEFAULT 128u      /* before SET_VRING_NUM */
/* Buffers of a chain, after those that lie across regions were cut. */
#define VHOST_IOV_MAX 1024u
#define VHOST_REASON_MAX 160u

struct coroutine;
struct error;
struct vhost_queue;

/* A request from when it is taken until it is in the used ring. */
struct vhost_slot {
    struct vhost_queue *queue;
    uint8_t *status;                /* the guest's */
    uint32_t written;               /* bytes that the guest finds written if it ends well, with the status */
    uint16_t head;                  /* split: index of the first descriptor; packed: buffer id */
    uint16_t count;                 /* packed: entries of the ring */
    uint16_t entry, last;           /* packed: its first and last entry in the in-flight region */
    uint16_t next_free;             /* packed */
    bool busy;
    struct iovec iov[2];            /* short requests; others have a row of slots.iov */
    struct request request __attribute__((aligned(64)));    /* last: frames follow */
};

/* What the ring's entries said: buffers that the device reads come first. */
struct vhost_chain {
    struct iovec *iov;
    unsigned readable, count;       /* buffers to read, and all */
    uint64_t read_bytes, write_bytes;
};

/* What requests need to know of the disk. */
struct vhost_disk {
    const char *id;                 /* of the export: what GET_ID says */
    uint64_t block_mask;            /* logical block size - 1 */
    uint64_t features;              /* negotiated; main loop changes it while no queue runs */
    unsigned scratch;               /* bytes of frames that requests need; main loop */
    bool read_only;
    _Atomic bool writethrough;      /* each write is made durable */
};

struct vhost_ring_ops {
    /* From the base that was set, or from what the in-flight region says. -EINVAL. */
    int (*begin)(struct vhost_queue *queue, struct error *err);
    void (*end)(struct vhost_queue *queue);                 /* also when begin() failed */
    uint32_t (*base)(const struct vhost_queue *queue);      /* for GET_VRING_BASE */
    /* Takes and submits all that is available; how many. Broken rings: vhost_queue_break(). */
    unsigned (*take)(struct vhost_queue *queue);
    /* Once more what was in flight when the last back end vanished. */
    void (*resubmit)(struct vhost_queue *queue);
    void (*put)(struct vhost_queue *queue, struct vhost_slot *slot, uint32_t written);
    bool (*publish)(struct vhost_queue *queue);             /* true: the driver wants a call */
    bool (*arm)(struct vhost_queue *queue);                 /* false: there is something available */
    void (*disarm)(struct vhost_queue *queue);
};

extern const struct vhost_ring_ops vhost_ring_split, vhost_ring_packed;

struct vhost_ring_split_state {
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
};

/* A request that ended in this turn. */
struct vhost_packed_done {
    uint16_t id, count, entry, last;
    uint32_t written;
};

struct vhost_ring_packed_state {
    struct vring_packed_desc *desc;
    struct vring_packed_desc_event *driver, *device;
    struct vhost_packed_done *done;
    unsigned done_count;
};

struct vhost_ring {
    uint16_t unshown;               /* ended since the last show */
    bool call_due;                  /* the driver waited for something that was shown */
    const struct vhost_ring_ops *ops;
    union {
        struct vhost_ring_split_state split;
        struct vhost_ring_packed_state packed;
    };
    uint16_t size;
    uint16_t next_avail, next_used; /* split: indices that run freely; packed: places in the ring */
    uint16_t published;             /* used entries that the driver knows of */
    bool avail_wrap, used_wrap;     /* packed */
    bool event_idx, indirect;       /* negotiated */
};

struct vhost_slots {
    unsigned char *first;
    uint32_t stride;
    unsigned scratch;               /* bytes of frames in each */
    struct iovec *iov;              /* VHOST_IOV_MAX for each slot: address space, until it is used */
    unsigned busy;
    uint16_t free;                  /* packed: the first one that is free, linked by next_free */
};

/* What the front end said about a queue; main loop. */
struct vhost_queue_setup {
    uint16_t size;
    uint32_t base;
    uint64_t descriptor, used, available;   /* its user addresses */
    int kick, call, broken;                 /* eventfds, -1: none */
    bool has_address, enabled;
    bool left;                              /* the front end is gone, and has not asked for the base */
    bool halted;                            /* broken: until it is set up again */
};

/* Answers of one turn are shown as they come, so many at a time: the driver takes them while we go on, and sends new
 * requests instead of going to sleep. */
#define VHOST_SHOW 8u

struct vhost_queue {
    struct vhost_ring ring;
    struct vhost_slots slots;
    struct vhost_region view;       /* the region that was used last: guest, size, host */
    const struct vhost_memory *memory;
    struct consumer *consumer;
    const struct vhost_disk *disk;
    struct vhost_inflight inflight;
    struct iovec *chain;            /* VHOST_IOV_MAX: of the chain that is being read */
    int call;                       /* as setup.call; the loop's */
    bool armed;                     /* a kick was asked for */
    bool stopping, poller_gone;
    _Atomic bool broken;
    unsigned idle_kicks;            /* in a row, without anything available */
    struct timer pause;             /* after too many of them */
    struct poller poller;
    struct loop_hook hook;
    struct list_link in_loop;
    struct vhost_slots spare;       /* with more scratch, for the next resume */

    unsigned index;                 /* main loop, from here on */
    struct loop *loop;
    bool running;
    struct vhost_queue_setup setup;
    struct vhost_queue_control *control;
};

/* Its place and users; main loop. Outlives all work on the queue. */
struct vhost_queue_control {
    struct vhost_queue *queue;
    struct list *by_loop;           /* [LOOP_MAX]: running queues, each list its loop's */
    struct loop_message order;      /* to the loop */
    void (*run)(struct vhost_queue *queue);
    struct coroutine *waiter;
    struct loop_message report;     /* to the main loop: the queue is broken */
    void (*report_broken)(struct vhost_queue *queue);   /* main loop */
    char reason[VHOST_REASON_MAX];
};

static inline struct vhost_slot *vhost_slot_at(const struct vhost_queue *queue, unsigned index)
{
    return (struct vhost_slot *)(void *)(queue->slots.first + (size_t)index * queue->slots.stride);
}

static inline unsigned vhost_slot_index(const struct vhost_queue *queue, const struct vhost_slot *slot)
{
    return (unsigned)((size_t)((const unsigned char *)slot - queue->slots.first) / queue->slots.stride);
}

/* Main loop, in a coroutine: */

void vhost_queue_init(struct vhost_queue *queue, unsigned index, struct vhost_queue_control *control);
void vhost_queue_clear(struct vhost_queue *queue);      /* not running */

/* Takes up work on loop, with what setup says. features: negotiated. Errors: rings that do not lie in
 * memory or are misaligned, -ENOMEM, what the in-flight region says. */
int vhost_queue_start(struct vhost_queue *queue, struct loop *loop, uint64_t features, struct error *err);

/* When it returns, all that was taken is answered, and setup.base is where to go on. */
void vhost_queue_stop(struct vhost_queue *queue);

/* setup.call is another one: the loop uses it when this returns. */
void vhost_queue_call_changed(struct vhost_queue *queue);

/* Main loop: more scratch from the next resume on. -ENOMEM. */
int vhost_queue_scratch(struct vhost_queue *queue, unsigned scratch);

/* On the loop: */

void vhost_queue_resumed(struct vhost_queue *queue);

/* Shows the driver what ended. It is called at the end of the turn. */
void vhost_queue_show(struct vhost_queue *queue);
/* Nothing more is taken. Told once. */
void vhost_queue_break(struct vhost_queue *queue, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One more buffer of the chain. False when the queue is broken. */
bool vhost_chain_add(struct vhost_queue *queue, struct vhost_chain *chain, uint64_t guest, uint32_t size,
                     bool writable);
/* The same for an indirect table of size bytes; linked: by `next` as in a split ring, else in order. */
bool vhost_chain_add_table(struct vhost_queue *queue, struct vhost_chain *chain, uint64_t guest, uint32_t size,
                           bool linked);

/* The request of the chain, in a slot whose head is set: carried out, or answered. False when the queue is broken: then
 * the slot is not used. blk.c */
bool vhost_blk_submit(struct vhost_queue *queue, struct vhost_slot *slot, const struct vhost_chain *chain);
void vhost_blk_done(struct request *req);

/* A value that comes out of shared memory is read now, and only now, whatever the compiler thinks. */
#define vhost_once(value)                   \
    ({                                      \
        __typeof__(value) once_ = (value);  \
        __asm__ volatile("" : "+r"(once_)); \
        once_;                              \
    })

/* The flags that make a packed descriptor available or used (virtio 1.2, 2.8.1). */
static inline uint16_t vhost_packed_flags(bool avail, bool used)
{
    return (uint16_t)(avail << VRING_PACKED_DESC_F_AVAIL | used << VRING_PACKED_DESC_F_USED);
}

static inline struct vring_desc vhost_desc_once(const void *shared)
{
    uint64_t words[2];
    struct vring_desc desc;

    memcpy(words, shared, sizeof(words));
    words[0] = vhost_once(words[0]);
    words[1] = vhost_once(words[1]);
    memcpy(&desc, words, sizeof(desc));
    return desc;
}

#endif
