/*
 * A client in the transmission phase. It lives on one I/O loop; the main loop
 * starts it, may ask it to stop, and frees it when it is gone.
 *
 * Per loop turn: one receive takes all that the socket has, all whole
 * requests in it are submitted, and one send takes all replies away. Slots
 * and buffers are reused and never leave the connection, so that nothing of
 * one client can show up at another.
 */
#ifndef DAEMON_NBD_CONNECTION_H
#define DAEMON_NBD_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/list.h"
#include "core/loop.h"
#include "core/request.h"

struct nbd_export;

#define NBD_CHUNK_SIZE (256u * 1024)
/* Payloads up to here are used where they were received; larger ones get a buffer of their own. */
#define NBD_PAYLOAD_INLINE (64u * 1024)
/* Bytes of buffers in use above which no more requests are taken; one more always fits. */
#define NBD_MEMORY_MAX (64u << 20)
#define NBD_SLOTS_MAX 1024u
#define NBD_BUFFER_CLASSES 14u          /* 4 KiB to 32 MiB */
/* Idle buffers of larger classes are freed at once. */
#define NBD_BUFFER_KEEP_CLASS 9u        /* 2 MiB */
#define NBD_EXTENTS_MAX 255u
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

/* A request from its arrival until its reply is sent. */
struct nbd_slot {
    struct nbd_slot *next;
    struct nbd_connection *connection;
    uint64_t cookie, offset, length;    /* as asked */
    uint16_t type, flags;
    bool is_error;
    uint8_t buffer_class;
    void *buffer;                       /* NULL, or of buffer_class */
    struct nbd_chunk *chunk;            /* NULL, or where the payload is */
    struct extent_list status;
    struct iovec iov;                   /* the data */
    struct iovec payload;               /* what follows the header in the reply */
    uint32_t header_size;
    unsigned char header[NBD_HEADER_MAX];
    struct request request;             /* last: frames follow */
};

struct nbd_input {
    struct nbd_chunk *chunk, *spare;
    struct nbd_slot *filling;           /* a write whose payload is being received */
    uint64_t filled, skip;              /* bytes of it; bytes to throw away */
    bool blocked;                       /* takes nothing until memory is given back or a pause ends */
    bool expect_large;                  /* the last write was large: receive headers alone */
};

struct nbd_output {
    struct nbd_slot *first, **last;     /* replies in order of completion */
    size_t sent;                        /* bytes of the first one */
    bool waiting;                       /* for the socket to take more: op is in the ring */
    struct ring_op op;
    struct loop_hook hook;
};

struct nbd_connection {
    int fd;
    bool structured, extended, context, writethrough, read_only;
    bool closing, poller_gone;          /* the loop's */
    bool stop_posted, gone;             /* the main loop's */
    struct nbd_export *export;
    struct loop *loop;
    struct poller poller;
    struct nbd_input input;
    struct nbd_output output;
    unsigned slot_count;                /* in use */
    struct nbd_slot *free_slots;
    struct nbd_buffer *free_buffers[NBD_BUFFER_CLASSES];
    size_t memory;                      /* bytes of chunks and buffers in use */
    struct list_link in_loop, in_export;
    struct loop_message message, stop_message;
};

/* Main loop: takes fd and the bytes that were received behind the negotiation (at most
 * NBD_CHUNK_SIZE). -ENOMEM leaves fd to the caller. */
int nbd_connection_start(struct nbd_export *export, int fd, bool structured, bool extended, bool context,
                         const void *data, size_t size);

/* Main loop: ends it soon. */
void nbd_connection_stop(struct nbd_connection *connection);

/* On the loop. A drain has ended: look at what came meanwhile. */
void nbd_connection_resumed(struct nbd_connection *connection);

/* On the loop, inside of daemon/nbd/: */

/* No more requests; hangs up when those in flight have ended. */
void nbd_connection_close(struct nbd_connection *connection);
/* Closes for good if nothing refers to the connection any more. */
void nbd_connection_reap(struct nbd_connection *connection);

/* NULL when there is no memory. */
struct nbd_slot *nbd_slot_get(struct nbd_connection *connection);
void nbd_slot_put(struct nbd_slot *slot);
/* Gives the slot a buffer of at least size bytes, at most NBD_PAYLOAD_MAX. -ENOMEM. */
int nbd_slot_buffer(struct nbd_slot *slot, size_t size);

/* transmit.c: the poller. */
bool nbd_transmit_poll(struct poller *poller);

/* reply.c: the request's done(); a reply without a request; the hook; the end of waiting. */
void nbd_request_done(struct request *req);
void nbd_reply(struct nbd_slot *slot, int result);
void nbd_send_hook(struct loop_hook *hook);
void nbd_send_ready(struct ring_op *op, int result);

#endif
