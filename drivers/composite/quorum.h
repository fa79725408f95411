/*
 * quorum: what quorum.c (the driver; writes, flushes, status), quorum_read.c
 * (votes) and blkverify.c share.
 *
 * Whatever changes the disk holds the lock of its range until all children
 * have answered. A read holds nothing at first. If children say different
 * things, that may come from a write which has reached some of them: the read
 * is done again under the lock, and only what is different then is wrong.
 *
 * All but the lock is set while drained and read by all loops.
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
    unsigned count, threshold;
    bool fifo, rewrites;
    struct range_lock lock;
};

/* What one child does for a request, in a coroutine. */
struct quorum_task {
    struct fan_task task;
    struct edge *edge;
    const struct request *req;
    uint64_t offset, length;            /* bytes */
    unsigned char *buf;                 /* reads and rewrites; else the request's data */
    int result;
};

/* Takes the children that there are; quorum_open_children() fails if they do not fit together. */
int quorum_open_children(struct node *node, unsigned threshold, struct error *err);
void quorum_close(struct node *node);

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
