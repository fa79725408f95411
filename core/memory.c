/*
 * Memory: see memory.h.
 */
#include "core/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static void *memory_checked(void *pointer)
{
    if (!pointer)
        abort();
    return pointer;
}

void *memory_zero(size_t size)
{
    return memory_checked(calloc(1, size ? size : 1));
}

void *memory_array(size_t count, size_t size)
{
    return memory_checked(calloc(count ? count : 1, size ? size : 1));
}

void *memory_grow(void *old, size_t count, size_t size)
{
    return memory_checked(reallocarray(old, count ? count : 1, size));
}

void *memory_aligned(size_t size, size_t align)
{
    void *pointer;

    if (posix_memalign(&pointer, align, size))
        abort();
    return memset(pointer, 0, size);
}

char *memory_string(const char *text)
{
    return text ? memory_checked(strdup(text)) : NULL;
}

char *memory_format(const char *format, ...)
{
    va_list args;
    char *text;

    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0)
        abort();
    return text;
}

void *buffer_alloc(size_t size)
{
    void *pointer;

    if (size > SIZE_MAX - BUFFER_ALIGN)
        return NULL;
    size = (size + BUFFER_ALIGN - 1) & ~(size_t)(BUFFER_ALIGN - 1);
    if (size == 0)
        size = BUFFER_ALIGN;
    if (posix_memalign(&pointer, BUFFER_ALIGN, size))
        return NULL;
    return memset(pointer, 0, size);
}
