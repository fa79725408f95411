/*
 * Views into iovecs. Lengths are bytes; iovs are never changed.
 */
#ifndef CORE_IOV_H
#define CORE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

/* Whether all bytes are zero; vector code, ends at the first that is not. */
bool buffer_is_zero(const void *buf, size_t size);
bool iov_is_zero(const struct iovec *iov, unsigned count);

size_t iov_size(const struct iovec *iov, unsigned count);
void iov_fill(const struct iovec *iov, unsigned count, size_t offset, int byte, size_t size);
void iov_from_buffer(const struct iovec *iov, unsigned count, size_t offset, const void *buf, size_t size);
void iov_to_buffer(const struct iovec *iov, unsigned count, size_t offset, void *buf, size_t size);

/* Writes into out (room for count) the part [offset, offset + size); returns its element count. */
unsigned iov_slice(const struct iovec *iov, unsigned count, size_t offset, size_t size, struct iovec *out);

/* The same for as much of *size as `room` elements hold; sets *size to that. */
unsigned iov_window(const struct iovec *iov, unsigned count, size_t offset, size_t *size, struct iovec *out,
                    unsigned room);

/* Whether each base and length is a multiple of align (a power of two). */
bool iov_is_aligned(const struct iovec *iov, unsigned count, size_t align);

#endif
