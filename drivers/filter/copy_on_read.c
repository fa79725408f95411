/*
 * copy-on-read: what is read from the backing of the format below stays in
 * the format. All that is done here is to ask for it (REQ_FILL); what is
 * there already costs nothing, and what cannot be kept is read all the same.
 *
 * A bottom is named, and no edge leads to it: it must be a layer of the chain
 * below, whatever changes there. Where nothing below has a backing node,
 * nothing is asked.
 */
#include <errno.h>
#include <string.h>

#include "core/driver.h"
#include "core/error.h"
#include "generated/options.h"

#define COPY_ON_READ_OPS (REQ_BIT(REQ_READ) | REQ_BIT(REQ_PREFETCH))

struct copy_on_read {
    bool fills;
    const struct node *bottom;      /* NULL: all that comes from below is kept */
};

static struct node *chain_below(struct node *node, bool next)
{
    const struct node *layer = next ? node_next(node) : node;
    const struct edge *edge = layer->filtered ? layer->filtered : node_child_by_role(layer, ROLE_BACKING);

    return edge ? next ? edge->next_child : edge->child : NULL;
}

static struct node *chain_find(struct node *node, const char *name, bool next)
{
    do
        node = chain_below(node, next);
    while (node && strcmp(node->name, name) != 0);
    return node;
}

/* Whether there is a backing node that a format below can copy from. */
static bool chain_has_backing(const struct node *node)
{
    while (node && !node_child_by_role(node, ROLE_BACKING)) {
        const struct edge *edge = node_child_by_role(node, ROLE_PRIMARY);

        node = edge ? edge->child : NULL;
    }
    return node && node->driver->request_flags & REQ_FILL;
}

static void copy_on_read_look(struct node *node)
{
    const struct copy_on_read_options *options = node_driver_options(node);
    struct copy_on_read *state = node->state;

    state->bottom = options->bottom ? chain_find(node, options->bottom, false) : NULL;
    state->fills = chain_has_backing(node) && (state->bottom || !options->bottom);
}

static int copy_on_read_open(struct node *node, const void *options, struct error *err)
{
    const struct node *child = node->filtered->child;

    (void)options;
    if (child->flags & NODE_READ_ONLY)
        return error_set(err, -EACCES, "Block node '%s' is read-only: nothing can be copied into it", child->name);
    copy_on_read_look(node);
    return 0;
}

static int copy_on_read_check(struct node *node, struct error *err)
{
    const struct copy_on_read_options *options = node_driver_options(node_next(node));
    const struct node *bottom;

    if (!options->bottom)
        return 0;
    bottom = chain_find(node, options->bottom, true);
    if (!bottom)
        return error_set(err, -EINVAL, "bottom=%s is not in the backing chain below node '%s'", options->bottom,
                         node->name);
    if (bottom->driver->kind == DRIVER_FILTER)
        return error_set(err, -EINVAL, "bottom=%s is a filter, which has no data of its own", options->bottom);
    return 0;
}

static enum step copy_on_read_map(struct node *node, struct request *req)
{
    const struct copy_on_read *state = node->state;

    if (state->fills && REQ_BIT(req->op) & COPY_ON_READ_OPS) {
        /* A layer above that keeps all has its way. */
        if (!(req->flags & REQ_FILL) || req->bottom)
            req->bottom = state->bottom;
        req->flags |= REQ_FILL;
    }
    return request_down(req, node->filtered);
}

static void copy_on_read_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    (void)node;
    (void)edge;
    io->taken |= PERM_WRITE_UNCHANGED;
}

const struct driver copy_on_read_driver = {
    .name = "copy-on-read",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct copy_on_read),
    .open = copy_on_read_open,
    .children_changed = copy_on_read_look,
    .check = copy_on_read_check,
    .permissions = copy_on_read_permissions,
    .map = copy_on_read_map,
};
