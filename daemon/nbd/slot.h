/*
 * Slots and the memory of one client. A slot is a request from its arrival
 * until its reply is sent. Slots, buffers and chunks are kept for the next
 * request of the same connection, and never go to another one: nothing of one
 * client can show up at another.
 *
 * All functions run on the connection's loop.
 */
#ifndef DAEMON_NBD_SLOT_H
#define DAEMON_NBD_SLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/request.h"

struct nbd_connection;

#define NBD_CHUNK_SIZE (256u * 1024)
/* Bytes of buffers and chunks of a client, in use and idle. Above it no more requests are taken; one
 * that was taken below it always gets its buffer. */
#define NBD_MEMORY_MAX ((size_t)64 << 20)
#define NBD_SLOTS_MAX 1024u
#define NBD_BUFFER_ORDERS 14u           /* powers of two from 4 KiB to 32 MiB = NBD_PAYLOAD_MAX */
#define NBD_HEADER_MAX 64u

/* Received bytes. Writes refer to it while their payload is in use. */
struct nbd_chunk {
    struct nbd_chunk *next;
    unsigned refs;              /* slots, and the connection while it receives here */
    uint32_t start, end;        /* bytes not parsed yet */
    unsigned char data[NBD_CHUNK_SIZE];
};

struct nbd_buffer {
    struct nbd_buffer *next;
};

struct nbd_slot {
    struct nbd_slot *next;
    struct nbd_connection *connection;
    uint64_t cookie, offset, length;    /* as asked */
    uint16_t type, flags;
    uint8_t buffer_order;
    void *buffer;                       /* NULL, or BUFFER_ALIGN << buffer_order bytes */
    struct nbd_chunk *chunk;            /* NULL, or where the payload is */
    struct extent_list status;
    struct iovec iov;                   /* the data */
    struct iovec payload;               /* what follows the header in the reply */
    uint32_t header_size;
    unsigned char header[NBD_HEADER_MAX];
    struct request request __attribute__((aligned(64)));    /* last: frames follow */
};

struct nbd_pool {
    struct nbd_slot *free_slots;
    unsigned slots;                     /* in use */
    struct nbd_buffer *free_buffers[NBD_BUFFER_ORDERS];
    struct nbd_chunk *free_chunks;
    size_t used, idle;                  /* bytes of buffers and chunks */
};

static inline bool nbd_pool_has_room(const struct nbd_pool *pool)
{
    return pool->slots < NBD_SLOTS_MAX && pool->used < NBD_MEMORY_MAX;
}

/* Gives back all that is idle. */
void nbd_pool_trim(struct nbd_pool *pool);

/* NULL when there is no memory. Empty, with one reference. */
struct nbd_chunk *nbd_chunk_get(struct nbd_pool *pool);
void nbd_chunk_put(struct nbd_pool *pool, struct nbd_chunk *chunk);

/* NULL when there is no memory. Has room for the frames of the graph as it is now. */
struct nbd_slot *nbd_slot_get(struct nbd_connection *connection);
void nbd_slot_put(struct nbd_slot *slot);
/* The same request in a slot with room for the frames of the graph as it is now; frees slot if it is
 * another one. NULL when there is no memory: then slot is as it was. */
struct nbd_slot *nbd_slot_fit(struct nbd_slot *slot);
/* Gives the slot a buffer of at least size bytes, at most NBD_PAYLOAD_MAX, aligned to BUFFER_ALIGN.
 * -ENOMEM. */
int nbd_slot_buffer(struct nbd_slot *slot, size_t size);

#endif
