/*
 * Adaptive polling: whether a loop that found nothing looks again or sleeps.
 * For loop.c only.
 */
#ifndef CORE_LOOP_POLLING_H
#define CORE_LOOP_POLLING_H

#include "core/loop.h"

/* After each turn; any: the turn did something. True: take another turn at once. */
bool loop_polling_spins(struct loop *loop, bool any);

/* Around a sleep: first with woken_ns 0, then with the time when it ended. */
void loop_polling_slept(struct loop *loop, uint64_t asleep_ns, uint64_t woken_ns);

#endif
