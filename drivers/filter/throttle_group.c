/*
 * throttle-group objects: see throttle_group.h.
 */
#include "drivers/filter/throttle_group.h"

#include <errno.h>
#include <inttypes.h>

#include "core/error.h"
#include "core/loop.h"
#include "core/loop_each.h"
#include "core/memory.h"
#include "generated/options.h"

#define THROTTLE_SECOND_NS 1000000000u

/* What a bucket without bursts holds, and one of bursts that last. */
#define THROTTLE_ROOM_NS 50000000u

/* What a loop takes at once is for so long. */
#define THROTTLE_LEASE_NS 1000000u

/* Nobody waits longer, and sums of times cannot overflow: 36 years. */
#define THROTTLE_NS_MAX ((uint64_t)1 << 60)

static uint64_t throttle_ns(double units, uint64_t rate)
{
    double ns = units * THROTTLE_SECOND_NS / (double)rate;

    return ns < (double)THROTTLE_NS_MAX ? (uint64_t)ns : THROTTLE_NS_MAX;
}

/* Buckets */

static uint64_t bucket_fill(_Atomic uint64_t *empty_ns, uint64_t ns, uint64_t room_ns, uint64_t now_ns)
{
    uint64_t old = atomic_load_explicit(empty_ns, memory_order_relaxed), level, filled;

    do {
        level = old > now_ns ? old : now_ns;
        filled = level - now_ns < THROTTLE_NS_MAX ? level + ns : level;
    } while (
        !atomic_compare_exchange_weak_explicit(empty_ns, &old, filled, memory_order_relaxed, memory_order_relaxed));
    return level > room_ns ? level - room_ns : 0;
}

static bool bucket_has_room(const _Atomic uint64_t *empty_ns, uint64_t room_ns, uint64_t now_ns)
{
    return atomic_load_explicit(empty_ns, memory_order_relaxed) <= now_ns + room_ns;
}

bool throttle_group_has_room(struct throttle_group *group, const struct throttle_rates *rates, enum throttle_way way,
                             uint64_t now_ns)
{
    const unsigned ways[] = {way, THROTTLE_WAYS};
    bool room = true;

    for (unsigned i = 0; i < array_size(ways); i++) {
        for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++) {
            const struct throttle_limit *limit = &rates->limits[ways[i]][unit];
            const struct throttle_bucket *bucket = &group->buckets[ways[i]][unit];

            if (limit->rate)
                room &= bucket_has_room(&bucket->empty_ns, limit->room_ns, now_ns);
            if (limit->rate && limit->burst_rate)
                room &= bucket_has_room(&bucket->burst_empty_ns, THROTTLE_ROOM_NS, now_ns);
        }
    }
    return room;
}

uint64_t throttle_group_take(struct throttle_group *group, const struct throttle_rates *rates, enum throttle_way way,
                             const uint64_t units[THROTTLE_UNITS], uint64_t now_ns)
{
    const unsigned ways[] = {way, THROTTLE_WAYS};
    uint64_t from_ns = 0;

    for (unsigned i = 0; i < array_size(ways); i++) {
        for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++) {
            const struct throttle_limit *limit = &rates->limits[ways[i]][unit];
            struct throttle_bucket *bucket = &group->buckets[ways[i]][unit];
            uint64_t start_ns = 0, burst_ns = 0;

            if (limit->rate && units[unit])
                start_ns = bucket_fill(&bucket->empty_ns, throttle_ns((double)units[unit], limit->rate), limit->room_ns,
                                       now_ns);
            if (limit->rate && limit->burst_rate && units[unit])
                burst_ns = bucket_fill(&bucket->burst_empty_ns, throttle_ns((double)units[unit], limit->burst_rate),
                                       THROTTLE_ROOM_NS, now_ns);
            start_ns = start_ns > burst_ns ? start_ns : burst_ns;
            from_ns = from_ns > start_ns ? from_ns : start_ns;
        }
    }
    return from_ns;
}

/* Limits: the members of the options as rows. */

struct throttle_row {
    const char *name;
    enum throttle_unit unit;
    unsigned way;
    size_t rate, burst, length;     /* offsets in struct throttle_limits; behind each is its has_ */
};

#define THROTTLE_ROW(text, unit_, way_, member)                                                     \
    {                                                                                               \
        .name = text, .unit = unit_, .way = way_, .rate = offsetof(struct throttle_limits, member), \
        .burst = offsetof(struct throttle_limits, member##_max),                                    \
        .length = offsetof(struct throttle_limits, member##_max_length),                            \
    }

static const struct throttle_row throttle_rows[] = {
    THROTTLE_ROW("bps-total", THROTTLE_BYTES, THROTTLE_WAYS, bps_total),
    THROTTLE_ROW("bps-read", THROTTLE_BYTES, THROTTLE_READ, bps_read),
    THROTTLE_ROW("bps-write", THROTTLE_BYTES, THROTTLE_WRITE, bps_write),
    THROTTLE_ROW("iops-total", THROTTLE_OPS, THROTTLE_WAYS, iops_total),
    THROTTLE_ROW("iops-read", THROTTLE_OPS, THROTTLE_READ, iops_read),
    THROTTLE_ROW("iops-write", THROTTLE_OPS, THROTTLE_WRITE, iops_write),
};

static uint64_t throttle_member(const struct throttle_limits *limits, size_t offset)
{
    return *(const uint64_t *)(const void *)((const char *)limits + offset);
}

static int throttle_check(const struct throttle_row *row, const struct throttle_limits *limits, struct error *err)
{
    uint64_t rate = throttle_member(limits, row->rate), burst = throttle_member(limits, row->burst),
             length = throttle_member(limits, row->length);

    if (burst && !rate)
        return error_set(err, -EINVAL, "%s-max=%" PRIu64 " needs %s", row->name, burst, row->name);
    if (burst && burst < rate)
        return error_set(err, -EINVAL, "%s-max=%" PRIu64 " is lower than %s=%" PRIu64, row->name, burst, row->name,
                         rate);
    if (length > 1 && !burst)
        return error_set(err, -EINVAL, "%s-max-length=%" PRIu64 " needs %s-max", row->name, length, row->name);
    return 0;
}

static struct throttle_limit throttle_limit_of(const struct throttle_row *row, const struct throttle_limits *limits)
{
    uint64_t one = row->unit == THROTTLE_OPS ? THROTTLE_ONE_OP : 1;
    uint64_t rate = throttle_member(limits, row->rate), burst = throttle_member(limits, row->burst),
             length = throttle_member(limits, row->length);
    struct throttle_limit limit = {.rate = rate * one, .room_ns = THROTTLE_ROOM_NS};

    if (burst) {
        limit.room_ns = throttle_ns((double)burst * (double)(length ? length : 1), rate);
        limit.burst_rate = length > 1 ? burst * one : 0;
    }
    return limit;
}

/* NULL in *ret: nothing is limited. */
static int throttle_make_rates(const struct throttle_limits *limits, struct throttle_rates **ret, struct error *err)
{
    struct throttle_rates *rates = memory_new(struct throttle_rates);
    bool any = false;

    *ret = NULL;
    rates->iops_size = limits->iops_size;
    for (unsigned i = 0; i < array_size(throttle_rows); i++) {
        const struct throttle_row *row = &throttle_rows[i];
        struct throttle_limit *limit = &rates->limits[row->way][row->unit];
        int result = throttle_check(row, limits, err);

        if (result < 0) {
            free(rates);
            return result;
        }
        *limit = throttle_limit_of(row, limits);
        any |= limit->rate != 0;
        for (unsigned way = 0; way < THROTTLE_WAYS; way++) {
            uint64_t *lease = &rates->lease[way][row->unit];
            uint64_t share = limit->rate / (THROTTLE_SECOND_NS / THROTTLE_LEASE_NS) + 1;

            if (limit->rate && (row->way == way || row->way == THROTTLE_WAYS) && (!*lease || *lease > share))
                *lease = share;
        }
    }
    if (limits->iops_size && !rates->lease[THROTTLE_READ][THROTTLE_OPS] &&
        !rates->lease[THROTTLE_WRITE][THROTTLE_OPS]) {
        free(rates);
        return error_set(err, -EINVAL, "iops-size=%" PRIu64 " needs a limit of iops", limits->iops_size);
    }
    if (any)
        *ret = rates;
    else
        free(rates);
    return 0;
}

/* What is given replaces what was set. */
static void throttle_merge(struct throttle_limits *set, const struct throttle_limits *given)
{
    for (unsigned i = 0; i < throttle_limits_type.field_count; i++) {
        const struct option_field *field = &throttle_limits_type.fields[i];
        bool has = *((const bool *)given + field->has_offset);
        uint64_t *to = (uint64_t *)(void *)((char *)set + field->offset);

        if (has)
            *to = throttle_member(given, field->offset);
        *((bool *)set + field->has_offset) = true;
    }
}

/* The object */

static struct throttle_group *throttle_group_of(const struct object *object)
{
    return container_of(object, struct throttle_group, object);
}

static int throttle_group_get_limits(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret =
        (struct object_value){.kind = OBJECT_OPTIONS,
                              .options = {.type = &throttle_limits_type,
                                          .data = option_copy(&throttle_limits_type, throttle_group_of(object)->set)}};
    return 0;
}

static void throttle_group_set_rates(struct throttle_group *group, struct throttle_rates *rates)
{
    const struct throttle_rates *old = atomic_exchange(&group->rates, rates);

    for (unsigned way = 0; way <= THROTTLE_WAYS; way++) {
        for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++) {
            atomic_store(&group->buckets[way][unit].empty_ns, 0);
            atomic_store(&group->buckets[way][unit].burst_empty_ns, 0);
        }
    }
    loop_each(throttle_limits_changed, group);
    free((void *)(uintptr_t)old);
}

static int throttle_group_set_limits(struct object *object, const struct object_value *value, struct error *err)
{
    struct throttle_group *group = throttle_group_of(object);
    struct throttle_limits *next = option_copy(&throttle_limits_type, group->set);
    struct throttle_rates *rates;

    throttle_merge(next, value->options.data);
    int result = throttle_make_rates(next, &rates, err);

    if (result < 0) {
        option_free(&throttle_limits_type, next);
        return result;
    }
    option_free(&throttle_limits_type, group->set);
    group->set = next;
    throttle_group_set_rates(group, rates);
    return 0;
}

static const struct object_property throttle_group_properties[] = {
    {"limits", "throttle-limits", throttle_group_get_limits, throttle_group_set_limits},
    {NULL, NULL, NULL, NULL},
};

static bool throttle_group_in_use(const struct object *object)
{
    return !list_is_empty(&throttle_group_of(object)->nodes);
}

static void throttle_group_free(struct throttle_group *group)
{
    option_free(&throttle_limits_type, group->set);
    free((void *)(uintptr_t)atomic_load(&group->rates));
    free(group);
}

static void throttle_group_destroy(struct object *object)
{
    object_detach(object);
    throttle_group_free(throttle_group_of(object));
}

static const struct object_type throttle_group_object_type = {
    .name = "throttle-group",
    .properties = throttle_group_properties,
    .in_use = throttle_group_in_use,
    .destroy = throttle_group_destroy,
};

int throttle_group_add(const char *id, const struct throttle_group_options *options, struct error *err)
{
    static const struct throttle_limits none;
    struct throttle_group *group = memory_new(struct throttle_group);
    struct throttle_rates *rates;

    list_init(&group->nodes);
    group->set = option_copy(&throttle_limits_type, &none);
    throttle_merge(group->set, options->limits ? options->limits : &none);
    int result = throttle_make_rates(group->set, &rates, err);

    if (result == 0) {
        atomic_store(&group->rates, rates);
        result = object_attach(&group->object, &throttle_group_object_type, object_container("objects"), id, err);
    }
    if (result < 0)
        throttle_group_free(group);
    return result;
}

struct throttle_group *throttle_group_find(const char *id, struct error *err)
{
    struct object *object = object_child(object_container("objects"), id);

    if (object && object->type == &throttle_group_object_type)
        return throttle_group_of(object);
    error_set(err, -ENOENT, "Throttle group '%s' does not exist", id);
    return NULL;
}
