/*
 * A client in the transmission phase. It lives on one I/O loop; the main loop
 * starts it, may ask it to stop, and frees it when it is gone.
 *
 * Per loop turn: one receive takes all that the socket has, all whole
 * requests in it are submitted, and one send takes all replies away.
 *
 * There are two ways to the end. A client that says goodbye, or hangs up, is
 * finished: no more requests are taken, those in flight are answered. One that
 * breaks the protocol, cannot be written to or must go, is closed: its socket
 * is shut down at once. Either way the connection waits for its requests in
 * flight, because the graph works on its buffers until they have ended.
 */
#ifndef DAEMON_NBD_CONNECTION_H
#define DAEMON_NBD_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/list.h"
#include "core/loop.h"
#include "core/object.h"
#include "daemon/nbd/slot.h"

struct nbd_export;
struct nbd_handshake;
struct nbd_refusal;

struct nbd_input {
    struct nbd_chunk *chunk;            /* NULL after some time without requests */
    struct nbd_slot *filling;           /* a write whose payload is being received, or held by a pause */
    uint64_t filled, skip;              /* bytes of it; bytes to throw away */
    struct nbd_slot *refused;           /* is answered when they are; NULL: was answered */
    const struct nbd_refusal *refusal;
    uint64_t turn;                      /* bytes that are read for the client in this turn */
    bool blocked;                       /* takes nothing until memory is given back or a pause ends */
    bool expect_large;                  /* the last request was a large write: receive headers alone */
    bool copies;                        /* the graph wants aligned memory, and would copy small payloads itself */
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
    bool finishing, closing, poller_gone;   /* the loop's */
    bool stop_posted, gone;                 /* the main loop's */
    unsigned number;                        /* of its export's connections */
    bool active;                            /* something came since the last look of the trimmer */
    struct nbd_export *export;
    struct loop *loop;
    struct poller poller;
    struct nbd_input input;
    struct nbd_output output;
    struct nbd_pool pool;
    struct timer trimmer;               /* gives idle memory back */
    struct list_link in_loop, in_export;
    struct loop_message message, stop_message;
    struct object object;               /* /exports/<id>/client<n> */
};

/* Main loop: takes fd and the bytes that were received behind the negotiation (at most
 * NBD_CHUNK_SIZE). -ENOMEM leaves fd to the caller. */
int nbd_connection_start(const struct nbd_handshake *handshake, int fd, const void *data, size_t size);

/* Main loop: ends it soon. */
void nbd_connection_stop(struct nbd_connection *connection);

/* On the loop. A drain has ended: look at what came meanwhile. */
void nbd_connection_resumed(struct nbd_connection *connection);

/* On the loop, inside of daemon/nbd/: */

/* Something came: idle memory is not given back before some time without requests. */
void nbd_connection_touch(struct nbd_connection *connection);
/* There is memory again, or the pause is over. */
void nbd_connection_unblock(struct nbd_connection *connection);
/* No more requests; closes when all are answered. */
void nbd_connection_finish(struct nbd_connection *connection);
/* Hangs up; what is in flight is waited for, and not answered. */
void nbd_connection_close(struct nbd_connection *connection);
/* To be called when replies were sent or something ended: closes, or lets the main loop free the
 * connection, if nothing refers to it any more. */
void nbd_connection_reap(struct nbd_connection *connection);

/* transmit.c: the poller. */
bool nbd_transmit_poll(struct poller *poller);

/* reply.c: the request's done(); a reply without a request; sends what the socket takes; the hook and
 * the end of waiting. text says more about an error, and may be NULL; not copied. */
void nbd_request_done(struct request *req);
void nbd_reply(struct nbd_slot *slot, int result, const char *text);
void nbd_send(struct nbd_connection *connection);
void nbd_send_hook(struct loop_hook *hook);
void nbd_send_ready(struct ring_op *op, int result);

#endif
