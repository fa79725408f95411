/*
 * iothread objects: see iothread.h.
 */
#include "core/iothread.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/grace.h"
#include "core/memory.h"
#include "generated/options.h"

/* The thread of exports that name none. */
#define IOTHREAD_DEFAULT "io0"
/* One more than the highest number of a CPU; the schema has it as well. */
#define IOTHREAD_CPUS 4096

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

#define IOTHREAD_GETTER(name, member)                                                                        \
    static int iothread_get_##name(const struct object *object, struct object_value *ret, struct error *err) \
    {                                                                                                        \
        (void)err;                                                                                           \
        *ret = (struct object_value){.kind = OBJECT_SIZE, .size = member};                                   \
        return 0;                                                                                            \
    }

IOTHREAD_GETTER(poll_max, iothread_of(object)->options->poll_max_ns)
IOTHREAD_GETTER(poll_grow, iothread_of(object)->options->poll_grow)
IOTHREAD_GETTER(poll_shrink, iothread_of(object)->options->poll_shrink)
IOTHREAD_GETTER(batch, iothread_of(object)->options->aio_max_batch)
IOTHREAD_GETTER(polled, atomic_load(&iothread_of(object)->loop->polling.spun_ns))
IOTHREAD_GETTER(hits, atomic_load(&iothread_of(object)->loop->polling.hits))
IOTHREAD_GETTER(sleeps, atomic_load(&iothread_of(object)->loop->polling.sleeps))

static int iothread_get_affinity(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct iothread_options *options = iothread_of(object)->options;
    size_t count = options->cpu_affinity.count;

    (void)err;
    *ret = (struct object_value){.kind = OBJECT_NUMBERS};
    ret->numbers.count = count;
    ret->numbers.items = memory_array(count, sizeof(*ret->numbers.items));
    for (size_t i = 0; i < count; i++)
        ret->numbers.items[i] = options->cpu_affinity.items[i];
    return 0;
}

/* CPUs. */

struct iothread_cpus {
    cpu_set_t sets[IOTHREAD_CPUS / CPU_SETSIZE];
};

/* Whether the thread may run where it is asked to; then *ret is that, or all CPUs of the daemon. */
static int iothread_check_cpus(const struct iothread_options *options, struct iothread_cpus *ret, struct error *err)
{
    struct iothread_cpus allowed;

    memset(&allowed, 0, sizeof(allowed));
    /* The main thread's. */
    if (sched_getaffinity(getpid(), sizeof(allowed), allowed.sets) < 0)
        return error_set(err, -errno, "Cannot find out which CPUs there are: %s", strerror(errno));
    *ret = allowed;
    if (options->cpu_affinity.count)
        memset(ret, 0, sizeof(*ret));
    for (size_t i = 0; i < options->cpu_affinity.count; i++) {
        uint64_t cpu = options->cpu_affinity.items[i];

        if (cpu >= IOTHREAD_CPUS || !CPU_ISSET_S(cpu, sizeof(allowed), allowed.sets))
            return error_set(err, -EINVAL,
                             "Parameter 'cpu-affinity[%zu]': CPU %" PRIu64 " is not one that this program may use", i,
                             cpu);
        CPU_SET_S(cpu, sizeof(*ret), ret->sets);
    }
    return 0;
}

/* Not on other occasions: who runs the daemon may have pinned the thread from outside. */
static int iothread_pin(struct iothread *iothread, const struct iothread_options *options, struct error *err)
{
    struct iothread_cpus cpus;
    int result = iothread_check_cpus(options, &cpus, err);

    if (result < 0)
        return result;
    if (sched_setaffinity((pid_t)iothread->loop->thread_id, sizeof(cpus), cpus.sets) < 0)
        return error_set(err, -errno, "Cannot keep iothread '%s' on the CPUs of 'cpu-affinity': %s",
                         iothread->object.name, strerror(errno));
    return 0;
}

/* Options. What the loop reads is its own: it takes new values in a message. */

static void iothread_apply(struct loop *loop, const struct iothread_options *options)
{
    struct loop_polling *polling = &loop->polling;

    polling->max_ns = polling->window_ns = options->poll_max_ns;
    polling->grow = options->poll_grow;
    polling->shrink = options->poll_shrink;
    loop->ring->batch_max = options->aio_max_batch;
}

struct iothread_setting {
    struct loop_message message;
    struct loop *loop;
    const struct iothread_options *options;
    struct coroutine *waiter;
};

static void iothread_set_on_loop(struct loop_message *message)
{
    struct iothread_setting *setting = container_of(message, struct iothread_setting, message);

    iothread_apply(setting->loop, setting->options);
    coroutine_wake(setting->waiter);
}

/* Takes options over. */
static void iothread_set(struct iothread *iothread, struct iothread_options *options)
{
    struct iothread_setting setting = {
        .message.run = iothread_set_on_loop,
        .loop = iothread->loop,
        .options = options,
        .waiter = coroutine_self(),
    };

    loop_post(setting.loop, &setting.message);
    coroutine_yield();
    option_free(&iothread_options_type, iothread->options);
    iothread->options = options;
}

static int iothread_set_number(struct object *object, const char *name, size_t offset, const struct object_value *value,
                               struct error *err)
{
    struct iothread_options *options;

    if (value->size > INT64_MAX)
        return error_set(err, -ERANGE, "Parameter '%s' expects a value in range [0, %" PRId64 "]", name, INT64_MAX);
    options = option_copy(&iothread_options_type, iothread_of(object)->options);
    memcpy((char *)options + offset, &value->size, sizeof(value->size));
    iothread_set(iothread_of(object), options);
    return 0;
}

#define IOTHREAD_SETTER(setter, name, member)                                                                    \
    static int iothread_set_##setter(struct object *object, const struct object_value *value, struct error *err) \
    {                                                                                                            \
        return iothread_set_number(object, name, offsetof(struct iothread_options, member), value, err);         \
    }

IOTHREAD_SETTER(poll_max, "poll-max-ns", poll_max_ns)
IOTHREAD_SETTER(poll_grow, "poll-grow", poll_grow)
IOTHREAD_SETTER(poll_shrink, "poll-shrink", poll_shrink)
IOTHREAD_SETTER(batch, "aio-max-batch", aio_max_batch)

static int iothread_set_affinity(struct object *object, const struct object_value *value, struct error *err)
{
    struct iothread_options *options = option_copy(&iothread_options_type, iothread_of(object)->options);
    size_t count = value->numbers.count;

    free(options->cpu_affinity.items);
    options->cpu_affinity.count = count;
    options->cpu_affinity.items = memory_array(count, sizeof(*options->cpu_affinity.items));
    for (size_t i = 0; i < count; i++)
        options->cpu_affinity.items[i] = value->numbers.items[i];
    int result = iothread_pin(iothread_of(object), options, err);

    if (result < 0)
        option_free(&iothread_options_type, options);
    else
        iothread_set(iothread_of(object), options);
    return result;
}

static const struct object_property iothread_properties[] = {
    {"thread-id", "int", iothread_get_thread_id, NULL},
    {"poll-max-ns", "uint64", iothread_get_poll_max, iothread_set_poll_max},
    {"poll-grow", "uint64", iothread_get_poll_grow, iothread_set_poll_grow},
    {"poll-shrink", "uint64", iothread_get_poll_shrink, iothread_set_poll_shrink},
    {"aio-max-batch", "uint64", iothread_get_batch, iothread_set_batch},
    {"cpu-affinity", "uint64List", iothread_get_affinity, iothread_set_affinity},
    {"polled-ns", "uint64", iothread_get_polled, NULL},
    {"poll-hits", "uint64", iothread_get_hits, NULL},
    {"sleeps", "uint64", iothread_get_sleeps, NULL},
    {NULL, NULL, NULL, NULL},
};

static bool iothread_in_use(const struct object *object)
{
    return iothread_of(object)->users > 0;
}

static void iothread_stop(struct iothread *iothread)
{
    loop_stop_thread(iothread->loop);
    grace_forget_loop(iothread->loop);
}

static void iothread_free(struct iothread *iothread)
{
    if (iothread->loop)
        loop_destroy(iothread->loop);
    option_free(&iothread_options_type, iothread->options);
    object_detach(&iothread->object);
    free(iothread);
}

static void iothread_destroy(struct object *object)
{
    struct iothread *iothread = iothread_of(object);

    list_remove(&iothread->in_registry);
    iothread_stop(iothread);
    iothread_free(iothread);
}

static const struct object_type iothread_object_type = {
    .name = "iothread",
    .properties = iothread_properties,
    .in_use = iothread_in_use,
    .destroy = iothread_destroy,
};

static int iothread_start(struct iothread *iothread, struct error *err)
{
    int result = loop_create(&iothread->loop, iothread->object.name, NULL, err);

    if (result < 0)
        return result;
    iothread_apply(iothread->loop, iothread->options);
    result = loop_start_thread(iothread->loop, err);
    if (result < 0)
        return result;
    iothread->thread_id = iothread->loop->thread_id;
    if (iothread->options->cpu_affinity.count)
        result = iothread_pin(iothread, iothread->options, err);
    if (result < 0)
        iothread_stop(iothread);
    return result;
}

int iothread_add(const char *id, const struct iothread_options *options, struct error *err)
{
    struct iothread *iothread = memory_new(struct iothread);
    int result = object_attach(&iothread->object, &iothread_object_type, object_container("objects"), id, err);

    if (result < 0) {
        free(iothread);
        return result;
    }
    iothread->options = option_copy(&iothread_options_type, options);
    list_link_init(&iothread->in_registry);
    result = iothread_start(iothread, err);
    if (result < 0) {
        iothread_free(iothread);
        return result;
    }
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
