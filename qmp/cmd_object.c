/*
 * Commands about the object tree: object-add, object-del, query-iothreads,
 * qom-list, qom-get, qom-set.
 */
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "core/change.h"
#include "core/error.h"
#include "core/iothread.h"
#include "core/list.h"
#include "core/memory.h"
#include "core/object.h"
#include "drivers/filter/throttle_group.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/cmd_graph.h"
#include "qmp/json_build.h"
#include "qmp/option_json.h"

/*
 * Objects come, go and are set while no change is under way: a drain counts
 * on the loops that it found, and a message to a loop on the loop.
 */
static int object_between_changes(int (*run)(const void *args, struct error *err), const void *args, struct error *err)
{
    struct change *change = change_new();
    int result = run(args, err);

    change_abort(change);
    return result;
}

static int object_add(const void *opaque, struct error *err)
{
    const struct object_options *args = opaque;

    if (object_child(object_container("objects"), args->id))
        return error_set(err, -EEXIST, "attempt to add duplicate property '%s' to object (type 'container')", args->id);
    switch (args->qom_type) {
    case OBJECT_QOM_TYPE_IOTHREAD:
        return iothread_add(args->id, &args->u.iothread, err);
    case OBJECT_QOM_TYPE_THROTTLE_GROUP:
        return throttle_group_add(args->id, &args->u.throttle_group, err);
    }
    return error_set(err, -EINVAL, "Parameter 'qom-type' does not accept this value");
}

int qmp_object_add(struct qmp_client *client, const struct object_options *args, struct json_object **ret,
                   struct error *err)
{
    (void)client;
    (void)ret;
    if (!command_id_is_good(args->id))
        return error_set(err, -EINVAL, "Parameter 'id' expects an identifier");
    return object_between_changes(object_add, args, err);
}

static int object_del(const void *opaque, struct error *err)
{
    const struct object_del_args *args = opaque;
    struct object *object = object_child(object_container("objects"), args->id);

    if (!object)
        return error_set(err, -ENOENT, "object '%s' not found", args->id);
    if (!object->type->destroy || (object->type->in_use && object->type->in_use(object)))
        return error_set(err, -EBUSY, "object '%s' is in use, can not be deleted", args->id);
    object->type->destroy(object);
    return 0;
}

int qmp_object_del(struct qmp_client *client, const struct object_del_args *args, struct json_object **ret,
                   struct error *err)
{
    (void)client;
    (void)ret;
    return object_between_changes(object_del, args, err);
}

int qmp_query_iothreads(struct qmp_client *client, const struct query_iothreads_args *args, struct json_object **ret,
                        struct error *err)
{
    struct iothread *iothread;

    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_array();
    list_for_each(iothread, &iothread_registry, in_registry) {
        struct json_object *row = json_append_object(*ret);
        const struct iothread_options *options = iothread->options;
        struct loop_polling *polling = &iothread->loop->polling;
        struct json_object *cpus;

        json_add_string(row, "id", iothread->object.name);
        json_add_int(row, "thread-id", iothread->thread_id);
        json_add_uint(row, "poll-max-ns", options->poll_max_ns);
        json_add_uint(row, "poll-grow", options->poll_grow);
        json_add_uint(row, "poll-shrink", options->poll_shrink);
        json_add_uint(row, "aio-max-batch", options->aio_max_batch);
        cpus = json_add_array(row, "cpu-affinity");
        for (size_t i = 0; i < options->cpu_affinity.count; i++)
            json_object_array_add(cpus, json_object_new_uint64(options->cpu_affinity.items[i]));
        json_add_uint(row, "polled-ns", atomic_load(&polling->spun_ns));
        json_add_uint(row, "poll-hits", atomic_load(&polling->hits));
        json_add_uint(row, "sleeps", atomic_load(&polling->sleeps));
    }
    return 0;
}

/* qom-list, qom-get, qom-set. */

static void qom_append_property(struct json_object *array, const char *name, const char *type)
{
    struct json_object *row = json_append_object(array);

    json_add_string(row, "name", name);
    json_add_string(row, "type", type);
}

int qmp_qom_list(struct qmp_client *client, const struct qom_list_args *args, struct json_object **ret,
                 struct error *err)
{
    struct object *object = object_resolve(args->path, err);
    struct object *child;

    (void)client;
    if (!object)
        return -ENOENT;
    *ret = json_object_new_array();
    qom_append_property(*ret, "type", "string");
    for (const struct object_property *property = object->type->properties; property && property->name; property++)
        qom_append_property(*ret, property->name, property->type);
    list_for_each(child, &object->children, in_parent) {
        AUTO_FREE char *type = memory_format("child<%s>", child->type->name);

        qom_append_property(*ret, child->name, type);
    }
    return 0;
}

static struct json_object *qom_to_json(const struct object_value *value)
{
    struct json_object *array;

    switch (value->kind) {
    case OBJECT_BOOL:
        return json_object_new_boolean(value->boolean);
    case OBJECT_INT:
        return json_object_new_int64(value->integer);
    case OBJECT_SIZE:
        return json_object_new_uint64(value->size);
    case OBJECT_STRING:
        return json_object_new_string(value->string ? value->string : "");
    case OBJECT_OPTIONS:
        return option_to_json(value->options.type, value->options.data);
    case OBJECT_NUMBERS:
        array = json_object_new_array();
        for (size_t i = 0; i < value->numbers.count; i++)
            json_object_array_add(array, json_object_new_uint64(value->numbers.items[i]));
        return array;
    }
    return NULL;
}

/* The absolute path of a child. */
static struct json_object *qom_path(const struct object *object)
{
    char *path = memory_string("");

    for (; object && object->parent; object = object->parent) {
        AUTO_FREE char *end = path;

        path = memory_format("/%s%s", object->name, end);
    }
    struct json_object *json = json_object_new_string(path);

    free(path);
    return json;
}

int qmp_qom_get(struct qmp_client *client, const struct qom_get_args *args, struct json_object **ret, struct error *err)
{
    struct object *object = object_resolve(args->path, err);
    struct object *child = object ? object_child(object, args->property) : NULL;
    struct object_value value = {0};

    (void)client;
    if (!object)
        return -ENOENT;
    if (child) {
        *ret = qom_path(child);
        return 0;
    }
    if (!strcmp(args->property, "type")) {
        *ret = json_object_new_string(object->type->name);
        return 0;
    }
    int result = object_get(object, args->property, &value, err);

    if (!result)
        *ret = qom_to_json(&value);
    object_value_clear(&value);
    return result;
}

static const struct object_property *qom_find_property(const struct object *object, const char *name)
{
    for (const struct object_property *property = object->type->properties; property && property->name; property++)
        if (!strcmp(property->name, name))
            return property;
    return NULL;
}

/* What a property of this type takes, and how it is called in messages. */
static const struct qom_type {
    const char *name, *expected;
    enum json_type json;
    enum object_value_kind kind;
    const struct option_type *options;
} qom_types[] = {
    {"bool", "boolean", json_type_boolean, OBJECT_BOOL, NULL},
    {"int", "integer", json_type_int, OBJECT_INT, NULL},
    {"uint64", "integer", json_type_int, OBJECT_SIZE, NULL},
    {"throttle-limits", "object", json_type_object, OBJECT_OPTIONS, &throttle_limits_type},
    {"uint64List", "array", json_type_array, OBJECT_NUMBERS, NULL},
    {"string", "string", json_type_string, OBJECT_STRING, NULL},
};

static int qom_numbers_from_json(const char *name, struct json_object *json, struct object_value *ret,
                                 struct error *err)
{
    size_t count = json_object_array_length(json);

    ret->numbers.items = memory_array(count, sizeof(*ret->numbers.items));
    for (; ret->numbers.count < count; ret->numbers.count++) {
        struct json_object *item = json_object_array_get_idx(json, ret->numbers.count);

        if (!json_object_is_type(item, json_type_int))
            return error_set(err, -EINVAL, "Invalid parameter type for '%s[%zu]', expected: integer", name,
                             ret->numbers.count);
        if (json_object_get_int64(item) < 0)
            return error_set(err, -ERANGE, "Parameter '%s[%zu]' expects a number that is not negative, not '%s'", name,
                             ret->numbers.count, json_object_get_string(item));
        ret->numbers.items[ret->numbers.count] = json_object_get_uint64(item);
    }
    return 0;
}

static int qom_from_json(const struct object_property *property, struct json_object *json, struct object_value *ret,
                         struct error *err)
{
    const struct qom_type *type = qom_types;
    while (type < qom_types + array_size(qom_types) - 1 && strcmp(type->name, property->type))
        type++;
    if (!json_object_is_type(json, type->json))
        return error_set(err, -EINVAL, "Invalid parameter type for '%s', expected: %s", property->name, type->expected);
    bool negative = type->json == json_type_int && json_object_get_int64(json) < 0;

    if (type->kind == OBJECT_SIZE && negative)
        return error_set(err, -ERANGE, "Parameter '%s' expects a number that is not negative, not '%s'", property->name,
                         json_object_get_string(json));
    if (type->kind == OBJECT_INT && !negative && json_object_get_uint64(json) > INT64_MAX)
        return error_set(err, -ERANGE, "Parameter '%s' is out of range: '%s'", property->name,
                         json_object_get_string(json));
    ret->kind = type->kind;
    switch (type->kind) {
    case OBJECT_BOOL:
        ret->boolean = json_object_get_boolean(json);
        break;
    case OBJECT_INT:
        ret->integer = json_object_get_int64(json);
        break;
    case OBJECT_SIZE:
        ret->size = json_object_get_uint64(json);
        break;
    case OBJECT_STRING:
        ret->string = memory_string(json_object_get_string(json));
        break;
    case OBJECT_OPTIONS:
        ret->options.type = type->options;
        return option_parse_json(type->options, json, property->name, 0, &ret->options.data, err);
    case OBJECT_NUMBERS:
        return qom_numbers_from_json(property->name, json, ret, err);
    }
    return 0;
}

static int qom_set(const void *opaque, struct error *err)
{
    const struct qom_set_args *args = opaque;
    struct object *object = object_resolve(args->path, err);
    const struct object_property *property = object ? qom_find_property(object, args->property) : NULL;
    struct object_value value = {.kind = OBJECT_INT};

    if (!object)
        return -ENOENT;
    if (!property && (object_child(object, args->property) || !strcmp(args->property, "type")))
        return error_set(err, -EACCES, "Property '%s.%s' is not writable", object->type->name, args->property);
    struct json_object *json = json_tokener_parse(args->value);
    /* Unknown and read-only properties: object_set() finds the words. */
    int result = property && property->set ? qom_from_json(property, json, &value, err) : 0;

    if (!result)
        result = object_set(object, args->property, &value, err);
    json_object_put(json);
    object_value_clear(&value);
    return result;
}

int qmp_qom_set(struct qmp_client *client, const struct qom_set_args *args, struct json_object **ret, struct error *err)
{
    (void)client;
    (void)ret;
    return object_between_changes(qom_set, args, err);
}
