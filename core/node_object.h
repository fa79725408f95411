/*
 * The type of /nodes/<name>: driver, size, read-only, corrupted.
 */
#ifndef CORE_NODE_OBJECT_H
#define CORE_NODE_OBJECT_H

#include "core/object.h"

struct driver;

/* The type of /nodes/<name>: what all nodes show, and what the driver adds. Main loop. */
const struct object_type *node_object_type(const struct driver *driver);

#endif
