/*
 * Writes into the page cache for ring_uring.c. Where a filesystem cannot say
 * beforehand whether such a write would block (ext4), io_uring wakes a worker
 * thread for each; here one pool thread at a time takes all that have come
 * for a ring, and answers in groups.
 */
#ifndef CORE_RING_WRITER_H
#define CORE_RING_WRITER_H

#include <stdint.h>
#include <sys/uio.h>

struct ring_op;
struct ring_writer;

struct ring_writer *ring_writer_new(void);
void ring_writer_free(struct ring_writer *writer);      /* nothing in flight */

/* On the ring's loop: as ring_ops.rw for a write. */
void ring_writer_submit(struct ring_writer *writer, struct ring_op *op, int fd, const struct iovec *iov, unsigned count,
                        uint64_t offset, int rw_flags);

#endif
