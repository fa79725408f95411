/*
 * The threads of a load. Each serves some queues: it takes what came back,
 * sends, and, unless it polls, sleeps until the server calls.
 *
 * The control thread changes `phase` and the flags and wakes the threads; they
 * look at them once a turn. While all threads are parked or have ended, jobs
 * and queues belong to the control thread.
 */
#ifndef TESTS_BENCH_VHOST_LOAD_H
#define TESTS_BENCH_VHOST_LOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "core/error.h"
#include "tests/bench/vhost/job.h"

enum load_phase { LOAD_RUN, LOAD_PARK, LOAD_ABORT };

struct load_thread {
    struct load *load;
    unsigned index;
    pthread_t thread;
    bool started;
    int wake;                       /* eventfd */
};

struct load {
    const struct bench_options *options;
    struct job *jobs;               /* one for each queue */
    unsigned job_count, thread_count;
    struct load_thread *threads;
    _Atomic int phase;
    _Atomic bool counting, ending;
    int news;                       /* eventfd: a thread has ended */
    pthread_mutex_t lock;
    pthread_cond_t changed;         /* of what follows, and of phase */
    unsigned parked, ended;
    struct error failure;           /* the first, of any thread */
};

int load_create(struct load *load, const struct bench_options *options, struct job *jobs, struct error *err);
void load_destroy(struct load *load);       /* ends the threads, too */

int load_start(struct load *load, struct error *err);

/* Returns when no thread touches a queue any more, and lets them go on. */
void load_park(struct load *load);
void load_resume(struct load *load);

/* From now on nothing is sent but what verification still has to read. */
void load_end(struct load *load);

/* True when all threads have ended. If one failed, that goes to err and *rc, and the others are ended as well. */
bool load_is_over(struct load *load, int *rc, struct error *err);

#endif
