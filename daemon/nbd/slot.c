/*
 * Slots, buffers and chunks of one client: see slot.h.
 */
#include "daemon/nbd/slot.h"

#include <errno.h>
#include <string.h>

#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/export.h"

/* Frees idle memory, the largest pieces first, until size more bytes stay within the limit. */
static void pool_make_room(struct nbd_pool *pool, size_t size, size_t limit)
{
    unsigned order = NBD_BUFFER_ORDERS;

    while (pool->idle && pool->used + pool->idle + size > limit) {
        struct nbd_chunk *chunk = pool->free_chunks;

        while (order > 0 && !pool->free_buffers[order - 1])
            order--;
        if (order > 0) {
            struct nbd_buffer *buffer = pool->free_buffers[order - 1];

            pool->free_buffers[order - 1] = buffer->next;
            pool->idle -= buffer_order_size(order - 1);
            free(buffer);
        } else {
            pool->free_chunks = chunk->next;
            pool->idle -= sizeof(*chunk);
            free(chunk);
        }
    }
}

void nbd_pool_trim(struct nbd_pool *pool)
{
    struct nbd_slot *slot;

    pool_make_room(pool, 0, 0);
    while ((slot = pool->free_slots)) {
        pool->free_slots = slot->next;
        free(slot);
    }
}

struct nbd_chunk *nbd_chunk_get(struct nbd_pool *pool)
{
    struct nbd_chunk *chunk = pool->free_chunks;

    if (chunk) {
        pool->free_chunks = chunk->next;
        pool->idle -= sizeof(*chunk);
    } else {
        pool_make_room(pool, sizeof(*chunk), NBD_MEMORY_MAX);
        chunk = malloc(sizeof(*chunk));
        if (!chunk)
            return NULL;
    }
    pool->used += sizeof(*chunk);
    chunk->refs = 1;
    chunk->start = chunk->end = 0;
    return chunk;
}

void nbd_chunk_put(struct nbd_pool *pool, struct nbd_chunk *chunk)
{
    if (--chunk->refs)
        return;
    chunk->next = pool->free_chunks;
    pool->free_chunks = chunk;
    pool->used -= sizeof(*chunk);
    pool->idle += sizeof(*chunk);
}

int nbd_slot_buffer(struct nbd_slot *slot, size_t size)
{
    struct nbd_pool *pool = &slot->connection->pool;
    unsigned order = buffer_order(size);
    struct nbd_buffer *buffer = pool->free_buffers[order];

    if (likely(buffer != NULL)) {
        pool->free_buffers[order] = buffer->next;
        pool->idle -= buffer_order_size(order);
    } else {
        pool_make_room(pool, buffer_order_size(order), NBD_MEMORY_MAX);
        buffer = buffer_alloc(buffer_order_size(order));
        if (!buffer)
            return -ENOMEM;
    }
    pool->used += buffer_order_size(order);
    slot->buffer = buffer;
    slot->buffer_order = (uint8_t)order;
    return 0;
}

static void slot_buffer_put(struct nbd_pool *pool, struct nbd_slot *slot)
{
    struct nbd_buffer *buffer = take_ptr(&slot->buffer);
    size_t size = buffer_order_size(slot->buffer_order);

    buffer->next = pool->free_buffers[slot->buffer_order];
    pool->free_buffers[slot->buffer_order] = buffer;
    pool->used -= size;
    pool->idle += size;
}

static struct nbd_slot *slot_new(struct nbd_connection *connection, unsigned scratch)
{
    struct nbd_slot *slot = aligned_alloc(64, (sizeof(*slot) + scratch + 63) & ~(size_t)63);

    if (!slot)
        return NULL;
    memset(slot, 0, sizeof(*slot));
    slot->connection = connection;
    slot->request.scratch_size = (uint16_t)scratch;
    slot->request.client = connection->number;
    slot->request.done = nbd_request_done;
    return slot;
}

struct nbd_slot *nbd_slot_get(struct nbd_connection *connection)
{
    struct nbd_pool *pool = &connection->pool;
    struct nbd_slot *slot = pool->free_slots;
    unsigned scratch = atomic_load_explicit(&connection->export->scratch, memory_order_relaxed);

    if (likely(slot != NULL))
        pool->free_slots = slot->next;
    /* A graph that grew needs larger slots: the small ones go one by one. */
    if (unlikely(!slot || slot->request.scratch_size < scratch)) {
        free(slot);
        slot = slot_new(connection, scratch);
        if (!slot)
            return NULL;
    }
    pool->slots++;
    return slot;
}

struct nbd_slot *nbd_slot_fit(struct nbd_slot *slot)
{
    unsigned scratch = atomic_load_explicit(&slot->connection->export->scratch, memory_order_relaxed);

    if (slot->request.scratch_size >= scratch)
        return slot;
    struct nbd_slot *larger = slot_new(slot->connection, scratch);

    if (!larger)
        return NULL;
    /* Not submitted yet: there are no frames to move. */
    memcpy(larger, slot, sizeof(*larger));
    larger->request.scratch_size = (uint16_t)scratch;
    if (larger->request.iov)
        larger->request.iov = &larger->iov;
    free(slot);
    return larger;
}

void nbd_slot_put(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    struct nbd_pool *pool = &connection->pool;

    if (slot->buffer)
        slot_buffer_put(pool, slot);
    if (slot->chunk)
        nbd_chunk_put(pool, take_ptr(&slot->chunk));
    slot->next = pool->free_slots;
    pool->free_slots = slot;
    pool->slots--;
    if (unlikely(connection->input.blocked))
        nbd_connection_unblock(connection);
}
