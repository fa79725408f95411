/*
 * Nodes that are there: the registry, size, damage, introspection. How nodes
 * come and go is in node_add.c.
 */
#include "core/node.h"

#include <errno.h>
#include <string.h>

#include "core/change.h"
#include "core/change_list.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/event.h"
#include "core/memory.h"
#include "core/request_side.h"
#include "generated/options.h"

struct list node_registry = LIST_INIT(node_registry);
struct list node_pending = LIST_INIT(node_pending);

static struct node *node_find_in(const struct list *list, const char *name)
{
    struct node *node;

    list_for_each(node, list, in_registry) {
        if (!(node->flags & NODE_REMOVED) && strcmp(node->name, name) == 0)
            return node;
    }
    return NULL;
}

struct node *node_find(const char *name)
{
    struct node *node = node_find_in(&node_registry, name);

    return node ? node : node_find_in(&node_pending, name);
}

struct node *node_lookup(const char *name, struct error *err)
{
    struct node *node = node_find(name);

    if (!node)
        error_set(err, -ENODEV, "Cannot find device='' nor node-name='%s'", name);
    return node;
}

void *node_driver_options(const struct node *node)
{
    return option_branch_of(&node_options_type, node->options, NULL);
}

struct edge *node_child_by_role(const struct node *node, uint32_t role)
{
    for (unsigned i = 0; i < node->child_count; i++) {
        if (node->children[i]->role & role)
            return node->children[i];
    }
    return NULL;
}

struct edge *node_child_by_name(const struct node *node, const char *name)
{
    for (unsigned i = 0; i < node->child_count; i++) {
        if (strcmp(node->children[i]->name, name) == 0)
            return node->children[i];
    }
    return NULL;
}

void node_size_changed(struct node *node, uint64_t size)
{
    struct edge *edge;

    list_for_each(edge, &node->parents, in_child) {
        if (edge->parent.ops->resized)
            edge->parent.ops->resized(edge, size);
    }
}

/* The node may be gone when the message arrives. */
struct node_growing {
    struct loop_message message;
    char name[NODE_NAME_MAX + 1];
};

static void node_tell_growth(struct loop_message *message)
{
    struct node_growing *growing = container_of(message, struct node_growing, message);
    struct node *node = node_find(growing->name);

    free(growing);
    if (node)
        node_size_changed(node, node->size);
}

void node_grown(struct node *node, uint64_t size)
{
    struct node_growing *growing = memory_new(struct node_growing);

    atomic_store_explicit(&node->size, size, memory_order_release);
    growing->message.run = node_tell_growth;
    memcpy(growing->name, node->name, sizeof(growing->name));
    loop_post(loop_main, &growing->message);
}

/* Resize: a change whose only action works under the drain. */

struct node_resizing {
    struct node *node;
    uint64_t size;
};

static int node_resize_settle(void *action, struct error *err)
{
    struct node_resizing *resizing = action;
    struct edge self = {.child = resizing->node};

    return edge_resize(&self, resizing->size, err);
}

/* Where a driver's resize() may go on, by edge_resize(). */
static struct edge *node_resizes_below(const struct node *node)
{
    return node->filtered ? node->filtered : node_child_by_role(node, ROLE_PRIMARY);
}

/* Tells everybody from the lowest layer that was resized upwards. */
static void node_tell_size(struct node *node)
{
    struct edge *below = node_resizes_below(node);

    if (below)
        node_tell_size(below->child);
    node_size_changed(node, node->size);
}

/* Still drained: layers above that follow must not let in what lies beyond the new end. */
static void node_resize_commit(void *action)
{
    struct node_resizing *resizing = action;

    node_tell_size(resizing->node);
}

static const struct change_type node_resize_type = {
    .name = "resize", .settle = node_resize_settle, .commit = node_resize_commit};

int node_resize(struct node *node, uint64_t size, struct error *err)
{
    struct change *change;
    AUTO_FREE char *name = memory_string(node->name);

    /* The wait for other changes may outlive the node. */
    change = change_new();
    node = node_lookup(name, err);
    if (!node) {
        change_abort(change);
        return -ENODEV;
    }
    struct node_resizing *resizing = change_add(change, &node_resize_type, sizeof(*resizing));

    *resizing = (struct node_resizing){.node = node, .size = size};
    /* Others may reach the layers below by a way of their own. */
    change_touch(change, node);
    for (struct edge *below; (below = node_resizes_below(node)); node = below->child)
        change_touch(change, below->child);
    return change_apply(change, err);
}

void node_corrupted(struct node *node, const char *message, uint64_t offset, uint64_t size)
{
    struct block_image_corrupted_event event = {
        .device = (char *)(uintptr_t) "",
        .node_name = node->name,
        .msg = (char *)(uintptr_t)message,
        .has_offset = offset != UINT64_MAX,
        .offset = (int64_t)offset,
        .has_size = size != 0,
        .size = (int64_t)size,
        .fatal = true,
    };

    if (atomic_fetch_or(&node->flags, NODE_CORRUPTED) & NODE_CORRUPTED)
        return;
    atomic_fetch_or(&node->side_ops, REQ_BITS_WRITING);
    event_emit("BLOCK_IMAGE_CORRUPTED", &block_image_corrupted_event_type, &event);
}
