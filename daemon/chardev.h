/*
 * The options --chardev and --monitor: a chardev says how a QMP client is
 * reached, a monitor serves one there. Only what QMP needs is there: UNIX and
 * TCP sockets that listen or connect, sockets that the process was started
 * with, and stdio. Main loop, at the start.
 */
#ifndef DAEMON_CHARDEV_H
#define DAEMON_CHARDEV_H

#include <stdbool.h>

struct error;

/* Remembers a chardev; nothing is opened yet. */
int chardev_add(const char *text, struct error *err);

/* Opens the chardev that it names, and serves QMP there. */
int chardev_monitor_add(const char *text, struct error *err);

/* Forgets all chardevs; monitors go on. warn: about those that have none. */
void chardev_clear(bool warn);

#endif
