/*
 * The start: what the command line asks for, one step after the other, by the
 * same functions that QMP commands use.
 */
#ifndef DAEMON_STARTUP_H
#define DAEMON_STARTUP_H

struct command_line;
struct error;
struct systemd_socket;

/* Serves on sockets from the service manager: those named "qmp", "nbd", and "nbd-ID" for the NBD
 * server ID. Takes the fds that it uses. In a main loop coroutine. */
int startup_sockets(struct systemd_socket *sockets, unsigned count, struct error *err);

/* Ends at the first step that fails, with "--option value: text". In a main loop coroutine. */
int startup_run(const struct command_line *line, struct error *err);

#endif
