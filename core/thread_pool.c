/*
 * The thread pool: see thread_pool.h. One mutex, one condition, one queue.
 */
#include "core/thread_pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "core/loop.h"
#include "core/memory.h"

#define POOL_THREADS 16u
#define POOL_IDLE_SECONDS 10

static pthread_mutex_t pool_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pool_cond = PTHREAD_COND_INITIALIZER;
static struct pool_task *pool_first, **pool_last = &pool_first;
static unsigned pool_threads, pool_idle, pool_queued;

/* With the mutex held. False when the thread has been idle for long enough. */
static bool pool_wait(void)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += POOL_IDLE_SECONDS;
    pool_idle++;
    int result = 0;
    while (!pool_first && result != ETIMEDOUT)
        result = pthread_cond_clockwait(&pool_cond, &pool_mutex, CLOCK_MONOTONIC, &until);
    pool_idle--;
    return pool_first != NULL;
}

static void *pool_thread(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&pool_mutex);
    while (pool_first || pool_wait()) {
        struct pool_task *task = pool_first;

        pool_first = task->next;
        if (!pool_first)
            pool_last = &pool_first;
        pool_queued--;
        pthread_mutex_unlock(&pool_mutex);
        task->run(task);
        pthread_mutex_lock(&pool_mutex);
    }
    pool_threads--;
    pthread_mutex_unlock(&pool_mutex);
    return NULL;
}

/* With the mutex held. Signals stay with the main thread. */
static bool pool_start_thread(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;

    /* As in loop_start_thread(). */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    bool started = pthread_create(&thread, &attr, pool_thread, NULL) == 0;
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pool_threads += started;
    return started;
}

void thread_pool_submit(struct pool_task *task)
{
    pthread_mutex_lock(&pool_mutex);
    /* An idle thread that was woken for an earlier task may not have taken it yet: a task that waits must
     * not wait for one that blocks while a thread could be had. */
    if (pool_queued >= pool_idle && pool_threads < POOL_THREADS && !pool_start_thread() && pool_threads == 0) {
        pthread_mutex_unlock(&pool_mutex);
        task->run(task);
        return;
    }
    pool_queued++;
    task->next = NULL;
    *pool_last = task;
    pool_last = &task->next;
    pthread_cond_signal(&pool_cond);
    pthread_mutex_unlock(&pool_mutex);
}

struct pool_call {
    struct pool_task task;
    struct loop_message message;
    struct loop *loop;
    struct ring_op *op;
    int (*fn)(void *arg);
    void *arg;
    int result;
};

static void pool_call_done(struct loop_message *message)
{
    struct pool_call *call = container_of(message, struct pool_call, message);
    struct ring_op *op = call->op;
    int result = call->result;

    free(call);
    op->complete(op, result);
}

static void pool_call_run(struct pool_task *task)
{
    struct pool_call *call = container_of(task, struct pool_call, task);

    call->result = call->fn(call->arg);
    loop_post(call->loop, &call->message);
}

void thread_pool_call(struct ring_op *op, int (*fn)(void *arg), void *arg)
{
    struct pool_call *call = memory_new(struct pool_call);

    *call = (struct pool_call){
        .task.run = pool_call_run,
        .message.run = pool_call_done,
        .loop = loop_current(),
        .op = op,
        .fn = fn,
        .arg = arg,
    };
    thread_pool_submit(&call->task);
}
