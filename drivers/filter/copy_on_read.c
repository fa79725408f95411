/*
 * copy-on-read: what is read from the backing of the format below stays in
 * the format. All that is done here is to ask for it (REQ_FILL); what is
 * there already costs nothing, and what cannot be kept is read all the same.
 */
#include <errno.h>

#include "core/driver.h"
#include "core/error.h"
#include "generated/options.h"

#define COPY_ON_READ_OPS (REQ_BIT(REQ_READ) | REQ_BIT(REQ_PREFETCH))

static int copy_on_read_open(struct node *node, const void *options, struct error *err)
{
    const struct node *child = node->filtered->child;

    (void)options;
    if (child->flags & NODE_READ_ONLY)
        return error_set(err, -EACCES, "Block node '%s' is read-only: nothing can be copied into it", child->name);
    return 0;
}

static enum step copy_on_read_map(struct node *node, struct request *req)
{
    if (REQ_BIT(req->op) & COPY_ON_READ_OPS)
        req->flags |= REQ_FILL;
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
    .open = copy_on_read_open,
    .permissions = copy_on_read_permissions,
    .map = copy_on_read_map,
};
