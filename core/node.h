/*
 * Nodes: identity and state of one layer. Relations are edges, format state
 * is in node->state, options are in node->options and always say what the
 * node is. A node belongs to no thread.
 */
#ifndef CORE_NODE_H
#define CORE_NODE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/edge.h"
#include "core/list.h"
#include "core/loop.h"
#include "core/object.h"
#include "core/permission.h"
#include "core/request.h"

struct change;
struct driver;
struct error;
struct node_options;
struct node_ref;

#define NODE_NAME_MAX 31

enum node_flag {
    NODE_READ_ONLY = 1,
    NODE_CORRUPTED = 2,     /* writes are refused on every path */
    NODE_IMPLICIT = 4,      /* defined inside its parent's options: dies with it */
    NODE_REMOVED = 8,       /* out of the graph, or in a change that takes it out: nobody finds it */
    NODE_UPPERMOST = 16,    /* nothing but filters is above: for what comes here nothing has been looked up */
    NODE_OPENING = 32       /* is being made: no other node can lead to it yet */
};

struct node {
    enum step (*map)(struct node *node, struct request *req);   /* hot line: what the walk reads */
    void *state;
    struct edge *filtered;          /* the child with ROLE_FILTERED, or NULL */
    struct edge **children;
    _Atomic uint32_t side_ops;      /* REQ_BIT()s that core looks at before map(): request_side.c */
    _Atomic uint32_t side_flags;    /* REQ_* likewise */
    _Atomic uint64_t size;          /* bytes */
    const struct driver *driver;

    _Atomic uint32_t flags;         /* NODE_* */
    uint16_t child_count, scratch_need;     /* bytes for frames from here down */
    /* What its driver does natively, but this node does not: set by open(), emulated by core. */
    uint32_t lacks_ops, lacks_flags;
    char name[NODE_NAME_MAX + 1];
    struct node_options *options;   /* owned; always what the node is */
    struct list parents;            /* of struct edge, by in_child */
    struct list_link in_registry;
    struct permission total;        /* folded over parents */
    struct node_next {              /* the same in the graph as it would be: change.c only */
        struct permission total;
        uint32_t scratch;
        uint8_t order;
        bool claimed, affected, reached;
        struct node *self;          /* what its reopening makes of it: options, flags, children; NULL: it stays */
        void *reopening;            /* of such a one: node_reopen.c */
    } next;
    struct object object, child_objects;    /* /nodes/<name>, /nodes/<name>/children */
};

/* The node as it would be in the change under way. Identity, parents and everything else are those of node. */
static inline struct node *node_next(struct node *node)
{
    return node->next.self ? node->next.self : node;
}

/* Driver options of the node: the member of the union for its driver. */
void *node_driver_options(const struct node *node);

/* The first child with this role, or with this name, or NULL. */
struct edge *node_child_by_role(const struct node *node, uint32_t role);
struct edge *node_child_by_name(const struct node *node, const char *name);

/* The registry. Main loop only. node_find() also sees nodes of a change that is not applied yet;
 * the list does not. NULL if there is none. */
struct node *node_find(const char *name);
extern struct list node_registry;               /* of struct node, by in_registry, in order of adding */
extern struct list node_pending;                /* the same, of the change under way */

/* Finds or fails with "Cannot find device='' nor node-name='...'", -ENODEV. */
struct node *node_lookup(const char *name, struct error *err);

/*
 * Adds to change: a node made from options (copied), its inline children
 * before it. Named at once, visible once the change is applied, gone if it is
 * not. Runs drivers' open(): only in a main loop coroutine. *ret is valid in
 * this change from now on. Errors: duplicate or malformed name, unknown child,
 * what the driver's open() says; prefixed with nothing.
 */
int node_add(struct change *change, const struct node_options *options, struct node **ret, struct error *err);

/* Adds to change: the node goes, with its inline children. -EBUSY "Node 'x' is in use ..." while
 * it has parents (in the next graph). */
int node_remove(struct change *change, struct node *node, struct error *err);

/* Adds to change, after an edge to the node went: an implicit one goes too, if nobody else has it. */
int node_release(struct change *change, struct node *node, struct error *err);

/*
 * Adds to change: the node gets these options (copied), all of them: what is
 * absent has its default again. Children that differ are attached, replaced
 * and detached; implicit children are reopened with what is defined for them
 * here, or go. State is kept where the driver can (driver->reopen), else the
 * driver closes and opens anew, all while the change has its users drained; then
 * a damaged node is as good as what is found. Errors:
 * "Cannot change the option 'x'" for what never changes, frozen edges, what
 * the driver says. Main loop coroutine.
 */
int node_reopen(struct change *change, struct node *node, const struct node_options *options, struct error *err);

/* Adds to change: the node with another child on the edge called name. ref is NULL, or null, for none: what is required
 * refuses that. "children.5" may leave gaps. By node_reopen(). */
int node_set_child(struct change *change, struct node *node, const char *name, const struct node_ref *ref,
                   struct error *err);
int node_set_child_node(struct change *change, struct node *node, const char *name, const struct node *child,
                        struct error *err);

/* Options that make the node again as it is in the next graph, with its implicit children inside; the caller's. */
struct node_options *node_describe(struct node *node);
/* The option that is the filtered child; NULL if the driver has none. */
struct node_ref **node_filtered_ref(const struct node_options *options);
/* Options for another node_reopen() in this change: its children by name, as they would be. The caller's. */
struct node_options *node_next_options(struct node *node);

/* Grows or shrinks to size bytes: a change of its own, with a drain. Main loop coroutine. Refused
 * by name: read-only nodes, users that do not share PERM_RESIZE, drivers without resize. */
int node_resize(struct node *node, uint64_t size, struct error *err);

/* Something below changed the size by itself: tells parents. Main loop. */
void node_size_changed(struct node *node, uint64_t size);

/* The node has grown to size bytes by itself: sets node->size at once, and tells parents soon. Any loop. */
void node_grown(struct node *node, uint64_t size);

/* The node is damaged: from now on writes fail on every path, one BLOCK_IMAGE_CORRUPTED event is
 * sent. offset and size are UINT64_MAX and 0 if unknown. Any loop. */
void node_corrupted(struct node *node, const char *message, uint64_t offset, uint64_t size);

#endif
