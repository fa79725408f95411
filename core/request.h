/*
 * The request and its walk through the graph.
 *
 * A request is owned by whoever makes it (an export's slot, a coroutine's
 * stack), is never copied and never leaves the loop where it began. The walk
 * (request_walk() in request.c, the heart of the daemon) is a loop over the
 * answers of the layers: no recursion, no hop on the way back through layers
 * that did not ask to see the completion.
 *
 * Between consumer_submit() and done() the request belongs to the graph, which
 * may rewrite op, flags, offset and edge. Who needs them afterwards keeps a
 * copy: a layer in its frame, an export in its slot.
 */
#ifndef CORE_REQUEST_H
#define CORE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/ring.h"

struct consumer;
struct edge;
struct loop;
struct node;

enum request_op {
    REQ_READ,
    REQ_WRITE,
    REQ_FLUSH,          /* all writes that were answered before are durable; no range */
    REQ_DISCARD,        /* content becomes undefined, storage may go */
    REQ_WRITE_ZEROES,
    REQ_STATUS,         /* fills extents for a prefix of the range, at least one extent */
    REQ_PREFETCH,       /* a hint */
    REQ_OP_COUNT
};

#define REQ_BIT(op) (1u << (op))
#define REQ_BITS_WRITING (REQ_BIT(REQ_WRITE) | REQ_BIT(REQ_DISCARD) | REQ_BIT(REQ_WRITE_ZEROES))

enum request_flag {
    REQ_FUA = 1,            /* durable when answered (writing ops) */
    REQ_MAY_UNMAP = 2,      /* write-zeroes may leave a hole */
    REQ_FAST_ONLY = 4,      /* write-zeroes: -ENOTSUP if it is not faster than writing */
    REQ_UNCHANGED = 8,      /* nobody can notice this write: copy-on-read, stream */
    REQ_COMPRESSED = 16,    /* write compressed what gets smaller; parts of clusters are read and compressed whole */
    REQ_FILL = 32,          /* write only where the format has nothing allocated; what is copied from below it. Zeroes
                             * of a guest count as something only if there is a node below. Read, prefetch: and keep
                             * what came from below, if that goes */
    REQ_BOUNCED = 64        /* a hint on the way up: memory aligned to BUFFER_ALIGN would have saved a copy */
};

/* What a layer answers. */
enum step {
    STEP_DOWN,      /* re-aimed at req->edge (request_down() did it): go on there */
    STEP_UP,        /* finished at this layer, req->result is set: go back up */
    STEP_HELD,      /* somebody keeps it and will call request_resume() on this loop */
    STEP_SLOW       /* must wait: core runs the driver's slow() in a coroutine of this loop */
};

enum extent_flag { EXTENT_HOLE = 1, EXTENT_ZERO = 2 };  /* 0 = data; the bits of base:allocation */

struct extent {
    uint64_t length;        /* bytes */
    uint32_t flags;
};

/* Answer of REQ_STATUS: consecutive extents from the request's offset. The caller provides room
 * for limit >= 1 of them; neighbours with the same flags are merged by extent_add(). */
struct extent_list {
    uint32_t count, limit;
    struct extent *extents;
};

/* False when there is no room for one more extent. */
int extent_add(struct extent_list *list, uint64_t length, uint32_t flags);

struct request {
    struct edge *edge;              /* line 1: touched by every layer */
    uint64_t offset;                /* bytes, within edge->child */
    uint64_t length;                /* bytes; reads and writes: exactly the sum of iov */
    const struct iovec *iov;        /* data in the client's memory; NULL for ops without data */
    struct loop *loop;              /* born here, never leaves */
    struct consumer *consumer;      /* NULL: part of a larger unit of work, not counted */
    uint16_t iov_count;
    uint8_t op, epoch;
    uint32_t flags;
    int32_t result;                 /* 0 or -errno, set on the way up */
    uint32_t client;                /* of the consumer, by a number of its own: clients share evenly what is limited */

    void (*done)(struct request *req);      /* line 2. Last touch of the graph; may free or reuse req */
    struct request *next;           /* link for whoever holds it */
    struct ring_op ring;            /* used by the protocol driver that submits it */
    union {
        struct extent_list *extents;    /* REQ_STATUS */
        const struct node *bottom;      /* REQ_FILL of a read: the lowest layer to keep data of; NULL: all */
    };
    uint64_t started_ns;            /* loop clock at submit */
    uint64_t total;                 /* length at submit, for statistics */
    uint16_t scratch_used, scratch_size;    /* bytes of frames */
    uint8_t stat_op;                /* op at submit, for statistics */
    enum step (*slow)(struct node *node, struct request *req);  /* for STEP_SLOW; NULL: the driver's */

    unsigned char scratch[] __attribute__((aligned(16)));   /* frames grow upward */
};

_Static_assert(sizeof(struct request) == 128, "two cache lines");

/* Sits in req->scratch right above the driver's own scratch_size bytes, so that the top frame is
 * found from scratch_used. */
struct frame {
    struct node *node;
    uint64_t size;              /* bytes, driver's and header */
};

/* Frame bytes for a driver's scratch_size. */
#define FRAME_SIZE(scratch) ((sizeof(struct frame) + (scratch) + 15u) & ~(size_t)15)

/* Largest sum of frames of any path; node_open() refuses deeper stacks of layers with after(). */
#define SCRATCH_MAX 4096u

/* For map() and slow(): this layer wants to see the completion. Returns its scratch_size bytes
 * (not zeroed), which after() is given. At most once for each pass of a request through the node. */
void *request_frame(struct request *req, struct node *node);

/* Aims the request at edge; return its value from map(), slow() or after(). */
static inline enum step request_down(struct request *req, struct edge *edge)
{
    req->edge = edge;
    return STEP_DOWN;
}

/* Ends the request at this layer; result 0 or -errno. */
static inline enum step request_up(struct request *req, int result)
{
    req->result = result;
    return STEP_UP;
}

/* A write of nothing but zeroes becomes a write-zeroes request; unmap: one that may leave a hole. Compressed writes and
 * fills stay what they are: their flags mean nothing to write-zeroes. For what detect-zeroes does, option and filter. */
void request_detect_zeroes(struct request *req, bool unmap);

/* Continues the walk of a request that was STEP_HELD, on its own loop. */
void request_resume(struct request *req, enum step step);

/*
 * For who holds a request at node for long: a grace period (grace.h) need not wait for it, if it has not been on its
 * way to anything yet. From map() only; request_unpark() before it goes on.
 */
void request_park(struct request *req, const struct node *node);
void request_unpark(struct request *req);

/* The walk itself: core and tests only. */
void request_walk(struct request *req, enum step step);

#endif
