/*
 * One QMP client: its input, the queue of its requests, its output.
 *
 * Requests are run in order by a coroutine that lives while there are any, so
 * that a command that waits holds up neither I/O nor other clients. While
 * QMP_QUEUE_MAX requests wait, nothing more is read. No request is begun while
 * the client has too many answers to read; if it reads none of them for some
 * seconds, or events pile up, it is disconnected. Main loop only.
 */
#ifndef QMP_CONNECTION_H
#define QMP_CONNECTION_H

#include <stdbool.h>

struct error;
struct json_object;

#define QMP_QUEUE_MAX 8u
#define QMP_QUEUE_SIZE (1u << 20)   /* bytes of requests, after which no more are read either */
#define QMP_OUTPUT_BUSY (1u << 20)  /* bytes that a client may leave unread before its requests wait */
#define QMP_OUTPUT_MAX (32u << 20)  /* bytes after which it is disconnected */
#define QMP_STALL_NS 10000000000ull /* time that its requests wait while it reads nothing */

/* Takes both fds (they may be the same one, or anything that can be read and written) and greets. */
int qmp_connection_start(int in, int out, bool pretty, struct error *err);

/* Sends event to all clients that have negotiated. */
void qmp_connection_broadcast(struct json_object *event);

/* From now on no command is begun. Waits for those that run, if called in a coroutine (one of the
 * main loop, and not inside a command). */
void qmp_connection_stop_commands(void);

/* The same; then gives clients a second to take their answers, and closes all. */
void qmp_connection_close_all(void);

#endif
