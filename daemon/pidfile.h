/*
 * The pid file: locked from the start of the daemon to its end, so that only
 * one can use it; its number is there once the daemon is ready.
 */
#ifndef DAEMON_PIDFILE_H
#define DAEMON_PIDFILE_H

struct error;

/* -EAGAIN when another process holds it. path must stay valid. */
int pidfile_lock(const char *path, struct error *err);

/* Writes this process's number. Nothing happens without pidfile_lock(). */
int pidfile_write(struct error *err);

/* Removes the file and the lock. */
void pidfile_remove(void);

#endif
