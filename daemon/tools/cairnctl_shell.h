/*
 * "cairnctl shell": the commands, one per line. On a terminal with editing,
 * history (~/.cairnctl_history) and completion, and with events shown as they
 * come; else lines are read as they are, and "#" starts a comment.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_SHELL_H
#define DAEMON_TOOLS_CAIRNCTL_SHELL_H

struct session;

/* enum session_status: on a terminal that of the end, else that of the worst line. */
int shell_run(struct session *session);

#endif
