/*
 * host_device: a block device of the host. What differs from a file: its size
 * and its blocks are asked for by ioctl, it cannot grow, zeroes and discards
 * come in whole blocks and by way of the device.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "drivers/protocol/file.h"
#include "generated/options.h"

static int host_device_examine(struct file *file, const struct stat *st, uint64_t *size, struct error *err)
{
    int block = 0, read_only = 0;

    if (!S_ISBLK(st->st_mode))
        return error_set(err, -EINVAL, "'host_device' driver requires '%s' to be a block device", file->path);
    if (ioctl(file->fd, BLKGETSIZE64, size) < 0 || ioctl(file->fd, BLKSSZGET, &block) < 0 ||
        ioctl(file->fd, BLKROGET, &read_only) < 0)
        return error_set(err, -errno, "Could not examine '%s': %s", file->path, strerror(errno));
    if (block <= 0 || block & (block - 1))
        return error_set(err, -ENOTSUP, "Device '%s' has blocks of %d bytes", file->path, block);
    if (read_only && (fcntl(file->fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
        return error_set(err, -EACCES, "Could not open '%s': the device is read-only", file->path);
    file->grain = (uint32_t)block;
    if (file->direct)
        file->align = file->grain;
    return 0;
}

/*
 * The kernel's names for block devices: PUNCH_HOLE zeroes by unmapping or by
 * the device's own zeroing, and fails if it has neither; ZERO_RANGE keeps the
 * space, and writes zeroes itself if it must, which is not fast.
 */
static int host_device_zero(struct file *file, uint64_t offset, uint64_t length, uint32_t flags)
{
    int result = -ENOTSUP;

    if (flags & REQ_MAY_UNMAP)
        result = file_fallocate(file, FILE_LACKS_PUNCH, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (result == -ENOTSUP && !(flags & REQ_FAST_ONLY))
        result =
            file_fallocate(file, FILE_LACKS_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
    return result;
}

struct host_device_range {
    int fd;
    uint64_t range[2];      /* offset, length */
};

static int host_device_discard_blocking(void *arg)
{
    struct host_device_range *range = arg;

    return ioctl(range->fd, BLKDISCARD, range->range) < 0 ? -errno : 0;
}

static int host_device_discard(struct file *file, uint64_t offset, uint64_t length)
{
    struct host_device_range range = {.fd = file->fd, .range = {offset, length}};

    if (file_is_lacking(file, FILE_LACKS_DISCARD))
        return -ENOTSUP;
    int result = coroutine_call(host_device_discard_blocking, &range);

    if (result == -EOPNOTSUPP || result == -ENOTTY) {
        file_set_lacking(file, FILE_LACKS_DISCARD);
        return -ENOTSUP;
    }
    return result;
}

static const struct file_storage host_device = {
    .driver = "host_device",
    .device = true,
    .examine = host_device_examine,
    .zero = host_device_zero,
    .discard = host_device_discard,
};

static int host_device_open(struct node *node, const void *opaque, struct error *err)
{
    const struct host_device_options *options = opaque;

    return file_open(node, &host_device, options->filename, (int)options->locking, err);
}

static int host_device_reopen(struct node *node, struct node *next, struct change *change, struct error *err)
{
    const struct host_device_options *is = node_driver_options(node), *wanted = node_driver_options(next);

    (void)change;
    return file_reopen(node, next, (int)is->locking, (int)wanted->locking, err);
}

/* The node may use less of the device, or more after the device itself has grown. */
static int host_device_resize(struct node *node, uint64_t size, struct error *err)
{
    struct file *file = node->state;
    uint64_t room;

    if (ioctl(file->fd, BLKGETSIZE64, &room) < 0)
        return error_set(err, -errno, "Could not get the size of '%s': %s", file->path, strerror(errno));
    if (size > room)
        return error_set(err, -ENOTSUP, "Cannot grow device '%s' of %" PRIu64 " bytes to %" PRIu64 " bytes", file->path,
                         room, size);
    file->end = size;
    node->size = size;
    return 0;
}

const struct driver host_device_driver = {
    .name = "host_device",
    .kind = DRIVER_PROTOCOL,
    .ops = FILE_OPS,
    .request_flags = FILE_REQUEST_FLAGS,
    .state_size = sizeof(struct file),
    .open = host_device_open,
    .close = file_close,
    .reopen = host_device_reopen,
    .adopt = file_adopt,
    .resize = host_device_resize,
    .claim = file_lock_claim,
    .map = file_map,
    .slow = file_slow,
};
