/*
 * Timers of a loop: a binary heap by deadline, [1] the next one. A wheel
 * would be cheaper for thousands of timers that never fire, but rounds
 * deadlines; simulated latency and polling windows want them exact.
 */
#include "core/timer.h"

#include "core/memory.h"

static void timer_place(struct loop *loop, unsigned index, struct timer *timer)
{
    loop->timers[index] = timer;
    timer->heap_index = index;
}

static void timer_sift_up(struct loop *loop, unsigned index, struct timer *timer)
{
    while (index > 1 && loop->timers[index / 2]->deadline_ns > timer->deadline_ns) {
        timer_place(loop, index, loop->timers[index / 2]);
        index /= 2;
    }
    timer_place(loop, index, timer);
}

static void timer_sift_down(struct loop *loop, unsigned index, struct timer *timer)
{
    for (;;) {
        unsigned child = 2 * index;

        if (child > loop->timer_count)
            break;
        if (child < loop->timer_count && loop->timers[child + 1]->deadline_ns < loop->timers[child]->deadline_ns)
            child++;
        if (loop->timers[child]->deadline_ns >= timer->deadline_ns)
            break;
        timer_place(loop, index, loop->timers[child]);
        index = child;
    }
    timer_place(loop, index, timer);
}

void timer_set(struct timer *timer, struct loop *loop, uint64_t deadline_ns)
{
    timer_cancel(timer);
    if (loop->timer_count + 1 >= loop->timer_room) {
        loop->timer_room = loop->timer_room ? 2 * loop->timer_room : 16;
        loop->timers = memory_grow(loop->timers, loop->timer_room, sizeof(*loop->timers));
    }
    timer->loop = loop;
    timer->deadline_ns = deadline_ns;
    timer_sift_up(loop, ++loop->timer_count, timer);
}

void timer_cancel(struct timer *timer)
{
    struct loop *loop = timer->loop;
    unsigned index = timer->heap_index;

    if (index == 0)
        return;
    struct timer *last = loop->timers[loop->timer_count--];

    timer->heap_index = 0;
    if (last == timer)
        return;
    if (index > 1 && loop->timers[index / 2]->deadline_ns > last->deadline_ns)
        timer_sift_up(loop, index, last);
    else
        timer_sift_down(loop, index, last);
}

uint64_t timer_next(const struct loop *loop)
{
    return loop->timer_count ? loop->timers[1]->deadline_ns : UINT64_MAX;
}

bool timer_run_due(struct loop *loop)
{
    bool any = false;

    while (loop->timer_count && loop->timers[1]->deadline_ns <= loop->now_ns) {
        struct timer *timer = loop->timers[1];

        timer_cancel(timer);
        timer->expired(timer);
        any = true;
    }
    return any;
}
