/*
 * The loop's side of timers; timer_set() and timer_cancel() are in loop.h.
 */
#ifndef CORE_TIMER_H
#define CORE_TIMER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/loop.h"

/* Deadline of the next timer, in ns of the loop's clock; UINT64_MAX if there is none. */
uint64_t timer_next(const struct loop *loop);

/* Runs those that are due at loop->now_ns; true if there were any. */
bool timer_run_due(struct loop *loop);

#endif
