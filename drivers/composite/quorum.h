/*
 * quorum: what quorum.c (the driver; writes, flushes, status), quorum_read.c
 * (votes) and blkverify.c share.
 *
 * Whatever changes the disk holds the lock of its range until all children
 * have answered. A read holds nothing at first. If children say different
 * things, that may come from a write which has reached some of them: the read
 * is done again under the lock, and only what is different then is wrong.
 *
 * A child that failed to do what was done has missed something. Where so many
 * must agree that two sets of them have one in common, a vote finds that out.
 * Elsewhere who has missed something is not believed alone, and there is always
 * one who has not. A child that could not be made longer with the others is
 * short, and fails behind its end. Only with rewrite-corrupted=on, where what is
 * read is repaired, it becomes as long as they are once something is written
 * there.
 *
 * All but the lock and what is atomic is set while drained and read by all loops.
 */
#ifndef DRIVERS_COMPOSITE_QUORUM_H
#define DRIVERS_COMPOSITE_QUORUM_H

#include <stdatomic.h>

#include "core/colock.h"
#include "core/driver.h"
#include "core/fan.h"
#include "generated/options.h"

#define QUORUM_CHILDREN_MAX 32u

struct quorum {
    struct edge *children[QUORUM_CHILDREN_MAX];
    _Atomic uint64_t reported_ns[QUORUM_CHILDREN_MAX + 1];     /* last event; the last one: of the quorum itself */
    _Atomic uint64_t grown[QUORUM_CHILDREN_MAX];    /* bytes that each was grown to since the last resize */
    _Atomic uint32_t missed;                        /* a bit for each child */
    unsigned count, threshold;
    bool fifo, rewrites;
    struct range_lock lock;
};

/* What one child does for a request, in a coroutine. */
struct quorum_task {
    struct fan_task task;
    struct node *node;
    unsigned child;
    const struct request *req;
    uint64_t offset, length;            /* bytes */
    unsigned char *buf;                 /* reads and rewrites; else the request's data */
    int result;
};

static inline struct edge *quorum_task_edge(const struct quorum_task *task)
{
    const struct quorum *quorum = task->node->state;

    return quorum->children[task->child];
}

/* Takes the children that there are; quorum_open_children() fails if they do not fit together. */
int quorum_open_children(struct node *node, unsigned threshold, struct error *err);
void quorum_close(struct node *node);

/* Whether two sets of children that are enough may have none in common; and the first that can is believed. */
static inline bool quorum_is_lenient(const struct quorum *quorum)
{
    return quorum->fifo || 2 * quorum->threshold <= quorum->count;
}

/* A layer between may not have heard yet of what its file has grown to. */
static inline uint64_t quorum_child_size(const struct quorum *quorum, unsigned child)
{
    uint64_t size = atomic_load_explicit(&quorum->children[child]->child->size, memory_order_acquire);
    uint64_t grown = atomic_load_explicit(&quorum->grown[child], memory_order_acquire);

    return size > grown ? size : grown;
}

/* Whether a child, which may be short, has all of a range of the quorum. */
static inline bool quorum_child_has(const struct quorum *quorum, unsigned child, uint64_t offset, uint64_t length)
{
    return offset + length <= quorum_child_size(quorum, child);
}

/* Coroutine, before a write to a child: it has the range from now on, or -errno. */
int quorum_reach(struct node *node, unsigned child, uint64_t offset, uint64_t length);

/* Runs all tasks at the same time; returns how many went well. */
unsigned quorum_run(struct quorum_task *tasks, unsigned count, int (*run)(struct fan_task *task));

/* The error of the first task that failed. */
int quorum_first_error(const struct quorum_task *tasks, unsigned count);

/* Events; not more than some a second of each child. error 0: its content is not that of the others. */
void quorum_report_bad(struct node *node, unsigned child, enum quorum_report_bad_type type, const struct request *req,
                       int error);
void quorum_report_failure(struct node *node, const struct request *req);

/* quorum_read.c */
int quorum_read(struct node *node, const struct request *req);

/* The walk, and what follows from the children. */
enum step quorum_map(struct node *node, struct request *req);
enum step quorum_slow(struct node *node, struct request *req);
enum step quorum_after(struct node *node, struct request *req, void *scratch);
int quorum_resize(struct node *node, uint64_t size, struct error *err);
int quorum_grow(struct node *node, uint64_t size);
void quorum_child_resized(struct node *node, struct edge *edge);
void quorum_permissions(const struct node *node, const struct edge *edge, struct permission *io);

struct quorum_frame {
    uint64_t offset, length;
    uint32_t flags;
    uint8_t op;
    unsigned child;
};

#define QUORUM_OPS \
    (REQ_BIT(REQ_READ) | REQ_BIT(REQ_FLUSH) | REQ_BIT(REQ_STATUS) | REQ_BIT(REQ_PREFETCH) | REQ_BITS_WRITING)
/* Not REQ_FAST_ONLY: some children would have done it and others not. */
#define QUORUM_FLAGS (REQ_FUA | REQ_MAY_UNMAP | REQ_UNCHANGED)

#endif
