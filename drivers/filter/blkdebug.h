/*
 * blkdebug: what blkdebug.c (the walk, limits), blkdebug_rules.c (events,
 * rules, breakpoints), blkdebug_config.c (rules of a file) and the commands for breakpoints share.
 *
 * A node without rules, breakpoints and limits is not `armed` and lets all
 * pass. Else requests run in coroutines, and rules and breakpoints are under
 * the guard.
 */
#ifndef DRIVERS_FILTER_BLKDEBUG_H
#define DRIVERS_FILTER_BLKDEBUG_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/colock.h"
#include "core/driver.h"
#include "core/list.h"
#include "generated/options.h"

struct blkdebug_rule {
    const struct blkdebug_inject_error_options *options;
    bool active;                    /* its event was there; those without an event: always */
    bool spent;                     /* once, and that was */
};

/* Waits for its event, then holds one request. */
struct blkdebug_break {
    struct list_link link;
    enum blkdebug_event event;
    struct coroutine *suspended;    /* NULL: not hit */
    char tag[64];
};

struct blkdebug {
    struct blkdebug_options *options;   /* owned: a copy, and the rules of `config` */
    _Atomic bool armed;
    bool limited;                   /* by any option */
    struct range_lock blocks;       /* while parts of one are written */
    pthread_mutex_t guard;
    uint64_t state;
    struct blkdebug_rule *rules;    /* one for each inject-error */
    struct list breaks;             /* struct blkdebug_break */
    unsigned quiesced;              /* loops that are: nothing waits at breakpoints */
};

/* blkdebug_config.c. Adds the rules of the file; its errors name it and the line. */
int blkdebug_config_read(const char *name, struct blkdebug_options *io, struct error *err);

int blkdebug_rules_init(struct node *node, struct error *err);
void blkdebug_rules_destroy(struct blkdebug *debug);

/* The event happens; may wait. In a coroutine. */
void blkdebug_event(struct node *node, unsigned event);

/* The error of the first rule that fits, or 0; *immediately is of that rule. length 0: the request has no range. */
int blkdebug_error(struct blkdebug *debug, enum blkdebug_io_type type, uint64_t offset, uint64_t length,
                   bool *immediately);

/* Breakpoints that nobody has reached stay, and so does the state. */
void blkdebug_adopt(struct node *node, const void *before);

/* Lets go on who waits. */
void blkdebug_quiesce(struct node *node, bool begin);

extern const struct object_property blkdebug_properties[];

/* For the commands; main loop. "Node 'x' is not a blkdebug node", "... has no breakpoint 'y'" */
struct blkdebug *blkdebug_find(const char *node_name, struct error *err);
int blkdebug_break(struct blkdebug *debug, enum blkdebug_event event, const char *tag, struct error *err);
int blkdebug_resume(struct blkdebug *debug, const char *tag, struct error *err);

#endif
