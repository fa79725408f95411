/*
 * Commands that change nodes and their relations: blockdev-add, blockdev-del,
 * blockdev-reopen, x-blockdev-change, block_resize. Several at once:
 * cmd_transaction.c.
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
#include "core/export.h"
#include "core/node.h"
#include "core/source.h"
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

static int graph_reopen_one(struct change *change, const struct node_options *options, struct error *err)
{
    if (!options->node_name)
        return error_set(err, -EINVAL, "node-name not specified");
    struct node *node = node_find(options->node_name);

    if (!node)
        return error_set(err, -ENODEV, "Failed to find node with node-name='%s'", options->node_name);
    return node_reopen(change, node, options, err);
}

int graph_blockdev_reopen(struct change *change, const struct blockdev_reopen_args *args, struct error *err)
{
    int result = 0;

    for (size_t i = 0; i < args->options.count && !result; i++)
        result = graph_reopen_one(change, args->options.items[i], err);
    return result;
}

/* The node that ref means; one that is defined here is added. NULL for none. */
static int graph_ref_node(struct change *change, const struct node_ref *ref, struct node **ret, struct error *err)
{
    *ret = NULL;
    if (ref->null)
        return 0;
    if (ref->node)
        return node_add(change, ref->node, ret, err);
    return (*ret = node_lookup(ref->name, err)) ? 0 : -ENODEV;
}

static int graph_change_source(struct change *change, struct source *source, const char *child,
                               const struct node_ref *ref, struct error *err)
{
    bool top = strcmp(child, "top") == 0;
    struct node *node, *before = source->top.next_child;

    if (!top && strcmp(child, "base") != 0)
        return error_set(err, -EINVAL, "Source '%s' has no child '%s': it has top and base", source->id, child);
    if (ref->null)
        return error_set(err, -EINVAL, "Source '%s' cannot be without its child '%s'", source->id, child);
    int result = graph_ref_node(change, ref, &node, err);

    if (result)
        return result;
    if (!top)
        return source_switch(change, source, node, err);
    result = source_move(change, source, node, err);
    return result ? result : node_release(change, before, err);
}

static int graph_change_export(struct change *change, struct export *export, const char *child,
                               const struct node_ref *ref, struct error *err)
{
    struct node *node;

    if (strcmp(child, "root") != 0)
        return error_set(err, -EINVAL, "Export '%s' has no child '%s': it has root", export->id, child);
    if (ref->null)
        return error_set(err, -EINVAL, "Export '%s' cannot be without its child 'root'", export->id);
    if (ref->name)
        return export_move(change, export, ref->name, err);
    int result = graph_ref_node(change, ref, &node, err);

    return result ? result : export_move(change, export, node->name, err);
}

int graph_blockdev_change(struct change *change, const struct x_blockdev_change_args *args, struct error *err)
{
    struct node *node = node_find(args->parent);
    struct source *source = source_find(args->parent);
    struct export *export = export_find(args->parent);

    if (node)
        return node_set_child(change, node, args->child, args->node, err);
    if (source)
        return graph_change_source(change, source, args->child, args->node, err);
    if (export)
        return graph_change_export(change, export, args->child, args->node, err);
    return error_set(err, -ENOENT, "There is no node, source or export '%s'", args->parent);
}

int qmp_blockdev_reopen(struct qmp_client *client, const struct blockdev_reopen_args *args, struct json_object **ret,
                        struct error *err)
{
    struct change *change = change_new();

    (void)client;
    (void)ret;
    return change_finish(change, graph_blockdev_reopen(change, args, err), err);
}

int qmp_x_blockdev_change(struct qmp_client *client, const struct x_blockdev_change_args *args,
                          struct json_object **ret, struct error *err)
{
    struct change *change = change_new();

    (void)client;
    (void)ret;
    return change_finish(change, graph_blockdev_change(change, args, err), err);
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
