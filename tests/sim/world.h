/*
 * The world of the tests of the graph: one simulation with clients and disks,
 * stacks of nodes between them, and what checks every change.
 */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/change.h"
#include "tests/sim/model.h"

#define LAYERS_MAX 8

/* Raw nodes between a client and a disk, the topmost first. */
struct stack {
    unsigned count;
    uint64_t offsets[LAYERS_MAX];
    char names[LAYERS_MAX][16];
    char source[16];            /* the client holds this source; "" = the node */
};

struct world {
    struct sim *sim;
    struct model *model;
    struct stack stacks[MODEL_CLIENTS];
    unsigned next_name, steps, applied, refused;
    char *before;               /* the graph when the change began */
    bool done;
};

extern struct world world;

uint64_t world_random(uint64_t below);

/* The whole graph as text, to be compared; freed by the caller. */
char *world_picture(void);

/* Begins a change; world_apply() ends it: applies what was prepared so far with that result, and sees to it that a
 * failure leaves nothing behind. True if the change went well. */
struct change *world_begin(void);
bool world_apply(struct change *change, int result);

/* In a change: who is touched must be quiet while it happens. */
struct witness {
    struct node *nodes[4];          /* those who reach one of these */
    unsigned node_count;
    struct model_client *client;    /* touched itself, if it is attached; may be NULL */
    bool fails;                     /* the change, when all is settled */
    bool settled, ended;
};

struct witness *witness_add(struct change *change, struct node *node, struct model_client *client);

/* NULL if it fails. size 0: to the end. */
struct node *world_add_raw(struct change *change, const char *name, const char *below, uint64_t offset, uint64_t size);

/* A new stack by chance, which shows the disk from offset on. */
int stack_add(struct change *change, struct stack *stack, const struct model_disk *disk, uint64_t offset);
int stack_remove(struct change *change, const struct stack *stack);
/* Names of the topmost node, and of what lies below layer i. */
const char *stack_top(const struct stack *stack, const struct model_disk *disk);
const char *stack_below(const struct stack *stack, unsigned i, const struct model_disk *disk);

#endif
