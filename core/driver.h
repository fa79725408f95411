/*
 * The whole contract between core and a driver.
 *
 * A driver is one const struct of functions, all optional, in a file of its
 * own, with its options in schema/drivers/<name>.json. Its symbol is
 * <name>_driver with '-' as '_'; the generated driver_table[] refers to it.
 *
 * Who calls, where, and may it wait:
 *   open, close, resize, finish   main loop, in a coroutine; may wait. Children are attached before
 *                                 open(), and locked as the permissions of ROLE_METADATA edges ask;
 *                                 at close() they are gone, so that it does no I/O: core has called
 *                                 finish() and flushed the node before. close() looks at node->state only.
 *   reopen                        main loop; may wait. Others use the node meanwhile.
 *   backing, children_changed     main loop; backing may wait.
 *   grow                          any loop, in a coroutine; may wait.
 *   permissions, claim, check     main loop; must not wait. permissions looks at options, flags and the edge's name
 *                                 only: node may be one that is not open yet.
 *   map, after                    any loop, several at once; must not wait, allocate or lock.
 *   slow                          any loop, several at once, in a coroutine of that loop; may wait.
 *   quiesce                       every loop, in a drain; must not wait.
 * Who owns what:
 *   node->state    state_size zeroed bytes, core's memory, the driver's content.
 *   options        belong to core; valid from open() to close(). node->options is always what
 *                  the node is: a driver that learns a value writes it there.
 *   req            is the driver's from map() until it answers with anything but STEP_HELD, or
 *                  calls request_resume().
 *
 * slow() has map()'s signature because it is map() that may wait: a driver is
 * first written with slow() only, then given a map() for its common case.
 * Core checks at the border: ranges lie inside the node (reads, writes and the
 * rest; flush has none), only ops and flags that the driver declares arrive.
 */
#ifndef CORE_DRIVER_H
#define CORE_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/edge.h"
#include "core/error.h"
#include "core/node.h"
#include "core/object.h"
#include "core/options.h"
#include "core/request.h"

struct change;

/* What reopen() answers, if not a negative errno. */
enum reopen {
    REOPEN_AGAIN,       /* while drained: finish(), open() with the new options and children, close() what was */
    REOPEN_PREPARED,    /* next->state is the open second state: it takes the place of the first while drained */
    REOPEN_KEPT         /* the state stays: what is to change there, an action does that reopen() added to the change */
};

enum driver_kind { DRIVER_PROTOCOL, DRIVER_FORMAT, DRIVER_VIEW, DRIVER_FILTER, DRIVER_COMPOSITE };

struct driver {
    const char *name;
    enum driver_kind kind;
    uint32_t ops;                   /* REQ_BIT()s done natively; core emulates the rest (request_emulate.c) */
    uint32_t request_flags;         /* REQ_* honoured on writing ops; core emulates FUA by a flush */
    uint16_t state_size;            /* node->state, zeroed by core */
    uint16_t scratch_size;          /* bytes per request; only if after() is there */

    /* options points at the driver's own struct, e.g. struct file_options. Sets node->size. */
    int (*open)(struct node *node, const void *options, struct error *err);
    void (*close)(struct node *node);
    /*
     * Prepares for the options, flags and children of next, which node will get. Nothing may be visible yet, and it may
     * all be undone. An action of its own settles and commits when it is quiet; at its commit node has what was next's.
     * Optional: REOPEN_AGAIN.
     */
    int (*reopen)(struct node *node, struct node *next, struct change *change, struct error *err);
    /* The node has a second state now, of either kind: it takes over what is to last from the one before, and what has
     * changed there since reopen(), the size of the node too. Main loop, must not wait. Optional. */
    void (*adopt)(struct node *node, const void *before);
    /* Sets node->size; a layer above another uses edge_resize(). While drained. */
    int (*resize)(struct node *node, uint64_t size, struct error *err);
    /* The child behind edge has another size now: sets node->size if that follows. Optional; filters
     * follow their filtered child by themselves. Main loop, must not wait. */
    void (*child_resized)(struct node *node, struct edge *edge);
    /* The image on disk is made complete: before the node goes. Its users are drained, its children are still there,
     * and it may be used again afterwards. Optional; not called for read-only nodes. */
    int (*finish)(struct node *node);
    /* The node reaches at least to size bytes from now on, and what is new reads as zeroes: tells node_grown().
     * -ENOSPC if it cannot. Optional; what has a filtered child passes it on. */
    int (*grow)(struct node *node, uint64_t size);
    /* After open(), for nodes without a child of ROLE_BACKING: the options (the caller's to free) of the node that the
     * image itself names as its backing, NULL if there is none. It becomes an implicit node. Optional. */
    int (*backing)(struct node *node, struct node_options **ret, struct error *err);
    /* Edges of the node or below it were attached, changed or detached after open(). While drained, or before anybody
     * sees the node. Must not wait. Optional. */
    void (*children_changed)(struct node *node);
    /* io: the defaults for kind and role on entry. Optional. */
    void (*permissions)(const struct node *node, const struct edge *edge, struct permission *io);
    /* Whether the node can be what it would be in the change under way: its options (node_next()), its children and
     * what is below them (next_child). Main loop, must not wait. Optional. */
    int (*check)(struct node *node, struct error *err);
    /* What the whole node takes and shares has changed (file locks follow). With commit false it only
     * tries: it may fail, and must leave what the old graph needs in force; then called once
     * more with commit true, which gives up what is no longer needed and cannot fail. */
    int (*claim)(struct node *node, const struct permission *total, bool commit, struct error *err);
    enum step (*map)(struct node *node, struct request *req);
    enum step (*slow)(struct node *node, struct request *req);
    enum step (*after)(struct node *node, struct request *req, void *scratch);   /* answers DOWN or UP */
    /* For drivers that hold requests for longer than I/O takes: a drain needs them back. On this loop, from begin
     * until end nothing is held, and what was held goes on or fails; what comes meanwhile is part of larger units of
     * work. A state that was opened in between knows of neither. Optional. */
    void (*quiesce)(struct node *node, bool begin);
    /* A layer above is about to do something that tests want to know of: an enum blkdebug_event. In a coroutine, may
     * wait. Optional: see edge_event(). */
    void (*event)(struct node *node, unsigned event);
    const struct object_property *properties;   /* of the node's object besides those of all; ends with name == NULL */
};

/* Generated: all drivers, indexed by enum node_driver. */
extern const struct driver *const driver_table[];
extern const unsigned driver_count;

#endif
