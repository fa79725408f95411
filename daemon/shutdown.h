/*
 * The clean end: clients first, then what they used, from the top down.
 */
#ifndef DAEMON_SHUTDOWN_H
#define DAEMON_SHUTDOWN_H

#include <stdbool.h>

/* reason: as in the SHUTDOWN event. Waits for all; failures are logged, and the rest goes on. False if requests are
 * still in flight: then the process must end as it is. In a main loop coroutine, once. */
bool shutdown_run(const char *reason);

#endif
