/*
 * host_device: a block device of the host. The same I/O as a file's; its size
 * is given.
 */
#include <errno.h>

#include "drivers/protocol/file.h"
#include "generated/options.h"

static int host_device_open(struct node *node, const void *opaque, struct error *err)
{
    const struct host_device_options *options = opaque;

    return file_open(node, options->filename, (int)options->locking, true, err);
}

static int host_device_resize(struct node *node, uint64_t size, struct error *err)
{
    struct file *file = node->state;
    off_t room = lseek(file->fd, 0, SEEK_END);

    if (room < 0 || size > (uint64_t)room)
        return error_set(err, -ENOTSUP, "Node '%s' is a device of %lld bytes, which cannot grow to %llu", node->name,
                         (long long)room, (unsigned long long)size);
    node->size = size;
    return 0;
}

const struct driver host_device_driver = {
    .name = "host_device",
    .kind = DRIVER_PROTOCOL,
    .ops = FILE_OPS,
    .request_flags = FILE_FLAGS,
    .state_size = sizeof(struct file),
    .open = host_device_open,
    .close = file_close,
    .resize = host_device_resize,
    .claim = file_claim,
    .map = file_map,
    .slow = file_slow,
};
