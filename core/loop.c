/*
 * Loops: see loop.h for the phases of a turn.
 */
#include "core/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/coroutine_pool.h"
#include "core/error.h"
#include "core/log.h"
#include "core/loop_buffer.h"
#include "core/loop_polling.h"
#include "core/memory.h"
#include "core/timer.h"

/* A poller that had nothing for so many turns waits for readiness even while its loop is busy. */
#define POLLER_EMPTY_MAX 16

static __thread struct loop *loop_thread;
static enum loop_ring loop_ring_kind = LOOP_RING_AUTO;

struct loop *loop_main;
struct loop *loop_by_index[LOOP_MAX];

struct loop *loop_current(void)
{
    return loop_thread;
}

void loop_set_current(struct loop *loop)
{
    loop_thread = loop;
}

void loop_set_ring(enum loop_ring kind)
{
    loop_ring_kind = kind;
}

/* Messages. The inbox is a stack that posters push on and the loop takes whole. */

void loop_post(struct loop *loop, struct loop_message *message)
{
    struct loop_message *first = atomic_load_explicit(&loop->inbox, memory_order_relaxed);

    /* The message may be what the loop waits for before it ends: see loop_destroy(). */
    atomic_fetch_add(&loop->posting, 1);
    do
        message->next = first;
    while (!atomic_compare_exchange_weak(&loop->inbox, &first, message));
    if (atomic_load(&loop->asleep) && atomic_exchange(&loop->asleep, false))
        loop->ring->ops->wake(loop->ring);
    atomic_fetch_sub(&loop->posting, 1);
}

static bool loop_run_inbox(struct loop *loop)
{
    if (!atomic_load_explicit(&loop->inbox, memory_order_relaxed))
        return false;
    struct loop_message *stack = atomic_exchange(&loop->inbox, NULL);
    struct loop_message *in_order = NULL;

    while (stack) {
        struct loop_message *message = stack;

        stack = message->next;
        message->next = in_order;
        in_order = message;
    }
    while (in_order) {
        struct loop_message *message = in_order;

        in_order = message->next;
        message->run(message);
    }
    return true;
}

/* Pollers. */

static void poller_ready(struct ring_op *op, int result)
{
    struct poller *poller = container_of(op, struct poller, op);

    (void)result;
    poller->armed = false;
    if (poller->removed)
        poller->removed(poller);
    else
        poller_heat(poller);
}

void poller_add(struct loop *loop, struct poller *poller)
{
    list_link_init(&poller->link);
    poller->loop = loop;
    poller->armed = false;
    poller->removed = NULL;
    poller->op.complete = poller_ready;
    poller_heat(poller);
}

void poller_heat(struct poller *poller)
{
    poller->empty = 0;
    if (!poller->removed && !list_is_linked(&poller->link))
        list_append(&poller->loop->hot, &poller->link);
}

static bool poller_cool(struct poller *poller)
{
    struct ring *ring = poller->loop->ring;

    if (poller->arm && !poller->arm(poller))
        return false;
    list_remove(&poller->link);
    if (!poller->armed) {
        poller->armed = true;
        ring->ops->poll(ring, &poller->op, poller->fd, POLLIN);
    }
    return true;
}

void poller_remove(struct poller *poller, void (*removed)(struct poller *poller))
{
    struct ring *ring = poller->loop->ring;

    list_remove(&poller->link);
    if (poller->armed) {
        poller->removed = removed;
        ring->ops->cancel_poll(ring, &poller->op);
    } else {
        removed(poller);
    }
}

/* A poller's poll() may remove any poller, itself too: take them one by one off a copy of the list. */
static bool loop_run_pollers(struct loop *loop)
{
    struct list asked;
    struct poller *poller;
    bool any = false;

    if (list_is_empty(&loop->hot))
        return false;
    list_init(&asked);
    list_splice(&asked, &loop->hot);
    while ((poller = list_first(&asked, struct poller, link))) {
        list_remove(&poller->link);
        list_append(&loop->hot, &poller->link);
        uint8_t empty = poller->empty;

        poller->empty = 0;
        /* poll() may end with the poller freed, and then it says true. A spin is there to go on asking. */
        if (poller->poll(poller))
            any = true;
        else if (!poller->arm && !loop->polling.spin_started_ns && (poller->empty = empty + 1) >= POLLER_EMPTY_MAX &&
                 list_is_linked(&poller->link))
            poller_cool(poller);
    }
    return any;
}

/* False if one of them has work. */
static bool loop_cool_pollers(struct loop *loop)
{
    struct poller *poller;

    while ((poller = list_first(&loop->hot, struct poller, link))) {
        if (!poller_cool(poller))
            return false;
    }
    return true;
}

/* Hooks. */

void loop_hook_queue(struct loop *loop, struct loop_hook *hook)
{
    if (!list_is_linked(&hook->link))
        list_append(&loop->hooks, &hook->link);
}

static bool loop_run_hooks(struct loop *loop)
{
    struct loop_hook *hook;
    bool any = false;

    while ((hook = list_first(&loop->hooks, struct loop_hook, link))) {
        list_remove(&hook->link);
        hook->run(hook);
        any = true;
    }
    return any;
}

bool loop_turn(struct loop *loop)
{
    loop->now_ns = loop->ring->ops->now(loop->ring);
    bool any = loop_run_inbox(loop);
    any |= timer_run_due(loop);
    any |= loop_run_pollers(loop);
    any |= coroutine_run_ready(loop);
    any |= loop->ring->ops->reap(loop->ring) > 0;
    any |= loop_run_hooks(loop);
    return any;
}

static void loop_alarm(evutil_socket_t fd, short what, void *arg)
{
    /* Only ends libevent's sleep; the loop's turn runs the timers. */
    (void)fd;
    (void)what;
    (void)arg;
}

static void loop_sleep_in_events(struct loop *loop, uint64_t timeout_ns)
{
    if (timeout_ns != UINT64_MAX) {
        uint64_t us = (timeout_ns + 999) / 1000;
        struct timeval delay = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};

        evtimer_add(loop->alarm, &delay);
    } else {
        evtimer_del(loop->alarm);
    }
    event_base_loop(loop->events, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY);
}

static void loop_sleep(struct loop *loop)
{
    struct ring *ring = loop->ring;

    if (!loop_cool_pollers(loop))
        return;
    /* In libevent nothing is submitted while asleep. */
    if (loop->events && ring->ops->reap(ring))
        return;
    atomic_store(&loop->asleep, true);
    if (!atomic_load(&loop->inbox) && !loop->ready && !atomic_load(&loop->stop)) {
        uint64_t next = timer_next(loop);
        uint64_t now = ring->ops->now(ring);
        uint64_t timeout = next == UINT64_MAX ? UINT64_MAX : next > now ? next - now : 0;

        loop_polling_slept(loop, now, 0);
        if (loop->events)
            loop_sleep_in_events(loop, timeout);
        else
            ring->ops->wait(ring, timeout);
        loop_polling_slept(loop, now, ring->ops->now(ring));
    }
    atomic_store(&loop->asleep, false);
}

void loop_stay(struct loop *loop, struct loop_leaver *leaver)
{
    leaver->told = false;
    list_append(&loop->leavers, &leaver->link);
}

void loop_leave(struct loop_leaver *leaver)
{
    list_remove(&leaver->link);
}

/* A leaver may leave at once. */
static bool loop_may_end(struct loop *loop)
{
    struct loop_leaver *leaver;

    if (likely(!atomic_load_explicit(&loop->stop, memory_order_relaxed)))
        return false;
    while ((leaver = list_first(&loop->leavers, struct loop_leaver, link)) && !leaver->told) {
        leaver->told = true;
        list_remove(&leaver->link);
        list_append(&loop->leavers, &leaver->link);
        leaver->leave(leaver);
    }
    return list_is_empty(&loop->leavers);
}

void loop_run(struct loop *loop)
{
    loop_set_current(loop);
    while (!loop_may_end(loop)) {
        bool any = loop_turn(loop);

        /* Once: a ring with completions stays readable until the next turn, and libevent would go round for ever. */
        if (any && loop->events)
            event_base_loop(loop->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        if (!loop_polling_spins(loop, any))
            loop_sleep(loop);
    }
    /* What was posted until everybody had left. */
    loop_run_inbox(loop);
}

struct loop_start {
    struct loop *loop;
    sem_t running;
};

static void *loop_thread_main(void *arg)
{
    struct loop_start *start = arg;
    struct loop *loop = start->loop;

    loop->thread_id = gettid();
    sem_post(&start->running);
    pthread_setname_np(pthread_self(), loop->name);
    loop_run(loop);
    return NULL;
}

int loop_start_thread(struct loop *loop, struct error *err)
{
    struct loop_start start = {.loop = loop};
    sigset_t all, old;

    sem_init(&start.running, 0, 0);
    /* Signals are the main loop's, but for those that a thread raises by what it does. */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int result = pthread_create(&loop->thread, NULL, loop_thread_main, &start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    while (result == 0 && sem_wait(&start.running) < 0 && errno == EINTR)
        continue;
    sem_destroy(&start.running);
    return result ? error_set(err, -result, "Cannot start thread '%s': %s", loop->name, strerror(result)) : 0;
}

void loop_stop_thread(struct loop *loop)
{
    atomic_store(&loop->stop, true);
    loop->ring->ops->wake(loop->ring);
    pthread_join(loop->thread, NULL);
}

static int loop_make_events(struct loop *loop, struct error *err)
{
    loop->events = event_base_new();
    loop->alarm = loop->events ? evtimer_new(loop->events, loop_alarm, NULL) : NULL;
    return loop->alarm ? 0 : error_set(err, -ENOMEM, "Cannot create an event base");
}

static int loop_make_ring(struct loop *loop, struct error *err)
{
    if (loop_ring_kind != LOOP_RING_THREADS) {
        AUTO_ERROR struct error refused = {0};
        int result = ring_uring_create(&loop->ring, loop->events, &refused);

        if (result == 0)
            return 0;
        if (loop_ring_kind == LOOP_RING_URING) {
            error_move(err, &refused);
            return result;
        }
        /* Once: what is refused to the main loop, the first, is refused to all. */
        if (!loop_main || loop_main == loop)
            log_info("%s: %s; using threads", loop->name, refused.text);
    }
    if (!loop->events) {
        int result = loop_make_events(loop, err);

        if (result < 0)
            return result;
    }
    return ring_threads_create(&loop->ring, loop->events, err);
}

int loop_create(struct loop **ret, const char *name, struct ring *ring, struct error *err)
{
    unsigned index = 0;
    int result = 0;

    while (index < LOOP_MAX && loop_by_index[index])
        index++;
    if (index == LOOP_MAX) {
        if (ring)
            ring->ops->destroy(ring);
        return error_set(err, -EAGAIN, "There can be at most %d I/O threads", LOOP_MAX - 1);
    }
    struct loop *loop = memory_aligned(sizeof(*loop), 64);

    loop->index = index;
    loop->ring = ring;
    snprintf(loop->name, sizeof(loop->name), "%s", name);
    list_init(&loop->hot);
    list_init(&loop->hooks);
    list_init(&loop->leavers);
    loop->ready_tail = &loop->ready;
    loop->stacks = coroutine_pool_new();
    loop->buffers = loop_buffers_new();
    if (!loop_main && !ring)
        result = loop_make_events(loop, err);
    if (result == 0 && !ring)
        result = loop_make_ring(loop, err);
    if (result < 0) {
        loop_destroy(loop);
        return result;
    }
    loop->now_ns = loop->ring->ops->now(loop->ring);
    loop_by_index[index] = loop;
    if (!loop_main)
        loop_main = loop;
    *ret = loop;
    return 0;
}

void loop_destroy(struct loop *loop)
{
    while (atomic_load(&loop->posting))
        sched_yield();
    if (loop_by_index[loop->index] == loop)
        loop_by_index[loop->index] = NULL;
    if (loop_main == loop)
        loop_main = NULL;
    if (loop_thread == loop)
        loop_thread = NULL;
    coroutine_pool_free(loop->stacks);
    loop_buffers_free(loop->buffers);
    if (loop->ring)
        loop->ring->ops->destroy(loop->ring);
    if (loop->alarm)
        event_free(loop->alarm);
    if (loop->events)
        event_base_free(loop->events);
    free(loop->timers);
    free(loop->grace);
    free(loop);
}
