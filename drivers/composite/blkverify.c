/*
 * blkverify: a quorum of two that must agree: see quorum.h.
 */
#include "drivers/composite/quorum.h"

static int blkverify_open(struct node *node, const void *options, struct error *err)
{
    (void)options;
    return quorum_open_children(node, 2, err);
}

const struct driver blkverify_driver = {
    .name = "blkverify",
    .kind = DRIVER_COMPOSITE,
    .ops = QUORUM_OPS,
    .request_flags = QUORUM_FLAGS,
    .state_size = sizeof(struct quorum),
    .open = blkverify_open,
    .close = quorum_close,
    .resize = quorum_resize,
    .grow = quorum_grow,
    .child_resized = quorum_child_resized,
    .permissions = quorum_permissions,
    .map = quorum_map,
    .slow = quorum_slow,
};
