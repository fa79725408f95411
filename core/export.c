/*
 * The life of exports: see export.h. An export leaves the graph in the change
 * that removes it; from then on its clients' requests end with -ESHUTDOWN,
 * and the type takes its time to see them off.
 */
#include "core/export.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/event.h"
#include "core/iothread.h"
#include "core/memory.h"
#include "generated/options.h"

/* At the end, once not all came to rest in time: what each may take by itself. */
#define EXPORT_STOP_NS 1000000000u

struct list export_registry = LIST_INIT(export_registry);
static struct list export_pending = LIST_INIT(export_pending);
static struct coroutine *export_stop_waiter;

static struct export *export_find_in(const struct list *list, const char *id)
{
    struct export *export;

    list_for_each(export, list, in_registry) {
        if (strcmp(export->id, id) == 0)
            return export;
    }
    return NULL;
}

struct export *export_find(const char *id)
{
    return export_find_in(&export_registry, id);
}

/* The export as a consumer. */

static struct export *export_of(const struct consumer *consumer)
{
    return consumer->object;
}

static const char *export_consumer_name(const struct consumer *consumer)
{
    return export_of(consumer)->id;
}

static void export_consumer_resumed(struct consumer *consumer, struct loop *loop)
{
    struct export *export = export_of(consumer);

    if (export->type->resumed)
        export->type->resumed(export, loop);
}

static void export_consumer_resized(struct consumer *consumer, uint64_t size)
{
    struct export *export = export_of(consumer);

    if (export->type->resized)
        export->type->resized(export, size);
}

static int export_consumer_scratch(struct consumer *consumer, unsigned scratch, struct error *err)
{
    struct export *export = export_of(consumer);

    return export->type->scratch ? export->type->scratch(export, scratch, err) : 0;
}

static const struct consumer_ops export_consumer_ops = {
    .kind = "export",
    .name = export_consumer_name,
    .resumed = export_consumer_resumed,
    .resized = export_consumer_resized,
    .scratch = export_consumer_scratch,
};

/* Objects: /exports/<id>. */

static int export_get_node(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct export *export = container_of(object, struct export, object);
    const struct node *node = export->consumer.edge.child;

    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_string(node ? node->name : "")};
    return 0;
}

static int export_get_clients(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct export *export = container_of(object, struct export, object);

    (void)err;
    *ret = (struct object_value){.kind = OBJECT_INT, .integer = export->type->client_count(export)};
    return 0;
}

static int export_get_writable(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_BOOL, .boolean = container_of(object, struct export, object)->writable};
    return 0;
}

static const struct object_property export_properties[] = {
    {"node", "string", export_get_node, NULL},
    {"clients", "int", export_get_clients, NULL},
    {"writable", "bool", export_get_writable, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct object_type export_object_type = {.name = "export", .properties = export_properties};

/* Adding. */

struct export_action {
    struct export *export;
    bool prepared, aborted;
};

static void export_leave_loops(struct export *export)
{
    struct iothread *iothread;

    for (unsigned i = 0; i < export->loop_count; i++) {
        list_for_each(iothread, &iothread_registry, in_registry) {
            if (iothread->loop == export->loops[i])
                iothread->users--;
        }
    }
    free(export->loops);
}

static void export_free(struct export *export)
{
    list_remove(&export->in_registry);
    export_leave_loops(export);
    consumer_destroy(&export->consumer);
    free(export->state);
    option_free(&export_options_type, export->options);
    free(export);
}

static void export_add_commit(void *action)
{
    struct export *export = ((struct export_action *)action)->export;

    list_remove(&export->in_registry);
    list_append(&export_registry, &export->in_registry);
    object_attach(&export->object, &export_object_type, object_container("exports"), export->id, NULL);
    export->type->start(export);
}

static void export_add_abort(void *action)
{
    struct export_action *adding = action;

    if (adding->prepared)
        adding->export->type->destroy(adding->export);
    adding->aborted = true;
}

static void export_add_clean(void *action)
{
    struct export_action *adding = action;

    /* Not in abort(): the change resets the edge after that. */
    if (adding->aborted)
        export_free(adding->export);
}

static const struct change_type export_add_type = {
    .name = "add export", .commit = export_add_commit, .abort = export_add_abort, .clean = export_add_clean};

static int export_join_loop(struct export *export, const char *id, struct error *err)
{
    struct iothread *iothread = iothread_get(id, err);

    if (!iothread)
        return -ENOENT;
    iothread->users++;
    export->loops = memory_grow(export->loops, export->loop_count + 1, sizeof(*export->loops));
    export->loops[export->loop_count++] = iothread->loop;
    return 0;
}

static int export_join_loops(struct export *export, struct error *err)
{
    const struct export_options *options = export->options;
    int result = 0;

    if (options->iothread && options->iothreads.count)
        return error_set(err, -EINVAL, "'iothread' and 'iothreads' cannot be used together");
    if (options->iothreads.count == 0)
        return export_join_loop(export, options->iothread, err);
    for (size_t i = 0; i < options->iothreads.count && result == 0; i++)
        result = export_join_loop(export, options->iothreads.items[i], err);
    return result;
}

static bool export_id_is_good(const char *id)
{
    size_t length = strlen(id);

    return length > 0 && length <= EXPORT_ID_MAX;
}

int export_add(struct change *change, const struct export_options *options, struct error *err)
{
    const struct export_type *type = export_table[options->type];

    if (!export_id_is_good(options->id))
        return error_set(err, -EINVAL, "Invalid block export id '%s': it must have 1 to %d bytes", options->id,
                         EXPORT_ID_MAX);
    if (export_find(options->id) || export_find_in(&export_pending, options->id))
        return error_set(err, -EEXIST, "Block export id '%s' is already in use", options->id);
    struct export *export = memory_new(struct export);
    struct export_action *adding = change_add(change, &export_add_type, sizeof(*adding));

    adding->export = export;
    export->type = type;
    snprintf(export->id, sizeof(export->id), "%s", options->id);
    export->options = option_copy(&export_options_type, options);
    export->writable = options->writable;
    export->state = memory_zero(type->state_size);
    list_append(&export_pending, &export->in_registry);
    consumer_init(&export->consumer, &export_consumer_ops, export,
                  (struct permission){.taken = PERM_READ | (export->writable ? PERM_WRITE : 0), .shared = PERM_ALL});
    int result = consumer_attach(change, &export->consumer, options->node_name, err);

    if (result == 0)
        result = export_join_loops(export, err);
    if (result == 0)
        result = type->prepare(export, option_branch_of(&export_options_type, export->options, NULL), err);
    adding->prepared = result == 0;
    return result;
}

/* Moving. */

struct export_moving {
    struct export *export;
    char *name;             /* what is not in the options: the new one, then the old one */
};

/* Options say what the export is. */
static void export_move_commit(void *action)
{
    struct export_moving *moving = action;
    char *before = moving->export->options->node_name;

    moving->export->options->node_name = moving->name;
    moving->name = before;
}

static void export_move_clean(void *action)
{
    free(((struct export_moving *)action)->name);
}

static const struct change_type export_move_type = {
    .name = "move export", .commit = export_move_commit, .clean = export_move_clean};

int export_move(struct change *change, struct export *export, const char *name, struct error *err)
{
    if (export->stopping || export->leaving)
        return error_set(err, -EBUSY, "Export '%s' is already shutting down", export->id);
    int result = consumer_move(change, &export->consumer, name, err);

    if (result < 0)
        return result;
    struct export_moving *moving = change_add(change, &export_move_type, sizeof(*moving));

    *moving = (struct export_moving){.export = export, .name = memory_string(name)};
    return 0;
}

/* Removing. */

static void export_remove_commit(void *action)
{
    struct export *export = ((struct export_action *)action)->export;

    export->stopping = true;
    export->type->stop(export);
}

static void export_remove_abort(void *action)
{
    ((struct export_action *)action)->export->leaving = false;
}

static const struct change_type export_remove_type = {
    .name = "remove export", .commit = export_remove_commit, .abort = export_remove_abort};

int export_remove(struct change *change, struct export *export, bool hard, struct error *err)
{
    if (export->stopping || export->leaving)
        return error_set(err, -EBUSY, "Export '%s' is already shutting down", export->id);
    if (!hard && export->type->client_count(export))
        return error_set(err, -EBUSY, "export '%s' still in use", export->id);
    struct export_action *removing = change_add(change, &export_remove_type, sizeof(*removing));

    removing->export = export;
    export->leaving = true;
    consumer_detach(change, &export->consumer);
    return 0;
}

static void export_end(void *arg)
{
    struct export *export = arg;
    struct block_export_deleted_event event = {.id = export->id};

    /* The change that removed it may still be about to resume its consumer. */
    change_abort(change_new());
    export->type->destroy(export);
    object_detach(&export->object);
    list_remove(&export->in_registry);
    event_emit("BLOCK_EXPORT_DELETED", &block_export_deleted_event_type, &event);
    export_free(export);
    if (export_stop_waiter)
        coroutine_wake(take_ptr(&export_stop_waiter));
}

void export_stopped(struct export *export)
{
    coroutine_start(loop_main, export_end, export);
}

static int export_stop(struct export *const *exports, unsigned count, struct error *err)
{
    struct change *change = change_new();

    for (unsigned i = 0; i < count; i++)
        export_remove(change, exports[i], true, err);
    return change_apply(change, err);
}

static bool export_is_stopping(void)
{
    struct export *export;

    list_for_each(export, &export_registry, in_registry) {
        if (export->stopping)
            return true;
    }
    return false;
}

int export_stop_all(struct error *err)
{
    AUTO_FREE struct export **exports = NULL;
    struct export *export;
    unsigned count = 0;

    list_for_each(export, &export_registry, in_registry) {
        if (export->stopping)
            continue;
        exports = memory_grow(exports, count + 1, sizeof(*exports));
        exports[count++] = export;
    }
    int result = export_stop(exports, count, err);

    if (result < 0)
        change_drain_limit_ns = EXPORT_STOP_NS;
    for (unsigned i = 0; i < count && result < 0; i++)
        export_stop(&exports[i], 1, NULL);
    while (export_is_stopping()) {
        export_stop_waiter = coroutine_self();
        coroutine_yield();
    }
    return result;
}

int export_use_iothread(struct export *export, const char *id, struct loop **ret, struct error *err)
{
    struct iothread *iothread = iothread_get(id, err);

    if (!iothread)
        return -ENOENT;
    *ret = iothread->loop;
    for (unsigned i = 0; i < export->loop_count; i++) {
        if (export->loops[i] == iothread->loop)
            return 0;
    }
    return export_join_loop(export, id, err);
}

struct loop *export_next_loop(struct export *export)
{
    return export->loops[export->loop_next++ % export->loop_count];
}
