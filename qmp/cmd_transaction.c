/*
 * The transaction command: its actions are one change, which happens as a
 * whole or not at all.
 */
#include <errno.h>
#include <json-c/json.h>

#include "core/change.h"
#include "core/error.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/cmd_graph.h"
#include "qmp/json_build.h"

static int transaction_check(const struct transaction_action *action, struct error *err)
{
    if (action->type == TRANSACTION_ACTION_TYPE_BLOCKDEV_ADD)
        return graph_check_blockdev_add(&action->u.blockdev_add, err);
    return 0;
}

static int transaction_add(struct change *change, const struct transaction_action *action, struct error *err)
{
    switch (action->type) {
    case TRANSACTION_ACTION_TYPE_ABORT:
        return error_set(err, -ECANCELED, "Transaction aborted using Abort action");
    case TRANSACTION_ACTION_TYPE_BLOCK_EXPORT_ADD:
        return graph_export_add(change, &action->u.block_export_add, err);
    case TRANSACTION_ACTION_TYPE_BLOCK_EXPORT_DEL:
        return graph_export_del(change, &action->u.block_export_del, err);
    case TRANSACTION_ACTION_TYPE_BLOCKDEV_ADD:
        return graph_blockdev_add(change, &action->u.blockdev_add, err);
    case TRANSACTION_ACTION_TYPE_BLOCKDEV_DEL:
        return graph_blockdev_del(change, action->u.blockdev_del.node_name, err);
    case TRANSACTION_ACTION_TYPE_BLOCKDEV_REOPEN:
        return graph_blockdev_reopen(change, &action->u.blockdev_reopen, err);
    case TRANSACTION_ACTION_TYPE_BLOCKDEV_SNAPSHOT:
        return graph_snapshot(change, &action->u.blockdev_snapshot, err);
    case TRANSACTION_ACTION_TYPE_BLOCKDEV_SNAPSHOT_SYNC:
        return graph_snapshot_sync(change, &action->u.blockdev_snapshot_sync, err);
    case TRANSACTION_ACTION_TYPE_SOURCE_ADD:
        return graph_source_add(change, &action->u.source_add, err);
    case TRANSACTION_ACTION_TYPE_SOURCE_DEL:
        return graph_source_del(change, &action->u.source_del, err);
    case TRANSACTION_ACTION_TYPE_SOURCE_POP:
        return graph_source_pop(change, &action->u.source_pop, err);
    case TRANSACTION_ACTION_TYPE_SOURCE_PUSH:
        return graph_source_push(change, &action->u.source_push, err);
    case TRANSACTION_ACTION_TYPE_SOURCE_SWITCH:
        return graph_source_switch(change, &action->u.source_switch, err);
    case TRANSACTION_ACTION_TYPE_X_BLOCKDEV_CHANGE:
        return graph_blockdev_change(change, &action->u.x_blockdev_change, err);
    }
    return error_set(err, -EINVAL, "Unknown transaction action");
}

static void transaction_tell(const struct change_step *step, void *arg)
{
    static const char *const names[] = {
        [CHANGE_NODE_ADDED] = "add",
        [CHANGE_NODE_REMOVED] = "remove",
        [CHANGE_NODE_REOPENED] = "reopen",
        [CHANGE_EDGE] = "connect",
    };
    struct json_object *row = json_append_object(arg);

    json_add_string(row, "action", names[step->what]);
    json_add_string(row, "name", step->node);
    if (step->edge)
        json_add_string(row, "child", step->edge);
    if (step->from)
        json_add_string(row, "from", step->from);
    if (step->to)
        json_add_string(row, "to", step->to);
}

static int transaction_try(struct change *change, struct json_object **ret, struct error *err)
{
    struct json_object *reply = json_object_new_object();
    int result = change_try(change, transaction_tell, json_add_array(reply, "would"), err);

    if (result)
        json_object_put(reply);
    else
        *ret = reply;
    return result;
}

int qmp_transaction(struct qmp_client *client, const struct transaction_args *args, struct json_object **ret,
                    struct error *err)
{
    int result = 0;

    (void)client;
    for (size_t i = 0; i < args->actions.count && !result; i++)
        result = transaction_check(args->actions.items[i], err);
    if (result)
        return result;
    struct change *change = change_new();

    for (size_t i = 0; i < args->actions.count && !result; i++) {
        result = transaction_add(change, args->actions.items[i], err);
        if (!result)
            result = change_order(change, err);
    }
    if (!result && args->dry_run)
        return transaction_try(change, ret, err);
    return change_finish(change, result, err);
}
