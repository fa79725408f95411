/*
 * Image locks: the permissions of all users of a node, shown to other
 * programs as OFD read locks on single bytes of the file. Byte 100 + i is
 * held when permission i is taken, byte 200 + i when it is not shared; whoever
 * takes something looks for the other's opposite byte. These are the bytes
 * that QEMU's programs use, so that both sides keep off each other's images.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "drivers/protocol/file.h"

#define LOCK_TAKEN 100
#define LOCK_UNSHARED 200
#define LOCK_COUNT 4u

static int lock_byte(int fd, off_t start, short type)
{
    struct flock lock = {.l_whence = SEEK_SET, .l_start = start, .l_len = 1, .l_type = type};

    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* Whether another open file description holds the byte. */
static int lock_is_foreign(int fd, off_t start)
{
    struct flock lock = {.l_whence = SEEK_SET, .l_start = start, .l_len = 1, .l_type = F_WRLCK};

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

static int lock_set(const struct file *file, off_t base, uint32_t from, uint32_t to)
{
    for (unsigned i = 0; i < LOCK_COUNT; i++) {
        uint32_t bit = 1u << i;
        int result = 0;

        if ((from ^ to) & bit)
            result = lock_byte(file->fd, base + (off_t)i, to & bit ? F_RDLCK : F_UNLCK);
        if (result < 0)
            return result;
    }
    return 0;
}

static int lock_move(struct file *file, uint32_t taken, uint32_t unshared)
{
    int result = lock_set(file, LOCK_TAKEN, file->locks_taken, taken);

    if (result == 0)
        result = lock_set(file, LOCK_UNSHARED, file->locks_unshared, unshared);
    file->locks_taken = taken;
    file->locks_unshared = unshared;
    return result;
}

static int lock_check(const struct file *file, off_t base, uint32_t bits, const char *shared, struct error *err)
{
    for (unsigned i = 0; i < LOCK_COUNT; i++) {
        int result = bits & 1u << i ? lock_is_foreign(file->fd, base + (off_t)i) : 0;

        if (result < 0)
            return error_set(err, result, "Cannot look at the locks of the image: %s", strerror(-result));
        if (result)
            return error_set(err, -EAGAIN, "Failed to get %s\"%s\" lock. Is another process using the image?", shared,
                             permission_name(i));
    }
    return 0;
}

int file_claim(struct node *node, const struct permission *total, bool commit, struct error *err)
{
    struct file *file = node->state;
    uint32_t taken = total->taken, unshared = PERM_ALL & ~total->shared;

    if (!file->locking)
        return 0;
    if (commit) {
        lock_move(file, taken, unshared);
        return 0;
    }
    /* First lock, then look: of two who do this at once, at least one sees the other. */
    int result = lock_move(file, file->locks_taken | taken, file->locks_unshared | unshared);

    if (result < 0)
        return error_set(err, result, "Cannot lock the image of node '%s': %s", node->name, strerror(-result));
    result = lock_check(file, LOCK_UNSHARED, taken, "", err);
    if (result == 0)
        result = lock_check(file, LOCK_TAKEN, unshared, "shared ", err);
    return result;
}
