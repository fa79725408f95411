/*
 * Coroutines: see coroutine.h. A coroutine's control block sits at the top of
 * its own stack. Stacks are kept for reuse with the coroutine parked at the
 * head of its endless main function, so that a start is a switch and no
 * layout.
 *
 * Wakes are never lost: a wake puts the coroutine on its loop's ready list
 * (from another thread by way of the inbox), and that list only runs from the
 * loop's own stack, when the coroutine has surely yielded.
 */
#include "core/coroutine.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "core/coroutine_pool.h"
#include "core/coroutine_switch.h"
#include "core/loop.h"
#include "core/memory.h"

#if defined(__SANITIZE_ADDRESS__)
#define COROUTINE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COROUTINE_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define COROUTINE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define COROUTINE_TSAN 1
#endif
#endif

#ifdef COROUTINE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef COROUTINE_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(COROUTINE_ASAN) || defined(COROUTINE_TSAN)
#define COROUTINE_STACK (512u * 1024)
#else
#define COROUTINE_STACK (128u * 1024)
#endif
#define COROUTINE_GUARD 4096u
/* Enough for deep queues of requests that take several each, as those of a quorum do. */
#define COROUTINE_KEEP 256u
/* Neighbouring stacks start at different cache lines, or their hot tops would share cache sets. */
#define COROUTINE_COLOURS 16u

unsigned coroutine_limit = 16384;
static _Atomic unsigned coroutine_stacks;

struct context {
    void *sp;
    const void *stack;      /* lowest address and size: what the sanitizers ask */
    size_t size;
    void *fake_stack;
    void *fiber;
};

struct coroutine {
    struct context context;
    struct context *caller;         /* who resumed it */
    struct coroutine *outer;        /* loop->running of then */
    struct loop *loop;
    void (*entry)(void *arg);       /* NULL: between two lives */
    void *arg;
    struct coroutine *next;         /* ready list or pool */
    struct loop_message message;    /* a wake from another thread */
    void *memory;
    uint8_t epoch;
};

struct coroutine_pool {
    struct context thread;          /* the loop's own stack */
    struct coroutine *idle;
    unsigned idle_count, colour;
};

static void context_switch(struct context *from, struct context *to)
{
#ifdef COROUTINE_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->size);
#endif
#ifdef COROUTINE_TSAN
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
    coroutine_switch(&from->sp, to->sp);
#ifdef COROUTINE_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

static void coroutine_main(void)
{
    struct coroutine *co = loop_current()->running;

#ifdef COROUTINE_ASAN
    /* The bounds of a thread's own stack are known only from here. */
    __sanitizer_finish_switch_fiber(NULL, &co->caller->stack, &co->caller->size);
#endif
    for (;;) {
        co->entry(co->arg);
        co->entry = NULL;
        context_switch(&co->context, co->caller);
    }
}

struct coroutine_pool *coroutine_pool_new(void)
{
    return memory_new(struct coroutine_pool);
}

static void coroutine_release(struct coroutine *co)
{
    void *memory = co->memory;

#ifdef COROUTINE_TSAN
    __tsan_destroy_fiber(co->context.fiber);
#endif
#ifdef COROUTINE_ASAN
    __asan_unpoison_memory_region((char *)memory + COROUTINE_GUARD, COROUTINE_STACK);
#endif
    munmap(memory, COROUTINE_STACK + COROUTINE_GUARD);
    atomic_fetch_sub(&coroutine_stacks, 1);
}

void coroutine_pool_free(struct coroutine_pool *pool)
{
    if (!pool)
        return;
    while (pool->idle) {
        struct coroutine *co = pool->idle;

        pool->idle = co->next;
        coroutine_release(co);
    }
    free(pool);
}

/* NULL if the system does not give another stack. */
static struct coroutine *coroutine_make(struct loop *loop)
{
    struct coroutine_pool *pool = loop->stacks;
    char *memory = mmap(NULL, COROUTINE_STACK + COROUTINE_GUARD, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, COROUTINE_GUARD, PROT_NONE) < 0) {
        munmap(memory, COROUTINE_STACK + COROUTINE_GUARD);
        return NULL;
    }
    atomic_fetch_add(&coroutine_stacks, 1);
    size_t head = (sizeof(struct coroutine) + 63) & ~(size_t)63;
    size_t colour = 64u * (pool->colour++ % COROUTINE_COLOURS);
    struct coroutine *co = (struct coroutine *)(void *)(memory + COROUTINE_GUARD + COROUTINE_STACK - head - colour);

    co->memory = memory;
    co->loop = loop;
    co->context.stack = memory + COROUTINE_GUARD;
    co->context.size = COROUTINE_STACK - head - colour;
    co->context.sp = coroutine_stack_prepare(memory + COROUTINE_GUARD, co->context.size, coroutine_main);
#ifdef COROUTINE_TSAN
    co->context.fiber = __tsan_create_fiber(0);
#endif
    return co;
}

static void coroutine_resume(struct coroutine *co)
{
    struct loop *loop = co->loop;
    struct coroutine_pool *pool = loop->stacks;
    struct context *here = loop->running ? &loop->running->context : &pool->thread;

#ifdef COROUTINE_TSAN
    if (!loop->running)
        pool->thread.fiber = __tsan_get_current_fiber();
#endif
    co->caller = here;
    co->outer = loop->running;
    loop->running = co;
    context_switch(here, &co->context);
    loop->running = co->outer;
    if (co->entry)
        return;
    if (pool->idle_count < COROUTINE_KEEP) {
        co->next = pool->idle;
        pool->idle = co;
        pool->idle_count++;
    } else {
        coroutine_release(co);
    }
}

static bool coroutine_begin(struct loop *loop, unsigned limit, void (*entry)(void *arg), void *arg)
{
    struct coroutine_pool *pool = loop->stacks;
    struct coroutine *co = pool->idle;

    if (likely(co != NULL)) {
        pool->idle = co->next;
        pool->idle_count--;
    } else {
        co = atomic_load(&coroutine_stacks) < limit ? coroutine_make(loop) : NULL;
        if (!co)
            return false;
    }
    co->entry = entry;
    co->arg = arg;
    coroutine_resume(co);
    return true;
}

void coroutine_start(struct loop *loop, void (*entry)(void *arg), void *arg)
{
    if (!coroutine_begin(loop, UINT32_MAX, entry, arg))
        abort();
}

bool coroutine_try_start(struct loop *loop, void (*entry)(void *arg), void *arg)
{
    return coroutine_begin(loop, coroutine_limit, entry, arg);
}

struct coroutine *coroutine_self(void)
{
    struct loop *loop = loop_current();

    return loop ? loop->running : NULL;
}

void coroutine_yield(void)
{
    struct coroutine *co = coroutine_self();

    context_switch(&co->context, co->caller);
}

void coroutine_set_epoch(uint8_t epoch)
{
    coroutine_self()->epoch = epoch;
}

uint8_t coroutine_epoch(void)
{
    return coroutine_self()->epoch;
}

static void coroutine_make_ready(struct coroutine *co)
{
    struct loop *loop = co->loop;

    co->next = NULL;
    *loop->ready_tail = co;
    loop->ready_tail = &co->next;
}

static void coroutine_woken(struct loop_message *message)
{
    coroutine_make_ready(container_of(message, struct coroutine, message));
}

void coroutine_wake(struct coroutine *co)
{
    if (co->loop == loop_current()) {
        coroutine_make_ready(co);
    } else {
        co->message.run = coroutine_woken;
        loop_post(co->loop, &co->message);
    }
}

bool coroutine_run_ready(struct loop *loop)
{
    struct coroutine *ready = loop->ready;

    if (!ready)
        return false;
    loop->ready = NULL;
    loop->ready_tail = &loop->ready;
    while (ready) {
        struct coroutine *co = ready;

        ready = co->next;
        coroutine_resume(co);
    }
    return true;
}

struct coroutine_sleeper {
    struct timer timer;
    struct coroutine *co;
};

static void coroutine_slept(struct timer *timer)
{
    coroutine_wake(container_of(timer, struct coroutine_sleeper, timer)->co);
}

void coroutine_sleep(uint64_t ns)
{
    struct loop *loop = loop_current();
    struct coroutine_sleeper sleeper = {.timer.expired = coroutine_slept, .co = loop->running};
    uint64_t now = loop->ring->ops->now(loop->ring);

    timer_set(&sleeper.timer, loop, now + ns < now ? UINT64_MAX - 1 : now + ns);
    coroutine_yield();
}

struct coroutine_op {
    struct ring_op op;
    struct coroutine *co;
    int result;
};

static void coroutine_op_complete(struct ring_op *op, int result)
{
    struct coroutine_op *wait = container_of(op, struct coroutine_op, op);

    wait->result = result;
    coroutine_wake(wait->co);
}

/* clang-format off */
#define COROUTINE_OP {.op.complete = coroutine_op_complete, .co = coroutine_self()}
/* clang-format on */

int coroutine_rw(bool write, int fd, const struct iovec *iov, unsigned count, uint64_t offset, int rw_flags)
{
    struct ring *ring = loop_current()->ring;
    struct coroutine_op wait = COROUTINE_OP;

    ring->ops->rw(ring, &wait.op, write, fd, iov, count, offset, rw_flags);
    coroutine_yield();
    return wait.result;
}

int coroutine_fsync(int fd, bool data_only)
{
    struct ring *ring = loop_current()->ring;
    struct coroutine_op wait = COROUTINE_OP;

    ring->ops->fsync(ring, &wait.op, fd, data_only);
    coroutine_yield();
    return wait.result;
}

int coroutine_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct ring *ring = loop_current()->ring;
    struct coroutine_op wait = COROUTINE_OP;

    ring->ops->fallocate(ring, &wait.op, fd, mode, offset, length);
    coroutine_yield();
    return wait.result;
}

int coroutine_call(int (*fn)(void *arg), void *arg)
{
    struct ring *ring = loop_current()->ring;
    struct coroutine_op wait = COROUTINE_OP;

    ring->ops->call(ring, &wait.op, fn, arg);
    coroutine_yield();
    return wait.result;
}
