/*
 * The side exit of the walk: see request_side.h. Off the fast path: a node
 * that asks for nothing special never comes here.
 */
#include "core/request_side.h"

#include <errno.h>

#include "core/driver.h"
#include "core/iov.h"
#include "core/node.h"
#include "generated/options.h"

#define SIDE_OPS_ALL ((1u << REQ_OP_COUNT) - 1)
#define SIDE_FLAGS_ALL (REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_COMPRESSED | REQ_FILL)

/* A layer without functions of its own shows all that its child can do. */
static bool driver_passes_all(const struct driver *driver)
{
    return driver->kind == DRIVER_FILTER && driver->ops == 0;
}

static bool node_ignores_flush(const struct node *node)
{
    return node->options->cache && node->options->cache->no_flush;
}

void request_side_update(struct node *node)
{
    const struct driver *driver = node->driver;
    bool passes = driver_passes_all(driver);
    uint32_t ops = passes ? 0 : SIDE_OPS_ALL & (~driver->ops | node->lacks_ops);
    uint32_t flags = passes ? 0 : SIDE_FLAGS_ALL & (~driver->request_flags | node->lacks_flags);

    if (node->flags & (NODE_CORRUPTED | NODE_READ_ONLY))
        ops |= REQ_BITS_WRITING;
    if (node_ignores_flush(node)) {
        ops |= REQ_BIT(REQ_FLUSH);
        flags |= REQ_FUA;
    }
    if (node->options->discard == NODE_DISCARD_IGNORE) {
        ops |= REQ_BIT(REQ_DISCARD);
        flags |= REQ_MAY_UNMAP;
    }
    if (node->options->detect_zeroes != NODE_DETECT_ZEROES_OFF)
        ops |= REQ_BIT(REQ_WRITE);
    /* Corruption may be found, hence set here, while other loops walk. */
    atomic_store_explicit(&node->side_ops, ops, memory_order_relaxed);
    atomic_store_explicit(&node->side_flags, flags, memory_order_relaxed);
}

void request_detect_zeroes(struct request *req, bool unmap)
{
    if (req->flags & (REQ_COMPRESSED | REQ_FILL) || !iov_is_zero(req->iov, req->iov_count))
        return;
    req->op = REQ_WRITE_ZEROES;
    if (unmap)
        req->flags |= REQ_MAY_UNMAP;
}

enum step request_side(struct request *req, struct node *node)
{
    const struct node_options *options = node->options;

    if (REQ_BITS_WRITING & REQ_BIT(req->op)) {
        uint32_t flags = atomic_load_explicit(&node->flags, memory_order_relaxed);

        if (flags & NODE_CORRUPTED)
            return request_up(req, -EIO);
        if (flags & NODE_READ_ONLY)
            return request_up(req, -EPERM);
    }
    if (node_ignores_flush(node)) {
        if (req->op == REQ_FLUSH)
            return request_up(req, 0);
        req->flags &= ~(uint32_t)REQ_FUA;
    }
    if (options->discard == NODE_DISCARD_IGNORE) {
        if (req->op == REQ_DISCARD)
            return request_up(req, 0);
        req->flags &= ~(uint32_t)REQ_MAY_UNMAP;
    }
    if (req->op == REQ_WRITE && options->detect_zeroes != NODE_DETECT_ZEROES_OFF)
        request_detect_zeroes(req, options->detect_zeroes == NODE_DETECT_ZEROES_UNMAP);
    return request_emulate(req, node);
}
