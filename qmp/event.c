/*
 * Events on their way to QMP clients: see event.h. Main loop only.
 *
 * An event that can come in floods is sent at most once a second for each
 * subject: the first one at once, and of those that follow the last one when
 * the second is over.
 */
#include "qmp/event.h"

#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "core/event.h"
#include "core/list.h"
#include "core/loop.h"
#include "core/memory.h"
#include "qmp/connection.h"
#include "qmp/option_json.h"

#define EVENT_PERIOD_NS 1000000000ull

/* Which events are limited, and which members of their data tell subjects apart. */
static const struct event_limit {
    const char *name;
    const char *subject[3];
} event_limits[] = {
    {"BLOCK_IO_ERROR", {"node-name", "operation"}},
    {"QUORUM_FAILURE", {"reference"}},
    {"QUORUM_REPORT_BAD", {"node-name", "type"}},
};

/* A subject whose second is not over yet. */
struct event_subject {
    struct list_link link;
    struct timer timer;
    char *key;                   /* owned */
    struct json_object *pending; /* owned; NULL: nothing came since */
};

static struct list event_subjects = LIST_INIT(event_subjects);

static struct json_object *event_timestamp(void)
{
    struct json_object *timestamp = json_object_new_object();
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    json_object_object_add(timestamp, "seconds", json_object_new_int64(now.tv_sec));
    json_object_object_add(timestamp, "microseconds", json_object_new_int64(now.tv_nsec / 1000));
    return timestamp;
}

/* Takes event. */
static void event_send(struct json_object *event)
{
    qmp_connection_broadcast(event);
    json_object_put(event);
}

static void event_subject_free(struct event_subject *subject)
{
    timer_cancel(&subject->timer);
    list_remove(&subject->link);
    json_object_put(subject->pending);
    free(subject->key);
    free(subject);
}

static void event_period_over(struct timer *timer)
{
    struct event_subject *subject = container_of(timer, struct event_subject, timer);

    if (!subject->pending) {
        event_subject_free(subject);
        return;
    }
    event_send(take_ptr(&subject->pending));
    timer_set(timer, loop_main, loop_main->now_ns + EVENT_PERIOD_NS);
}

static const struct event_limit *event_find_limit(const char *name)
{
    for (unsigned i = 0; i < array_size(event_limits); i++)
        if (!strcmp(event_limits[i].name, name))
            return &event_limits[i];
    return NULL;
}

static char *event_subject_key(const struct event_limit *limit, struct json_object *data)
{
    char *key = memory_string(limit->name);

    for (const char *const *member = limit->subject; *member; member++) {
        AUTO_FREE char *start = key;
        struct json_object *value = json_object_object_get(data, *member);

        key = memory_format("%s %s", start, value ? json_object_get_string(value) : "");
    }
    return key;
}

/* Takes event. */
static void event_send_limited(const struct event_limit *limit, struct json_object *event, struct json_object *data)
{
    AUTO_FREE char *key = event_subject_key(limit, data);
    struct event_subject *subject;

    list_for_each(subject, &event_subjects, link) {
        if (!strcmp(subject->key, key)) {
            json_object_put(subject->pending);
            subject->pending = event;
            return;
        }
    }
    subject = memory_new(struct event_subject);
    subject->key = take_ptr(&key);
    subject->timer.expired = event_period_over;
    list_append(&event_subjects, &subject->link);
    timer_set(&subject->timer, loop_main, loop_main->now_ns + EVENT_PERIOD_NS);
    event_send(event);
}

static void event_sink(const char *name, const struct option_type *type, const void *data)
{
    struct json_object *event = json_object_new_object();
    struct json_object *json = type ? option_to_json(type, data) : NULL;
    const struct event_limit *limit = event_find_limit(name);

    json_object_object_add(event, "timestamp", event_timestamp());
    json_object_object_add(event, "event", json_object_new_string(name));
    if (json)
        json_object_object_add(event, "data", json);
    if (limit)
        event_send_limited(limit, event, json);
    else
        event_send(event);
}

void qmp_event_start(void)
{
    event_set_sink(event_sink);
}

void qmp_event_stop(void)
{
    struct event_subject *subject, *after;

    event_set_sink(NULL);
    list_for_each_safe(subject, after, &event_subjects, link)
        event_subject_free(subject);
}
