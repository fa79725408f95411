/*
 * Edges between nodes: see edge.h. How they change is in change.c, I/O down
 * an edge in edge_io.c.
 */
#include "core/edge.h"

#include <errno.h>

#include "core/driver.h"
#include "core/error.h"
#include "core/node.h"

static const char *edge_node_name(const struct edge *edge)
{
    return ((const struct node *)edge->parent.object)->name;
}

static void edge_node_resized(struct edge *edge, uint64_t size)
{
    struct node *parent = edge->parent.object;
    uint64_t before = parent->size;

    if (parent->driver->child_resized)
        parent->driver->child_resized(parent, edge);
    else if (parent->filtered == edge)
        parent->size = size;
    if (parent->size != before)
        node_size_changed(parent, parent->size);
}

const struct edge_parent_ops edge_parent_node = {
    .kind = "node",
    .name = edge_node_name,
    .resized = edge_node_resized,
};

struct node *edge_parent_node_of(const struct edge *edge)
{
    return edge->parent.ops == &edge_parent_node ? edge->parent.object : NULL;
}

/* All other users of the child must allow it, whichever way the resize came. */
static int edge_resize_allowed(const struct edge *edge, struct error *err)
{
    const struct node *child = edge->child;
    const struct edge *other;

    if (child->flags & NODE_READ_ONLY)
        return error_set(err, -EACCES, "Block node '%s' is read-only", child->name);
    list_for_each(other, &child->parents, in_child) {
        if (other != edge && !(other->have.shared & PERM_RESIZE))
            return error_set(err, -EPERM,
                             "Conflicts with use by %s '%s' as '%s', which does not allow 'resize' on node '%s'",
                             other->parent.ops->kind, other->parent.ops->name(other), other->name, child->name);
    }
    return 0;
}

int edge_grow(struct edge *edge, uint64_t size)
{
    struct node *child = edge->child;

    if (size <= atomic_load_explicit(&child->size, memory_order_acquire))
        return 0;
    while (!child->driver->grow && child->filtered)
        child = child->filtered->child;
    return child->driver->grow ? child->driver->grow(child, size) : -ENOSPC;
}

int edge_resize(struct edge *edge, uint64_t size, struct error *err)
{
    struct node *child = edge->child;
    int result = edge_resize_allowed(edge, err);

    if (result < 0)
        return result;
    if (child->driver->resize)
        result = child->driver->resize(child, size, err);
    else if (child->filtered)
        result = edge_resize(child->filtered, size, err);
    else
        return error_set(err, -ENOTSUP, "Driver '%s' of node '%s' cannot be resized", child->driver->name, child->name);
    if (result == 0 && !child->driver->resize)
        child->size = child->filtered->child->size;
    return result;
}
