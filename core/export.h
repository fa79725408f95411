/*
 * Exports: how clients reach a node or source. The type (NBD, later
 * vhost-user-blk) is a table; the life of an export is here. Main loop only,
 * save where said.
 */
#ifndef CORE_EXPORT_H
#define CORE_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/consumer.h"
#include "core/error.h"
#include "core/list.h"
#include "core/loop.h"
#include "core/object.h"
#include "core/options.h"

struct change;
struct export;
struct export_options;

#define EXPORT_ID_MAX 255

struct export_type {
    const char *name;                           /* "nbd" */
    unsigned state_size;                        /* export->state, zeroed by core */
    /* Checks and prepares; nothing is visible to clients yet. options: the export's own branch,
     * e.g. struct nbd_export_options. The consumer is attached when this is called. May wait. */
    int (*prepare)(struct export *export, const void *options, struct error *err);
    void (*start)(struct export *export);       /* committed: clients may come. Cannot fail */
    /* Undoes prepare; also called in the end, after stop() finished. */
    void (*destroy)(struct export *export);
    /* Ends clients and stops taking new ones; calls export_stopped() once, perhaps later, when no
     * request of it is in flight any more. */
    void (*stop)(struct export *export);
    unsigned (*client_count)(const struct export *export);
    void (*resized)(struct export *export, uint64_t size);     /* optional */
    void (*resumed)(struct export *export, struct loop *loop); /* on that loop, when a drain ends; optional */
    int (*scratch)(struct export *export, unsigned scratch, struct error *err); /* see consumer_ops */
};

struct export {
    const struct export_type *type;
    char id[EXPORT_ID_MAX + 1];
    struct consumer consumer;
    struct loop **loops;            /* clients are spread over these */
    unsigned loop_count, loop_next;
    bool writable, stopping;
    bool leaving;                   /* a change removes it: a second one must not */
    void *state;
    struct export_options *options; /* owned */
    struct list_link in_registry;
    struct object object;           /* /exports/<id> */
};

extern struct list export_registry;
struct export *export_find(const char *id);

/* Adds to change. Errors as the peers': "Block export id 'x' is already in use", node unknown,
 * "Cannot ... writable" on a read-only node, what the type's prepare() says. */
int export_add(struct change *change, const struct export_options *options, struct error *err);

/* Adds to change: after the commit the export is gone or on its way: BLOCK_EXPORT_DELETED follows.
 * safe: -EBUSY "Export 'x' still in use" while it has clients. */
int export_remove(struct change *change, struct export *export, bool hard, struct error *err);

/* Adds to change: the export goes on with another source or node. */
int export_move(struct change *change, struct export *export, const char *name, struct error *err);

/* By the type, when stop() is through. */
void export_stopped(struct export *export);

/* The end: stops all and waits until they are gone; main loop coroutine. If some do not come to rest in time they stay,
 * -ETIMEDOUT tells of one, and from then on drains do not wait for long. */
int export_stop_all(struct error *err);

/* The loop for the next client, round robin. */
struct loop *export_next_loop(struct export *export);

/* The loop of an iothread, which is in use from now on, until the export ends; NULL id: io0. */
int export_use_iothread(struct export *export, const char *id, struct loop **ret, struct error *err);

/* Generated: all export types, by enum export_type_name. */
extern const struct export_type *const export_table[];
extern const unsigned export_table_count;

#endif
