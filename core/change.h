/*
 * Changes: every alteration of the graph is a list of actions that happens as
 * a whole or not at all. Adding an action prepares it and touches nothing that
 * others see; change_apply() checks the graph as it would be (loops, frozen
 * edges, permissions, file locks), drains what is affected, commits, resumes
 * and cleans up. Any failure before the commit undoes all in reverse.
 *
 * Changes run in coroutines of the main loop, one at a time: change_new()
 * waits for the previous one.
 */
#ifndef CORE_CHANGE_H
#define CORE_CHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/edge.h"

struct change;
struct error;
struct node;

struct change_type {
    const char *name;
    int (*settle)(void *action, struct error *err);     /* optional: under the drain, may wait and fail */
    void (*commit)(void *action);                       /* optional: cannot fail, must not wait */
    void (*abort)(void *action);                        /* optional: in reverse order; may wait */
    void (*clean)(void *action);                        /* optional: after either; may wait */
};

/* Waits until no other change is under way. Ends with change_apply() or change_abort(). */
struct change *change_new(void);

/* Whether there is one that has begun and not ended. Main loop. */
bool change_is_under_way(void);

/* A zeroed action of size bytes at the end of the list; freed by the change after clean(). */
void *change_add(struct change *change, const struct change_type *type, size_t size);

/* edge is prepared by the caller (parent, name, role, want), has no child, and must outlive the change. */
int change_attach(struct change *change, struct edge *edge, struct node *child, struct error *err);
int change_replace(struct change *change, struct edge *edge, struct node *child, struct error *err);
int change_detach(struct change *change, struct edge *edge, struct error *err);

/* Everybody who reaches node is drained while the change is applied. */
void change_touch(struct change *change, struct node *node);

/* Orders the next graph; -ELOOP "... would form a loop", in which those who look at it would go round for ever. A part of
 * what change_apply() checks, for who adds more actions of others. */
int change_order(struct change *change, struct error *err);

/* All or nothing; frees the change either way. */
int change_apply(struct change *change, struct error *err);
void change_abort(struct change *change);

/* What a change would do, one thing: a node comes, goes or gets other options, or an edge of parent leads elsewhere. */
struct change_step {
    enum change_what { CHANGE_NODE_ADDED, CHANGE_NODE_REMOVED, CHANGE_NODE_REOPENED, CHANGE_EDGE } what;
    const char *node;               /* for an edge: the parent, of whatever kind */
    const char *edge, *from, *to;   /* names; from and to are NULL for none */
};

/* Only the checks: nobody is drained, nothing happens. If all is well, tell() hears of each step. Frees the change. */
int change_try(struct change *change, void (*tell)(const struct change_step *step, void *arg), void *arg,
               struct error *err);

/* How long a drain may take before the change fails with -ETIMEDOUT; 30 s unless told. */
extern uint64_t change_drain_limit_ns;

#endif
