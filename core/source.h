/*
 * Sources: stable handles. A source is an id and an ordered stack of filters
 * over a base node; exports and jobs that hold it never notice when the stack
 * changes, because their edges are moved in the same change.
 */
#ifndef CORE_SOURCE_H
#define CORE_SOURCE_H

#include <stdbool.h>

#include "core/edge.h"
#include "core/list.h"
#include "core/object.h"

struct change;
struct error;
struct node_options;

#define SOURCE_ID_MAX 63

struct source {
    char id[SOURCE_ID_MAX + 1];
    struct edge top;                /* the top filter, or the base */
    struct list consumers;          /* struct consumer, by in_source */
    struct list_link in_registry;
    bool leaving;                   /* in a change that takes it out: nobody finds it */
    struct object object;           /* /sources/<id> */
};

extern struct list source_registry;

struct source *source_find(const char *id);
int source_add(struct change *change, const char *id, const char *node, struct source **ret, struct error *err);
int source_remove(struct change *change, struct source *source, struct error *err);

/* Adds to change: the source and all who hold it have their top at node. */
int source_move(struct change *change, struct source *source, struct node *node, struct error *err);

/*
 * A place in the graph where a filter can be put in or taken out: above the
 * filter number `depth` of a source, 0 being the top, or on an edge of a node.
 */
struct source_place {
    struct source *source;          /* NULL: */
    struct node *parent;
    const char *child;
    unsigned depth;
};

/* What is at the place in the next graph. -ENOENT: there is no such edge, or the stack is not that deep. */
int source_place_get(const struct source_place *place, struct node **ret, struct error *err);

/* Adds to change: what is at the place is node. */
int source_place_set(struct change *change, const struct source_place *place, struct node *node, struct error *err);

/* Adds to change: a filter comes between the place and what is there. It is a node that is there already, or made from
 * options, which leave the filtered child out; then it goes when nobody has it any more. */
int source_push(struct change *change, const struct source_place *place, const struct node_options *options,
                struct node *filter, struct error *err);

/* Adds to change: the filter called name is taken out of the stack of the source, or off the edge. */
int source_pop(struct change *change, const struct source_place *place, const char *name, struct error *err);

/* Adds to change: below the filters of the source is another node. */
int source_switch(struct change *change, struct source *source, struct node *node, struct error *err);

/* The node below the filters on node, in the next graph. */
struct node *source_base(struct node *node);

#endif
