/*
 * Files and block devices of the host: what file.c, file_io.c, file_direct.c,
 * file_extent.c, file_lock.c and host_device.c share. The drivers `file` and
 * `host_device` differ in a struct file_storage and in resize(), and in
 * nothing else.
 *
 * fd, direct, align and the rest of the plain members are set by open() and
 * only read by the loops. What the loops write is atomic or has a lock.
 */
#ifndef DRIVERS_PROTOCOL_FILE_H
#define DRIVERS_PROTOCOL_FILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "core/colock.h"
#include "core/driver.h"

struct file;

/* What the operating system was found not to do for this file: tried once, remembered. */
enum file_lack {
    FILE_LACKS_PUNCH = 1,
    FILE_LACKS_ZERO_RANGE = 2,
    FILE_LACKS_ALLOCATE = 4,
    FILE_LACKS_DISCARD = 8,
    FILE_LACKS_SEEK = 16
};

struct file_storage {
    const char *driver;         /* for messages */
    bool device;
    /* On a pool thread: checks that fd is of the right kind; sets *size, file->grain and, as far as the
     * kind of storage tells, file->align. */
    int (*examine)(struct file *file, const struct stat *st, uint64_t *size, struct error *err);
    /* Coroutine; offset and length are multiples of grain. Zeroes without writing them; flags are
     * REQ_MAY_UNMAP and REQ_FAST_ONLY. -ENOTSUP: there is no such way. */
    int (*zero)(struct file *file, uint64_t offset, uint64_t length, uint32_t flags);
    /* Coroutine; multiples of grain. -ENOTSUP: space cannot be given back. */
    int (*discard)(struct file *file, uint64_t offset, uint64_t length);
};

/* Flushes of one file: see file_sync(). */
struct file_sync {
    int fd;                     /* a description of its own; -1: opened read-only */
    struct comutex mutex;       /* one fdatasync() at a time */
    _Atomic uint64_t started;   /* how many; counted under mutex */
    _Atomic int error;          /* of the first that failed: from then on all do */
};

/* Aligned direct writes in flight, by loop. */
struct file_direct_loop {
    _Atomic uint32_t inflight;
} __attribute__((aligned(64)));

/* What keeps read-modify-write apart from other writes to the same blocks: see file_direct.c. */
struct file_direct {
    struct file_direct_loop *loops;     /* [LOOP_MAX]; NULL when buffered */
    _Atomic uint32_t rewriting;         /* read-modify-writes announced */
    struct range_lock range;
    pthread_mutex_t guard;
    struct list waiters;                /* struct file_direct_waiter, by link; under guard */
};

struct file {
    const struct file_storage *storage;
    char *path;                 /* owned */
    int fd;
    bool direct;                /* O_DIRECT */
    bool locking;
    uint32_t align;             /* bytes, power of two: of offsets and lengths of reads and writes; 1 when buffered */
    uint32_t memory_align;      /* bytes, power of two: of the memory */
    uint32_t grain;             /* bytes, power of two: of what zero() and discard() accept */
    uint32_t locked;            /* lock bytes held: file_lock.c; main loop */
    _Atomic uint32_t lacks;     /* enum file_lack */
    _Atomic uint64_t end;       /* bytes: how far the file reaches; node->size is the same */
    struct comutex growing;     /* who makes it longer while it is in use */
    struct file_sync sync;
    struct file_direct exclusion;
};

#define FILE_OPS ((1u << REQ_OP_COUNT) - 1)
#define FILE_REQUEST_FLAGS (REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_UNCHANGED)

/* file.c: what the two drivers do in the same way. locking: enum file_locking. */
int file_open(struct node *node, const struct file_storage *storage, const char *path, int locking, struct error *err);
void file_close(struct node *node);
/* driver->reopen and ->adopt. locking: what it was and what it will be. */
int file_reopen(struct node *node, struct node *next, int locking_before, int locking, struct error *err);
void file_adopt(struct node *node, const void *before);

/* file_io.c: map() and slow() of both drivers. */
enum step file_map(struct node *node, struct request *req);
enum step file_slow(struct node *node, struct request *req);

/* Coroutine. As many system calls as it takes; offset, size and iov fit file->align. Reads past the end
 * of the file give zeroes. 0 or -errno; -ENOSPC if a write makes no progress. */
int file_transfer(struct file *file, bool write, const struct iovec *iov, unsigned count, uint64_t offset,
                  uint64_t size);
/* The same for any alignment. */
int file_read(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size);
int file_write(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size);

/* Coroutine: what was written before is durable. Once it has failed it fails for ever. */
int file_sync(struct file *file);

/* file_direct.c. On a pool thread: finds the alignment that fd asks for. Fails where the file system has no O_DIRECT. */
int file_direct_probe(struct file *file, struct error *err);
void file_direct_init(struct file *file);
void file_direct_destroy(struct file *file);
bool file_direct_is_aligned(const struct file *file, const struct iovec *iov, unsigned count, uint64_t offset,
                            uint64_t size);
/* Around an aligned write without a lock. enter() answers false while blocks are being rewritten: take the slow way. */
bool file_direct_enter(struct file *file, const struct loop *loop);
void file_direct_leave(struct file *file, const struct loop *loop);
int file_direct_read(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size);
int file_direct_write(struct file *file, const struct iovec *iov, unsigned count, uint64_t offset, uint64_t size);
/* Keeps other users of the range lock away from the blocks of [offset, offset + length); nothing when buffered. */
void file_direct_hold(struct file *file, struct range_hold *hold, uint64_t offset, uint64_t length);
void file_direct_release(struct file *file, struct range_hold *hold);

/* file_extent.c: coroutine; 0 or -errno. */
int file_write_zeroes(struct file *file, uint64_t offset, uint64_t length, uint32_t flags);
int file_discard(struct file *file, uint64_t offset, uint64_t length);
int file_status(struct file *file, uint64_t offset, uint64_t length, struct extent_list *extents);
void file_prefetch(struct file *file, uint64_t offset, uint64_t length);
/* fallocate(2), unless file is known to lack it; -ENOTSUP if it does. */
int file_fallocate(struct file *file, enum file_lack lack, int mode, uint64_t offset, uint64_t length);
bool file_is_lacking(const struct file *file, enum file_lack lack);
void file_set_lacking(struct file *file, enum file_lack lack);

/* file_lock.c: driver->claim of both drivers. */
int file_lock_claim(struct node *node, const struct permission *total, bool commit, struct error *err);
/* Whether locks are to be had, as the option wants them; called by file_open(). */
int file_lock_init(struct file *file, int locking, struct error *err);
/* Takes permissions (PERM_*) for a moment, against other programs; *ret is what file_lock_drop() gives up again. */
int file_lock_take(struct file *file, uint32_t taken, uint32_t *ret, struct error *err);
void file_lock_drop(struct file *file, uint32_t locks);

#endif
