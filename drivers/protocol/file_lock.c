/*
 * Image locks: the permissions that are in use on a node, shown to other
 * programs as OFD read locks on single bytes of the file. Byte 100 + i is
 * locked while permission i is taken, byte 200 + i while it is not shared (i
 * as in enum permission_bit). Who takes one looks whether somebody holds the
 * opposite. QEMU's programs use the same bytes: both sides keep away from each
 * other's images.
 *
 * The lock comes before the look, so that of two who come at once at least one
 * sees the other. Main loop only.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "core/memory.h"
#include "drivers/protocol/file.h"
#include "generated/options.h"

/* Bits of file->locked: PERM_* for what is taken, and these for what is not shared. */
#define LOCK_KEPT_SHIFT 4u
#define LOCK_BITS 8u

#define LOCK_TAKEN_BYTE 100
#define LOCK_KEPT_BYTE 200

static off_t lock_byte(unsigned bit)
{
    return bit < LOCK_KEPT_SHIFT ? LOCK_TAKEN_BYTE + (off_t)bit : LOCK_KEPT_BYTE + (off_t)(bit - LOCK_KEPT_SHIFT);
}

static unsigned lock_opposite(unsigned bit)
{
    return (bit + LOCK_KEPT_SHIFT) % LOCK_BITS;
}

static int lock_set(const struct file *file, unsigned bit, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = lock_byte(bit), .l_len = 1};

    return fcntl(file->fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* 1 if another description holds the byte, 0 if none does. */
static int lock_is_foreign(const struct file *file, unsigned bit)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = lock_byte(bit), .l_len = 1};

    return fcntl(file->fd, F_OFD_GETLK, &lock) < 0 ? -errno : lock.l_type != F_UNLCK;
}

void file_lock_drop(struct file *file, uint32_t locks)
{
    for (unsigned bit = 0; bit < LOCK_BITS; bit++) {
        if (locks & file->locked & 1u << bit)
            lock_set(file, bit, F_UNLCK);
    }
    file->locked &= ~locks;
}

static int lock_take_one(struct file *file, unsigned bit, struct error *err)
{
    int result = lock_set(file, bit, F_RDLCK);

    if (result == 0) {
        file->locked |= 1u << bit;
        result = lock_is_foreign(file, lock_opposite(bit));
    }
    if (result < 0 && result != -EAGAIN && result != -EACCES)
        return error_set(err, result, "Could not lock '%s': %s", file->path, strerror(-result));
    if (result != 0)
        return error_set(err, -EAGAIN, "Failed to get %s\"%s\" lock. Is another process using the image [%s]?",
                         bit < LOCK_KEPT_SHIFT ? "" : "shared ", permission_name(bit % LOCK_KEPT_SHIFT), file->path);
    return 0;
}

/* All or none of locks; *fresh are those that were not held before. */
static int lock_take(struct file *file, uint32_t locks, uint32_t *fresh, struct error *err)
{
    int result = 0;

    *fresh = locks & ~file->locked;
    for (unsigned bit = 0; bit < LOCK_BITS && result == 0; bit++) {
        if (*fresh & 1u << bit)
            result = lock_take_one(file, bit, err);
    }
    if (result < 0)
        file_lock_drop(file, *fresh);
    return result;
}

int file_lock_init(struct file *file, int locking, struct error *err)
{
    if (locking == FILE_LOCKING_OFF)
        return 0;
    int result = lock_is_foreign(file, 0);

    file->locking = result >= 0;
    if (result < 0 && locking == FILE_LOCKING_ON)
        return error_set(err, result, "Could not lock '%s' (locking=on): %s", file->path, strerror(-result));
    return 0;
}

int file_lock_take(struct file *file, uint32_t taken, uint32_t *ret, struct error *err)
{
    *ret = 0;
    return file->locking ? lock_take(file, taken, ret, err) : 0;
}

/*
 * The second description of a file that is being reopened: it shows what the first one shows already, so that
 * there is no moment without locks. Whether others allow it the first has looked, unless it has no locks at all.
 */
static int lock_claim_second(struct file *second, const struct file *first, uint32_t wanted, struct error *err)
{
    uint32_t fresh;
    int result = 0;

    if (!second->locking)
        return 0;
    if (!first->locking)
        return lock_take(second, wanted, &fresh, err);
    for (unsigned bit = 0; bit < LOCK_BITS && result == 0; bit++) {
        if (wanted & ~second->locked & 1u << bit)
            result = lock_set(second, bit, F_RDLCK);
    }
    if (result < 0)
        return error_set(err, result, "Could not lock '%s': %s", second->path, strerror(-result));
    second->locked |= wanted;
    return 0;
}

int file_lock_claim(struct node *node, const struct permission *total, bool commit, struct error *err)
{
    struct file *file = node->state, *second = node_next(node) != node ? node_next(node)->state : NULL;
    uint32_t wanted = total->taken | (PERM_ALL & ~total->shared) << LOCK_KEPT_SHIFT;
    uint32_t fresh;
    int result = 0;

    if (commit) {
        if (file->locking)
            file_lock_drop(file, file->locked & ~wanted);
        return 0;
    }
    if (file->locking)
        result = lock_take(file, wanted, &fresh, err);
    if (result == 0 && second)
        result = lock_claim_second(second, file, wanted, err);
    return result;
}
