/*
 * Zeroes, holes and block status of files and devices: the slow operations,
 * each in a coroutine.
 *
 * What the system does not know is tried once and remembered (file->lacks).
 * Zeroes then are written; discards, which are hints, do nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "drivers/protocol/file.h"

/* Written zeroes: this buffer, so many times in one write. Never written to. */
#define EXTENT_ZEROES (64u * 1024)
#define EXTENT_ZERO_IOVS 16u

static const unsigned char extent_zeroes[EXTENT_ZEROES] __attribute__((aligned(BUFFER_ALIGN)));

bool file_is_lacking(const struct file *file, enum file_lack lack)
{
    return atomic_load_explicit(&file->lacks, memory_order_relaxed) & lack;
}

void file_set_lacking(struct file *file, enum file_lack lack)
{
    atomic_fetch_or_explicit(&file->lacks, lack, memory_order_relaxed);
}

int file_fallocate(struct file *file, enum file_lack lack, int mode, uint64_t offset, uint64_t length)
{
    if (file_is_lacking(file, lack))
        return -ENOTSUP;
    int result = coroutine_fallocate(file->fd, mode, offset, length);

    if (result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV) {
        file_set_lacking(file, lack);
        return -ENOTSUP;
    }
    /* Some file systems say this to a range that they could have done at another place. */
    return result == -EINVAL ? -ENOTSUP : result;
}

static int extent_write_zeroes(struct file *file, uint64_t offset, uint64_t length)
{
    struct iovec iov[EXTENT_ZERO_IOVS];
    int result = 0;

    while (length && result == 0) {
        uint64_t size = 0;
        unsigned count = 0;

        while (count < EXTENT_ZERO_IOVS && size < length) {
            uint64_t part = length - size < EXTENT_ZEROES ? length - size : EXTENT_ZEROES;

            iov[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)extent_zeroes, .iov_len = part};
            size += part;
        }
        result = file_write(file, iov, count, offset, size);
        offset += size;
        length -= size;
    }
    return result;
}

/* The part of [*offset, *end) in whole grains; false if there is none. */
static bool extent_whole_grains(const struct file *file, uint64_t *offset, uint64_t *end)
{
    uint64_t mask = file->grain - 1;

    *offset = (*offset + mask) & ~mask;
    *end &= ~mask;
    return *offset < *end;
}

int file_write_zeroes(struct file *file, uint64_t offset, uint64_t length, uint32_t flags)
{
    uint64_t start = offset, end = offset + length;
    struct range_hold hold;

    if (!extent_whole_grains(file, &start, &end))
        return extent_write_zeroes(file, offset, length);
    file_direct_hold(file, &hold, start, end - start);
    int result = file->storage->zero(file, start, end - start, flags & (REQ_MAY_UNMAP | REQ_FAST_ONLY));

    file_direct_release(file, &hold);
    if (result == -ENOTSUP && !(flags & REQ_FAST_ONLY))
        result = extent_write_zeroes(file, start, end - start);
    if (result == 0)
        result = extent_write_zeroes(file, offset, start - offset);
    if (result == 0)
        result = extent_write_zeroes(file, end, offset + length - end);
    return result;
}

int file_discard(struct file *file, uint64_t offset, uint64_t length)
{
    uint64_t start = offset, end = offset + length;
    struct range_hold hold;

    if (!extent_whole_grains(file, &start, &end))
        return 0;
    file_direct_hold(file, &hold, start, end - start);
    int result = file->storage->discard(file, start, end - start);

    file_direct_release(file, &hold);
    return result == -ENOTSUP ? 0 : result;
}

struct extent_search {
    struct file *file;
    uint64_t offset, end;       /* bytes */
    struct extent_list *extents;
};

/* The extent at offset: sets *next to where it ends, at most end. What cannot be told is data. */
static uint32_t extent_at(struct file *file, uint64_t offset, uint64_t end, uint64_t *next)
{
    off_t data = lseek(file->fd, (off_t)offset, SEEK_DATA);

    *next = end;
    if (data < 0) {
        /* No data from here on: a hole to the end of the file, and nothing behind it. */
        if (errno == ENXIO)
            return EXTENT_HOLE | EXTENT_ZERO;
        if (errno == EINVAL || errno == EOPNOTSUPP)
            file_set_lacking(file, FILE_LACKS_SEEK);
        return 0;
    }
    if ((uint64_t)data > offset) {
        *next = (uint64_t)data < end ? (uint64_t)data : end;
        return EXTENT_HOLE | EXTENT_ZERO;
    }
    off_t hole = lseek(file->fd, data, SEEK_HOLE);

    /* A hole may have come between the two calls: then all is called data. */
    if (hole > data && (uint64_t)hole < end)
        *next = (uint64_t)hole;
    return 0;
}

static int extent_search_blocking(void *arg)
{
    struct extent_search *search = arg;
    uint64_t offset = search->offset, next;

    while (offset < search->end) {
        uint32_t flags = extent_at(search->file, offset, search->end, &next);

        if (!extent_add(search->extents, next - offset, flags))
            break;
        offset = next;
    }
    return 0;
}

int file_status(struct file *file, uint64_t offset, uint64_t length, struct extent_list *extents)
{
    struct extent_search search = {.file = file, .offset = offset, .end = offset + length, .extents = extents};

    if (file->storage->device || file_is_lacking(file, FILE_LACKS_SEEK)) {
        extent_add(extents, length, 0);
        return 0;
    }
    return coroutine_call(extent_search_blocking, &search);
}

struct extent_advice {
    int fd;
    uint64_t offset, length;
};

static int extent_advise_blocking(void *arg)
{
    const struct extent_advice *advice = arg;

    return posix_fadvise(advice->fd, (off_t)advice->offset, (off_t)advice->length, POSIX_FADV_WILLNEED);
}

void file_prefetch(struct file *file, uint64_t offset, uint64_t length)
{
    struct extent_advice advice = {.fd = file->fd, .offset = offset, .length = length};

    if (!file->direct)
        coroutine_call(extent_advise_blocking, &advice);
}
