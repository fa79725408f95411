/*
 * Adaptive polling: when a loop spins, for how long, and when it gives up. The
 * clock is the test's: it sets loop->now_ns.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/error.h"
#include "core/loop.h"
#include "core/loop_polling.h"
#include "core/memory.h"

#define MAX_NS 50000u

static struct loop *main_loop, *loop;

static void start(uint64_t max_ns, uint64_t grow, uint64_t shrink)
{
    AUTO_ERROR struct error err = {0};

    loop_set_ring(LOOP_RING_THREADS);
    ck_assert_int_eq(loop_create(&main_loop, "main", NULL, &err), 0);
    ck_assert_int_eq(loop_create(&loop, "io", NULL, &err), 0);
    loop->polling.max_ns = loop->polling.window_ns = max_ns;
    loop->polling.grow = grow;
    loop->polling.shrink = shrink;
    loop->now_ns = 1000000;
}

static void end(void)
{
    loop_destroy(loop);
    loop_destroy(main_loop);
}

static bool nothing(struct poller *poller)
{
    (void)poller;
    return false;
}

/* How long it spins without finding anything; 0: not at all. */
static uint64_t spin_length(void)
{
    uint64_t from = loop->now_ns;

    while (loop_polling_spins(loop, false)) {
        loop->now_ns += 1000;
        ck_assert_uint_lt(loop->now_ns - from, 100 * MAX_NS);
    }
    return loop->now_ns - from;
}

static void sleep_for(uint64_t ns)
{
    loop_polling_slept(loop, loop->now_ns, 0);
    loop_polling_slept(loop, loop->now_ns, loop->now_ns + ns);
    loop->now_ns += ns;
}

START_TEST(it_gives_up)
{
    start(MAX_NS, 0, 0);
    struct poller poller = {.fd = 0, .poll = nothing};

    poller_add(loop, &poller);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(spin_length(), MAX_NS);
    /* A long idle time: not a nanosecond more. */
    for (int i = 0; i < 100; i++) {
        ck_assert_uint_eq(spin_length(), 0);
        sleep_for(MAX_NS);
    }
    ck_assert_uint_eq(atomic_load(&loop->polling.spun_ns), 3 * MAX_NS);
    ck_assert_uint_eq(atomic_load(&loop->polling.hits), 0);
    ck_assert_uint_eq(atomic_load(&loop->polling.sleeps), 100);
    /* A spin would have seen the end of this sleep. */
    sleep_for(MAX_NS - 1);
    ck_assert_uint_eq(spin_length(), MAX_NS);
    list_remove(&poller.link);
    end();
}
END_TEST

START_TEST(hits_keep_it_going)
{
    start(MAX_NS, 0, 0);
    struct poller poller = {.fd = 0, .poll = nothing};

    poller_add(loop, &poller);
    for (int i = 0; i < 100; i++) {
        ck_assert(loop_polling_spins(loop, true));
        if (i % 3)
            ck_assert_uint_eq(spin_length(), MAX_NS);
        else
            for (int turns = 0; turns < 3; turns++, loop->now_ns += 100)
                ck_assert(loop_polling_spins(loop, false));
    }
    ck_assert_uint_eq(atomic_load(&loop->polling.hits), 33);
    list_remove(&poller.link);
    end();
}
END_TEST

START_TEST(factors)
{
    start(MAX_NS, 3, 2);
    struct poller poller = {.fd = 0, .poll = nothing};

    poller_add(loop, &poller);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(spin_length(), MAX_NS);
    ck_assert_uint_eq(loop->polling.window_ns, MAX_NS / 2);
    sleep_for(10);
    ck_assert_uint_eq(loop->polling.window_ns, MAX_NS);
    loop->polling.window_ns = 0;
    sleep_for(10);
    ck_assert_uint_eq(loop->polling.window_ns, 3 * 4096);
    sleep_for(10);
    ck_assert_uint_eq(loop->polling.window_ns, 9 * 4096);
    sleep_for(10);
    ck_assert_uint_eq(loop->polling.window_ns, MAX_NS);
    list_remove(&poller.link);
    end();
}
END_TEST

START_TEST(not_without_reason)
{
    struct event_base *events;

    start(0, 0, 0);
    struct poller poller = {.fd = 0, .poll = nothing};

    poller_add(loop, &poller);
    ck_assert_uint_eq(spin_length(), 0);
    sleep_for(1);
    ck_assert_uint_eq(spin_length(), 0);
    loop->polling.max_ns = loop->polling.window_ns = MAX_NS;
    /* The disk will answer. */
    loop->inflight[0] = 1;
    ck_assert_uint_eq(spin_length(), 0);
    loop->inflight[0] = 0;
    ck_assert_uint_eq(spin_length(), MAX_NS);
    /* What is armed shows in a ring, and does not in libevent. */
    list_remove(&poller.link);
    ck_assert_ptr_nonnull(loop->events);
    ck_assert_uint_eq(spin_length(), 0);
    events = take_ptr(&loop->events);
    ck_assert_uint_eq(spin_length(), MAX_NS);
    loop->events = events;
    end();
}
END_TEST

static int asked;
static bool removed;

static void poller_is_removed(struct poller *poller)
{
    (void)poller;
    removed = true;
}

static bool asked_again(struct poller *poller)
{
    (void)poller;
    asked++;
    return false;
}

/* A poller with nothing to do is left alone after some turns, but not while a spin is there for it. */
START_TEST(spins_ask)
{
    start(MAX_NS, 0, 0);
    AUTO_CLOSE int fd = eventfd(0, EFD_NONBLOCK);
    struct poller poller = {.fd = fd, .poll = asked_again};

    loop_set_current(loop);
    poller_add(loop, &poller);
    loop->polling.spin_started_ns = 1;
    for (int i = 0; i < 1000; i++)
        loop_turn(loop);
    ck_assert_int_eq(asked, 1000);
    loop->polling.spin_started_ns = 0;
    for (int i = 0; i < 1000; i++)
        loop_turn(loop);
    ck_assert_int_lt(asked, 1100);
    poller_remove(&poller, poller_is_removed);
    loop_turn(loop);
    ck_assert(removed);
    end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("polling");
    TCase *tests = tcase_create("polling");

    tcase_add_test(tests, it_gives_up);
    tcase_add_test(tests, hits_keep_it_going);
    tcase_add_test(tests, factors);
    tcase_add_test(tests, not_without_reason);
    tcase_add_test(tests, spins_ask);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
