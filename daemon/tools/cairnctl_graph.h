/*
 * "cairnctl graph": the graph as text for Graphviz.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_GRAPH_H
#define DAEMON_TOOLS_CAIRNCTL_GRAPH_H

struct session;

/* enum session_status. */
int graph_show(struct session *session);

#endif
