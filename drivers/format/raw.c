/*
 * raw: an image without a format. All bytes of the child, or a window of
 * `size` bytes from `offset` on. Requests are re-aimed and not seen again.
 *
 * Invariant: the window lies inside the child. A window of a fixed size lets
 * nobody resize the child; one without follows the child's end. The state
 * changes only under a drain, so all loops may read it.
 */
#include <errno.h>
#include <inttypes.h>

#include "core/driver.h"
#include "core/memory.h"
#include "generated/options.h"

struct raw {
    struct edge *file;
    uint64_t offset;        /* bytes, in the child */
    bool fixed;             /* a size was given */
};

/* What the peers' sector sizes allow, so that a window means the same everywhere. */
#define RAW_SIZE_UNIT 512u

static int raw_check_window(const struct raw_options *options, uint64_t child_size, struct error *err)
{
    if (options->offset > child_size)
        return error_set(err, -EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of the containing file (%" PRIu64 ")",
                         options->offset, child_size);
    if (!options->has_size)
        return 0;
    if (options->size > child_size - options->offset)
        return error_set(err, -EINVAL,
                         "The sum of offset (%" PRIu64 ") and size (%" PRIu64 ") has to be smaller or equal to the "
                         "actual size of the containing file (%" PRIu64 ")",
                         options->offset, options->size, child_size);
    if (options->size % RAW_SIZE_UNIT)
        return error_set(err, -EINVAL, "Specified size (%" PRIu64 ") is not multiple of %u", options->size,
                         RAW_SIZE_UNIT);
    return 0;
}

static int raw_open(struct node *node, const void *opaque, struct error *err)
{
    const struct raw_options *options = opaque;
    struct raw *raw = node->state;

    raw->file = node_child_by_role(node, ROLE_DATA);
    if (!raw->file)
        return error_set(err, -EINVAL, "Parameter 'file' must be a node");
    uint64_t child_size = raw->file->child->size;
    int result = raw_check_window(options, child_size, err);

    if (result < 0)
        return result;
    raw->offset = options->offset;
    raw->fixed = options->has_size;
    node->size = raw->fixed ? options->size : child_size - raw->offset;
    return 0;
}

static int raw_resize(struct node *node, uint64_t size, struct error *err)
{
    struct raw *raw = node->state;

    if (raw->fixed)
        return error_set(err, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size > INT64_MAX - raw->offset)
        return error_set(err, -EINVAL, "Disk size too large for the chosen offset");
    int result = edge_resize(raw->file, raw->offset + size, err);

    if (result == 0)
        node->size = size;
    return result;
}

static int raw_grow(struct node *node, uint64_t size)
{
    const struct raw *raw = node->state;

    if (raw->fixed || size > INT64_MAX - raw->offset)
        return -ENOSPC;
    return edge_grow(raw->file, raw->offset + size);
}

static void raw_child_resized(struct node *node, struct edge *edge)
{
    const struct raw *raw = node->state;
    uint64_t child_size = edge->child->size;

    if (!raw->fixed)
        node->size = child_size > raw->offset ? child_size - raw->offset : 0;
}

static void raw_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    const struct raw_options *options = node_driver_options(node);

    (void)edge;
    if (options->has_size)
        io->shared &= ~(uint32_t)PERM_RESIZE;
}

/* A format above goes where its image says, and that may be anybody's: never out of the window. */
static bool raw_is_outside(const struct node *node, const struct request *req)
{
    uint64_t size = atomic_load_explicit(&node->size, memory_order_relaxed);

    return req->offset > size || req->length > size - req->offset;
}

static enum step raw_map(struct node *node, struct request *req)
{
    const struct raw *raw = node->state;

    if (unlikely(raw->fixed && raw_is_outside(node, req)))
        return request_up(req, REQ_BITS_WRITING & REQ_BIT(req->op) ? -ENOSPC : -EIO);
    req->offset += raw->offset;
    return request_down(req, raw->file);
}

const struct driver raw_driver = {
    .name = "raw",
    .kind = DRIVER_FORMAT,
    .ops = (1u << REQ_OP_COUNT) - 1,
    .request_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_UNCHANGED | REQ_COMPRESSED | REQ_FILL,
    .state_size = sizeof(struct raw),
    .open = raw_open,
    .resize = raw_resize,
    .grow = raw_grow,
    .child_resized = raw_child_resized,
    .permissions = raw_permissions,
    .map = raw_map,
};
