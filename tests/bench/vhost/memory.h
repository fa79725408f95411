/*
 * The memory of a front end: one range of addresses, shared with the back end
 * as some regions. It is linear here and in the guest's address space, so that
 * buffers may lie across the border of two regions; rings lie in the first.
 *
 * Made and handed out by one thread before the load begins; never grows.
 */
#ifndef TESTS_BENCH_VHOST_MEMORY_H
#define TESTS_BENCH_VHOST_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

#define FRONT_REGIONS_MAX 32u
#define FRONT_GUEST_BASE (1ull << 32)

struct front_memory {
    unsigned char *base;
    size_t size, used;
    unsigned regions;
    struct front_memory_region {
        int fd;
        size_t start, size;     /* in bytes from base */
    } region[FRONT_REGIONS_MAX];
};

/* Makes memory of first + rest bytes (rounded up to pages): the first region has `first`, the others share the rest.
 * With one region it has all. -EINVAL when the rest has fewer pages than there are regions. */
int front_memory_create(struct front_memory *memory, size_t first, size_t rest, unsigned regions, struct error *err);

void front_memory_destroy(struct front_memory *memory);

/* Zeroed bytes at a multiple of align, a power of two. Aborts when the memory was made too small. */
void *front_memory_take(struct front_memory *memory, size_t size, size_t align);

static inline uint64_t front_memory_guest(const struct front_memory *memory, const void *at)
{
    return FRONT_GUEST_BASE + (uint64_t)((const unsigned char *)at - memory->base);
}

#endif
