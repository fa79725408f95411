/*
 * The inside of the nbd driver. It speaks to the server through libnbd.
 *
 *   nbd.c             the driver: open, close, requests
 *   nbd_connect.c     a connection is made: socket, handshake
 *   nbd_connection.c  the life of a connection: keep, lose, move, end
 *   nbd_operation.c   operations: to the server, back, held, sent to another loop
 *   nbd_unaligned.c   servers that want whole blocks
 *
 * A connection is one libnbd handle and belongs to one loop, which alone
 * touches it. The node's first one, its home, begins in the main loop, where
 * open() made it, and moves to the first I/O loop that sends a request. A
 * server that allows several connections gets one from each further loop. A
 * loop without a connection that works sends its operations to the home by
 * message.
 *
 * `guard` protects who is where: the list of connections and their loops. It
 * is held while an operation is posted to the home, so that none arrives at a
 * loop that the home has left for good.
 */
#ifndef DRIVERS_PROTOCOL_NBD_H
#define DRIVERS_PROTOCOL_NBD_H

#include <libnbd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "core/colock.h"
#include "core/driver.h"
#include "core/list.h"
#include "core/loop.h"
#include "generated/options.h"

struct nbd;
struct nbd_connection;

/* Something to do at the server. */
struct nbd_operation {
    struct loop_message message;    /* to the home's loop and back */
    struct nbd *nbd;
    struct nbd_connection *connection;      /* while it is issued */
    struct nbd_operation *next;     /* among held, or finished */
    struct loop *loop;              /* where it began, and where done() runs */
    void (*done)(struct nbd_operation *operation);
    const struct iovec *iov;
    struct extent_list *extents;
    uint64_t offset, length;        /* bytes */
    uint32_t flags;                 /* REQ_* */
    uint16_t iov_count;
    uint8_t op;                     /* REQ_* */
    bool impatient;                 /* is never held */
    unsigned pieces;                /* libnbd's commands in flight, and one while more are issued */
    int result;                     /* 0 or -errno, the first that failed */
};

struct nbd_queue {
    struct nbd_operation *first, **tail;
};

/* What a server says about its export. */
struct nbd_traits {
    uint64_t size;                  /* bytes */
    uint32_t block;                 /* bytes; offsets and lengths must be multiples: a power of two */
    uint32_t transfer;              /* bytes of one read or write, at most; a multiple of block */
    bool read_only, multi, flush, fua, trim, zero, fast_zero, cache, status;
};

enum nbd_state {
    NBD_BROKEN,         /* no handle that is of use; the keeper tries again */
    NBD_CONNECTING,     /* up to the end of the handshake */
    NBD_READY
};

struct nbd_connection {
    struct nbd *nbd;
    struct list_link link;          /* in nbd->connections; guard */
    struct loop *loop;              /* guard; its loop's own otherwise */
    struct nbd_handle *handle;
    enum nbd_state state;
    struct {
        bool used;                  /* has been READY: its loop relies on it */
        bool stop;                  /* the keeper is to end */
        bool attached, writing;     /* poller is added; writable is in the ring */
        bool ended;                 /* its keeper is done with it; guard */
    };
    struct loop *target;            /* where the keeper is to move it, or NULL */
    struct poller poller;
    struct ring_op writable;
    struct nbd_queue held, finished;
    char *reason;                   /* why the attempt failed, in libnbd's words, or NULL */
    unsigned in_flight;             /* operations issued */
    struct loop_hook hook;          /* settles what ended outside of the poller */
    struct coroutine *keeper;       /* while it waits in nbd_wait() */
    struct timer clock, limit;      /* the keeper's; the end of holding */
    uint64_t held_until_ns;         /* while not READY */
    struct loop_message moved, stopping;
    struct loop_leaver leaver;
};

struct nbd {
    struct node *node;
    const struct nbd_options *options;
    struct nbd_traits traits;
    struct nbd_connection *local[LOOP_MAX];     /* each is its loop's */
    bool tried[LOOP_MAX];           /* a further connection was begun: its loop's */
    struct nbd_connection *home;
    pthread_mutex_t guard;
    struct list connections;
    char *last_error;               /* why there is no connection, or NULL; guard */
    struct range_lock range;        /* writes, where whole blocks are wanted */
    struct coroutine *closer;
    unsigned open;                  /* connections that close() waits for */
    struct loop_message breaking;
    bool breaks;                    /* it is posted; guard */
    uint64_t unfinished_ns;         /* when finish() failed: the main loop's */
    _Atomic bool quiesced;          /* a drain is under way: nothing is held for long */
    _Atomic unsigned connected;     /* connections that are READY */
    _Atomic uint64_t reconnects;
};

/* nbd_operation.c */

/*
 * Starts an operation whose nbd, loop, done, op, flags, offset, length, iov,
 * iov_count and extents are set. 0: done() will be called, not from inside;
 * or a negative errno, and it will not.
 */
int nbd_submit(struct nbd_operation *operation);

/* Does one and waits; in a coroutine. */
int nbd_do(struct nbd *nbd, struct nbd_operation *operation);

/* To the server; connection READY. */
void nbd_issue(struct nbd_connection *connection, struct nbd_operation *operation);

/* Looks at what happened in libnbd: ends operations, and notices that the connection is lost. Its loop, not in a callback
 * of libnbd. True if anything ended. */
bool nbd_settle(struct nbd_connection *connection);

/* The connection is READY, or will not be soon: what is held goes on, or fails. */
void nbd_release(struct nbd_connection *connection, int result);

/* nbd_connect.c: in the connection's own loop */

/* One attempt; in a coroutine. On failure there is no handle. */
int nbd_connect(struct nbd_connection *connection, struct error *err);

/* Its end, as the protocol wants it; in a coroutine. What is in flight is lost. */
void nbd_disconnect(struct nbd_connection *connection);

/* The loop looks at the socket; or does so no more, for which the coroutine waits. */
void nbd_attach(struct nbd_connection *connection);
void nbd_detach(struct nbd_connection *connection);

/* Where libnbd could not send all, it waits to be told that the socket takes more. */
void nbd_watch_writing(struct nbd_connection *connection);

/* The keeper looks at what it is to do next. */
void nbd_wake(struct nbd_connection *connection);

/* Waits for nbd_wake() or the deadline; the keeper, or whoever connects in its place. */
void nbd_wait(struct nbd_connection *connection, uint64_t deadline_ns);

/* The clock of its loop, read afresh, in nanoseconds. */
uint64_t nbd_now(const struct nbd_connection *connection);

/* nbd_connection.c */

/* A new connection of loop, the calling one. */
struct nbd_connection *nbd_connection_new(struct nbd *nbd, struct loop *loop);

/* One without handle and keeper; main loop. */
void nbd_connection_free(struct nbd_connection *connection);

/* Starts its keeper; on its loop. */
void nbd_connection_keep(struct nbd_connection *connection);

/* A further connection for the calling loop, made in the background. */
void nbd_connection_add(struct nbd *nbd);

/* Sets the time when what is held fails. */
void nbd_limit(struct nbd_connection *connection);

/* The home's socket is shut down: what is in flight there is lost, as if the server had gone. Main loop. */
void nbd_break(struct nbd *nbd);

/* Ends all connections; main loop coroutine. */
void nbd_connections_end(struct nbd *nbd);

/* nbd_unaligned.c */

/* Whether the request can go to the server as it is. */
bool nbd_is_aligned(const struct nbd *nbd, const struct request *req);
enum step nbd_slow(struct node *node, struct request *req);

#endif
