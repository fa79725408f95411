/*
 * NBD exports: a name on an NBD server.
 */
#ifndef DAEMON_NBD_EXPORT_H
#define DAEMON_NBD_EXPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/export.h"
#include "core/list.h"

struct nbd_server;

struct nbd_export {
    struct export *export;
    struct nbd_server *server;
    const char *name, *description;     /* the options' */
    struct list_link in_server;         /* in server->exports, from prepare to destroy */
    bool hidden;                        /* clients cannot choose it: not committed yet, or stopping */
    bool stopping;                      /* out of the graph: ends with its last client */
    struct list connections;            /* all, main loop: struct nbd_connection, by in_export */
    unsigned connection_count, connection_number;   /* number: of the next one's name */
    _Atomic unsigned scratch;           /* bytes of frames that slots need */
    struct list by_loop[LOOP_MAX];      /* each loop's own: struct nbd_connection, by in_loop */
};

/* Transmission flags of the export, without those that depend on what was negotiated. */
uint16_t nbd_export_flags(const struct nbd_export *export);

/* Main loop: a transmitting client is gone. */
void nbd_export_left(struct nbd_export *export);

#endif
