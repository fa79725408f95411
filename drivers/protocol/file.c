/*
 * file: a regular file of the host. Opening, closing and resizing; reads and
 * writes are in file_io.c, O_DIRECT in file_direct.c, holes in file_extent.c,
 * locks in file_lock.c. Opening and closing are shared with host_device.c.
 *
 * System calls that may wait for a dead server or a spinning disk run on the
 * thread pool: the main loop goes on.
 */
#include "drivers/protocol/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/loop.h"
#include "core/loop_each.h"
#include "core/memory.h"
#include "generated/options.h"

struct file_opening {
    struct file *file;
    bool read_only, auto_read_only;     /* read_only: and whether it came to that */
    uint64_t size;
    struct error *err;
};

static int file_open_error(const struct file *file, int code, struct error *err)
{
    if (code == EINVAL && file->direct)
        return error_set(err, -EINVAL, "Could not open '%s': filesystem does not support O_DIRECT", file->path);
    return error_set(err, -code, "Could not open '%s': %s", file->path, strerror(code));
}

/*
 * The description that flushes go to. The kernel tells each description about
 * lost writes once: a FUA write on the other one must not eat the error that
 * the next flush has to give.
 */
static int file_open_sync(struct file *file, const struct stat *st, struct error *err)
{
    struct stat other;
    AUTO_CLOSE int fd = open(file->path, O_RDWR | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return file_open_error(file, errno, err);
    if (fstat(fd, &other) < 0)
        return file_open_error(file, errno, err);
    if (other.st_dev != st->st_dev || other.st_ino != st->st_ino)
        return error_set(err, -ESTALE, "Could not open '%s': it was replaced meanwhile", file->path);
    file->sync.fd = take_fd(&fd);
    return 0;
}

/* Whether there is no way to write to it, whatever else is wrong. */
static bool file_cannot_write(int code)
{
    return code == EACCES || code == EROFS || code == EPERM;
}

static int file_try_open(struct file_opening *opening, struct error *err)
{
    struct file *file = opening->file;
    struct stat st;
    /* O_NONBLOCK: the other end of a FIFO is nothing to wait for. */
    int flags =
        O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (opening->read_only ? O_RDONLY : O_RDWR) | (file->direct ? O_DIRECT : 0);
    AUTO_CLOSE int fd = open(file->path, flags);

    if (fd < 0)
        return file_open_error(file, errno, err);
    if (fstat(fd, &st) < 0)
        return file_open_error(file, errno, err);
    file->fd = fd;
    int result = file->storage->examine(file, &st, &opening->size, err);

    if (result == 0 && file->direct)
        result = file_direct_probe(file, err);
    /* Left in place it would make io_uring answer -EAGAIN instead of waiting. */
    if (result == 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        result = file_open_error(file, errno, err);
    if (result == 0 && !opening->read_only)
        result = file_open_sync(file, &st, err);
    if (result == 0)
        file->fd = take_fd(&fd);
    return result;
}

static int file_open_blocking(void *arg)
{
    struct file_opening *opening = arg;
    AUTO_ERROR struct error cannot = {0};
    int result = file_try_open(opening, opening->auto_read_only ? &cannot : opening->err);

    if (result == 0 || !opening->auto_read_only)
        return result;
    if (!file_cannot_write(-result)) {
        error_move(opening->err, &cannot);
        return result;
    }
    opening->read_only = true;
    return file_try_open(opening, opening->err);
}

int file_open(struct node *node, const struct file_storage *storage, const char *path, int locking, struct error *err)
{
    struct file *file = node->state;
    struct file_opening opening = {.file = file,
                                   .read_only = node->options->read_only,
                                   .auto_read_only = !node->options->read_only && node->options->auto_read_only,
                                   .err = err};

    if (!*path)
        return error_set(err, -EINVAL, "The '%s' block driver requires a file name", storage->driver);
    file->storage = storage;
    file->path = memory_string(path);
    file->direct = node->options->cache && node->options->cache->direct;
    file->align = file->memory_align = file->grain = 1;
    file->sync.fd = -1;
    int result = coroutine_call(file_open_blocking, &opening);

    if (result < 0) {
        free(take_ptr(&file->path));
        return result;
    }
    if (opening.read_only)
        node->flags |= NODE_READ_ONLY;
    comutex_init(&file->sync.mutex);
    comutex_init(&file->growing);
    file_direct_init(file);
    result = file_lock_init(file, node->options->force_share ? FILE_LOCKING_OFF : locking, err);
    if (result < 0) {
        file_close(node);
        return result;
    }
    file->end = opening.size;
    node->size = opening.size;
    return 0;
}

static int file_close_blocking(void *arg)
{
    struct file *file = arg;

    if (file->sync.fd >= 0)
        close(file->sync.fd);
    close(file->fd);
    return 0;
}

static void file_forget(struct loop *loop, void *arg)
{
    const struct file *file = arg;

    if (loop->ring->ops->forget)
        loop->ring->ops->forget(loop->ring, file->fd);
}

void file_close(struct node *node)
{
    struct file *file = node->state;

    loop_each(file_forget, file);
    /* A kernel may keep what a ring held on to for some time. */
    file_lock_drop(file, file->locked);
    coroutine_call(file_close_blocking, file);
    file_direct_destroy(file);
    comutex_destroy(&file->sync.mutex);
    comutex_destroy(&file->growing);
    free(take_ptr(&file->path));
}

static bool file_is_direct(const struct node *node)
{
    return node->options->cache && node->options->cache->direct;
}

struct file_comparison {
    int fds[2];
};

static int file_is_same_blocking(void *arg)
{
    const struct file_comparison *comparison = arg;
    struct stat st[2];

    for (unsigned i = 0; i < 2; i++) {
        if (fstat(comparison->fds[i], &st[i]) < 0)
            return -errno;
    }
    return st[0].st_dev == st[1].st_dev && st[0].st_ino == st[1].st_ino ? 0 : -ESTALE;
}

/* Another description is needed where open(2) says what is to change, and for locks that begin or end. */
int file_reopen(struct node *node, struct node *next, int locking_before, int locking, struct error *err)
{
    const struct node_options *is = node->options, *wanted = next->options;
    const struct file *file = node->state;
    bool could_not_write = node->flags & NODE_READ_ONLY && !is->read_only;

    if (!could_not_write && is->read_only == wanted->read_only && is->auto_read_only == wanted->auto_read_only &&
        file_is_direct(node) == file_is_direct(next) && is->force_share == wanted->force_share &&
        locking_before == locking)
        return REOPEN_KEPT;
    next->state = memory_aligned(sizeof(struct file), 64);
    int result = file_open(next, file->storage, file->path, locking, err);

    if (result < 0)
        return result;
    struct file *second = next->state;
    struct file_comparison comparison = {.fds = {file->fd, second->fd}};

    result = coroutine_call(file_is_same_blocking, &comparison);
    if (result < 0) {
        error_set(err, result, "Could not reopen '%s': it was replaced meanwhile", file->path);
        file_close(next);
        return result;
    }
    next->size = node->size;
    return REOPEN_PREPARED;
}

/* The file may have grown since it was opened again. */
void file_adopt(struct node *node, const void *before)
{
    const struct file *was = before;
    struct file *file = node->state;

    file->end = was->end;
    node->size = was->end;
}

static int file_regular_examine(struct file *file, const struct stat *st, uint64_t *size, struct error *err)
{
    if (!S_ISREG(st->st_mode))
        return error_set(err, -EINVAL, "'file' driver requires '%s' to be a regular file", file->path);
    *size = (uint64_t)st->st_size;
    return 0;
}

static int file_regular_zero(struct file *file, uint64_t offset, uint64_t length, uint32_t flags)
{
    int result = -ENOTSUP;

    if (flags & REQ_MAY_UNMAP)
        result = file_fallocate(file, FILE_LACKS_PUNCH, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (result == -ENOTSUP)
        result =
            file_fallocate(file, FILE_LACKS_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (result != -ENOTSUP || flags & REQ_MAY_UNMAP || file_is_lacking(file, FILE_LACKS_ALLOCATE))
        return result;
    /* A hole, and then space for it: for tmpfs, which has no ZERO_RANGE. */
    result = file_fallocate(file, FILE_LACKS_PUNCH, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (result == 0)
        result = file_fallocate(file, FILE_LACKS_ALLOCATE, FALLOC_FL_KEEP_SIZE, offset, length);
    return result;
}

static int file_regular_discard(struct file *file, uint64_t offset, uint64_t length)
{
    return file_fallocate(file, FILE_LACKS_PUNCH, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

static const struct file_storage file_regular = {
    .driver = "file",
    .examine = file_regular_examine,
    .zero = file_regular_zero,
    .discard = file_regular_discard,
};

static int file_regular_open(struct node *node, const void *opaque, struct error *err)
{
    const struct file_options *options = opaque;

    return file_open(node, &file_regular, options->filename, (int)options->locking, err);
}

static int file_regular_reopen(struct node *node, struct node *next, struct change *change, struct error *err)
{
    const struct file_options *is = node_driver_options(node), *wanted = node_driver_options(next);

    (void)change;
    return file_reopen(node, next, (int)is->locking, (int)wanted->locking, err);
}

struct file_truncation {
    int fd;
    uint64_t size;
};

static int file_truncate_blocking(void *arg)
{
    const struct file_truncation *truncation = arg;

    return ftruncate(truncation->fd, (off_t)truncation->size) < 0 ? -errno : 0;
}

static int file_regular_resize(struct node *node, uint64_t size, struct error *err)
{
    struct file *file = node->state;
    struct file_truncation truncation = {.fd = file->fd, .size = size};
    uint32_t locks;

    if (size > INT64_MAX)
        return error_set(err, -EFBIG, "Size %" PRIu64 " of node '%s' is too large for a file", size, node->name);
    int result = file_lock_take(file, PERM_RESIZE, &locks, err);

    if (result < 0)
        return result;
    result = coroutine_call(file_truncate_blocking, &truncation);
    file_lock_drop(file, locks);
    if (result < 0)
        return error_set(err, result, "Could not resize '%s' to %" PRIu64 " bytes: %s", file->path, size,
                         strerror(-result));
    file->end = size;
    node->size = size;
    return 0;
}

/*
 * Space for what is new: where nothing is allocated, filesystems let one write at a time in, and not without waiting.
 * The page cache does not care.
 */
static int file_grow_allocated(struct file *file, uint64_t size)
{
    return file->direct ? file_fallocate(file, FILE_LACKS_ALLOCATE, 0, file->end, size - file->end) : -ENOTSUP;
}

/* Apart from rewrites of the last block, which cut off what they wrote behind the end: file_direct.c. */
static int file_grow_held(struct file *file, uint64_t size)
{
    struct file_truncation truncation = {.fd = file->fd, .size = size};
    uint64_t end = file->end;
    struct range_hold hold;

    if (size <= end)
        return 0;
    file_direct_hold(file, &hold, end, INT64_MAX - end);
    int result = file_grow_allocated(file, size);

    if (result == -ENOTSUP)
        result = coroutine_call(file_truncate_blocking, &truncation);
    if (result == 0)
        file->end = size;
    file_direct_release(file, &hold);
    return result;
}

/* Whoever grows a file in use has PERM_RESIZE on it, so its lock is held. */
static int file_regular_grow(struct node *node, uint64_t size)
{
    struct file *file = node->state;

    if (size > INT64_MAX)
        return -EFBIG;
    comutex_lock(&file->growing);
    uint64_t before = file->end;
    int result = file_grow_held(file, size);

    if (result == 0 && file->end != before)
        node_grown(node, file->end);
    comutex_unlock(&file->growing);
    return result;
}

const struct driver file_driver = {
    .name = "file",
    .kind = DRIVER_PROTOCOL,
    .ops = FILE_OPS,
    .request_flags = FILE_REQUEST_FLAGS,
    .state_size = sizeof(struct file),
    .open = file_regular_open,
    .close = file_close,
    .reopen = file_regular_reopen,
    .adopt = file_adopt,
    .resize = file_regular_resize,
    .grow = file_regular_grow,
    .claim = file_lock_claim,
    .map = file_map,
    .slow = file_slow,
};
