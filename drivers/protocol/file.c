/*
 * file: a regular file of the host. Opening and resizing; I/O is in
 * file_io.c, locks in file_lock.c. host_device.c opens devices with the same
 * code.
 */
#include "drivers/protocol/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "core/memory.h"
#include "generated/options.h"

static int file_check_kind(int fd, const char *filename, bool device, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return error_set(err, -errno, "Could not examine '%s': %s", filename, strerror(errno));
    if (device && !S_ISBLK(st.st_mode))
        return error_set(err, -EINVAL, "The 'host_device' driver needs a block device, which '%s' is not", filename);
    if (!device && !S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, "The 'file' driver needs a regular file, which '%s' is not", filename);
    return 0;
}

/* The smallest unit that reads accept; writes accept what reads do. */
static uint32_t file_probe_align(int fd, uint64_t size)
{
    AUTO_FREE char *buffer = buffer_alloc(2 * BUFFER_ALIGN);

    for (uint32_t align = 512; buffer && align < BUFFER_ALIGN && align <= size; align *= 2) {
        if (pread(fd, buffer + align, align, 0) >= 0)
            return align;
    }
    return BUFFER_ALIGN;
}

static int file_open_fd(const struct node *node, const char *filename, struct error *err)
{
    bool direct = node->options->cache && node->options->cache->direct;
    int flags = O_CLOEXEC | O_NONBLOCK | (node->options->read_only ? O_RDONLY : O_RDWR);
    int fd = open(filename, flags | (direct ? O_DIRECT : 0));

    if (fd < 0 && errno == EINVAL && direct)
        return error_set(err, -EINVAL, "Could not open '%s': its filesystem does not support O_DIRECT (cache.direct)",
                         filename);
    if (fd < 0)
        return error_set(err, -errno, "Could not open '%s': %s", filename, strerror(errno));
    return fd;
}

int file_open(struct node *node, const char *filename, int locking, bool device, struct error *err)
{
    struct file *file = node->state;
    AUTO_CLOSE int fd = file_open_fd(node, filename, err);

    if (fd < 0)
        return fd;
    int result = file_check_kind(fd, filename, device, err);

    if (result < 0)
        return result;
    /* O_NONBLOCK only kept open() from waiting for a FIFO's other side. */
    int flags = fcntl(fd, F_GETFL);

    if (fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return error_set(err, -errno, "Could not open '%s': %s", filename, strerror(errno));
    off_t size = lseek(fd, 0, SEEK_END);

    if (size < 0)
        return error_set(err, -errno, "Could not get the size of '%s': %s", filename, strerror(errno));
    file->align = flags & O_DIRECT ? file_probe_align(fd, (uint64_t)size) : 1;
    file->locking = locking != FILE_LOCKING_OFF && !node->options->force_share;
    file->device = device;
    range_lock_init(&file->merging);
    node->size = (uint64_t)size;
    file->fd = take_fd(&fd);
    return 0;
}

void file_close(struct node *node)
{
    struct file *file = node->state;

    range_lock_destroy(&file->merging);
    close(file->fd);
}

static int file_open_regular(struct node *node, const void *opaque, struct error *err)
{
    const struct file_options *options = opaque;

    return file_open(node, options->filename, (int)options->locking, false, err);
}

static int file_resize(struct node *node, uint64_t size, struct error *err)
{
    struct file *file = node->state;

    if (size > INT64_MAX)
        return error_set(err, -EFBIG, "Size %llu of node '%s' is too large", (unsigned long long)size, node->name);
    if (ftruncate(file->fd, (off_t)size) < 0)
        return error_set(err, -errno, "Could not resize node '%s' to %llu bytes: %s", node->name,
                         (unsigned long long)size, strerror(errno));
    node->size = size;
    return 0;
}

const struct driver file_driver = {
    .name = "file",
    .kind = DRIVER_PROTOCOL,
    .ops = FILE_OPS,
    .request_flags = FILE_FLAGS,
    .state_size = sizeof(struct file),
    .open = file_open_regular,
    .close = file_close,
    .resize = file_resize,
    .claim = file_claim,
    .map = file_map,
    .slow = file_slow,
};
