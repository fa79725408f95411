/*
 * I/O of file and host_device.
 *
 * map() starts whole, aligned reads and writes and flushes on the loop's
 * ring. Whatever does not end well at the first try (short, interrupted) and
 * all else is done by slow(), again from the start: reading or writing the
 * same bytes twice does no harm.
 *
 * O_DIRECT needs aligned offsets, lengths and memory. What is not aligned is
 * bounced; a write that covers blocks in part reads them first ("merge").
 * Between that read and the write no other write may touch these blocks, or
 * its bytes would be undone. So merges announce themselves (file->merges),
 * wait until the writes in flight (file->direct_writes) have ended, and take
 * a range lock; writes that see a merge announced go the slow way and take
 * the range lock, too. An aligned write thus pays one counter and no lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/iov.h"
#include "core/loop.h"
#include "core/memory.h"
#include "drivers/protocol/file.h"

#define BOUNCE_MAX (1u << 20)
#define ZERO_PIECE (1u << 20)
#define MERGE_LOOK_NS 20000u    /* between looks at direct_writes */
#define IOV_MAX_SLICE 1024u

static bool file_is_aligned(const struct file *file, const struct request *req)
{
    return file->align == 1 || (((req->offset | req->length) & (file->align - 1)) == 0 &&
                                iov_is_aligned(req->iov, req->iov_count, file->align));
}

/* A write on the fast path enters; false: a merge is announced. */
static bool file_direct_enter(struct file *file)
{
    if (file->align == 1)
        return true;
    atomic_fetch_add(&file->direct_writes, 1);
    if (atomic_load(&file->merges) == 0)
        return true;
    atomic_fetch_sub(&file->direct_writes, 1);
    return false;
}

static void file_direct_leave(struct file *file)
{
    if (file->align != 1)
        atomic_fetch_sub(&file->direct_writes, 1);
}

static void file_rw_complete(struct ring_op *op, int result)
{
    struct request *req = container_of(op, struct request, ring);
    struct file *file = req->edge->child->state;

    if (req->op == REQ_WRITE)
        file_direct_leave(file);
    if (likely(result >= 0 && (uint64_t)result == req->length))
        request_resume(req, request_up(req, 0));
    else if (result >= 0 || result == -EINTR || result == -EAGAIN || result == -EINVAL)
        request_resume(req, STEP_SLOW);
    else
        request_resume(req, request_up(req, result));
}

/* After a failed fsync the kernel may have dropped what it could not write: a later success would lie. */
static int file_flush_result(struct file *file, int result)
{
    int none = 0;

    if (result < 0)
        atomic_compare_exchange_strong(&file->flush_error, &none, result);
    result = atomic_load(&file->flush_error);
    return result;
}

static void file_flush_complete(struct ring_op *op, int result)
{
    struct request *req = container_of(op, struct request, ring);

    if (result == -EINTR)
        request_resume(req, STEP_SLOW);
    else
        request_resume(req, request_up(req, file_flush_result(req->edge->child->state, result)));
}

enum step file_map(struct node *node, struct request *req)
{
    struct file *file = node->state;
    struct ring *ring = req->loop->ring;

    switch (req->op) {
    case REQ_READ:
        if (!file_is_aligned(file, req))
            return STEP_SLOW;
        req->ring.complete = file_rw_complete;
        ring->ops->rw(ring, &req->ring, false, file->fd, req->iov, req->iov_count, req->offset, 0);
        return STEP_HELD;
    case REQ_WRITE:
        if (!file_is_aligned(file, req) || !file_direct_enter(file))
            return STEP_SLOW;
        req->ring.complete = file_rw_complete;
        ring->ops->rw(ring, &req->ring, true, file->fd, req->iov, req->iov_count, req->offset,
                      req->flags & REQ_FUA ? RWF_DSYNC : 0);
        return STEP_HELD;
    case REQ_FLUSH:
        req->ring.complete = file_flush_complete;
        ring->ops->fsync(ring, &req->ring, file->fd, true);
        return STEP_HELD;
    default:
        return STEP_SLOW;
    }
}

/* The whole range from or to one buffer; reads past the end of the file give zeroes. */
static int file_rw_buffer(struct file *file, bool write, void *buf, uint64_t offset, uint64_t size, int rw_flags)
{
    while (size) {
        struct iovec iov = {.iov_base = buf, .iov_len = size};
        int result = coroutine_rw(write, file->fd, &iov, 1, offset, rw_flags);

        if (result == -EINTR || result == -EAGAIN)
            continue;
        if (result < 0)
            return result;
        if (result == 0 && write)
            return -ENOSPC;
        if (result == 0) {
            memset(buf, 0, size);
            return 0;
        }
        /* Short in the middle of a block happens at the end of a file only. */
        uint64_t done = (uint64_t)result;

        if (!write && done % file->align) {
            memset((char *)buf + done, 0, size - done);
            return 0;
        }
        buf = (char *)buf + done;
        offset += done;
        size -= done;
    }
    return 0;
}

/* Each element by itself: memory that is aligned, or a file that does not ask for it. */
static int file_rw_iov(struct file *file, const struct request *req, int rw_flags)
{
    uint64_t offset = req->offset;
    int result = 0;

    for (unsigned i = 0; i < req->iov_count && result == 0; i++) {
        result = file_rw_buffer(file, req->op == REQ_WRITE, req->iov[i].iov_base, offset, req->iov[i].iov_len,
                                rw_flags);
        offset += req->iov[i].iov_len;
    }
    return result;
}

static int file_read_bounced(struct file *file, const struct request *req)
{
    uint64_t done = 0;
    int result = 0;

    while (done < req->length && result == 0) {
        uint64_t offset = req->offset + done;
        uint64_t start = offset & ~(uint64_t)(file->align - 1);
        uint64_t part = req->length - done < BOUNCE_MAX ? req->length - done : BOUNCE_MAX;
        uint64_t end = (offset + part + file->align - 1) & ~(uint64_t)(file->align - 1);
        AUTO_FREE char *bounce = buffer_alloc(end - start);

        if (!bounce)
            return -ENOMEM;
        result = file_rw_buffer(file, false, bounce, start, end - start, 0);
        if (result == 0)
            iov_from_buffer(req->iov, req->iov_count, done, bounce + (offset - start), part);
        done += part;
    }
    return result;
}

/* One piece of a bounced write, with the range lock held. data is NULL for zeroes. */
static int file_merge(struct node *node, const struct request *req, uint64_t done, uint64_t part, bool zeroes)
{
    struct file *file = node->state;
    uint64_t mask = file->align - 1;
    uint64_t offset = req->offset + done, start = offset & ~mask, end = (offset + part + mask) & ~mask;
    AUTO_FREE char *bounce = buffer_alloc(end - start);
    int result = 0;

    if (!bounce)
        return -ENOMEM;
    if (offset != start)
        result = file_rw_buffer(file, false, bounce, start, file->align, 0);
    if (result == 0 && offset + part != end && (offset == start || end - start > file->align))
        result = file_rw_buffer(file, false, bounce + (end - start - file->align), end - file->align, file->align, 0);
    if (result < 0)
        return result;
    if (zeroes)
        memset(bounce + (offset - start), 0, part);
    else
        iov_to_buffer(req->iov, req->iov_count, done, bounce + (offset - start), part);
    result = file_rw_buffer(file, true, bounce, start, end - start, req->flags & REQ_FUA ? RWF_DSYNC : 0);
    /* The last block of a file with an odd size was written whole. */
    if (result == 0 && !file->device && end > node->size && ftruncate(file->fd, (off_t)node->size) < 0)
        result = -errno;
    return result;
}

static void file_wait_direct_writes(struct file *file)
{
    while (atomic_load(&file->direct_writes))
        coroutine_sleep(MERGE_LOOK_NS);
}

/* Writes of O_DIRECT files that are not aligned, or that met such a one. */
static int file_write_merged(struct node *node, const struct request *req, bool zeroes)
{
    struct file *file = node->state;
    uint64_t mask = file->align - 1, done = 0;
    struct range_hold hold;
    int result = 0;

    atomic_fetch_add(&file->merges, 1);
    range_lock_take(&file->merging, &hold, req->offset & ~mask, (req->length + 2 * mask) & ~mask);
    file_wait_direct_writes(file);
    while (done < req->length && result == 0) {
        uint64_t part = BOUNCE_MAX - ((req->offset + done) & mask);

        part = req->length - done < part ? req->length - done : part;
        result = file_merge(node, req, done, part, zeroes);
        done += part;
    }
    range_lock_release(&file->merging, &hold);
    atomic_fetch_sub(&file->merges, 1);
    return result;
}

/* fallocate() on what has no better way; -EOPNOTSUPP as the system says it. */
static int file_fallocate(struct file *file, int mode, uint64_t offset, uint64_t length)
{
    int result;

    do
        result = coroutine_fallocate(file->fd, mode, offset, length);
    while (result == -EINTR);
    return result == -ENOSYS || result == -ENODEV ? -EOPNOTSUPP : result;
}

static int file_punch(struct file *file, uint64_t offset, uint64_t length)
{
    if (atomic_load_explicit(&file->no_punch, memory_order_relaxed))
        return -EOPNOTSUPP;
    int result = file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);

    if (result == -EOPNOTSUPP)
        file->no_punch = true;
    return result;
}

static int file_zero_range(struct file *file, uint64_t offset, uint64_t length)
{
    if (atomic_load_explicit(&file->no_zero_range, memory_order_relaxed))
        return -EOPNOTSUPP;
    int result = file_fallocate(file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);

    if (result == -EOPNOTSUPP)
        file->no_zero_range = true;
    return result;
}

static int file_write_zeroes_by_writing(struct node *node, const struct request *req)
{
    struct file *file = node->state;
    uint64_t done = 0;
    int result = 0;

    if (file->align != 1)
        return file_write_merged(node, req, true);
    AUTO_FREE char *zeroes = buffer_alloc(req->length < ZERO_PIECE ? req->length : ZERO_PIECE);

    if (!zeroes)
        return -ENOMEM;
    while (done < req->length && result == 0) {
        uint64_t part = req->length - done < ZERO_PIECE ? req->length - done : ZERO_PIECE;

        result = file_rw_buffer(file, true, zeroes, req->offset + done, part, 0);
        done += part;
    }
    return result;
}

static int file_sync_if_fua(struct file *file, const struct request *req)
{
    return req->flags & REQ_FUA ? file_flush_result(file, coroutine_fsync(file->fd, true)) : 0;
}

static int file_write_zeroes(struct node *node, const struct request *req)
{
    struct file *file = node->state;
    int result = -EOPNOTSUPP;

    if (req->length == 0)
        return 0;
    if (req->flags & REQ_MAY_UNMAP)
        result = file_punch(file, req->offset, req->length);
    if (result == -EOPNOTSUPP)
        result = file_zero_range(file, req->offset, req->length);
    /* Devices refuse what is not aligned to their sectors. */
    if ((result == -EOPNOTSUPP || result == -EINVAL) && req->flags & REQ_FAST_ONLY)
        return -ENOTSUP;
    if (result == -EOPNOTSUPP || result == -EINVAL)
        result = file_write_zeroes_by_writing(node, req);
    return result < 0 ? result : file_sync_if_fua(file, req);
}

static int file_discard(struct file *file, const struct request *req)
{
    int result = req->length ? file_punch(file, req->offset, req->length) : 0;

    /* A hint that the storage cannot take is taken anyway. */
    if (result == -EOPNOTSUPP || result == -EINVAL)
        result = 0;
    return result < 0 ? result : file_sync_if_fua(file, req);
}

struct file_prefetch {
    int fd;
    uint64_t offset, length;
};

static int file_prefetch_call(void *arg)
{
    const struct file_prefetch *prefetch = arg;

    return -posix_fadvise(prefetch->fd, (off_t)prefetch->offset, (off_t)prefetch->length, POSIX_FADV_WILLNEED);
}

static int file_prefetch(struct file *file, const struct request *req)
{
    struct file_prefetch prefetch = {.fd = file->fd, .offset = req->offset, .length = req->length};

    if (file->align == 1)
        coroutine_call(file_prefetch_call, &prefetch);
    return 0;
}

static int file_read(struct file *file, const struct request *req)
{
    return file_is_aligned(file, req) ? file_rw_iov(file, req, 0) : file_read_bounced(file, req);
}

static int file_write(struct node *node, const struct request *req)
{
    struct file *file = node->state;

    if (req->length == 0)
        return 0;
    if (file->align != 1)
        return file_write_merged(node, req, false);
    return file_rw_iov(file, req, req->flags & REQ_FUA ? RWF_DSYNC : 0);
}

enum step file_slow(struct node *node, struct request *req)
{
    struct file *file = node->state;

    switch (req->op) {
    case REQ_READ:
        return request_up(req, file_read(file, req));
    case REQ_WRITE:
        return request_up(req, file_write(node, req));
    case REQ_FLUSH:
        return request_up(req, file_flush_result(file, coroutine_fsync(file->fd, true)));
    case REQ_DISCARD:
        return request_up(req, file_discard(file, req));
    case REQ_WRITE_ZEROES:
        return request_up(req, file_write_zeroes(node, req));
    case REQ_STATUS:
        return request_up(req, file_status(node, req->offset, req->length, req->extents));
    default:
        return request_up(req, file_prefetch(file, req));
    }
}
