/*
 * Events: see event.h. From other loops they travel as copies to the main
 * loop, where the sink is called.
 */
#include "core/event.h"

#include "core/loop.h"
#include "core/memory.h"
#include "core/options.h"

struct event_message {
    struct loop_message message;
    const char *name;
    const struct option_type *type;
    void *data;
};

static void (*event_sink)(const char *name, const struct option_type *type, const void *data);

void event_set_sink(void (*sink)(const char *name, const struct option_type *type, const void *data))
{
    event_sink = sink;
}

static void event_arrived(struct loop_message *message)
{
    struct event_message *event = container_of(message, struct event_message, message);

    if (event_sink)
        event_sink(event->name, event->type, event->data);
    option_free(event->type, event->data);
    free(event);
}

void event_emit(const char *name, const struct option_type *type, const void *data)
{
    if (loop_current() == loop_main) {
        if (event_sink)
            event_sink(name, type, data);
        return;
    }
    struct event_message *event = memory_new(struct event_message);

    event->message.run = event_arrived;
    event->name = name;
    event->type = type;
    event->data = option_copy(type, data);
    loop_post(loop_main, &event->message);
}
