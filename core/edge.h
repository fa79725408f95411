/*
 * Edges: every relation of the graph, kept by core and never by a driver. An
 * edge has a parent (node, source, export or job), a child node, a name, a
 * role and permissions. Edges change only inside a change (change.h).
 */
#ifndef CORE_EDGE_H
#define CORE_EDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/list.h"
#include "core/object.h"
#include "core/permission.h"
#include "core/request.h"

struct consumer;
struct edge;
struct error;
struct node;

enum edge_role { ROLE_DATA = 1, ROLE_METADATA = 2, ROLE_FILTERED = 4, ROLE_BACKING = 8, ROLE_PRIMARY = 16 };

struct edge_parent_ops {
    const char *kind;                                                   /* "node", "source", "export" */
    /* For messages and graph queries: the parent's own name. */
    const char *(*name)(const struct edge *edge);
    /* What the edge takes and shares in the next graph; NULL = edge->want as it is. */
    void (*permissions)(const struct edge *edge, struct permission *io);
    void (*resized)(struct edge *edge, uint64_t size);                  /* main loop; optional */
};

struct edge {
    struct node *child;             /* hot; changed only while drained */
    struct node *next_child;        /* what it would be: only inside a change, else == child */
    struct edge_parent {
        const struct edge_parent_ops *ops;
        void *object;               /* struct node *, struct source *, struct consumer * */
    } parent;
    char *name;                     /* "file", "backing", "children.2", "root": stable for life */
    uint32_t role;
    struct permission have, want;   /* in force; asked for by the parent */
    struct list_link in_child;      /* in child->parents */
    const char *frozen_by;          /* job id, or NULL */
    struct object object;           /* of edges between nodes: /nodes/<parent>/children/<name> */
};

extern const struct edge_parent_ops edge_parent_node;

/* The parent node of an edge between nodes, else NULL. */
struct node *edge_parent_node_of(const struct edge *edge);

/*
 * I/O down an edge that waits for its end; only inside a coroutine, from a
 * driver's slow(), from open() and from jobs. Not counted: the caller is part
 * of a unit of work that is. Return 0 or -errno; transfers are never short.
 */
int edge_read(struct edge *edge, uint64_t offset, void *buf, size_t size);
int edge_write(struct edge *edge, uint64_t offset, const void *buf, size_t size, uint32_t flags);
int edge_readv(struct edge *edge, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size);
int edge_writev(struct edge *edge, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size,
                uint32_t flags);
int edge_flush(struct edge *edge);
int edge_discard(struct edge *edge, uint64_t offset, uint64_t length);
int edge_write_zeroes(struct edge *edge, uint64_t offset, uint64_t length, uint32_t flags);
/* Resizes the child, from a driver's resize(). */
int edge_resize(struct edge *edge, uint64_t size, struct error *err);
int edge_status(struct edge *edge, uint64_t offset, uint64_t length, struct extent_list *extents);
/* Tells the first layer from the child down that wants to know (blkdebug); in a coroutine, and may wait. */
void edge_event(const struct edge *edge, unsigned event);
bool edge_is_watched(const struct edge *edge);      /* whether there is one */
/* The child reaches at least to size bytes from now on; what is new reads as zeroes. -ENOSPC where it cannot. */
int edge_grow(struct edge *edge, uint64_t size);

#endif
