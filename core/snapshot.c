/*
 * Snapshots: see snapshot.h.
 */
#include "core/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/change.h"
#include "core/change_list.h"
#include "core/consumer.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/source.h"
#include "generated/options.h"

struct snapshot_walk {
    struct node **layers;
    unsigned count;
    struct error *err;
};

static int snapshot_add_layer(struct snapshot_walk *walk, struct node *node)
{
    for (unsigned i = 0; i < walk->count; i++) {
        if (walk->layers[i] == node)
            return 0;
    }
    if (walk->count == SNAPSHOT_LAYERS_MAX)
        return error_set(walk->err, -E2BIG, "A snapshot can be taken of at most %u layers", SNAPSHOT_LAYERS_MAX);
    walk->layers[walk->count++] = node;
    return 0;
}

/* Composites inside composites are few: the depth is theirs, not that of chains. */
static int snapshot_descend(struct snapshot_walk *walk, struct node *node, unsigned depth)
{
    int result = 0;

    node = source_base(node);
    if (node->driver->kind != DRIVER_COMPOSITE)
        return snapshot_add_layer(walk, node);
    if (depth == 16)
        return error_set(walk->err, -E2BIG, "Node '%s' lies below too many others", node->name);
    const struct node *next = node_next(node);

    for (unsigned i = 0; i < next->child_count && result == 0; i++) {
        struct node *child = next->children[i]->next_child;

        if (child && next->children[i]->role & ROLE_DATA)
            result = snapshot_descend(walk, child, depth + 1);
    }
    return result;
}

int snapshot_layers(const char *name, struct node **ret, struct error *err)
{
    struct source *source = source_find(name);
    struct node *node = source ? source->top.next_child : node_lookup(name, err);
    struct snapshot_walk walk = {.layers = ret, .err = err};

    if (!node)
        return -ENODEV;
    int result = snapshot_descend(&walk, node, 0);

    return result < 0 ? result : (int)walk.count;
}

/* Who uses the layer */

struct snapshot_users {
    struct edge **edges;
    unsigned count;
};

/* Other overlays depend on the layer as it is. */
static int snapshot_add_user(struct edge *edge, void *arg)
{
    struct snapshot_users *users = arg;

    if (edge->role & ROLE_BACKING)
        return 0;
    users->edges = memory_grow(users->edges, users->count + 1u, sizeof(struct edge *));
    users->edges[users->count++] = edge;
    return 0;
}

static int snapshot_move_user(struct change *change, struct edge *edge, struct node *overlay, struct error *err)
{
    struct node *parent = edge_parent_node_of(edge);

    if (!parent)
        return change_replace(change, edge, overlay, err);
    AUTO_FREE char *name = memory_string(edge->name);

    return node_set_child_node(change, parent, name, overlay, err);
}

/* The option for what lies behind a node of this driver, or NULL. */
static const char *snapshot_backing_option(const struct node *node)
{
    const struct option_type *type = NULL;

    option_branch_of(&node_options_type, node->options, &type);
    for (unsigned i = 0; type && i < type->field_count; i++) {
        if (type->fields[i].child_role & ROLE_BACKING)
            return type->fields[i].name;
    }
    return NULL;
}

static int snapshot_is_used(struct edge *edge, void *arg)
{
    const char *const *overlay = arg;

    (void)edge;
    return overlay != NULL;
}

static int snapshot_check(struct change *change, struct node *layer, struct node *overlay, struct error *err)
{
    const char *name = overlay->name;

    if (layer == overlay)
        return error_set(err, -EINVAL, "Node '%s' cannot be an overlay of itself", name);
    if (!snapshot_backing_option(overlay))
        return error_set(err, -ENOTSUP, "The overlay '%s' does not support backing images", name);
    if (change_each_parent(change, overlay, snapshot_is_used, &name) != 0)
        return error_set(err, -EBUSY, "The overlay '%s' is already in use", name);
    if (node_child_by_role(node_next(overlay), ROLE_BACKING))
        return error_set(err, -EBUSY, "The overlay '%s' already has a backing image", name);
    if (overlay->flags & NODE_READ_ONLY && layer->next.total.taken & PERM_WRITE)
        return error_set(err, -EPERM, "The overlay '%s' is read-only", name);
    if (overlay->size < layer->size)
        return error_set(err, -EINVAL,
                         "The overlay '%s' (%" PRIu64 " bytes) is smaller than node '%s' (%" PRIu64 " bytes)", name,
                         overlay->size, layer->name, layer->size);
    return 0;
}

static int snapshot_make_read_only(struct change *change, struct node *layer, struct error *err)
{
    if (node_next(layer)->flags & NODE_READ_ONLY)
        return 0;
    struct node_options *options = node_describe(layer);

    options->read_only = true;
    int result = node_reopen(change, layer, options, err);

    option_free(&node_options_type, options);
    return result;
}

int snapshot_take(struct change *change, struct node *layer, struct node *overlay, struct error *err)
{
    struct snapshot_users users = {0};
    int result = snapshot_check(change, layer, overlay, err);

    if (result < 0)
        return result;
    change_each_parent(change, layer, snapshot_add_user, &users);
    result = node_set_child_node(change, overlay, snapshot_backing_option(overlay), layer, err);
    for (unsigned i = 0; i < users.count && result == 0; i++)
        result = snapshot_move_user(change, users.edges[i], overlay, err);
    free(users.edges);
    return result < 0 ? result : snapshot_make_read_only(change, layer, err);
}
