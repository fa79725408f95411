/*
 * Reads, writes and flushes of files and devices.
 *
 * map() submits on the ring of the request's own loop, with the request's own
 * iov, and holds no lock. Whatever does not end whole at the first try (short
 * I/O, a misaligned request on O_DIRECT) is done again from its start by
 * slow(), in a coroutine: the same bytes read or written twice do no harm
 * while the request is not answered.
 *
 * Flushes go together: see file_sync().
 */
#include <errno.h>
#include <limits.h>

#include "core/coroutine.h"
#include "core/iov.h"
#include "core/loop.h"
#include "core/memory.h"
#include "drivers/protocol/file.h"

/* Elements for one system call of a slow transfer, on the coroutine's stack. */
#define FILE_IOVS 64u

static void file_complete(struct ring_op *op, int result)
{
    struct request *req = container_of(op, struct request, ring);

    if (likely(result >= 0 && (uint64_t)result == req->length))
        request_resume(req, request_up(req, 0));
    else if (result >= 0 || result == -EINVAL)
        request_resume(req, STEP_SLOW);
    else
        request_resume(req, request_up(req, result));
}

static void file_complete_direct_write(struct ring_op *op, int result)
{
    struct request *req = container_of(op, struct request, ring);

    file_direct_leave(req->edge->child->state, req->loop);
    file_complete(op, result);
}

static enum step file_submit(struct file *file, struct request *req, bool write, int rw_flags)
{
    struct ring *ring = req->loop->ring;

    req->ring.complete = file_complete;
    if (unlikely(req->iov_count > IOV_MAX))
        return STEP_SLOW;
    if (file->direct) {
        if (!file_direct_is_aligned(file, req->iov, req->iov_count, req->offset, req->length)) {
            if (((req->offset | req->length) & (file->align - 1)) == 0)
                req->flags |= REQ_BOUNCED;
            return STEP_SLOW;
        }
        if (write) {
            if (!file_direct_enter(file, req->loop))
                return STEP_SLOW;
            req->ring.complete = file_complete_direct_write;
        }
    }
    /* A FUA write waits for the disk: that is more than a write into the cache. */
    if (!file->direct && !rw_flags)
        rw_flags = RING_CACHED;
    rw_flags |= RING_KEPT;
    ring->ops->rw(ring, &req->ring, write, file->fd, req->iov, req->iov_count, req->offset, rw_flags);
    return STEP_HELD;
}

static enum step file_submit_write(struct file *file, struct request *req)
{
    int error;

    if (!(req->flags & REQ_FUA))
        return file_submit(file, req, true, 0);
    error = atomic_load_explicit(&file->sync.error, memory_order_relaxed);
    return error ? request_up(req, error) : file_submit(file, req, true, RWF_DSYNC);
}

enum step file_map(struct node *node, struct request *req)
{
    struct file *file = node->state;

    switch (req->op) {
    case REQ_READ:
        return file_submit(file, req, false, 0);
    case REQ_WRITE:
        return file_submit_write(file, req);
    default:
        return STEP_SLOW;
    }
}

/* The part of iov from done on that one system call takes. */
static unsigned file_window(const struct iovec *iov, unsigned count, uint64_t done, uint64_t size, struct iovec *part)
{
    while (count > 1 && done >= iov->iov_len) {
        done -= iov->iov_len;
        iov++;
        count--;
    }
    return iov_slice(iov, count < FILE_IOVS ? count : FILE_IOVS, done, size, part);
}

int file_transfer(struct file *file, bool write, const struct iovec *iov, unsigned count, uint64_t offset,
                  uint64_t size)
{
    uint64_t done = 0, reached = 0;

    while (reached < size) {
        struct iovec part[FILE_IOVS];
        unsigned parts = file_window(iov, count, done, size - done, part);
        int result = coroutine_rw(write, file->fd, part, parts, offset + done, 0);

        if (result < 0)
            return result;
        if (done + (uint64_t)result <= reached) {
            if (write)
                return -ENOSPC;
            iov_fill(iov, count, reached, 0, size - reached);
            return 0;
        }
        reached = done + (uint64_t)result;
        /* O_DIRECT goes on at a block, or -EINVAL would hide the end of the file. */
        done = reached & ~(uint64_t)(file->align - 1);
    }
    return 0;
}

int file_read(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size)
{
    return file->direct ? file_direct_read(file, iov, count, offset, size)
                        : file_transfer(file, false, iov, count, offset, size);
}

int file_write(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size)
{
    return file->direct ? file_direct_write(file, iov, count, offset, size)
                        : file_transfer(file, true, iov, count, offset, size);
}

/*
 * One fdatasync() serves all that waited for their turn when it began: whoever
 * finds that one began after it came, and has ended, is done. They run one
 * after another because of two that run at once the kernel would tell only
 * one about lost writes. After a failure it has dropped the data, and the next
 * success would mean nothing: so there is none until the file is opened anew.
 */
int file_sync(struct file *file)
{
    struct file_sync *sync = &file->sync;
    uint64_t arrived = atomic_load(&sync->started);

    if (sync->fd < 0)
        return 0;
    comutex_lock(&sync->mutex);
    if (atomic_load(&sync->started) == arrived && atomic_load(&sync->error) == 0) {
        atomic_store(&sync->started, arrived + 1);
        int result = coroutine_fsync(sync->fd, true);

        if (result < 0)
            atomic_store(&sync->error, result);
    }
    int result = atomic_load(&sync->error);

    comutex_unlock(&sync->mutex);
    return result;
}

static int file_do(struct file *file, struct request *req)
{
    switch (req->op) {
    case REQ_READ:
        return file_read(file, req->iov, req->iov_count, req->offset, req->length);
    case REQ_WRITE:
        return file_write(file, req->iov, req->iov_count, req->offset, req->length);
    case REQ_FLUSH:
        return file_sync(file);
    case REQ_DISCARD:
        return file_discard(file, req->offset, req->length);
    case REQ_WRITE_ZEROES:
        return file_write_zeroes(file, req->offset, req->length, req->flags);
    case REQ_STATUS:
        return file_status(file, req->offset, req->length, req->extents);
    default:
        file_prefetch(file, req->offset, req->length);
        return 0;
    }
}

enum step file_slow(struct node *node, struct request *req)
{
    struct file *file = node->state;
    int result = file_do(file, req);

    if (result == 0 && req->flags & REQ_FUA && REQ_BITS_WRITING & REQ_BIT(req->op))
        result = file_sync(file);
    return request_up(req, result);
}
