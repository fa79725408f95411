/*
 * Block status of files: where data is and where holes are, by lseek(2) on
 * another thread. Filesystems that cannot tell say that all is data.
 */
#include <errno.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "drivers/protocol/file.h"

struct file_seek {
    int fd;
    uint64_t offset, end;
    struct extent_list *extents;
};

/* The next change between data and hole after offset, at most end. */
static uint64_t seek_next(const struct file_seek *seek, uint64_t offset, int whence)
{
    off_t next = lseek(seek->fd, (off_t)offset, whence);

    if (next < 0)
        return seek->end;       /* ENXIO: a hole up to the end of the file */
    return (uint64_t)next < seek->end ? (uint64_t)next : seek->end;
}

static int file_seek_call(void *arg)
{
    struct file_seek *seek = arg;
    uint64_t offset = seek->offset;

    while (offset < seek->end) {
        off_t data = lseek(seek->fd, (off_t)offset, SEEK_DATA);

        if (data < 0 && errno != ENXIO) {
            extent_add(seek->extents, seek->end - offset, 0);
            return 0;
        }
        bool hole = data < 0 || (uint64_t)data > offset;
        uint64_t next = hole ? seek_next(seek, offset, SEEK_DATA) : seek_next(seek, offset, SEEK_HOLE);

        /* The file changed between the two calls: what we cannot tell apart is data. */
        if (next <= offset) {
            next = seek->end;
            hole = false;
        }
        if (!extent_add(seek->extents, next - offset, hole ? EXTENT_HOLE | EXTENT_ZERO : 0))
            return 0;
        offset = next;
    }
    return 0;
}

int file_status(struct node *node, uint64_t offset, uint64_t length, struct extent_list *extents)
{
    struct file *file = node->state;
    struct file_seek seek = {.fd = file->fd, .offset = offset, .end = offset + length, .extents = extents};

    if (file->device) {
        extent_add(extents, length, 0);
        return 0;
    }
    return coroutine_call(file_seek_call, &seek);
}
