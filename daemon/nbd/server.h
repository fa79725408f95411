/*
 * NBD servers: listening sockets, and the clients that still negotiate. Main
 * loop only. A client that has chosen an export moves to one of the export's
 * I/O loops (connection.h).
 */
#ifndef DAEMON_NBD_SERVER_H
#define DAEMON_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/list.h"

struct coroutine;
struct error;
struct event;
struct nbd_export;
struct nbd_server_options;

struct nbd_server {
    char *id;                       /* "" = the unnamed one */
    struct nbd_server_options *options;     /* owned */
    struct list exports;            /* struct nbd_export, by in_server */
    struct list clients;            /* struct nbd_client: still negotiating */
    struct list_link in_registry;
    struct event **listeners;       /* one for each listening socket */
    unsigned listener_count;
    struct event *retry;            /* accept again after the process ran out of descriptors */
    unsigned connections;           /* negotiating and transmitting */
    bool stopping;
    struct coroutine *waiter;       /* the stop, until the last export is gone */
};

extern struct list nbd_server_registry;

/* Listens. options are copied. Errors: id in use, those of the address. */
int nbd_server_start(const struct nbd_server_options *options, struct error *err);

/* By id, "" for the unnamed one; NULL if there is none. */
struct nbd_server *nbd_server_find(const char *id);

/* Stops listening, drops clients that negotiate, and removes its exports, which drops the others. In a
 * coroutine. -ENOENT "NBD server not running". */
int nbd_server_stop(const char *id, struct error *err);
void nbd_server_stop_all(void);

/* A transmitting client is gone. */
void nbd_server_left(struct nbd_server *server);

/* An export is gone, and does not refer to the server any more. */
void nbd_server_lost(struct nbd_server *server);

/* NULL if there is no export of that name; also finds hidden ones. */
struct nbd_export *nbd_server_export(const struct nbd_server *server, const char *name);

/* Clients that negotiate can no longer choose the export. */
void nbd_server_forget(struct nbd_server *server, struct nbd_export *export);

#endif
