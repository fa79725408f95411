/*
 * The QMP server: where clients come from, and what the daemon calls. Main
 * loop only.
 *
 * Order at the end: qmp_stop_commands() first, so that nobody changes what is
 * being taken down; then, when everything is gone and its events are sent,
 * qmp_stop_all().
 */
#ifndef QMP_SERVER_H
#define QMP_SERVER_H

#include <stdbool.h>

struct error;
struct json_object;
struct socket_address;

/*
 * Set by the daemon: called when a client asked for the end, after its reply
 * is on its way; reason as in the SHUTDOWN event ("host-qmp-quit"). Runs in a
 * coroutine; must start the shutdown and return soon. No command is begun any
 * more.
 */
extern void (*qmp_shutdown)(const char *reason);

/* Events go to clients from now on. */
void qmp_start(void);

/* Listens at address for any number of clients. pretty: one member a line. */
int qmp_listen(const struct socket_address *address, bool pretty, struct error *err);

/* The same with a socket that listens already; takes fd, also when it fails. */
int qmp_listen_fd(int fd, bool pretty, struct error *err);

/* One client, to whom we connect; gone when it closes. Blocks until it accepts. */
int qmp_connect(const struct socket_address *address, bool pretty, struct error *err);

/* One client, whose connection fd is; takes fd, also when it fails. */
int qmp_serve_fd(int fd, bool pretty, struct error *err);

/* One client on stdin and stdout. At the end of its input, the daemon goes on without it. */
int qmp_stdio(bool pretty, struct error *err);

/*
 * Runs one request ({"execute": ..., "arguments": ...}) without a client, as
 * if after negotiation. *reply is what a client would get, the caller's; NULL
 * if it is not wanted. 0, or a negative errno and err if the reply is an
 * error. In a main loop coroutine.
 */
int qmp_execute(struct json_object *request, struct json_object **reply, struct error *err);

/* Takes no more clients, begins no more commands, and waits for those that run (in a main loop
 * coroutine; elsewhere it does not wait). Never inside a command. */
void qmp_stop_commands(void);

/* The end: the same, then lets clients take their last answers for at most a second, closes all. */
void qmp_stop_all(void);

#endif
