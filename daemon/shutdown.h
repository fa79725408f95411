/*
 * The clean end: clients first, then what they used, from the top down.
 */
#ifndef DAEMON_SHUTDOWN_H
#define DAEMON_SHUTDOWN_H

/* reason: as in the SHUTDOWN event. Waits for all; failures are logged, and the rest goes on. In a
 * main loop coroutine, once. */
void shutdown_run(const char *reason);

#endif
