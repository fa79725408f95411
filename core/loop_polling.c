/*
 * Adaptive polling. To wake a sleeping thread costs tens of microseconds;
 * looking for that long before going to sleep saves it when the client comes
 * back soon. It is worth it only while
 *  - all requests are answered (otherwise the ring's completion comes first,
 *    and sleeping in the ring costs little),
 *  - spins do catch work: three in a row that do not end spinning, until a
 *    sleep turns out to have been short enough for a spin to catch its end,
 *  - there are cores to spare: a spinning thread that is preempted again and
 *    again takes time from those who would give it work.
 */
#include "core/loop_polling.h"

#include <sys/resource.h>

#define POLLING_MISSES_MAX 3
#define POLLING_LOOK_NS 2000000u        /* spun time between looks at the preemption count */
#define POLLING_PREEMPTIONS_MAX 2       /* per look */
#define POLLING_PENALTY_NS 50000000u
#define POLLING_START_NS 4096u          /* what poll-grow multiplies when there is no window */

static void polling_count(_Atomic uint64_t *counter, uint64_t n)
{
    /* Only this loop writes it. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

static void polling_look_at_preemptions(struct loop_polling *polling, uint64_t now_ns)
{
    uint64_t spun = atomic_load_explicit(&polling->spun_ns, memory_order_relaxed);
    struct rusage usage;

    if (spun - polling->look_ns < POLLING_LOOK_NS || getrusage(RUSAGE_THREAD, &usage) < 0)
        return;
    if (polling->look_ns && usage.ru_nivcsw - polling->preemptions > POLLING_PREEMPTIONS_MAX)
        polling->penalty_until_ns = now_ns + POLLING_PENALTY_NS;
    polling->look_ns = spun;
    polling->preemptions = usage.ru_nivcsw;
}

static void polling_end_spin(struct loop_polling *polling, uint64_t now_ns, bool hit)
{
    polling_count(&polling->spun_ns, now_ns - polling->spin_started_ns);
    polling->spin_started_ns = 0;
    if (hit) {
        polling_count(&polling->hits, 1);
        polling->misses = 0;
    } else if (++polling->misses >= POLLING_MISSES_MAX) {
        polling->window_ns = polling->shrink ? polling->window_ns / polling->shrink : 0;
        polling->misses = 0;
    }
    polling_look_at_preemptions(polling, now_ns);
}

/* Whether a turn would notice new work: a ring shows what becomes ready, libevent is not asked. */
static bool polling_sees(const struct loop *loop)
{
    return !loop->events || !list_is_empty(&loop->hot);
}

bool loop_polling_spins(struct loop *loop, bool any)
{
    struct loop_polling *polling = &loop->polling;

    if (any) {
        if (polling->spin_started_ns)
            polling_end_spin(polling, loop->now_ns, true);
        return true;
    }
    if (polling->spin_started_ns) {
        if (loop->now_ns - polling->spin_started_ns < polling->window_ns && polling_sees(loop))
            return true;
        polling_end_spin(polling, loop->now_ns, false);
        return false;
    }
    if (polling->window_ns == 0 || !polling_sees(loop) || loop->inflight[0] + loop->inflight[1] != 0 ||
        loop->now_ns < polling->penalty_until_ns)
        return false;
    polling->spin_started_ns = loop->now_ns;
    return true;
}

static uint64_t polling_grown(const struct loop_polling *polling)
{
    uint64_t max = polling->max_ns, window = polling->window_ns ? polling->window_ns : POLLING_START_NS;

    if (!polling->grow || polling->grow > max / window)
        return max;
    return window * polling->grow;
}

void loop_polling_slept(struct loop *loop, uint64_t asleep_ns, uint64_t woken_ns)
{
    struct loop_polling *polling = &loop->polling;

    if (woken_ns == 0) {
        polling_count(&polling->sleeps, 1);
        return;
    }
    /* A spin of the full length would have seen the end of this sleep. */
    if (woken_ns - asleep_ns < polling->max_ns) {
        polling->window_ns = polling_grown(polling);
        polling->misses = 0;
    }
}
