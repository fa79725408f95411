/*
 * Grace periods by loop epochs: each loop counts the units of work in flight
 * by the epoch in which they began. A period flips every loop's epoch and
 * ends when the old counts are zero everywhere. One period at a time; calls
 * that come meanwhile share the next.
 *
 * All state here belongs to the main loop; loops talk to it by messages.
 */
#include "core/grace.h"

#include "core/coroutine.h"
#include "core/memory.h"

/* What a period asks of one loop; kept in loop->grace. */
struct grace_loop {
    struct loop_message ask, answer;
    struct loop *loop;
    bool asked;         /* main loop: no answer yet */
};

static struct grace_call *grace_waiting, **grace_waiting_tail = &grace_waiting;
static struct grace_call *grace_running;
static unsigned grace_pending;      /* loops that have not answered; 0 = no period */

static void grace_start(void);

static void grace_one_answered(struct grace_loop *local)
{
    if (!local->asked)
        return;
    local->asked = false;
    if (--grace_pending)
        return;
    struct grace_call *call = take_ptr(&grace_running);

    /* Before the calls run: one of them may ask for the next period. */
    if (grace_waiting)
        grace_start();
    while (call) {
        struct grace_call *next = call->next;

        call->run(call);
        call = next;
    }
}

static void grace_answered(struct loop_message *message)
{
    grace_one_answered(container_of(message, struct grace_loop, answer));
}

void grace_epoch_empty(struct loop *loop)
{
    struct grace_loop *local = loop->grace;

    loop_post(loop_main, &local->answer);
}

static void grace_asked(struct loop_message *message)
{
    struct grace_loop *local = container_of(message, struct grace_loop, ask);
    struct loop *loop = local->loop;

    loop->epoch ^= 1;
    if (loop->inflight[loop->epoch ^ 1] == 0)
        grace_epoch_empty(loop);
}

static void grace_start(void)
{
    grace_running = grace_waiting;
    grace_waiting = NULL;
    grace_waiting_tail = &grace_waiting;
    for (unsigned i = 0; i < LOOP_MAX; i++)
        grace_pending += loop_by_index[i] != NULL;
    for (unsigned i = 0; i < LOOP_MAX; i++) {
        struct loop *loop = loop_by_index[i];

        if (!loop)
            continue;
        if (!loop->grace)
            loop->grace = memory_new(struct grace_loop);
        struct grace_loop *local = loop->grace;

        *local = (struct grace_loop){.ask.run = grace_asked, .answer.run = grace_answered, .loop = loop, .asked = true};
        loop_post(loop, &local->ask);
    }
}

static void grace_add(struct loop_message *message)
{
    struct grace_call *call = container_of(message, struct grace_call, message);

    call->next = NULL;
    *grace_waiting_tail = call;
    grace_waiting_tail = &call->next;
    if (grace_pending == 0)
        grace_start();
}

void grace_call(struct grace_call *call)
{
    call->message.run = grace_add;
    loop_post(loop_main, &call->message);
}

struct grace_waiter {
    struct grace_call call;
    struct coroutine *co;
};

static void grace_waited(struct grace_call *call)
{
    coroutine_wake(container_of(call, struct grace_waiter, call)->co);
}

void grace_wait(void)
{
    struct grace_waiter waiter = {.call.run = grace_waited, .co = coroutine_self()};

    grace_call(&waiter.call);
    coroutine_yield();
}

static void grace_free(struct loop_message *message)
{
    free(container_of(message, struct grace_loop, ask));
}

void grace_forget_loop(struct loop *loop)
{
    struct grace_loop *local = take_ptr(&loop->grace);

    loop_by_index[loop->index] = NULL;
    if (!local)
        return;
    grace_one_answered(local);
    /* Its answer may be on the way. What was asked of it is not: its thread has read all. */
    local->ask.run = grace_free;
    loop_post(loop_main, &local->ask);
}
