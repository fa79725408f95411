/*
 * From a JSON request to its reply: the shape of requests, negotiation of
 * capabilities, command lookup, errors. Knows no sockets. Commands themselves
 * are described by the schema (generated/commands.h) and live in cmd_*.c.
 */
#ifndef QMP_DISPATCH_H
#define QMP_DISPATCH_H

#include <stdbool.h>

struct command;
struct error;
struct json_object;

/* The release of QEMU whose QMP we speak: clients decide by it what they may use. */
#define QMP_COMPATIBLE_MAJOR 8
#define QMP_COMPATIBLE_MINOR 2
#define QMP_COMPATIBLE_MICRO 0

/* Who sends the requests: what a command may know and change about its session. */
struct qmp_client {
    bool negotiated; /* qmp_capabilities was done: commands may be run, events are sent */
    bool quit;       /* asked the daemon to stop; done once the reply is on its way */
};

/* A request whose arguments are checked. Nothing has happened yet. */
struct qmp_request {
    const struct command *command;
    void *args; /* of the type command->args */
};

/* The greeting for a new client; the caller's. */
struct json_object *qmp_greeting(void);

/* {"qemu": {...}, "package": ..., "name": ...}; the caller's. */
struct json_object *qmp_version(void);

/*
 * Checks value in full, without any side effect. Errors: GenericError for a
 * malformed request or bad arguments, CommandNotFound for unknown commands and
 * those that the state of negotiation does not allow.
 */
int qmp_request_parse(const struct qmp_client *client, struct json_object *value, struct qmp_request *ret,
                      struct error *err);
void qmp_request_clear(struct qmp_request *request);

/* Parses and runs; always gives a reply, the caller's. Main loop coroutine. */
struct json_object *qmp_dispatch(struct qmp_client *client, struct json_object *value);

/* The reply to what was no JSON at all. */
struct json_object *qmp_error_reply(const struct error *err);

#endif
