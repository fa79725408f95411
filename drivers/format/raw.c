/*
 * raw: all bytes of another node as a disk, or a window on them.
 */
#include <errno.h>

#include "core/driver.h"
#include "generated/options.h"

struct raw {
    uint64_t offset;        /* of the window in the child */
    struct edge *file;
};

static int raw_open(struct node *node, const void *opaque, struct error *err)
{
    const struct raw_options *options = opaque;
    struct raw *raw = node->state;

    raw->file = node_child_by_role(node, ROLE_PRIMARY);
    raw->offset = options->offset;
    uint64_t room = raw->file->child->size;

    if (options->offset > room)
        return error_set(err, -EINVAL, "Offset (%llu) cannot be greater than size of the containing file (%llu)",
                         (unsigned long long)options->offset, (unsigned long long)room);
    room -= options->offset;
    if (options->has_size && options->size > room)
        return error_set(err, -EINVAL,
                         "The sum of offset (%llu) and size (%llu) has to be smaller or equal to the actual size of "
                         "the containing file (%llu)",
                         (unsigned long long)options->offset, (unsigned long long)options->size,
                         (unsigned long long)(room + options->offset));
    if (options->has_size && options->size % 512)
        return error_set(err, -EINVAL, "Specified size (%llu) is not a multiple of 512",
                         (unsigned long long)options->size);
    node->size = options->has_size ? options->size : room;
    return 0;
}

static int raw_resize(struct node *node, uint64_t size, struct error *err)
{
    const struct raw_options *options = node_driver_options(node);
    struct raw *raw = node->state;

    if (options->has_size)
        return error_set(err, -ENOTSUP, "Cannot resize node '%s': it has a fixed size", node->name);
    if (size > UINT64_MAX - raw->offset)
        return error_set(err, -EFBIG, "Size %llu of node '%s' is too large", (unsigned long long)size, node->name);
    int result = edge_resize(raw->file, raw->offset + size, err);

    if (result == 0)
        node->size = size;
    return result;
}

/* Without a size of its own the window follows the end of the file. */
static void raw_child_resized(struct node *node, struct edge *edge)
{
    const struct raw_options *options = node_driver_options(node);
    const struct raw *raw = node->state;
    uint64_t size = edge->child->size;

    if (!options->has_size)
        node->size = size > raw->offset ? size - raw->offset : 0;
}

static enum step raw_map(struct node *node, struct request *req)
{
    const struct raw *raw = node->state;

    req->offset += raw->offset;
    return request_down(req, raw->file);
}

const struct driver raw_driver = {
    .name = "raw",
    .kind = DRIVER_FORMAT,
    .ops = (1u << REQ_OP_COUNT) - 1,
    .request_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_COMPRESSED | REQ_FILL,
    .state_size = sizeof(struct raw),
    .open = raw_open,
    .resize = raw_resize,
    .child_resized = raw_child_resized,
    .map = raw_map,
};
