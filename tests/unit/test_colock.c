/*
 * Locks of coroutines: order and exclusion in one loop, stepped by hand, and
 * across loops in threads of their own.
 */
#include <check.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "core/colock.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ROUNDS 300u
#else
#define ROUNDS 3000u
#endif
#define LOOPS 2u
#define WORKERS 6u          /* coroutines, over all loops */
#define BLOCKS 32u

static struct loop *loop;

static void begin(void)
{
    AUTO_ERROR struct error err = {0};

    loop_set_ring(LOOP_RING_THREADS);
    ck_assert_msg(loop_create(&loop, "main", NULL, &err) == 0, "%s", err.text);
    loop_set_current(loop);
}

/* Turns until nothing happens any more: then all coroutines wait for something. */
static void settle(void)
{
    while (loop_turn(loop))
        continue;
}

static void end(void)
{
    settle();
    loop_destroy(loop);
}

/* One after the other. */

static struct comutex mutex;
static struct coqueue queue;
static char history[64];
static unsigned written;

static void note(char what)
{
    ck_assert_uint_lt(written, sizeof(history) - 1);
    history[written++] = what;
    history[written] = 0;
}

struct actor {
    char name;
    unsigned again;
    struct coroutine *co;
};

/* Says its name when it has the mutex, and keeps it until somebody wakes it. */
static void holds(void *arg)
{
    struct actor *actor = arg;

    do {
        comutex_lock(&mutex);
        note(actor->name);
        actor->co = coroutine_self();
        coroutine_yield();
        actor->co = NULL;
        comutex_unlock(&mutex);
    } while (actor->again--);
}

static void release(struct actor *actor)
{
    ck_assert_ptr_nonnull(actor->co);
    coroutine_wake(actor->co);
    settle();
}

START_TEST(mutex_in_order)
{
    struct actor actors[] = {{.name = 'a', .again = 1}, {.name = 'b'}, {.name = 'c'}};

    begin();
    comutex_init(&mutex);
    for (unsigned i = 0; i < array_size(actors); i++)
        coroutine_start(loop, holds, &actors[i]);
    ck_assert_str_eq(history, "a");
    /* 'a' wants it again at once, but is behind those who wait. */
    release(&actors[0]);
    ck_assert_str_eq(history, "ab");
    release(&actors[1]);
    ck_assert_str_eq(history, "abc");
    release(&actors[2]);
    ck_assert_str_eq(history, "abca");
    release(&actors[0]);
    ck_assert(!mutex.held);
    comutex_destroy(&mutex);
    end();
}
END_TEST

static bool ready;

static void waits(void *arg)
{
    struct actor *actor = arg;

    comutex_lock(&mutex);
    while (!ready)
        coqueue_wait(&queue, &mutex);
    note(actor->name);
    comutex_unlock(&mutex);
}

static void waits_twice(void *arg)
{
    struct actor *actor = arg;

    coqueue_wait(&queue, NULL);
    note(actor->name);
    coqueue_wait(&queue, NULL);
    note(actor->name);
}

START_TEST(queue_with_a_mutex)
{
    struct actor actors[] = {{.name = 'a'}, {.name = 'b'}, {.name = 'c'}};

    begin();
    ready = false;
    comutex_init(&mutex);
    coqueue_init(&queue);
    for (unsigned i = 0; i < array_size(actors); i++)
        coroutine_start(loop, waits, &actors[i]);
    ck_assert(!mutex.held);
    /* Woken for nothing: it looks, and goes to the end of the queue. */
    coqueue_wake_one(&queue);
    settle();
    ck_assert_str_eq(history, "");
    ready = true;
    coqueue_wake_one(&queue);
    settle();
    ck_assert_str_eq(history, "b");
    coqueue_wake_all(&queue);
    settle();
    ck_assert_str_eq(history, "bca");
    /* Nobody is there. */
    coqueue_wake_one(&queue);
    coqueue_wake_all(&queue);
    coqueue_destroy(&queue);
    comutex_destroy(&mutex);
    end();
}
END_TEST

START_TEST(queue_wakes_each_once)
{
    struct actor actors[] = {{.name = 'a'}, {.name = 'b'}};

    begin();
    coqueue_init(&queue);
    for (unsigned i = 0; i < array_size(actors); i++)
        coroutine_start(loop, waits_twice, &actors[i]);
    coqueue_wake_all(&queue);
    settle();
    ck_assert_str_eq(history, "ab");
    coqueue_wake_all(&queue);
    settle();
    ck_assert_str_eq(history, "abab");
    coqueue_destroy(&queue);
    end();
}
END_TEST

static struct range_lock ranges;

struct ranger {
    char name;
    uint64_t offset, length;
    struct coroutine *co;
};

static void takes_range(void *arg)
{
    struct ranger *ranger = arg;
    struct range_hold hold;

    range_lock_take(&ranges, &hold, ranger->offset, ranger->length);
    note(ranger->name);
    ranger->co = coroutine_self();
    coroutine_yield();
    range_lock_release(&ranges, &hold);
}

static void leaves_range(struct ranger *ranger)
{
    ck_assert_ptr_nonnull(ranger->co);
    coroutine_wake(ranger->co);
    settle();
}

START_TEST(ranges_that_overlap)
{
    struct ranger a = {'a', 0, 100, NULL}, b = {'b', 100, 100, NULL}, c = {'c', 50, 100, NULL},
                  d = {'d', 140, 10, NULL}, e = {'e', 300, UINT64_MAX, NULL}, f = {'f', UINT64_MAX - 1, 1, NULL};
    struct range_hold hold;

    begin();
    range_lock_init(&ranges);
    coroutine_start(loop, takes_range, &a);
    coroutine_start(loop, takes_range, &b);
    coroutine_start(loop, takes_range, &c);
    /* d overlaps b, and c, who came before. */
    coroutine_start(loop, takes_range, &d);
    coroutine_start(loop, takes_range, &e);
    coroutine_start(loop, takes_range, &f);
    ck_assert_str_eq(history, "abe");
    ck_assert(!range_lock_try(&ranges, &hold, 99, 1));
    /* Free, but somebody waits for it. */
    leaves_range(&a);
    ck_assert_str_eq(history, "abe");
    ck_assert(!range_lock_try(&ranges, &hold, 60, 1));
    ck_assert(range_lock_try(&ranges, &hold, 0, 50));
    range_lock_release(&ranges, &hold);
    leaves_range(&b);
    ck_assert_str_eq(history, "abec");
    leaves_range(&c);
    ck_assert_str_eq(history, "abecd");
    leaves_range(&e);
    ck_assert_str_eq(history, "abecdf");
    leaves_range(&d);
    leaves_range(&f);
    ck_assert(range_lock_try(&ranges, &hold, 0, UINT64_MAX));
    range_lock_release(&ranges, &hold);
    range_lock_destroy(&ranges);
    end();
}
END_TEST

START_TEST(ranges_freed_together)
{
    struct ranger all = {'*', 0, 1000, NULL}, a = {'a', 0, 10, NULL}, b = {'b', 20, 10, NULL}, c = {'c', 5, 10, NULL};

    begin();
    range_lock_init(&ranges);
    coroutine_start(loop, takes_range, &all);
    coroutine_start(loop, takes_range, &a);
    coroutine_start(loop, takes_range, &b);
    coroutine_start(loop, takes_range, &c);
    leaves_range(&all);
    ck_assert_str_eq(history, "*ab");
    leaves_range(&a);
    ck_assert_str_eq(history, "*abc");
    leaves_range(&b);
    leaves_range(&c);
    range_lock_destroy(&ranges);
    end();
}
END_TEST

/* Across loops. */

struct worker {
    struct loop_message message;
    struct loop *loop;
    void (*work)(unsigned round, unsigned *random);
    unsigned random;
};

static struct loop *loops[LOOPS];
static struct worker workers[WORKERS];
static sem_t all_done;

static void worker_run(void *arg)
{
    struct worker *worker = arg;

    for (unsigned round = 0; round < ROUNDS; round++)
        worker->work(round, &worker->random);
    sem_post(&all_done);
}

static void worker_begin(struct loop_message *message)
{
    struct worker *worker = container_of(message, struct worker, message);

    coroutine_start(worker->loop, worker_run, worker);
}

/* A turn later, so that others come to run in between. */
static void let_others(void)
{
    coroutine_wake(coroutine_self());
    coroutine_yield();
}

static unsigned next_random(unsigned *random, unsigned below)
{
    *random = *random * 1103515245u + 12345u;
    return (*random >> 16) % below;
}

static void across_loops(void (*work)(unsigned round, unsigned *random))
{
    AUTO_ERROR struct error err = {0};

    sem_init(&all_done, 0, 0);
    for (unsigned i = 0; i < LOOPS; i++) {
        ck_assert_msg(loop_create(&loops[i], i ? "two" : "one", NULL, &err) == 0, "%s", err.text);
        ck_assert_msg(loop_start_thread(loops[i], &err) == 0, "%s", err.text);
    }
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] =
            (struct worker){.message.run = worker_begin, .loop = loops[i % LOOPS], .work = work, .random = i + 1};
        loop_post(workers[i].loop, &workers[i].message);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        sem_wait(&all_done);
    for (unsigned i = 0; i < LOOPS; i++) {
        loop_stop_thread(loops[i]);
        loop_destroy(loops[i]);
    }
    sem_destroy(&all_done);
}

static unsigned plain;      /* not atomic: the mutex is what protects it */

static void adds(unsigned round, unsigned *random)
{
    comutex_lock(&mutex);
    unsigned seen = plain;

    if (next_random(random, 2))
        let_others();
    plain = seen + 1;
    comutex_unlock(&mutex);
    if (round % 7 == 0)
        let_others();
}

START_TEST(mutex_across_loops)
{
    begin();
    comutex_init(&mutex);
    plain = 0;
    across_loops(adds);
    ck_assert_uint_eq(plain, WORKERS * ROUNDS);
    comutex_destroy(&mutex);
    end();
}
END_TEST

/* A box for one thing: who finds it full or empty waits. */
static unsigned box, taken;

static void hands_over(unsigned round, unsigned *random)
{
    (void)random;
    comutex_lock(&mutex);
    if (round % 2) {
        while (box)
            coqueue_wait(&queue, &mutex);
        box = 1;
    } else {
        while (!box)
            coqueue_wait(&queue, &mutex);
        box = 0;
        taken++;
    }
    comutex_unlock(&mutex);
    coqueue_wake_all(&queue);
}

START_TEST(queue_across_loops)
{
    begin();
    comutex_init(&mutex);
    coqueue_init(&queue);
    /* All begin with taking: one thing more than is put in would be left over. */
    box = 1;
    taken = 0;
    across_loops(hands_over);
    ck_assert_uint_eq(taken, WORKERS * ROUNDS / 2);
    ck_assert_uint_eq(box, 1);
    coqueue_destroy(&queue);
    comutex_destroy(&mutex);
    end();
}
END_TEST

static unsigned blocks[BLOCKS];     /* not atomic either */

static void marks(unsigned round, unsigned *random)
{
    struct range_hold hold;
    unsigned first = next_random(random, BLOCKS), count = 1 + next_random(random, BLOCKS - first);

    if (round % 3 == 0 && !range_lock_try(&ranges, &hold, first, count))
        return;
    if (round % 3)
        range_lock_take(&ranges, &hold, first, count);
    for (unsigned i = first; i < first + count; i++)
        ck_assert_uint_eq(blocks[i]++, 0);
    let_others();
    for (unsigned i = first; i < first + count; i++)
        ck_assert_uint_eq(--blocks[i], 0);
    range_lock_release(&ranges, &hold);
}

START_TEST(ranges_across_loops)
{
    begin();
    range_lock_init(&ranges);
    across_loops(marks);
    range_lock_destroy(&ranges);
    end();
}
END_TEST

int main(void)
{
    const TTest *const all[] = {
        mutex_in_order,        queue_with_a_mutex, queue_wakes_each_once, ranges_that_overlap,
        ranges_freed_together, mutex_across_loops, queue_across_loops,    ranges_across_loops,
    };
    Suite *suite = suite_create("colock");
    TCase *tests = tcase_create("colock");

    for (unsigned i = 0; i < array_size(all); i++)
        tcase_add_test(tests, all[i]);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
