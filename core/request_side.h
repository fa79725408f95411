/*
 * What core does for a node before its driver sees a request: the generic
 * node options (discard, detect-zeroes, cache.no-flush), refusal of writes on
 * damaged and read-only nodes, and the emulation of what the driver lacks.
 */
#ifndef CORE_REQUEST_SIDE_H
#define CORE_REQUEST_SIDE_H

#include "core/request.h"

struct node;

/* Called by the walk instead of map() for what node->side_ops and side_flags select. */
enum step request_side(struct request *req, struct node *node);

/* Computes node->side_ops and side_flags from driver, options and flags. Main loop, drained. */
void request_side_update(struct node *node);

/* Does the op with others that the driver has; or hands it to map(). */
enum step request_emulate(struct request *req, struct node *node);

#endif
