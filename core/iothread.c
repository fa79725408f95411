/*
 * iothread objects: see iothread.h.
 */
#include "core/iothread.h"

#include <errno.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/grace.h"
#include "core/memory.h"
#include "generated/options.h"

/* The thread of exports that name none. */
#define IOTHREAD_DEFAULT "io0"

struct list iothread_registry = LIST_INIT(iothread_registry);

static struct iothread *iothread_of(const struct object *object)
{
    return container_of(object, struct iothread, object);
}

static int iothread_get_thread_id(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_INT, .integer = iothread_of(object)->thread_id};
    return 0;
}

static int iothread_get_poll_max(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    uint64_t max_ns = __atomic_load_n(&iothread_of(object)->loop->polling.max_ns, __ATOMIC_RELAXED);

    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = max_ns};
    return 0;
}

/* The loop's polling state is its own thread's: a new limit travels as a message. */
struct iothread_setting {
    struct loop_message message;
    struct loop *loop;
    uint64_t max_ns;
    struct coroutine *waiter;
};

static void iothread_set_on_loop(struct loop_message *message)
{
    struct iothread_setting *setting = container_of(message, struct iothread_setting, message);

    __atomic_store_n(&setting->loop->polling.max_ns, setting->max_ns, __ATOMIC_RELAXED);
    setting->loop->polling.window_ns = setting->max_ns;
    coroutine_wake(setting->waiter);
}

static int iothread_set_poll_max(struct object *object, const struct object_value *value, struct error *err)
{
    struct iothread_setting setting = {
        .message.run = iothread_set_on_loop,
        .loop = iothread_of(object)->loop,
        .max_ns = value->size,
        .waiter = coroutine_self(),
    };

    (void)err;
    loop_post(setting.loop, &setting.message);
    coroutine_yield();
    return 0;
}

static const struct object_property iothread_properties[] = {
    {"thread-id", "int", iothread_get_thread_id, NULL},
    {"poll-max-ns", "uint64", iothread_get_poll_max, iothread_set_poll_max},
    {NULL, NULL, NULL, NULL},
};

static bool iothread_in_use(const struct object *object)
{
    return iothread_of(object)->users > 0;
}

static void iothread_destroy(struct object *object)
{
    struct iothread *iothread = iothread_of(object);

    list_remove(&iothread->in_registry);
    object_detach(object);
    loop_stop_thread(iothread->loop);
    grace_forget_loop(iothread->loop);
    loop_destroy(iothread->loop);
    free(iothread);
}

static const struct object_type iothread_object_type = {
    .name = "iothread",
    .properties = iothread_properties,
    .in_use = iothread_in_use,
    .destroy = iothread_destroy,
};

int iothread_add(const char *id, const struct iothread_options *options, struct error *err)
{
    struct iothread *iothread = memory_new(struct iothread);
    int result = object_attach(&iothread->object, &iothread_object_type, object_container("objects"), id, err);

    if (result < 0) {
        free(iothread);
        return result;
    }
    list_link_init(&iothread->in_registry);
    result = loop_create(&iothread->loop, id, NULL, err);
    if (result == 0) {
        struct loop_polling *polling = &iothread->loop->polling;

        polling->max_ns = polling->window_ns = options->poll_max_ns;
        polling->grow = options->poll_grow;
        polling->shrink = options->poll_shrink;
        result = loop_start_thread(iothread->loop, err);
        if (result < 0)
            loop_destroy(iothread->loop);
    }
    if (result < 0) {
        object_detach(&iothread->object);
        free(iothread);
        return result;
    }
    iothread->thread_id = iothread->loop->thread_id;
    list_append(&iothread_registry, &iothread->in_registry);
    return 0;
}

static struct iothread *iothread_find(const char *id)
{
    struct iothread *iothread;

    list_for_each(iothread, &iothread_registry, in_registry) {
        if (strcmp(iothread->object.name, id) == 0)
            return iothread;
    }
    return NULL;
}

struct iothread *iothread_get(const char *id, struct error *err)
{
    static const struct iothread_options defaults = {.poll_max_ns = IOTHREAD_POLL_MAX_NS};
    struct iothread *iothread = iothread_find(id ? id : IOTHREAD_DEFAULT);

    if (!iothread && id)
        error_set(err, -ENOENT, "iothread '%s' not found", id);
    if (!iothread && !id && iothread_add(IOTHREAD_DEFAULT, &defaults, err) == 0)
        iothread = iothread_find(IOTHREAD_DEFAULT);
    return iothread;
}

void iothread_stop_all(void)
{
    struct iothread *iothread;

    while ((iothread = list_first(&iothread_registry, struct iothread, in_registry)))
        iothread_destroy(&iothread->object);
}
