/*
 * Commands about sources: source-add, source-del, query-sources.
 */
#include <errno.h>
#include <json-c/json.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/node.h"
#include "core/source.h"
#include "generated/commands.h"
#include "qmp/cmd_graph.h"
#include "qmp/json_build.h"

int qmp_source_add(struct qmp_client *client, const struct source_add_args *args, struct json_object **ret,
                   struct error *err)
{
    struct source *source;

    (void)client;
    (void)ret;
    if (!command_id_is_good(args->id))
        return error_set(err, -EINVAL, "Invalid source id '%s'", args->id);
    struct change *change = change_new();

    return change_finish(change, source_add(change, args->id, args->node, &source, err), err);
}

int qmp_source_del(struct qmp_client *client, const struct source_del_args *args, struct json_object **ret,
                   struct error *err)
{
    struct change *change = change_new();
    struct source *source = source_find(args->id);
    int result =
        source ? source_remove(change, source, err) : error_set(err, -ENOENT, "Source '%s' is not found", args->id);

    (void)client;
    (void)ret;
    return change_finish(change, result, err);
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
        for (const struct node *node = source->top.child; node; node = source_below(node))
            json_object_array_add(nodes, json_object_new_string(node->name));
        list_for_each(consumer, &source->consumers, in_source)
            json_object_array_add(users, json_object_new_string(consumer->ops->name(consumer)));
    }
    return 0;
}
