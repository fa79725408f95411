/*
 * Consumers: the one place where work enters the graph. An export, a job and
 * a monitor command hold one each. In-flight counts and statistics live here,
 * per loop, as plain integers that only their loop writes; what lies below
 * counts nothing. The drain stops consumers, not nodes.
 */
#ifndef CORE_CONSUMER_H
#define CORE_CONSUMER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/edge.h"
#include "core/list.h"
#include "core/loop.h"
#include "core/request.h"

struct change;
struct consumer;
struct drain_loop;
struct error;
struct source;

struct io_stats {
    uint64_t count[REQ_OP_COUNT];       /* requests ended well */
    uint64_t failed[REQ_OP_COUNT];
    uint64_t bytes[REQ_OP_COUNT];
    uint64_t time_ns[REQ_OP_COUNT];     /* sum of submit to end, by the loop's clock */
};

struct consumer_loop {                  /* written by its loop only */
    uint32_t inflight;                  /* units of work */
    bool paused;
    struct request *parked, **parked_tail;  /* came while paused, in order */
    struct list entering;               /* coroutines that wait in consumer_enter() */
    struct drain_loop *drain;           /* who waits for inflight == 0 */
    uint64_t reported_ns;               /* last BLOCK_IO_ERROR event */
    struct io_stats stats;
} __attribute__((aligned(64)));

struct consumer_ops {
    const char *kind;                                   /* for messages: "export", "job", "command" */
    const char *(*name)(const struct consumer *consumer);
    /* Optional. On every loop of the consumer, when a pause ends. */
    void (*resumed)(struct consumer *consumer, struct loop *loop);
    /* Optional. Main loop: the node's size changed. */
    void (*resized)(struct consumer *consumer, uint64_t size);
    /* Optional. Main loop, in a change, before anything is visible: request slots need scratch
     * bytes of frames from now on. May fail. */
    int (*scratch)(struct consumer *consumer, unsigned scratch, struct error *err);
};

struct consumer {
    struct edge edge;                   /* to the node, or to the top of the source; NULL child = detached */
    struct source *source, *next_source;    /* NULL if attached to a node; what it would be, as edge.next_child */
    struct list_link in_source;         /* in source->consumers */
    struct list_link in_registry;
    const struct consumer_ops *ops;
    void *object;                       /* the owner's */
    struct consumer_loop *loops;        /* [LOOP_MAX] */
};

/* Not attached yet. name and permissions as in edge. */
void consumer_init(struct consumer *consumer, const struct consumer_ops *ops, void *object, struct permission want);
void consumer_destroy(struct consumer *consumer);       /* detached, nothing in flight */

/* Adds to change: attach to a source or node called name (a source is looked up first). */
int consumer_attach(struct change *change, struct consumer *consumer, const char *name, struct error *err);
/* Adds to change: one that is attached goes to another source or node. */
int consumer_move(struct change *change, struct consumer *consumer, const char *name, struct error *err);
/* Adds to change: detach. Nothing happens if it is not attached. */
void consumer_detach(struct change *change, struct consumer *consumer);

/*
 * A client's request enters. The caller has set op, flags, offset, length, iov,
 * iov_count, done, extents, scratch_size, client; done(req) runs on the
 * same loop, perhaps before this returns. While the consumer is paused the
 * request is parked: stop taking work when consumer_paused().
 * Range and op are the caller's to check against consumer_size() and
 * permissions; what lies outside ends with -EIO, and all with -ESHUTDOWN once
 * the consumer is detached.
 */
void consumer_submit(struct consumer *consumer, struct request *req);

static inline bool consumer_paused(const struct consumer *consumer, const struct loop *loop)
{
    return consumer->loops[loop->index].paused;
}

/* A unit of work made of several I/Os (a job's chunk), in a coroutine. enter() waits while paused. */
void consumer_enter(struct consumer *consumer);
void consumer_leave(struct consumer *consumer);

/* Bytes of what it is attached to; 0 when it is not attached. Any loop. */
static inline uint64_t consumer_size(const struct consumer *consumer);

/* The pause of a drain ends on this loop: drain.c only. */
void consumer_resume_loop(struct consumer *consumer, struct loop *loop);

extern const struct edge_parent_ops edge_parent_consumer;

/* Bytes that consumer_submit() callers must have behind each struct request. */
unsigned consumer_scratch(const struct consumer *consumer);

/* Sum over loops; main loop. */
void consumer_stats(const struct consumer *consumer, struct io_stats *ret);

extern struct list consumer_registry;   /* of struct consumer, by in_registry; main loop */

#include "core/node.h"

static inline uint64_t consumer_size(const struct consumer *consumer)
{
    const struct node *node = consumer->edge.child;

    return node ? atomic_load_explicit(&node->size, memory_order_acquire) : 0;
}

#endif
