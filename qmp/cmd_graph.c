/*
 * Commands that change the graph one node at a time: blockdev-add,
 * blockdev-del, block_resize. Several at once: cmd_transaction.c.
 *
 * Whatever comes from the registries is looked up after change_new(), which
 * may wait for somebody who removes it.
 */
#include "qmp/cmd_graph.h"

#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "core/change.h"
#include "core/error.h"
#include "core/node.h"
#include "generated/commands.h"
#include "generated/options.h"

bool command_id_is_good(const char *id)
{
    if (!isalpha((unsigned char)id[0]))
        return false;
    for (; *id; id++)
        if (!isalnum((unsigned char)*id) && !strchr("-._", *id))
            return false;
    return true;
}

int change_finish(struct change *change, int result, struct error *err)
{
    if (!result)
        return change_apply(change, err);
    change_abort(change);
    return result;
}

int graph_check_blockdev_add(const struct node_options *options, struct error *err)
{
    if (!options->node_name)
        return error_set(err, -EINVAL, "'node-name' must be specified for the root node");
    return 0;
}

int graph_blockdev_add(struct change *change, const struct node_options *options, struct error *err)
{
    struct node *node;

    return node_add(change, options, &node, err);
}

int graph_blockdev_del(struct change *change, const char *node_name, struct error *err)
{
    struct node *node = node_find(node_name);

    if (!node)
        return error_set(err, -ENODEV, "Failed to find node with node-name='%s'", node_name);
    if (node->flags & NODE_IMPLICIT)
        return error_set(err, -EBUSY, "Node %s is not owned by the monitor: it goes with its parent", node_name);
    return node_remove(change, node, err);
}

int qmp_blockdev_add(struct qmp_client *client, const struct node_options *args, struct json_object **ret,
                     struct error *err)
{
    int result = graph_check_blockdev_add(args, err);

    (void)client;
    (void)ret;
    if (result)
        return result;
    struct change *change = change_new();

    return change_finish(change, graph_blockdev_add(change, args, err), err);
}

int qmp_blockdev_del(struct qmp_client *client, const struct blockdev_del_args *args, struct json_object **ret,
                     struct error *err)
{
    struct change *change = change_new();

    (void)client;
    (void)ret;
    return change_finish(change, graph_blockdev_del(change, args->node_name, err), err);
}

int qmp_block_resize(struct qmp_client *client, const struct block_resize_args *args, struct json_object **ret,
                     struct error *err)
{
    (void)client;
    (void)ret;
    struct node *node = node_lookup(args->node_name, err);

    return node ? node_resize(node, args->size, err) : -ENODEV;
}
