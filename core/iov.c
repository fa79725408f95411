/*
 * Views into iovecs, and the search for zero bytes.
 *
 * The search is one pass of 64-byte steps in vectors that the compiler maps
 * to what the target has (two AVX2 registers, four of SSE2 or NEON). Most
 * buffers that are not zero say so in their first, middle or last bytes, which
 * are looked at before anything else. Called on all loops; keeps no state.
 */
#include "core/iov.h"

#include <stdint.h>
#include <string.h>

#define IOV_STEP 64u

/* Any alignment, and may alias whatever the buffer really holds. */
typedef uint64_t iov_vector __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint64_t iov_word __attribute__((aligned(1), may_alias));

static bool iov_bytes_are_zero(const unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i])
            return false;
    }
    return true;
}

static uint64_t iov_word_at(const unsigned char *bytes)
{
    return *(const iov_word *)(const void *)bytes;
}

static bool iov_step_is_zero(const unsigned char *bytes)
{
    const iov_vector *vectors = (const iov_vector *)(const void *)bytes;
    iov_vector any = vectors[0] | vectors[1];

    return (any[0] | any[1] | any[2] | any[3]) == 0;
}

bool buffer_is_zero(const void *buf, size_t size)
{
    const unsigned char *bytes = buf;

    if (size < sizeof(uint64_t))
        return iov_bytes_are_zero(bytes, size);
    if (iov_word_at(bytes) | iov_word_at(bytes + (size - sizeof(uint64_t)) / 2) |
        iov_word_at(bytes + size - sizeof(uint64_t)))
        return false;
    if (size < IOV_STEP)
        return iov_bytes_are_zero(bytes, size);
    for (size_t i = 0; i + IOV_STEP <= size; i += IOV_STEP) {
        if (!iov_step_is_zero(bytes + i))
            return false;
    }
    /* The rest: the last step, which may overlap the one before. */
    return iov_step_is_zero(bytes + size - IOV_STEP);
}

bool iov_is_zero(const struct iovec *iov, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (!buffer_is_zero(iov[i].iov_base, iov[i].iov_len))
            return false;
    }
    return true;
}

size_t iov_size(const struct iovec *iov, unsigned count)
{
    size_t size = 0;

    for (unsigned i = 0; i < count; i++)
        size += iov[i].iov_len;
    return size;
}

/* Takes the next contiguous part of [*offset, *offset + *size) and moves both past it. NULL at the end of either. */
static void *iov_next_part(const struct iovec **iov, unsigned *count, size_t *offset, size_t *size, size_t *length)
{
    while (*count && *offset >= (*iov)->iov_len) {
        *offset -= (*iov)->iov_len;
        ++*iov;
        --*count;
    }
    if (*count == 0 || *size == 0)
        return NULL;
    size_t left = (*iov)->iov_len - *offset;
    void *part = (char *)(*iov)->iov_base + *offset;

    *length = left < *size ? left : *size;
    *offset += *length;
    *size -= *length;
    return part;
}

void iov_fill(const struct iovec *iov, unsigned count, size_t offset, int byte, size_t size)
{
    size_t length;
    void *part;

    while ((part = iov_next_part(&iov, &count, &offset, &size, &length)))
        memset(part, byte, length);
}

void iov_from_buffer(const struct iovec *iov, unsigned count, size_t offset, const void *buf, size_t size)
{
    const char *from = buf;
    size_t length;
    void *part;

    while ((part = iov_next_part(&iov, &count, &offset, &size, &length))) {
        memcpy(part, from, length);
        from += length;
    }
}

void iov_to_buffer(const struct iovec *iov, unsigned count, size_t offset, void *buf, size_t size)
{
    char *to = buf;
    size_t length;
    void *part;

    while ((part = iov_next_part(&iov, &count, &offset, &size, &length))) {
        memcpy(to, part, length);
        to += length;
    }
}

unsigned iov_slice(const struct iovec *iov, unsigned count, size_t offset, size_t size, struct iovec *out)
{
    unsigned used = 0;
    size_t length;
    void *part;

    while ((part = iov_next_part(&iov, &count, &offset, &size, &length)))
        out[used++] = (struct iovec){.iov_base = part, .iov_len = length};
    return used;
}

unsigned iov_window(const struct iovec *iov, unsigned count, size_t offset, size_t *size, struct iovec *out,
                    unsigned room)
{
    unsigned used = 0;
    size_t left = *size, length;
    void *part;

    while (used < room && (part = iov_next_part(&iov, &count, &offset, &left, &length)))
        out[used++] = (struct iovec){.iov_base = part, .iov_len = length};
    *size -= left;
    return used;
}

bool iov_is_aligned(const struct iovec *iov, unsigned count, size_t align)
{
    uintptr_t bits = 0;

    for (unsigned i = 0; i < count; i++)
        bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return (bits & (align - 1)) == 0;
}
