/*
 * Locks for coroutines: see colock.h. Ownership is handed over by the one who
 * releases, so that waiters are served in order and nobody overtakes.
 */
#include "core/colock.h"

#include "core/coroutine.h"

struct colock_waiter {
    struct list_link link;
    struct coroutine *co;
};

void comutex_init(struct comutex *mutex)
{
    pthread_mutex_init(&mutex->guard, NULL);
    mutex->held = false;
    list_init(&mutex->waiters);
}

void comutex_destroy(struct comutex *mutex)
{
    pthread_mutex_destroy(&mutex->guard);
}

void comutex_lock(struct comutex *mutex)
{
    struct colock_waiter waiter = {.co = coroutine_self()};

    pthread_mutex_lock(&mutex->guard);
    if (!mutex->held) {
        mutex->held = true;
        pthread_mutex_unlock(&mutex->guard);
        return;
    }
    list_append(&mutex->waiters, &waiter.link);
    pthread_mutex_unlock(&mutex->guard);
    coroutine_yield();
}

void comutex_unlock(struct comutex *mutex)
{
    struct coroutine *next = NULL;

    pthread_mutex_lock(&mutex->guard);
    struct colock_waiter *waiter = list_first(&mutex->waiters, struct colock_waiter, link);
    if (waiter) {
        list_remove(&waiter->link);
        next = waiter->co;
    } else {
        mutex->held = false;
    }
    pthread_mutex_unlock(&mutex->guard);
    if (next)
        coroutine_wake(next);
}

void coqueue_init(struct coqueue *queue)
{
    pthread_mutex_init(&queue->guard, NULL);
    list_init(&queue->waiters);
}

void coqueue_destroy(struct coqueue *queue)
{
    pthread_mutex_destroy(&queue->guard);
}

void coqueue_wait(struct coqueue *queue, struct comutex *mutex)
{
    struct colock_waiter waiter = {.co = coroutine_self()};

    pthread_mutex_lock(&queue->guard);
    list_append(&queue->waiters, &waiter.link);
    pthread_mutex_unlock(&queue->guard);
    if (mutex)
        comutex_unlock(mutex);
    coroutine_yield();
    if (mutex)
        comutex_lock(mutex);
}

static struct coroutine *coqueue_take(struct coqueue *queue)
{
    pthread_mutex_lock(&queue->guard);
    struct colock_waiter *waiter = list_first(&queue->waiters, struct colock_waiter, link);
    struct coroutine *co = waiter ? waiter->co : NULL;

    if (waiter)
        list_remove(&waiter->link);
    pthread_mutex_unlock(&queue->guard);
    return co;
}

void coqueue_wake_one(struct coqueue *queue)
{
    struct coroutine *co = coqueue_take(queue);

    if (co)
        coroutine_wake(co);
}

void coqueue_wake_all(struct coqueue *queue)
{
    struct list all;
    struct colock_waiter *waiter;

    /* A woken one may wait again at once: it must not be woken twice. */
    list_init(&all);
    pthread_mutex_lock(&queue->guard);
    list_splice(&all, &queue->waiters);
    pthread_mutex_unlock(&queue->guard);
    while ((waiter = list_first(&all, struct colock_waiter, link))) {
        list_remove(&waiter->link);
        coroutine_wake(waiter->co);
    }
}

void range_lock_init(struct range_lock *lock)
{
    pthread_mutex_init(&lock->guard, NULL);
    list_init(&lock->held);
    list_init(&lock->waiters);
}

void range_lock_destroy(struct range_lock *lock)
{
    pthread_mutex_destroy(&lock->guard);
}

static bool range_overlaps(const struct list *list, const struct range_hold *hold)
{
    struct range_hold *other;

    list_for_each(other, list, link) {
        if (other == hold)
            return false;       /* waiters: only those before us count */
        if (other->start < hold->end && hold->start < other->end)
            return true;
    }
    return false;
}

static void range_hold_init(struct range_hold *hold, uint64_t offset, uint64_t length)
{
    list_link_init(&hold->link);
    hold->start = offset;
    hold->end = offset + length < offset ? UINT64_MAX : offset + length;
    hold->waiter = NULL;
}

/* Behind earlier waiters as well, or a stream of newcomers could starve one. */
static bool range_is_free(const struct range_lock *lock, const struct range_hold *hold)
{
    return !range_overlaps(&lock->held, hold) && !range_overlaps(&lock->waiters, hold);
}

bool range_lock_try(struct range_lock *lock, struct range_hold *hold, uint64_t offset, uint64_t length)
{
    range_hold_init(hold, offset, length);
    pthread_mutex_lock(&lock->guard);
    bool free_now = range_is_free(lock, hold);

    if (free_now)
        list_append(&lock->held, &hold->link);
    pthread_mutex_unlock(&lock->guard);
    return free_now;
}

void range_lock_take(struct range_lock *lock, struct range_hold *hold, uint64_t offset, uint64_t length)
{
    range_hold_init(hold, offset, length);
    pthread_mutex_lock(&lock->guard);
    bool free_now = range_is_free(lock, hold);

    if (!free_now)
        hold->waiter = coroutine_self();
    list_append(free_now ? &lock->held : &lock->waiters, &hold->link);
    pthread_mutex_unlock(&lock->guard);
    if (!free_now)
        coroutine_yield();
}

void range_lock_release(struct range_lock *lock, struct range_hold *hold)
{
    struct range_hold *waiter, *after;

    pthread_mutex_lock(&lock->guard);
    list_remove(&hold->link);
    list_for_each_safe(waiter, after, &lock->waiters, link) {
        if (!range_is_free(lock, waiter))
            continue;
        list_remove(&waiter->link);
        list_append(&lock->held, &waiter->link);
        /* It cannot release before it runs, and it may run on another thread at once: last touch. */
        coroutine_wake(waiter->waiter);
    }
    pthread_mutex_unlock(&lock->guard);
}
