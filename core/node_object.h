/*
 * The type of /nodes/<name>: driver, size, read-only, corrupted.
 */
#ifndef CORE_NODE_OBJECT_H
#define CORE_NODE_OBJECT_H

#include "core/object.h"

extern const struct object_type node_object_type;

#endif
