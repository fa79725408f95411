/*
 * The negotiation phase of fixed newstyle, as a state machine without I/O:
 * bytes go in, bytes come out, and in the end there is an export or a reason
 * to hang up. Main loop only.
 */
#ifndef DAEMON_NBD_HANDSHAKE_H
#define DAEMON_NBD_HANDSHAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct evbuffer;
struct nbd_export;
struct nbd_server;

enum nbd_handshake_state {
    NBD_HANDSHAKE_FLAGS,        /* the client's flags are next */
    NBD_HANDSHAKE_OPTION,       /* an option is next */
    NBD_HANDSHAKE_SKIP,         /* the rest of an option that is too big */
    NBD_HANDSHAKE_DONE,         /* export is chosen; what follows are requests */
    NBD_HANDSHAKE_CLOSE         /* send what is there, then hang up */
};

struct nbd_handshake {
    enum nbd_handshake_state state;
    struct nbd_server *server;
    struct evbuffer *output;        /* the caller's */
    struct nbd_export *export;      /* the chosen one */
    uint64_t skip;                  /* bytes */
    bool fixed, no_zeroes, structured, extended;
    struct nbd_export *context;     /* for which base:allocation was chosen */
};

/* Greets: writes the server's first bytes to output. */
void nbd_handshake_start(struct nbd_handshake *handshake, struct nbd_server *server, struct evbuffer *output);

/* Takes one message, if it is complete, from the beginning of the input; returns its size, or 0 when
 * there is not enough. To be called again with the rest until state is DONE or CLOSE. Never needs more
 * than NBD_HANDSHAKE_INPUT_MAX at once. What one message adds to output is bounded by the exports. */
size_t nbd_handshake_input(struct nbd_handshake *handshake, const void *data, size_t size);

/* An option's data is at most a name and a list of queries. */
#define NBD_HANDSHAKE_DATA_MAX 16384u
#define NBD_HANDSHAKE_INPUT_MAX (16u + NBD_HANDSHAKE_DATA_MAX)

#endif
