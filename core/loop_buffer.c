/*
 * Buffers of a loop: see loop_buffer.h. Sizes are powers of two; of what was
 * given back not more than LOOP_BUFFER_IDLE bytes stay. The idle ones are
 * linked through their own first bytes.
 */
#include "core/loop_buffer.h"

#include "core/loop.h"
#include "core/memory.h"

#if defined(__SANITIZE_ADDRESS__)
#define LOOP_BUFFER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LOOP_BUFFER_ASAN 1
#endif
#endif

#ifdef LOOP_BUFFER_ASAN
#include <sanitizer/asan_interface.h>
#endif

/* 4 KiB to 4 MiB: what is larger is not kept. */
#define LOOP_BUFFER_ORDERS 11u
#define LOOP_BUFFER_IDLE ((size_t)16 << 20)

struct idle_buffer {
    struct idle_buffer *next;
};

struct loop_buffers {
    struct idle_buffer *idle[LOOP_BUFFER_ORDERS];
    size_t bytes;
};

/* Nobody is to touch a buffer that was given back, but for the link. */
static void buffer_hide(struct idle_buffer *buffer, unsigned order)
{
#ifdef LOOP_BUFFER_ASAN
    __asan_poison_memory_region(buffer + 1, buffer_order_size(order) - sizeof(*buffer));
#else
    (void)buffer;
    (void)order;
#endif
}

static void buffer_show(struct idle_buffer *buffer, unsigned order)
{
#ifdef LOOP_BUFFER_ASAN
    __asan_unpoison_memory_region(buffer, buffer_order_size(order));
#else
    (void)buffer;
    (void)order;
#endif
}

struct loop_buffers *loop_buffers_new(void)
{
    return memory_new(struct loop_buffers);
}

static struct idle_buffer *buffers_pop(struct loop_buffers *buffers, unsigned order)
{
    struct idle_buffer *buffer = buffers->idle[order];

    if (!buffer)
        return NULL;
    buffer_show(buffer, order);
    buffers->idle[order] = buffer->next;
    buffers->bytes -= buffer_order_size(order);
    return buffer;
}

void loop_buffers_free(struct loop_buffers *buffers)
{
    for (unsigned order = 0; buffers && order < LOOP_BUFFER_ORDERS; order++) {
        struct idle_buffer *buffer;

        while ((buffer = buffers_pop(buffers, order)))
            free(buffer);
    }
    free(buffers);
}

struct loop_buffer loop_buffer_take(size_t size)
{
    struct loop_buffer buffer = {.order = LOOP_BUFFER_ORDERS};

    if (size <= buffer_order_size(LOOP_BUFFER_ORDERS - 1))
        buffer.order = buffer_order(size);
    else if (size > SIZE_MAX - BUFFER_ALIGN)
        return buffer;
    else
        size = (size + BUFFER_ALIGN - 1) & ~(size_t)(BUFFER_ALIGN - 1);
    if (buffer.order < LOOP_BUFFER_ORDERS) {
        buffer.data = buffers_pop(loop_current()->buffers, buffer.order);
        size = buffer_order_size(buffer.order);
    }
    if (!buffer.data && posix_memalign(&buffer.data, BUFFER_ALIGN, size))
        buffer.data = NULL;
    return buffer;
}

void loop_buffer_give(struct loop_buffer *buffer)
{
    struct loop_buffers *buffers = loop_current()->buffers;
    struct idle_buffer *idle = take_ptr(&buffer->data);

    if (!idle)
        return;
    if (buffer->order == LOOP_BUFFER_ORDERS || buffer_order_size(buffer->order) > LOOP_BUFFER_IDLE - buffers->bytes) {
        free(idle);
        return;
    }
    idle->next = buffers->idle[buffer->order];
    buffers->idle[buffer->order] = idle;
    buffers->bytes += buffer_order_size(buffer->order);
    buffer_hide(idle, buffer->order);
}
