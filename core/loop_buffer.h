/*
 * Buffers of a loop: memory that I/O needs for the time of one request, kept
 * for the next one. What is taken on a loop is given back there, which is how
 * it goes by itself in a coroutine.
 */
#ifndef CORE_LOOP_BUFFER_H
#define CORE_LOOP_BUFFER_H

#include <stddef.h>

struct loop_buffers;

struct loop_buffer {
    void *data;         /* aligned to BUFFER_ALIGN; NULL: there was no memory */
    unsigned order;
};

struct loop_buffers *loop_buffers_new(void);
void loop_buffers_free(struct loop_buffers *buffers);       /* NULL is fine; all were given back */

/* At least size bytes of the running loop's, not zeroed: what was in them before is somebody else's. */
struct loop_buffer loop_buffer_take(size_t size);
void loop_buffer_give(struct loop_buffer *buffer);

#define AUTO_LOOP_BUFFER __attribute__((cleanup(loop_buffer_give)))

#endif
