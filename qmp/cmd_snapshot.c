/*
 * External snapshots: blockdev-snapshot, and blockdev-snapshot-sync, which
 * also makes the overlay's file.
 */
#include <errno.h>
#include <string.h>

#include "core/change.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/snapshot.h"
#include "drivers/format/qcow2_create.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/cmd_graph.h"

int graph_snapshot(struct change *change, const struct blockdev_snapshot_args *args, struct error *err)
{
    AUTO_FREE struct node **layers = memory_array(SNAPSHOT_LAYERS_MAX, sizeof(struct node *));
    char *const *overlays = args->overlay ? &args->overlay : args->overlays.items;
    size_t given = args->overlay ? 1 : args->overlays.count;

    if (!given || (args->overlay && args->overlays.count))
        return error_set(err, -EINVAL, "Either 'overlay' or 'overlays' must be given");
    int count = snapshot_layers(args->node, layers, err), result = 0;

    if (count < 0)
        return count;
    if ((size_t)count != given)
        return error_set(err, -EINVAL, "A snapshot of '%s' needs %d overlays, but %zu are given", args->node, count,
                         given);
    for (int i = 0; i < count && !result; i++) {
        struct node *overlay = node_lookup(overlays[i], err);

        result = overlay ? snapshot_take(change, layers[i], overlay, err) : -ENODEV;
    }
    return result;
}

static struct node_ref *snapshot_ref(struct node_options *node)
{
    struct node_ref *ref = memory_new(struct node_ref);

    ref->node = node;
    ref->null = !node;
    return ref;
}

static int snapshot_add_overlay(struct change *change, const char *path, const char *name, const struct node *layer,
                                struct node **ret, struct error *err)
{
    struct node_options *file = memory_new(struct node_options), *options = memory_new(struct node_options);

    file->driver = NODE_DRIVER_FILE;
    file->u.file.filename = memory_string(path);
    options->driver = NODE_DRIVER_QCOW2;
    options->node_name = memory_string(name);
    options->discard = layer->options->discard;
    options->detect_zeroes = layer->options->detect_zeroes;
    options->cache = option_copy(&node_cache_type, layer->options->cache);
    options->u.qcow2.file = snapshot_ref(file);
    options->u.qcow2.backing = snapshot_ref(NULL);
    options->u.qcow2.pass_discard_snapshot = true;
    options->u.qcow2.cache_clean_interval = 600;
    int result = node_add(change, options, ret, err);

    option_free(&node_options_type, options);
    return result;
}

/* One name, or one for each layer. */
struct snapshot_names {
    char *const *items;
    size_t count;
};

static int snapshot_names(struct snapshot_names *ret, char *const *one, char *const *items, size_t count,
                          const char *option, struct error *err)
{
    if (!*one == !count)
        return error_set(err, -EINVAL, "Either '%s' or '%ss' must be given", option, option);
    *ret = (struct snapshot_names){*one ? one : items, *one ? 1 : count};
    return 0;
}

static int snapshot_names_fit(const struct snapshot_names *names, size_t layers, const char *of, const char *what,
                              struct error *err)
{
    return names->count == layers ? 0
                                  : error_set(err, -EINVAL, "A snapshot of '%s' needs %zu %s, but %zu are given", of,
                                              layers, what, names->count);
}

static int snapshot_sync_layer(struct change *change, enum new_image_mode mode, const char *path, const char *name,
                               struct node *layer, struct error *err)
{
    struct node *overlay;
    int result = mode == NEW_IMAGE_MODE_EXISTING ? 0 : qcow2_create_overlay(change, path, layer, err);

    if (result == 0)
        result = snapshot_add_overlay(change, path, name, layer, &overlay, err);
    return result ? result : snapshot_take(change, layer, overlay, err);
}

int graph_snapshot_sync(struct change *change, const struct blockdev_snapshot_sync_args *args, struct error *err)
{
    AUTO_FREE struct node **layers = memory_array(SNAPSHOT_LAYERS_MAX, sizeof(struct node *));
    const char *name = args->device ? args->device : args->node_name;
    struct snapshot_names files = {0}, nodes = {0};

    if (!args->device == !args->node_name)
        return error_set(err, -EINVAL, "Either 'device' or 'node-name' must be given");
    int result = snapshot_names(&files, &args->snapshot_file, args->snapshot_files.items, args->snapshot_files.count,
                                "snapshot-file", err);

    if (result == 0)
        result = snapshot_names(&nodes, &args->snapshot_node_name, args->snapshot_node_names.items,
                                args->snapshot_node_names.count, "snapshot-node-name", err);
    if (result < 0)
        return result;
    if (strcmp(args->format, "qcow2") != 0)
        return error_set(err, -EINVAL, "Parameter 'format' does not accept value '%s'", args->format);
    int count = snapshot_layers(name, layers, err);

    if (count < 0)
        return count;
    result = snapshot_names_fit(&files, (size_t)count, name, "files", err);
    if (result == 0)
        result = snapshot_names_fit(&nodes, (size_t)count, name, "node names", err);
    for (int i = 0; i < count && result == 0; i++)
        result = snapshot_sync_layer(change, args->mode, files.items[i], nodes.items[i], layers[i], err);
    return result;
}

int qmp_blockdev_snapshot(struct qmp_client *client, const struct blockdev_snapshot_args *args,
                          struct json_object **ret, struct error *err)
{
    struct change *change = change_new();

    (void)client;
    (void)ret;
    return change_finish(change, graph_snapshot(change, args, err), err);
}

int qmp_blockdev_snapshot_sync(struct qmp_client *client, const struct blockdev_snapshot_sync_args *args,
                               struct json_object **ret, struct error *err)
{
    struct change *change = change_new();

    (void)client;
    (void)ret;
    return change_finish(change, graph_snapshot_sync(change, args, err), err);
}
