/*
 * Configuration files: QMP commands, run in their order without a client. The
 * file holds one JSON array of them, or one after the other.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

struct error;

/* Stops at the first command that fails; what was done before stays. Errors name file, line and
 * command. In a main loop coroutine. */
int config_run(const char *path, struct error *err);

#endif
