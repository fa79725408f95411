/*
 * Locks that make a coroutine wait and leave its loop running. They work
 * across loops: short critical sections under a pthread mutex, waiters are
 * woken in the loop where they live, in order of arrival. Slow paths only.
 */
#ifndef CORE_COLOCK_H
#define CORE_COLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/list.h"

struct comutex {
    pthread_mutex_t guard;
    bool held;
    struct list waiters;
};

void comutex_init(struct comutex *mutex);
void comutex_destroy(struct comutex *mutex);    /* not held */
void comutex_lock(struct comutex *mutex);       /* only inside a coroutine */
void comutex_unlock(struct comutex *mutex);

/* Waiters for a condition that the caller checks under a comutex, or in one loop. */
struct coqueue {
    pthread_mutex_t guard;
    struct list waiters;
};

void coqueue_init(struct coqueue *queue);
void coqueue_destroy(struct coqueue *queue);
/* Releases mutex (may be NULL), waits for a wake, takes mutex again. */
void coqueue_wait(struct coqueue *queue, struct comutex *mutex);
void coqueue_wake_one(struct coqueue *queue);
void coqueue_wake_all(struct coqueue *queue);

/* Byte ranges of one node that exclude each other where they overlap. */
struct range_lock {
    pthread_mutex_t guard;
    struct list held, waiters;
};

/* Lives on the holder's stack between lock and unlock. */
struct range_hold {
    struct list_link link;
    uint64_t start, end;        /* bytes, [start, end) */
    struct coroutine *waiter;
};

void range_lock_init(struct range_lock *lock);
void range_lock_destroy(struct range_lock *lock);
void range_lock_take(struct range_lock *lock, struct range_hold *hold, uint64_t offset, uint64_t length);
/* Without waiting: false if it would have to. */
bool range_lock_try(struct range_lock *lock, struct range_hold *hold, uint64_t offset, uint64_t length);
void range_lock_release(struct range_lock *lock, struct range_hold *hold);

#endif
