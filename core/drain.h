/*
 * Drain: makes the consumers that reach a set of nodes stop, waits until what
 * they have in flight is done, and lets them go on. Called by change.c, in a
 * main loop coroutine.
 */
#ifndef CORE_DRAIN_H
#define CORE_DRAIN_H

#include <stdint.h>

#include "core/list.h"

struct consumer;
struct drain;
struct error;

/* consumers: array of count, copied. Waits until all are quiet in all loops, at most limit_ns:
 * then everybody is resumed and -ETIMEDOUT says who did not come back. */
int drain_begin(struct drain **ret, struct consumer *const *consumers, unsigned count, uint64_t limit_ns,
                struct error *err);
void drain_end(struct drain *drain);

#endif
