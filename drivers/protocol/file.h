/*
 * Files and block devices of the host: what file.c, file_io.c, file_lock.c
 * and host_device.c share.
 */
#ifndef DRIVERS_PROTOCOL_FILE_H
#define DRIVERS_PROTOCOL_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/colock.h"
#include "core/driver.h"

struct file {
    int fd;
    bool locking, device;
    uint32_t align;                 /* O_DIRECT: power of two for offset, length and memory; else 1 */
    uint32_t locks_taken, locks_unshared;   /* PERM_* bits whose bytes are locked */
    _Atomic int flush_error;        /* of the first flush that failed: from then on all do */
    _Atomic bool no_punch, no_zero_range;
    /* O_DIRECT only: see file_io.c. */
    _Atomic unsigned direct_writes, merges;
    struct range_lock merging;
};

int file_open(struct node *node, const char *filename, int locking, bool device, struct error *err);
void file_close(struct node *node);

enum step file_map(struct node *node, struct request *req);
enum step file_slow(struct node *node, struct request *req);

/* Follows permissions with locks on the file: driver->claim. */
int file_claim(struct node *node, const struct permission *total, bool commit, struct error *err);

/* Block status of [offset, offset + length) by SEEK_DATA and SEEK_HOLE; in a coroutine. 0 or -errno. */
int file_status(struct node *node, uint64_t offset, uint64_t length, struct extent_list *extents);

#define FILE_OPS ((1u << REQ_OP_COUNT) - 1)
#define FILE_FLAGS (REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY)

#endif
