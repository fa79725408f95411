/*
 * cairnctl's end of a QMP connection: lines of JSON over a UNIX socket, one
 * command at a time. Events may come between a command and its reply; they go
 * to a callback. One thread; calls wait.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_CLIENT_H
#define DAEMON_TOOLS_CAIRNCTL_CLIENT_H

#include <stddef.h>

struct error;
struct json_object;

/* What client_execute() returns when the daemon answered with an error: the
 * connection is well. Any other failure is one of the connection. */
#define CLIENT_REFUSED (-EREMOTEIO)

struct client {
    int fd;                     /* -1: not connected */
    char *buffer;               /* bytes [start, used) were received and not looked at */
    size_t start, used, room;
    char *line;                 /* the last line received, without its end; owned */
    /* Optional. event is borrowed for the call, line is what the daemon sent. */
    void (*event)(void *object, struct json_object *event, const char *line);
    void *object;               /* first argument of event() */
};

void client_init(struct client *client);

/* Connects, reads the greeting and negotiates. Errors: those of connect(2); -EPROTO if it is no QMP server. */
int client_connect(struct client *client, const char *path, struct error *err);

/* Closes the connection and frees what it holds. */
void client_close(struct client *client);

/*
 * Runs one command. arguments is borrowed and may be NULL. *ret is the value
 * that it returned: the caller's. CLIENT_REFUSED with the daemon's "class:
 * text" in err; client->line is the reply as it came.
 */
int client_execute(struct client *client, const char *command, struct json_object *arguments, struct json_object **ret,
                   struct error *err);

/* Waits for the next event and hands it to event(). -ECONNRESET when the daemon went away. */
int client_wait_event(struct client *client, struct error *err);

/* Hands on the events that have come, without waiting for more. */
int client_take_events(struct client *client, struct error *err);

#endif
