/*
 * "cairnctl tree": who uses what, as indented lines. Exports and sources stand
 * at the left, below them the nodes that they reach; nodes that nobody uses
 * come last.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_TREE_H
#define DAEMON_TOOLS_CAIRNCTL_TREE_H

struct session;

/* enum session_status. */
int tree_show(struct session *session);

#endif
