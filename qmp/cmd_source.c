/*
 * Commands about sources: source-add, source-del, source-push, source-pop,
 * source-switch, resolve, query-sources.
 */
#include <errno.h>
#include <json-c/json.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/export.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/snapshot.h"
#include "core/source.h"
#include "generated/commands.h"
#include "qmp/cmd_graph.h"
#include "qmp/json_build.h"

int graph_source_add(struct change *change, const struct source_add_args *args, struct error *err)
{
    struct source *source;

    if (!command_id_is_good(args->id))
        return error_set(err, -EINVAL, "Invalid source id '%s'", args->id);
    return source_add(change, args->id, args->node, &source, err);
}

static int source_get(const char *id, struct source **ret, struct error *err)
{
    *ret = source_find(id);
    return *ret ? 0 : error_set(err, -ENOENT, "Source '%s' is not found", id);
}

int graph_source_del(struct change *change, const struct source_del_args *args, struct error *err)
{
    struct source *source;
    int result = source_get(args->id, &source, err);

    return result ? result : source_remove(change, source, err);
}

/* Either a source, or the edge of a node. */
static int source_get_place(const char *id, const char *parent, const char *child, struct source_place *ret,
                            struct error *err)
{
    if (id ? parent || child : !parent || !child)
        return error_set(err, -EINVAL, "Either 'source' or 'parent' and 'child' must be given");
    if (id)
        return source_get(id, &ret->source, err);
    ret->child = child;
    return (ret->parent = node_lookup(parent, err)) ? 0 : -ENODEV;
}

int graph_source_push(struct change *change, const struct source_push_args *args, struct error *err)
{
    struct source_place place = {.depth = (unsigned)args->position};
    struct node *filter = NULL;
    int result = source_get_place(args->source, args->parent, args->child, &place, err);

    if (result == 0 && !args->filter == !args->node)
        result = error_set(err, -EINVAL, "Either 'filter' or 'node' must be given");
    if (result == 0 && args->node)
        result = (filter = node_lookup(args->node, err)) ? 0 : -ENODEV;
    return result ? result : source_push(change, &place, args->filter, filter, err);
}

int graph_source_pop(struct change *change, const struct source_pop_args *args, struct error *err)
{
    struct source_place place = {0};
    int result = source_get_place(args->source, args->parent, args->child, &place, err);

    return result ? result : source_pop(change, &place, args->filter, err);
}

int graph_source_switch(struct change *change, const struct source_switch_args *args, struct error *err)
{
    struct source *source;
    int result = source_get(args->source, &source, err);
    struct node *node = result ? NULL : node_lookup(args->node, err);

    if (result == 0 && !node)
        result = -ENODEV;
    return result ? result : source_switch(change, source, node, err);
}

/* One command, one change. */
#define SOURCE_COMMAND(name)                                                                            \
    int qmp_##name(struct qmp_client *client, const struct name##_args *args, struct json_object **ret, \
                   struct error *err)                                                                   \
    {                                                                                                   \
        struct change *change = change_new();                                                           \
                                                                                                        \
        (void)client;                                                                                   \
        (void)ret;                                                                                      \
        return change_finish(change, graph_##name(change, args, err), err);                             \
    }

SOURCE_COMMAND(source_add)
SOURCE_COMMAND(source_del)
SOURCE_COMMAND(source_push)
SOURCE_COMMAND(source_pop)
SOURCE_COMMAND(source_switch)

/* The node that requests to what has this name reach first. */
static struct node *resolve_top(const char *name, struct error *err)
{
    const struct source *source = source_find(name);
    const struct export *export = export_find(name);
    struct node *node = source ? source->top.child : export ? export->consumer.edge.child : node_find(name);

    if (!node)
        error_set(err, -ENOENT, "There is no source, export or node '%s'", name);
    return node;
}

int qmp_resolve(struct qmp_client *client, const struct resolve_args *args, struct json_object **ret, struct error *err)
{
    struct node *top = resolve_top(args->source, err);
    AUTO_FREE struct node **layers = memory_array(SNAPSHOT_LAYERS_MAX, sizeof(struct node *));
    int count = top ? snapshot_layers(top->name, layers, err) : -ENOENT;

    (void)client;
    if (count < 0)
        return count;
    *ret = json_object_new_object();
    json_add_string(*ret, "top", top->name);
    json_add_string(*ret, "base", source_base(top)->name);
    struct json_object *array = json_add_array(*ret, "layers");

    for (int i = 0; i < count; i++)
        json_object_array_add(array, json_object_new_string(layers[i]->name));
    return 0;
}

/* The next node of the stack: filters end at the base. */
static const struct node *source_below(const struct node *node)
{
    return node->driver->kind == DRIVER_FILTER && node->filtered ? node->filtered->child : NULL;
}

int qmp_query_sources(struct qmp_client *client, const struct query_sources_args *args, struct json_object **ret,
                      struct error *err)
{
    struct source *source;

    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_array();
    list_for_each(source, &source_registry, in_registry) {
        struct json_object *row = json_append_object(*ret);
        struct json_object *nodes = json_add_array(row, "nodes");
        struct json_object *users = json_add_array(row, "users");
        struct consumer *consumer;

        json_add_string(row, "id", source->id);
        json_add_string(row, "base", source_base(source->top.child)->name);
        for (const struct node *node = source->top.child; node; node = source_below(node))
            json_object_array_add(nodes, json_object_new_string(node->name));
        list_for_each(consumer, &source->consumers, in_source)
            json_object_array_add(users, json_object_new_string(consumer->ops->name(consumer)));
    }
    return 0;
}
