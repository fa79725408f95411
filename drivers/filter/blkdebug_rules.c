/*
 * blkdebug: events, and what they cause: see blkdebug.h.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/memory.h"
#include "drivers/filter/blkdebug.h"

#define BLKDEBUG_SECTOR 512u
#define BLKDEBUG_FIRST_STATE 1u

/* With the guard held, or before anybody sees the node. */
static void blkdebug_arm(struct blkdebug *debug)
{
    bool armed = debug->limited || debug->options->inject_error.count || !list_is_empty(&debug->breaks);

    atomic_store_explicit(&debug->armed, armed, memory_order_relaxed);
}

/* Rules */

static const struct blkdebug_inject_error_options *rule_options(const struct blkdebug *debug, size_t i)
{
    struct blkdebug_inject_error_options *const *all = debug->options->inject_error.items;

    return all[i];
}

/* Rules without an event hold in their state, at any time. With the guard held. */
static void rules_enter_state(struct blkdebug *debug, uint64_t state)
{
    debug->state = state;
    for (size_t i = 0; i < debug->options->inject_error.count; i++) {
        struct blkdebug_rule *rule = &debug->rules[i];

        if (rule->options->event == BLKDEBUG_EVENT_NONE)
            rule->active = !rule->options->state || rule->options->state == state;
    }
}

static void rules_see(struct blkdebug *debug, enum blkdebug_event event)
{
    struct blkdebug_set_state_options *const *changes = debug->options->set_state.items;
    uint64_t state = debug->state;

    for (size_t i = 0; i < debug->options->inject_error.count; i++) {
        struct blkdebug_rule *rule = &debug->rules[i];

        if (rule->options->event == event && (!rule->options->state || rule->options->state == state))
            rule->active = true;
    }
    for (size_t i = 0; i < debug->options->set_state.count; i++) {
        if (changes[i]->event == event && (!changes[i]->state || changes[i]->state == state))
            rules_enter_state(debug, changes[i]->new_state);
    }
}

static bool rule_fits(const struct blkdebug_rule *rule, enum blkdebug_io_type type, uint64_t offset, uint64_t length)
{
    const struct blkdebug_inject_error_options *options = rule->options;
    uint64_t start = options->sector * BLKDEBUG_SECTOR;

    if (!rule->active || rule->spent)
        return false;
    if (options->has_iotype ? options->iotype != type : type == BLKDEBUG_IO_TYPE_BLOCK_STATUS)
        return false;
    return !options->has_sector || (start < offset + length && offset < start + BLKDEBUG_SECTOR);
}

int blkdebug_error(struct blkdebug *debug, enum blkdebug_io_type type, uint64_t offset, uint64_t length,
                   bool *immediately)
{
    int result = 0;

    pthread_mutex_lock(&debug->guard);
    for (size_t i = 0; i < debug->options->inject_error.count && result == 0; i++) {
        struct blkdebug_rule *rule = &debug->rules[i];

        if (!rule_fits(rule, type, offset, length))
            continue;
        result = -(int)rule->options->errno_;
        *immediately = rule->options->immediately;
        rule->spent = rule->options->once;
    }
    pthread_mutex_unlock(&debug->guard);
    return result;
}

int blkdebug_rules_init(struct node *node, struct error *err)
{
    struct blkdebug *debug = node->state;
    struct blkdebug_set_state_options *const *changes = debug->options->set_state.items;

    for (size_t i = 0; i < debug->options->set_state.count; i++) {
        if (changes[i]->event == BLKDEBUG_EVENT_NONE)
            return error_set(err, -EINVAL, "set-state[%zu].event=none never happens", i);
    }
    pthread_mutex_init(&debug->guard, NULL);
    list_init(&debug->breaks);
    debug->rules = memory_array(debug->options->inject_error.count + 1, sizeof(*debug->rules));
    for (size_t i = 0; i < debug->options->inject_error.count; i++)
        debug->rules[i].options = rule_options(debug, i);
    rules_enter_state(debug, BLKDEBUG_FIRST_STATE);
    blkdebug_arm(debug);
    return 0;
}

/* Breakpoints */

static void break_free(struct blkdebug_break *point)
{
    list_remove(&point->link);
    free(point);
}

void blkdebug_rules_destroy(struct blkdebug *debug)
{
    struct blkdebug_break *point;

    while ((point = list_first(&debug->breaks, struct blkdebug_break, link)))
        break_free(point);
    pthread_mutex_destroy(&debug->guard);
    free(debug->rules);
}

/* With the guard held. */
static bool break_hit(struct blkdebug *debug, enum blkdebug_event event)
{
    struct blkdebug_break *point;

    list_for_each(point, &debug->breaks, link) {
        if (point->event != event || point->suspended || debug->quiesced)
            continue;
        point->suspended = coroutine_self();
        return true;
    }
    return false;
}

void blkdebug_event(struct node *node, unsigned event)
{
    struct blkdebug *debug = node->state;

    if (!atomic_load_explicit(&debug->armed, memory_order_relaxed))
        return;
    pthread_mutex_lock(&debug->guard);
    bool hit = break_hit(debug, event);

    pthread_mutex_unlock(&debug->guard);
    if (hit)
        coroutine_yield();
    pthread_mutex_lock(&debug->guard);
    rules_see(debug, event);
    pthread_mutex_unlock(&debug->guard);
}

void blkdebug_quiesce(struct node *node, bool begin)
{
    struct blkdebug *debug = node->state;
    struct blkdebug_break *point, *after;

    pthread_mutex_lock(&debug->guard);
    debug->quiesced += begin ? 1u : -1u;
    list_for_each_safe(point, after, &debug->breaks, link) {
        if (!point->suspended)
            continue;
        coroutine_wake(point->suspended);
        break_free(point);
    }
    blkdebug_arm(debug);
    pthread_mutex_unlock(&debug->guard);
}

/* In a drain: nobody is suspended. */
void blkdebug_adopt(struct node *node, const void *opaque)
{
    const struct blkdebug *before = opaque;
    struct blkdebug *debug = node->state;
    const struct blkdebug_break *point;

    rules_enter_state(debug, before->state);
    list_for_each(point, &before->breaks, link) {
        struct blkdebug_break *copy = memory_new(struct blkdebug_break);

        copy->event = point->event;
        snprintf(copy->tag, sizeof(copy->tag), "%s", point->tag);
        list_append(&debug->breaks, &copy->link);
    }
    blkdebug_arm(debug);
}

static struct blkdebug_break *break_find(const struct blkdebug *debug, const char *tag)
{
    struct blkdebug_break *point;

    list_for_each(point, &debug->breaks, link) {
        if (strcmp(point->tag, tag) == 0)
            return point;
    }
    return NULL;
}

struct blkdebug *blkdebug_find(const char *node_name, struct error *err)
{
    struct node *node = node_lookup(node_name, err);

    if (!node)
        return NULL;
    if (node->driver == driver_table[NODE_DRIVER_BLKDEBUG])
        return node->state;
    error_set(err, -EINVAL, "Node '%s' is not a blkdebug node", node_name);
    return NULL;
}

int blkdebug_break(struct blkdebug *debug, enum blkdebug_event event, const char *tag, struct error *err)
{
    if (event == BLKDEBUG_EVENT_NONE)
        return error_set(err, -EINVAL, "event=none never happens");
    pthread_mutex_lock(&debug->guard);
    bool taken = break_find(debug, tag);

    if (!taken) {
        struct blkdebug_break *point = memory_new(struct blkdebug_break);

        point->event = event;
        snprintf(point->tag, sizeof(point->tag), "%s", tag);
        list_append(&debug->breaks, &point->link);
        blkdebug_arm(debug);
    }
    pthread_mutex_unlock(&debug->guard);
    return taken ? error_set(err, -EEXIST, "There is a breakpoint '%s' already", tag) : 0;
}

int blkdebug_resume(struct blkdebug *debug, const char *tag, struct error *err)
{
    pthread_mutex_lock(&debug->guard);
    struct blkdebug_break *point = break_find(debug, tag);

    if (point) {
        if (point->suspended)
            coroutine_wake(point->suspended);
        break_free(point);
    }
    blkdebug_arm(debug);
    pthread_mutex_unlock(&debug->guard);
    return point ? 0 : error_set(err, -ENOENT, "There is no breakpoint '%s'", tag);
}

/* Properties */

static int blkdebug_get_state(const struct object *object, struct object_value *ret, struct error *err)
{
    struct blkdebug *debug = container_of(object, struct node, object)->state;

    (void)err;
    pthread_mutex_lock(&debug->guard);
    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = debug->state};
    pthread_mutex_unlock(&debug->guard);
    return 0;
}

static int blkdebug_set_state(struct object *object, const struct object_value *value, struct error *err)
{
    struct blkdebug *debug = container_of(object, struct node, object)->state;

    if (value->size == 0 || value->size > UINT32_MAX)
        return error_set(err, -EINVAL, "Property 'blkdebug.state' expects a value in range [1, %u]", UINT32_MAX);
    pthread_mutex_lock(&debug->guard);
    rules_enter_state(debug, value->size);
    pthread_mutex_unlock(&debug->guard);
    return 0;
}

const struct object_property blkdebug_properties[] = {
    {"state", "uint64", blkdebug_get_state, blkdebug_set_state},
    {NULL, NULL, NULL, NULL},
};
