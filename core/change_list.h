/*
 * The inside of a change: shared by change.c (life of a change) and
 * change_graph.c (checks of the graph as it would be).
 */
#ifndef CORE_CHANGE_LIST_H
#define CORE_CHANGE_LIST_H

#include <stdbool.h>

#include "core/change.h"
#include "core/edge.h"
#include "core/list.h"

struct change;
struct consumer;
struct error;

struct change_edge {            /* an edge whose child changes */
    struct list_link link;
    struct edge *edge;
};

struct change {
    struct list actions;        /* struct change_action */
    struct list edges;          /* struct change_edge */
    struct node **touched;      /* drained though none of their edges change */
    unsigned touched_count;
    struct node **order;        /* parents before children, in the next graph */
    unsigned order_count, order_room;
};

/* A node that was made in this change is gone with its edges: abort only. */
void change_forget_edge(struct change *change, struct edge *edge);

/* Nodes that could not be opened for writing (auto-read-only), and would be written to: opened once more. */
int change_let_write(struct change *change, struct error *err);

/* Computes permissions of the next graph from order: edge->want and node->next. */
int change_permissions(struct change *change, struct error *err);

/*
 * The same for the part of the graph from root down, a node that is being made: its open() must not meet other
 * programs. Once more for the whole when the change is applied.
 */
int change_claim_below(struct change *change, struct node *root, struct error *err);

/* Lets drivers try the new permissions; change_unclaim() takes it back. */
int change_claim(struct change *change, struct error *err);
void change_unclaim(void);

/* Frame bytes of each node; prepares the consumers for what they will need. */
int change_scratch(struct change *change, struct error *err);

/* Makes it so: permissions, claims, frame bytes. */
void change_commit_graph(struct change *change);

/*
 * While drained: nodes that are reopened become what they will be, children before parents. If that fails, all are as
 * they were. node_reopen.c.
 */
int change_settle_nodes(struct change *change, struct error *err);

/* Consumers that reach what changes; *ret is the caller's to free. */
unsigned change_affected(struct change *change, struct consumer ***ret);

/* All that the change will do, as the lists have it now. */
void change_tell(const struct change *change, void (*tell)(const struct change_step *step, void *arg), void *arg);

/* Calls visit for each edge that points at node in the next graph until it says non-zero. */
int change_each_parent(const struct change *change, const struct node *node, int (*visit)(struct edge *edge, void *arg),
                       void *arg);

#endif
