/*
 * throttle-group objects: the limits that throttle nodes share, and what is
 * left of them.
 *
 * Each limit is a bucket that fills with what passes and runs out at the
 * limit's rate; a request may go while the bucket is not too full. Its level
 * is kept as the time at which it would be empty, so that taking from a limit
 * is one atomic operation on one word, by any loop. Loops do that about once
 * a millisecond, for all that they may let pass in one.
 */
#ifndef DRIVERS_FILTER_THROTTLE_GROUP_H
#define DRIVERS_FILTER_THROTTLE_GROUP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/list.h"
#include "core/object.h"

struct error;
struct loop;
struct throttle_group_options;
struct throttle_limits;

enum throttle_way { THROTTLE_READ, THROTTLE_WRITE, THROTTLE_WAYS };
enum throttle_unit { THROTTLE_BYTES, THROTTLE_OPS, THROTTLE_UNITS };   /* OPS: thousandths of requests */

#define THROTTLE_ONE_OP 1000u

/* One limit. Rates are units a second; what a bucket holds is told as the time that it takes to run out. */
struct throttle_limit {
    uint64_t rate;              /* 0: no limit */
    uint64_t room_ns;
    uint64_t burst_rate;        /* 0: nothing but room_ns limits a burst */
};

/* What loops read: never changed, but replaced. */
struct throttle_rates {
    struct throttle_limit limits[THROTTLE_WAYS + 1][THROTTLE_UNITS];    /* [THROTTLE_WAYS]: both ways together */
    uint64_t lease[THROTTLE_WAYS][THROTTLE_UNITS];      /* what a loop takes at once; 0: no limit */
    uint64_t iops_size;                                 /* bytes; 0: each request counts as one */
};

struct throttle_bucket {
    _Atomic uint64_t empty_ns, burst_empty_ns;
};

struct throttle_group {
    struct object object;                       /* /objects/<id> */
    struct list nodes;                          /* struct throttle, by in_group; changed by the main loop in a change */
    _Atomic(const struct throttle_rates *) rates;       /* NULL: no limits at all */
    struct throttle_limits *set;                /* what they were made from */
    struct throttle_bucket buckets[THROTTLE_WAYS + 1][THROTTLE_UNITS];
};

/* object-add. Errors name the limit and its value. */
int throttle_group_add(const char *id, const struct throttle_group_options *options, struct error *err);
/* "Throttle group 'x' does not exist" */
struct throttle_group *throttle_group_find(const char *id, struct error *err);

/* Whether the group's limits for this way leave room now. Any loop. */
bool throttle_group_has_room(struct throttle_group *group, const struct throttle_rates *rates, enum throttle_way way,
                             uint64_t now_ns);
/* Takes units; what is taken may be used from the time on that is returned, which may lie in the past. Any loop. */
uint64_t throttle_group_take(struct throttle_group *group, const struct throttle_rates *rates, enum throttle_way way,
                             const uint64_t units[THROTTLE_UNITS], uint64_t now_ns);

/* throttle.c: the limits are others now. On each loop, for all nodes of the group. */
void throttle_limits_changed(struct loop *loop, void *group);

#endif
