/*
 * Fans: see fan.h.
 */
#include "core/fan.h"

#include "core/coroutine.h"
#include "core/loop.h"
#include "core/memory.h"

static void fan_entry(void *arg)
{
    struct fan_task *task = arg;
    struct fan *fan = task->fan;
    int result = task->run(task);

    if (result < 0 && fan->result == 0)
        fan->result = result;
    if (--fan->running == 0 && fan->waiter)
        coroutine_wake(take_ptr(&fan->waiter));
}

void fan_start(struct fan *fan, struct fan_task *task)
{
    task->fan = fan;
    fan->running++;
    /* One after the other is slower, and as good. */
    if (!coroutine_try_start(loop_current(), fan_entry, task))
        fan_entry(task);
}

int fan_wait(struct fan *fan)
{
    if (fan->running) {
        fan->waiter = coroutine_self();
        coroutine_yield();
    }
    return fan->result;
}
