/*
 * Commands about exports: block-export-add, block-export-del,
 * query-block-exports.
 */
#include <errno.h>
#include <json-c/json.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/export.h"
#include "core/node.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/cmd_graph.h"
#include "qmp/json_build.h"

/* How long block-export-del waits for an export that has nobody to see off. */
#define DELETE_WAIT_NS 200000u
#define DELETE_WAITS_MAX 5000u

int graph_export_add(struct change *change, const struct export_options *options, struct error *err)
{
    if (!command_id_is_good(options->id))
        return error_set(err, -EINVAL, "Invalid block export id '%s'", options->id);
    return export_add(change, options, err);
}

int graph_export_del(struct change *change, const struct block_export_del_args *args, struct error *err)
{
    struct export *export = export_find(args->id);

    if (!export)
        return error_set(err, -ENOENT, "Export '%s' is not found", args->id);
    return export_remove(change, export, args->mode == BLOCK_EXPORT_DEL_MODE_HARD, err);
}

int qmp_block_export_add(struct qmp_client *client, const struct export_options *args, struct json_object **ret,
                         struct error *err)
{
    struct change *change = change_new();

    (void)client;
    (void)ret;
    return change_finish(change, graph_export_add(change, args, err), err);
}

int qmp_block_export_del(struct qmp_client *client, const struct block_export_del_args *args, struct json_object **ret,
                         struct error *err)
{
    struct change *change = change_new();
    struct export *export = export_find(args->id);
    bool idle = export && !export->type->client_count(export);
    int result = change_finish(change, graph_export_del(change, args, err), err);

    (void)client;
    (void)ret;
    /* Scripts use the id again at once: an export without clients is gone when the reply comes. */
    for (unsigned i = 0; i < DELETE_WAITS_MAX && result == 0 && idle && export_find(args->id); i++)
        coroutine_sleep(DELETE_WAIT_NS);
    return result;
}

int qmp_query_block_exports(struct qmp_client *client, const struct query_block_exports_args *args,
                            struct json_object **ret, struct error *err)
{
    struct export *export;

    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_array();
    list_for_each(export, &export_registry, in_registry) {
        struct json_object *row = json_append_object(*ret);
        const struct node *node = export->consumer.edge.child;

        json_add_string(row, "id", export->id);
        json_add_string(row, "type", export->type->name);
        json_add_string(row, "node-name", node ? node->name : export->options->node_name);
        json_add_bool(row, "shutting-down", export->stopping);
    }
    return 0;
}
