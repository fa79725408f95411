/*
 * Going to the background: the caller's process waits until the daemon is
 * ready and ends with 0, or with 1 if it never became so; messages of the
 * start still reach the caller's stderr.
 */
#ifndef DAEMON_DAEMONIZE_H
#define DAEMON_DAEMONIZE_H

struct error;

/* Forks, before any thread exists. Returns in the child only; the parent exits. The working
 * directory stays, so that relative names go on to mean the same. */
int daemonize_begin(struct error *err);

/* Lets the parent go and leaves its terminal. Nothing happens without daemonize_begin(). */
void daemonize_ready(void);

#endif
