/*
 * The types of /nodes/<name> (driver, size, read-only, corrupted) and of
 * /nodes/<name>/children/<edge>.
 */
#ifndef CORE_NODE_OBJECT_H
#define CORE_NODE_OBJECT_H

#include "core/object.h"

struct driver;
struct edge;

/* The type of /nodes/<name>: what all nodes show, and what the driver adds. Main loop. */
const struct object_type *node_object_type(const struct driver *driver);

/* Shows the edge below its parent, a node that is in the tree; and no more. */
void edge_object_attach(struct edge *edge);
void edge_object_detach(struct edge *edge);

#endif
