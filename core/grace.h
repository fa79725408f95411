/*
 * Grace periods: "every unit of work that began before this call has ended",
 * without stopping anybody. For what must not be reused while somebody may
 * still be on the way to it: freed clusters, old option structs, nodes.
 */
#ifndef CORE_GRACE_H
#define CORE_GRACE_H

#include "core/loop.h"

struct grace_call {
    void (*run)(struct grace_call *call);   /* on the main loop */
    struct grace_call *next;
    struct loop_message message;
};

/* From any thread. */
void grace_call(struct grace_call *call);

/* Waits for a grace period; main loop coroutine. */
void grace_wait(void);

/* The loop's thread has ended: it will not answer any more, and is not asked again. Main loop. */
void grace_forget_loop(struct loop *loop);

/* On loop, when the last unit of its old epoch ended: request.c and consumer.c only. */
void grace_epoch_empty(struct loop *loop);

#endif
