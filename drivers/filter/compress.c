/*
 * compress: writes are compressed by the format below.
 */
#include <errno.h>

#include "core/driver.h"
#include "core/error.h"
#include "generated/options.h"

/* Filters and windows pass it on; who stores is asked. */
static const struct node *compress_storage(const struct node *node)
{
    const struct edge *edge;

    while (node->driver->ops == 0 || node->driver == driver_table[NODE_DRIVER_RAW]) {
        edge = node_child_by_role(node, ROLE_PRIMARY);
        if (!edge || !edge->child)
            break;
        node = edge->child;
    }
    return node;
}

static int compress_open(struct node *node, const void *options, struct error *err)
{
    const struct node *storage = compress_storage(node->filtered->child);

    (void)options;
    if (storage->driver->request_flags & REQ_COMPRESSED)
        return 0;
    return error_set(err, -ENOTSUP, "Compression is not supported for driver '%s' of node '%s'", storage->driver->name,
                     storage->name);
}

static enum step compress_map(struct node *node, struct request *req)
{
    if (req->op == REQ_WRITE)
        req->flags |= REQ_COMPRESSED;
    return request_down(req, node->filtered);
}

const struct driver compress_driver = {
    .name = "compress",
    .kind = DRIVER_FILTER,
    .open = compress_open,
    .map = compress_map,
};
