/*
 * Coroutines: start, wait and wake in one loop and from other threads, the
 * pool of stacks, how deep they may be used, and how deep the deepest graph
 * uses them.
 *
 * test_coroutine_ucontext.c runs the same with the switch for other machines.
 */
#include <check.h>
#include <fenv.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "tests/unit/graph_harness.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define MANY 300u               /* more than the pool keeps */
#define WAKES (SANITIZED ? 2000u : 20000u)
#define STACK_SIZE (128u * 1024)

static struct loop *loop;

static void begin(void)
{
    AUTO_ERROR struct error err = {0};

    loop_set_ring(LOOP_RING_THREADS);
    ck_assert_msg(loop_create(&loop, "main", NULL, &err) == 0, "%s", err.text);
    loop_set_current(loop);
}

static void end(void)
{
    while (loop_turn(loop))
        continue;
    loop_destroy(loop);
}

/* One loop. */

struct life {
    struct coroutine *co;
    unsigned at, order;
    struct life *inner;
};

static unsigned counter;

static void waits_twice(void *arg)
{
    struct life *life = arg;
    unsigned local = 5;

    life->co = coroutine_self();
    life->at = 1;
    coroutine_yield();
    ck_assert_uint_eq(local++, 5);
    ck_assert_ptr_eq(coroutine_self(), life->co);
    life->at = 2;
    coroutine_yield();
    ck_assert_uint_eq(local, 6);
    life->at = 3;
    life->order = ++counter;
}

START_TEST(starts_at_once_and_goes_on_when_woken)
{
    struct life life = {0};

    begin();
    ck_assert_ptr_null(coroutine_self());
    coroutine_start(loop, waits_twice, &life);
    ck_assert_uint_eq(life.at, 1);
    ck_assert_ptr_null(coroutine_self());
    /* Nobody wakes it: turns do not matter. */
    loop_turn(loop);
    ck_assert_uint_eq(life.at, 1);
    coroutine_wake(life.co);
    ck_assert_uint_eq(life.at, 1);
    loop_turn(loop);
    ck_assert_uint_eq(life.at, 2);
    coroutine_wake(life.co);
    loop_turn(loop);
    ck_assert_uint_eq(life.at, 3);
    end();
}
END_TEST

static void starts_another(void *arg)
{
    struct life *life = arg;

    life->co = coroutine_self();
    coroutine_start(loop, waits_twice, life->inner);
    ck_assert_uint_eq(life->inner->at, 1);
    ck_assert_ptr_eq(coroutine_self(), life->co);
    life->at = 1;
    coroutine_yield();
    life->at = 2;
    coroutine_wake(life->inner->co);
    ck_assert_uint_eq(life->inner->at, 1);
}

START_TEST(one_inside_another)
{
    struct life inner = {0}, outer = {.inner = &inner};

    begin();
    coroutine_start(loop, starts_another, &outer);
    ck_assert_uint_eq(outer.at, 1);
    /* The inner one outlives who started it. */
    coroutine_wake(outer.co);
    loop_turn(loop);
    ck_assert_uint_eq(outer.at, 2);
    while (inner.at < 3) {
        if (inner.at == 2)
            coroutine_wake(inner.co);
        loop_turn(loop);
    }
    end();
}
END_TEST

static void wakes_itself_first(void *arg)
{
    struct life *life = arg;

    coroutine_wake(coroutine_self());
    life->at = 1;
    coroutine_yield();
    life->at = 2;
}

START_TEST(a_wake_before_the_wait_is_not_lost)
{
    struct life life = {0};

    begin();
    coroutine_start(loop, wakes_itself_first, &life);
    ck_assert_uint_eq(life.at, 1);
    loop_turn(loop);
    ck_assert_uint_eq(life.at, 2);
    end();
}
END_TEST

START_TEST(woken_in_order)
{
    struct life steps[8] = {0};

    begin();
    counter = 0;
    for (unsigned i = 0; i < array_size(steps); i++)
        coroutine_start(loop, waits_twice, &steps[i]);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < array_size(steps); i++)
            coroutine_wake(steps[(i * 3) % array_size(steps)].co);
        loop_turn(loop);
    }
    for (unsigned i = 0; i < array_size(steps); i++)
        ck_assert_uint_eq(steps[(i * 3) % array_size(steps)].order, i + 1);
    end();
}
END_TEST

static void sleeps(void *arg)
{
    struct life *life = arg;

    coroutine_sleep(life->at * 1000000u);
    life->order = ++counter;
}

/* A clock that goes by itself only from turn to turn. */

static uint64_t clock_ns = 1;

static uint64_t clock_now(struct ring *ring)
{
    (void)ring;
    return clock_ns;
}

START_TEST(sleepers_by_deadline)
{
    struct life steps[] = {{.at = 9}, {.at = 1}, {.at = 5}, {.at = 3}};

    begin();
    const struct ring_ops *real = loop->ring->ops;
    struct ring_ops stepped = *real;

    stepped.now = clock_now;
    loop->ring->ops = &stepped;
    counter = 0;
    for (unsigned i = 0; i < array_size(steps); i++)
        coroutine_start(loop, sleeps, &steps[i]);
    for (unsigned ms = 0; ms <= 9; ms++, clock_ns += 1000000) {
        loop_turn(loop);
        ck_assert_uint_eq(counter, (ms >= 1) + (ms >= 3) + (ms >= 5) + (ms >= 9));
    }
    loop->ring->ops = real;
    ck_assert_uint_eq(steps[1].order, 1);
    ck_assert_uint_eq(steps[3].order, 2);
    ck_assert_uint_eq(steps[2].order, 3);
    ck_assert_uint_eq(steps[0].order, 4);
    end();
}
END_TEST

static void rounds_upward(void *arg)
{
    struct life *life = arg;

    life->co = coroutine_self();
    fesetround(FE_UPWARD);
    coroutine_yield();
    ck_assert_int_eq(fegetround(), FE_UPWARD);
    fesetround(FE_TONEAREST);
    life->at = 1;
}

START_TEST(rounding_is_its_own)
{
    struct life life = {0};

    begin();
    coroutine_start(loop, rounds_upward, &life);
    ck_assert_int_eq(fegetround(), FE_TONEAREST);
    coroutine_wake(life.co);
    loop_turn(loop);
    ck_assert_uint_eq(life.at, 1);
    ck_assert_int_eq(fegetround(), FE_TONEAREST);
    end();
}
END_TEST

/* Stacks. */

static void fills(void *arg)
{
    struct life *life = arg;
    volatile unsigned char area[1000];

    memset((void *)(uintptr_t)area, (int)life->order, sizeof(area));
    life->co = coroutine_self();
    coroutine_yield();
    for (unsigned i = 0; i < sizeof(area); i++)
        ck_assert_uint_eq(area[i], life->order & 255);
    life->at = 1;
}

START_TEST(many_at_once)
{
    struct life *steps = memory_array(MANY, sizeof(*steps));

    begin();
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < MANY; i++) {
            steps[i] = (struct life){.order = i};
            coroutine_start(loop, fills, &steps[i]);
        }
        for (unsigned i = 0; i < MANY; i++)
            coroutine_wake(steps[i].co);
        loop_turn(loop);
        unsigned kept = 0;

        for (unsigned i = 0; i < MANY; i++) {
            /* The coroutine is at the top of its stack. */
            void *page = (void *)((uintptr_t)steps[i].co & ~(uintptr_t)4095); /* NOLINT(performance-no-int-to-ptr) */

            ck_assert_uint_eq(steps[i].at, 1);
            kept += msync(page, 4096, MS_ASYNC) == 0;
        }
        /* 32 requests to a quorum of three take four each. */
        ck_assert_uint_ge(kept, 128);
        ck_assert_uint_lt(kept, MANY);
    }
    free(steps);
    end();
}
END_TEST

static void tells_its_stack(void *arg)
{
    *(uintptr_t *)arg = (uintptr_t)__builtin_frame_address(0);
}

START_TEST(stacks_are_used_again)
{
    uintptr_t first = 0, second = 0;

    begin();
    coroutine_start(loop, tells_its_stack, &first);
    coroutine_start(loop, tells_its_stack, &second);
    ck_assert_uint_ne(first, 0);
    ck_assert_uint_eq(first, second);
    end();
}
END_TEST

static unsigned deep(unsigned levels)
{
    volatile unsigned char frame[1000];

    memset((void *)(uintptr_t)frame, (int)levels, sizeof(frame));
    if (levels == 0)
        coroutine_yield();
    unsigned sum = levels ? deep(levels - 1) : 0;

    for (unsigned i = 0; i < sizeof(frame); i++)
        ck_assert_uint_eq(frame[i], levels & 255);
    return sum + 1;
}

static void goes_deep(void *arg)
{
    struct life *life = arg;

    life->co = coroutine_self();
    life->at = deep(100);
}

START_TEST(deep_use)
{
    struct life steps[4] = {0};

    begin();
    for (unsigned i = 0; i < array_size(steps); i++)
        coroutine_start(loop, goes_deep, &steps[i]);
    for (unsigned i = 0; i < array_size(steps); i++)
        coroutine_wake(steps[i].co);
    loop_turn(loop);
    for (unsigned i = 0; i < array_size(steps); i++)
        ck_assert_uint_eq(steps[i].at, 101);
    end();
}
END_TEST

static void goes_too_deep(void *arg)
{
    goes_deep(arg);
    deep(1u << 20);
}

/* It hits the guard page: the process ends, instead of writing into what lies below. */
START_TEST(too_deep)
{
    struct life life = {0};
    pid_t child = fork();
    int status;

    ck_assert_int_ge(child, 0);
    if (child == 0) {
        struct rlimit none = {0};

        setrlimit(RLIMIT_CORE, &none);
        freopen("/dev/null", "w", stderr);
        begin();
        coroutine_start(loop, goes_too_deep, &life);
        coroutine_wake(life.co);
        loop_turn(loop);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) || (SANITIZED && WEXITSTATUS(status) != 0));
    if (!SANITIZED)
        ck_assert(WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
}
END_TEST

/* Threads. */

struct far {
    struct loop *loop;
    struct loop_message message;
    struct coroutine *co;
    struct far *other;
    unsigned rounds;
    bool begins;
    sem_t ready, done;
};

static void far_waits(void *arg)
{
    struct far *far = arg;

    far->co = coroutine_self();
    for (; far->rounds < WAKES; far->rounds++) {
        sem_post(&far->ready);
        coroutine_yield();
    }
    sem_post(&far->done);
}

static void far_begin(struct loop_message *message)
{
    struct far *far = container_of(message, struct far, message);

    coroutine_start(far->loop, far_waits, far);
}

static void far_start(struct far *far, const char *name)
{
    AUTO_ERROR struct error err = {0};

    sem_init(&far->ready, 0, 0);
    sem_init(&far->done, 0, 0);
    ck_assert_msg(loop_create(&far->loop, name, NULL, &err) == 0, "%s", err.text);
    ck_assert_msg(loop_start_thread(far->loop, &err) == 0, "%s", err.text);
}

static void far_stop(struct far *far)
{
    loop_stop_thread(far->loop);
    loop_destroy(far->loop);
    sem_destroy(&far->ready);
    sem_destroy(&far->done);
}

START_TEST(woken_from_another_thread)
{
    struct far far = {.message.run = far_begin};

    begin();
    far_start(&far, "far");
    loop_post(far.loop, &far.message);
    for (unsigned i = 0; i < WAKES; i++) {
        sem_wait(&far.ready);
        /* Perhaps before it has left for the yield. */
        coroutine_wake(far.co);
    }
    sem_wait(&far.done);
    ck_assert_uint_eq(far.rounds, WAKES);
    far_stop(&far);
    end();
}
END_TEST

/* Two coroutines on two loops that wake each other. */

static void far_plays(void *arg)
{
    struct far *far = arg;

    for (; far->rounds < WAKES; far->rounds++) {
        coroutine_yield();
        ck_assert_ptr_eq(loop_current(), far->loop);
        /* The last answer would have no taker. */
        if (far->begins || far->rounds < WAKES - 1)
            coroutine_wake(far->other->co);
    }
    sem_post(&far->done);
}

static void far_meets(void *arg)
{
    struct far *far = arg;

    far->co = coroutine_self();
    sem_post(&far->ready);
    far_plays(far);
}

static void far_meet(struct loop_message *message)
{
    struct far *far = container_of(message, struct far, message);

    coroutine_start(far->loop, far_meets, far);
}

START_TEST(two_loops_wake_each_other)
{
    struct far one = {.message.run = far_meet, .begins = true}, two = {.message.run = far_meet, .other = &one};

    begin();
    one.other = &two;
    far_start(&one, "one");
    far_start(&two, "two");
    loop_post(one.loop, &one.message);
    loop_post(two.loop, &two.message);
    sem_wait(&one.ready);
    sem_wait(&two.ready);
    coroutine_wake(one.co);
    sem_wait(&one.done);
    sem_wait(&two.done);
    far_stop(&one);
    far_stop(&two);
    end();
}
END_TEST

/* How much of a stack is used: painted by one coroutine, used by the next, looked at by a third. */

#define PAINT 0xa5
#define PAINTED (STACK_SIZE - 8192u)    /* bytes below the painter's frame */

__attribute__((noinline)) static void paint(void *arg)
{
    unsigned char *top = __builtin_frame_address(0);

    /* Nothing of this function is so far below. */
    for (unsigned char *at = top - PAINTED; at < top - 2048; at++)
        *(volatile unsigned char *)at = PAINT;
    *(unsigned char **)arg = top;
}

static unsigned painted_used;

__attribute__((noinline)) static void look(void *arg)
{
    unsigned char *top = __builtin_frame_address(0), *at = top - PAINTED;

    ck_assert_ptr_eq(top, *(unsigned char **)arg);
    while (at < top - 2048 && *(volatile unsigned char *)at == PAINT)
        at++;
    painted_used = (unsigned)(top - at);
}

static bool heavy_done;

/* The deepest options that are accepted, opened, used, and removed. */
static void heavy(void *arg)
{
    char *text = memory_string("{'driver': 'null-co', 'size': 1048576, 'read-zeroes': true}");

    (void)arg;
    for (unsigned i = 0; i < 60; i++) {
        char *more = memory_format("{'driver': '%s', 'file': %s%s}", i % 2 ? "raw" : "delay", text,
                                   i == 59 ? ", 'node-name': 'top'" : "");

        free(text);
        text = more;
    }
    struct node *node = graph_add(text);

    ck_assert(graph_holds(node, 0, 65536, 0));
    ck_assert_int_eq(graph_write(node, 4096, 65536, 1, REQ_FUA), 0);
    graph_refuses("{'driver': 'raw', 'node-name': 'more', 'file': 'top', 'size': 99999999}", "size");
    close_node(node);
    free(text);
    heavy_done = true;
}

START_TEST(how_deep_a_deep_graph_is)
{
    unsigned char *top = NULL;

    if (SANITIZED)
        return;
    begin();
    coroutine_start(loop, paint, &top);
    heavy_done = false;
    coroutine_start(loop, heavy, NULL);
    while (!heavy_done)
        loop_turn(loop);
    coroutine_start(loop, look, &top);
    /* Half a stack is left for what a larger libc or compiler makes of it. */
    ck_assert_uint_gt(painted_used, 4096);
    ck_assert_msg(painted_used < STACK_SIZE / 2, "%u bytes of stack", painted_used);
    end();
}
END_TEST

int main(void)
{
    const TTest *const all[] = {
        starts_at_once_and_goes_on_when_woken,
        one_inside_another,
        a_wake_before_the_wait_is_not_lost,
        woken_in_order,
        sleepers_by_deadline,
        rounding_is_its_own,
        many_at_once,
        stacks_are_used_again,
        deep_use,
        too_deep,
        woken_from_another_thread,
        two_loops_wake_each_other,
        how_deep_a_deep_graph_is,
    };

    return run_tests("coroutine", all, array_size(all));
}
