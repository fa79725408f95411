/*
 * Sources: stable handles. A source is an id and an ordered stack of filters
 * over a base node; exports and jobs that hold it never notice when the stack
 * changes, because their edges are moved in the same change.
 */
#ifndef CORE_SOURCE_H
#define CORE_SOURCE_H

#include "core/edge.h"
#include "core/list.h"
#include "core/object.h"

struct change;
struct error;

#define SOURCE_ID_MAX 63

struct source {
    char id[SOURCE_ID_MAX + 1];
    struct edge top;                /* the top filter, or the base */
    struct list consumers;          /* struct consumer, by in_source */
    struct list_link in_registry;
    struct object object;           /* /sources/<id> */
};

extern struct list source_registry;

struct source *source_find(const char *id);
int source_add(struct change *change, const char *id, const char *node, struct source **ret, struct error *err);
int source_remove(struct change *change, struct source *source, struct error *err);

#endif
