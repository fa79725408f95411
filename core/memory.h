/*
 * Memory: scoped cleanup, control-path allocation that cannot fail, and I/O
 * buffers that can.
 *
 * memory_*() aborts the process when memory is exhausted: it is for small
 * control-path objects whose number and size do not come from a wire or an
 * image. Whatever a stranger can make large uses buffer_alloc(), which
 * returns NULL, and answers -ENOMEM.
 */
#ifndef CORE_MEMORY_H
#define CORE_MEMORY_H

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

/* Smallest alignment that every O_DIRECT target accepts. */
#define BUFFER_ALIGN 4096u

void *memory_zero(size_t size);                         /* zeroed; never NULL */
void *memory_array(size_t count, size_t size);          /* zeroed, overflow checked; never NULL */
void *memory_grow(void *old, size_t count, size_t size); /* realloc, overflow checked; never NULL */
void *memory_aligned(size_t size, size_t align);        /* zeroed; free(); never NULL */
char *memory_string(const char *text);                  /* copy, NULL gives NULL */
char *memory_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define memory_new(type) ((type *)memory_zero(sizeof(type)))

/* Zeroed, aligned to BUFFER_ALIGN, size rounded up to it; NULL when there is
 * no memory. Freed by free(). */
void *buffer_alloc(size_t size);

/* Who keeps buffers for the next one keeps them by order: BUFFER_ALIGN << order bytes. The least order for size. */
static inline size_t buffer_order_size(unsigned order)
{
    return (size_t)BUFFER_ALIGN << order;
}

static inline unsigned buffer_order(size_t size)
{
    return size <= BUFFER_ALIGN ? 0 : 52u - (unsigned)__builtin_clzll(size - 1);
}

static inline void memory_free_cleanup(void *pointer)
{
    free(*(void **)pointer);
}

static inline void memory_close_cleanup(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define AUTO_FREE __attribute__((cleanup(memory_free_cleanup)))
#define AUTO_CLOSE __attribute__((cleanup(memory_close_cleanup)))

/* Ownership moves out of a variable with a cleanup attribute. */
#define take_ptr(pointer)                           \
    ({                                              \
        __typeof__(*(pointer)) taken_ = *(pointer); \
        *(pointer) = NULL;                          \
        taken_;                                     \
    })
#define take_fd(fd)         \
    ({                      \
        int taken_ = *(fd); \
        *(fd) = -1;         \
        taken_;             \
    })

#define array_size(array) (sizeof(array) / sizeof((array)[0]))
/* clang-format off */
#define container_of(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))
/* clang-format on */
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#endif
