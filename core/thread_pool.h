/*
 * The process's pool of threads for system calls that block and have no
 * asynchronous form. At most 16 threads, started on demand, gone after some
 * seconds without work.
 */
#ifndef CORE_THREAD_POOL_H
#define CORE_THREAD_POOL_H

struct pool_task {
    struct pool_task *next;
    void (*run)(struct pool_task *task);    /* on a pool thread; the task is its own from here on */
};

/* From any thread; runs in order of submission as threads come free. If no thread can be started,
 * runs in the caller. */
void thread_pool_submit(struct pool_task *task);

/* Runs fn(arg) on the pool and then complete(op, result) on the calling thread's loop: what
 * ring_ops.call does, for rings that have nothing better. */
struct ring_op;
void thread_pool_call(struct ring_op *op, int (*fn)(void *arg), void *arg);

#endif
