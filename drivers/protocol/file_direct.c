/*
 * O_DIRECT: what the kernel demands of offsets, lengths and memory, and what
 * is done with requests that are otherwise.
 *
 * Such a request is bounced through an aligned buffer. A write that covers a
 * block in part must also read it first and write it back whole: until it has
 * done so, nobody else may write to that block, or his bytes would be undone.
 *
 * Writes that are aligned must not pay for this with a lock. So:
 *   - an aligned write on the fast path counts itself in its loop's own
 *     counter, then looks at `rewriting`. If that is not zero, it steps back
 *     and takes the slow way;
 *   - every write on the slow way, and zeroing and discarding, holds the range
 *     lock on its blocks;
 *   - a read-modify-write takes the range lock, then raises `rewriting`, then
 *     waits until all counters have been zero.
 * Counter and `rewriting` are written by one side and then read by the other,
 * sequentially consistent: at least one of the two sees the other. While
 * nobody rewrites, the price is one atomic addition on a cache line that
 * belongs to the loop. Who leaves while somebody rewrites, looks whether he was
 * the last; under `guard`, so that the one who waits cannot miss it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/iov.h"
#include "core/loop.h"
#include "core/loop_buffer.h"
#include "core/memory.h"
#include "drivers/protocol/file.h"

/* Bytes bounced at once; a multiple of every alignment that is accepted. */
#define DIRECT_BOUNCE (1u << 20)

struct file_direct_waiter {
    struct list_link link;
    struct coroutine *co;
};

int file_direct_probe(struct file *file, struct error *err)
{
    uint32_t align = file->align > 1 ? file->align : BUFFER_ALIGN, memory = BUFFER_ALIGN;
#ifdef STATX_DIOALIGN
    struct statx st;

    if (statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && st.stx_mask & STATX_DIOALIGN) {
        if (st.stx_dio_offset_align == 0)
            return error_set(err, -EINVAL, "Could not open '%s': filesystem does not support O_DIRECT", file->path);
        align = st.stx_dio_offset_align;
        memory = st.stx_dio_mem_align;
    }
#endif
    if (align & (align - 1) || memory & (memory - 1) || memory == 0 || align > DIRECT_BOUNCE || memory > BUFFER_ALIGN)
        return error_set(err, -ENOTSUP, "Could not open '%s': O_DIRECT needs an alignment of %u and %u bytes",
                         file->path, align, memory);
    file->align = align;
    file->memory_align = memory;
    return 0;
}

void file_direct_init(struct file *file)
{
    struct file_direct *direct = &file->exclusion;

    range_lock_init(&direct->range);
    pthread_mutex_init(&direct->guard, NULL);
    list_init(&direct->waiters);
    if (file->direct)
        direct->loops = memory_aligned(LOOP_MAX * sizeof(*direct->loops), 64);
}

void file_direct_destroy(struct file *file)
{
    struct file_direct *direct = &file->exclusion;

    range_lock_destroy(&direct->range);
    pthread_mutex_destroy(&direct->guard);
    free(take_ptr(&direct->loops));
}

bool file_direct_is_aligned(const struct file *file, const struct iovec *iov, unsigned count, uint64_t offset,
                            uint64_t size)
{
    uint64_t lengths = offset | size;
    uintptr_t bases = 0;

    for (unsigned i = 0; i < count; i++) {
        bases |= (uintptr_t)iov[i].iov_base;
        lengths |= iov[i].iov_len;
    }
    return ((lengths & (file->align - 1)) | (bases & (file->memory_align - 1))) == 0;
}

static bool direct_is_quiet(const struct file_direct *direct)
{
    for (unsigned i = 0; i < LOOP_MAX; i++) {
        if (atomic_load(&direct->loops[i].inflight))
            return false;
    }
    return true;
}

/* Those who wait for quiet go on when there is. */
static void direct_tell(struct file_direct *direct)
{
    struct file_direct_waiter *waiter;

    pthread_mutex_lock(&direct->guard);
    while (direct_is_quiet(direct) && (waiter = list_first(&direct->waiters, struct file_direct_waiter, link))) {
        list_remove(&waiter->link);
        coroutine_wake(waiter->co);
    }
    pthread_mutex_unlock(&direct->guard);
}

bool file_direct_enter(struct file *file, const struct loop *loop)
{
    struct file_direct *direct = &file->exclusion;

    atomic_fetch_add(&direct->loops[loop->index].inflight, 1);
    if (likely(atomic_load(&direct->rewriting) == 0))
        return true;
    file_direct_leave(file, loop);
    return false;
}

void file_direct_leave(struct file *file, const struct loop *loop)
{
    struct file_direct *direct = &file->exclusion;

    atomic_fetch_sub(&direct->loops[loop->index].inflight, 1);
    if (unlikely(atomic_load(&direct->rewriting)))
        direct_tell(direct);
}

static void direct_rewrite_begin(struct file_direct *direct)
{
    struct file_direct_waiter waiter = {.co = coroutine_self()};

    atomic_fetch_add(&direct->rewriting, 1);
    pthread_mutex_lock(&direct->guard);
    bool quiet = direct_is_quiet(direct);

    if (!quiet)
        list_append(&direct->waiters, &waiter.link);
    pthread_mutex_unlock(&direct->guard);
    if (!quiet)
        coroutine_yield();
}

static void direct_rewrite_end(struct file_direct *direct)
{
    atomic_fetch_sub(&direct->rewriting, 1);
}

static uint64_t direct_round_down(const struct file *file, uint64_t offset)
{
    return offset & ~(uint64_t)(file->align - 1);
}

/* Nodes end below 2^63, so this does not overflow. */
static uint64_t direct_round_up(const struct file *file, uint64_t offset)
{
    return direct_round_down(file, offset + file->align - 1);
}

void file_direct_hold(struct file *file, struct range_hold *hold, uint64_t offset, uint64_t length)
{
    if (!file->direct)
        return;
    uint64_t start = direct_round_down(file, offset);

    range_lock_take(&file->exclusion.range, hold, start, direct_round_up(file, offset + length) - start);
}

void file_direct_release(struct file *file, struct range_hold *hold)
{
    if (file->direct)
        range_lock_release(&file->exclusion.range, hold);
}

static int direct_transfer(struct file *file, bool write, void *buf, uint64_t offset, uint64_t size)
{
    struct iovec iov = {.iov_base = buf, .iov_len = size};

    return file_transfer(file, write, &iov, 1, offset, size);
}

static struct loop_buffer direct_bounce_take(const struct file *file, uint64_t offset, uint64_t size)
{
    uint64_t need = direct_round_up(file, offset + size) - direct_round_down(file, offset);

    return loop_buffer_take(need < DIRECT_BOUNCE ? need : DIRECT_BOUNCE);
}

int file_direct_read(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size)
{
    int result = -EINVAL;

    if (file_direct_is_aligned(file, iov, count, offset, size))
        result = file_transfer(file, false, iov, count, offset, size);
    if (result != -EINVAL || size == 0)
        return size ? result : 0;
    AUTO_LOOP_BUFFER struct loop_buffer buffer = direct_bounce_take(file, offset, size);
    char *bounce = buffer.data;

    if (!bounce)
        return -ENOMEM;
    for (uint64_t done = 0; done < size;) {
        uint64_t start = direct_round_down(file, offset + done), skip = offset + done - start;
        uint64_t part = size - done < DIRECT_BOUNCE - skip ? size - done : DIRECT_BOUNCE - skip;

        result = direct_transfer(file, false, bounce, start, direct_round_up(file, skip + part));
        if (result < 0)
            return result;
        iov_from_buffer(iov, count, done, bounce + skip, part);
        done += part;
    }
    return 0;
}

/* Fills the blocks at both ends of [start, end) that [offset, offset + part) covers in part. */
static int direct_read_edges(struct file *file, char *bounce, uint64_t start, uint64_t end, uint64_t offset,
                             uint64_t part)
{
    uint64_t last = end - file->align;
    int result = 0;

    if (offset != start)
        result = direct_transfer(file, false, bounce, start, file->align);
    if (result == 0 && offset + part != end && (last != start || offset == start))
        result = direct_transfer(file, false, bounce + (last - start), last, file->align);
    return result;
}

struct direct_truncation {
    int fd;
    uint64_t size;
};

static int direct_truncate_blocking(void *arg)
{
    const struct direct_truncation *truncation = arg;

    return ftruncate(truncation->fd, (off_t)truncation->size) < 0 ? -errno : 0;
}

/* The last block of a file whose size is no multiple of a block was written whole: back to its size. */
static int direct_restore_end(struct file *file, uint64_t end)
{
    struct direct_truncation truncation = {.fd = file->fd, .size = file->end};

    if (file->storage->device || end <= truncation.size)
        return 0;
    return coroutine_call(direct_truncate_blocking, &truncation);
}

static int direct_write_bounced(struct file *file, char *bounce, const struct iovec *iov, unsigned count,
                                uint64_t offset, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        uint64_t start = direct_round_down(file, offset + done), skip = offset + done - start;
        uint64_t part = size - done < DIRECT_BOUNCE - skip ? size - done : DIRECT_BOUNCE - skip;
        uint64_t end = start + direct_round_up(file, skip + part);
        int result = direct_read_edges(file, bounce, start, end, offset + done, part);

        if (result < 0)
            return result;
        iov_to_buffer(iov, count, done, bounce + skip, part);
        result = direct_transfer(file, true, bounce, start, end - start);
        int restored = direct_restore_end(file, end);

        if (result < 0 || restored < 0)
            return result < 0 ? result : restored;
        done += part;
    }
    return 0;
}

static int direct_write_held(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size)
{
    bool whole = ((offset | size) & (file->align - 1)) == 0;
    int result = -EINVAL;

    if (file_direct_is_aligned(file, iov, count, offset, size))
        result = file_transfer(file, true, iov, count, offset, size);
    if (result != -EINVAL)
        return result;
    AUTO_LOOP_BUFFER struct loop_buffer bounce = direct_bounce_take(file, offset, size);

    if (!bounce.data)
        return -ENOMEM;
    if (!whole)
        direct_rewrite_begin(&file->exclusion);
    result = direct_write_bounced(file, bounce.data, iov, count, offset, size);
    if (!whole)
        direct_rewrite_end(&file->exclusion);
    return result;
}

int file_direct_write(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size)
{
    struct range_hold hold;

    if (size == 0)
        return 0;
    file_direct_hold(file, &hold, offset, size);
    int result = direct_write_held(file, iov, count, offset, size);

    file_direct_release(file, &hold);
    return result;
}
