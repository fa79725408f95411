/*
 * The hot side of drain and grace: what request.c and consumer.c do when a
 * unit of work begins and ends.
 */
#ifndef CORE_DRAIN_LOOP_H
#define CORE_DRAIN_LOOP_H

#include "core/consumer.h"
#include "core/grace.h"
#include "core/loop.h"
#include "core/memory.h"

/* The last unit of work of a consumer that is being drained has ended on this loop. */
void drain_loop_quiet(struct consumer_loop *local);

static inline uint8_t loop_unit_begin(struct loop *loop)
{
    loop->inflight[loop->epoch]++;
    return loop->epoch;
}

static inline void loop_unit_end(struct loop *loop, uint8_t epoch)
{
    if (--loop->inflight[epoch] == 0 && unlikely(epoch != loop->epoch))
        grace_epoch_empty(loop);
}

#endif
