/*
 * How nodes are made of options: what node_add.c and node_reopen.c share.
 */
#ifndef CORE_NODE_MAKE_H
#define CORE_NODE_MAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/node.h"
#include "core/options.h"

struct change;
struct error;

/* Where a node is defined: at the top, or inside another one. */
struct node_place {
    struct node *inside;            /* NULL: at the top */
    uint32_t role;                  /* of the edge that will lead to it */
    unsigned depth;
    bool implicit;                  /* at the top, but nobody asked for it by blockdev-add */
};

/* node_add() at a place. */
int node_add_at(struct change *change, const struct node_options *options, struct node_place place, struct node **ret,
                struct error *err);

/* A copy, with what a node that is defined there takes over from the one around it. */
struct node_options *node_inherit(const struct node_options *options, struct node_place place);

/* What does not go together, whatever the driver. */
int node_check_common(const struct node_options *options, struct error *err);

/* A node that nobody knows, without children; options become its own. Names options that have none. */
struct node *node_new(struct node_options *options, bool implicit);
/* And with what it owns: its edges too. */
void node_free(struct node *node);

/* An edge of parent, in no list of children yet. */
struct edge *node_edge_new(struct node *parent, const char *name, uint32_t role);
void node_edge_free(struct edge *edge);
/* Puts edge at the end of the children. */
void node_edge_append(struct node *node, struct edge *edge);

/* Frame bytes from the children as they are now: open() sends requests down to them. */
void node_count_scratch(struct node *node);

/* Calls visit for each reference to a child in the driver's options, with the name of its edge, until it says non-zero.
 * ref is NULL where nothing is said. */
int node_each_ref(const struct node_options *options,
                  int (*visit)(const struct option_field *field, const char *name, struct node_ref **ref, void *arg),
                  void *arg);

#endif
