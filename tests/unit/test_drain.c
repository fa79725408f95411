/*
 * Drains and grace periods whose loops are late, or end: loops that are
 * stepped by hand, and a thread that ends while a period is under way.
 */
#include <check.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/drain.h"
#include "core/drain_loop.h"
#include "core/error.h"
#include "core/grace.h"
#include "core/iothread.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/object.h"
#include "generated/options.h"

static const char *user_name(const struct consumer *consumer)
{
    (void)consumer;
    return "client";
}

static const struct consumer_ops user_ops = {.kind = "user", .name = user_name};

/* A world of two loops that nobody runs, and a user with one request on the second. */
static struct loop *first, *second;
static struct consumer user;
static bool over;
static struct error drain_error;

static void world_begin(void)
{
    loop_set_ring(LOOP_RING_THREADS);
    ck_assert_int_eq(loop_create(&first, "main", NULL, NULL), 0);
    ck_assert_int_eq(loop_create(&second, "second", NULL, NULL), 0);
    loop_set_current(first);
    consumer_init(&user, &user_ops, NULL, (struct permission){.shared = PERM_ALL});
    user.loops[second->index].inflight = 1;
    over = false;
}

static void world_end(void)
{
    ck_assert(!user.loops[first->index].paused);
    ck_assert(!user.loops[second->index].paused);
    consumer_destroy(&user);
    loop_destroy(second);
    loop_destroy(first);
}

static void turn(struct loop *loop)
{
    loop_set_current(loop);
    loop_turn(loop);
    loop_set_current(first);
}

static void drain_body(void *arg)
{
    struct consumer *consumers[] = {&user};
    struct drain *drain = NULL;

    (void)arg;
    ck_assert_int_eq(drain_begin(&drain, consumers, 1, 0, &drain_error), -ETIMEDOUT);
    over = true;
}

/* The request ends on its loop, in the turn in which the drain gives up. */
static void request_ends(struct timer *timer)
{
    struct consumer_loop *local = &user.loops[second->index];

    (void)timer;
    loop_set_current(second);
    if (--local->inflight == 0 && local->drain)
        drain_loop_quiet(local);
    loop_set_current(first);
}

START_TEST(answer_comes_too_late)
{
    struct timer ends = {.expired = request_ends};

    world_begin();
    timer_set(&ends, first, 0);
    coroutine_start(first, drain_body, NULL);
    turn(second);
    ck_assert(user.loops[second->index].paused);
    for (unsigned i = 0; i < 5; i++)
        turn(first);
    ck_assert_uint_eq(user.loops[second->index].inflight, 0);
    /* It is not over as long as one has to be let go on. */
    ck_assert(!over);
    turn(second);
    turn(first);
    ck_assert(over);
    ck_assert_str_eq(drain_error.text, "Requests in flight did not end in 0 ms");
    error_clear(&drain_error);
    world_end();
}
END_TEST

/* A loop that was in a system call all the time, so that it finds the end behind the beginning. */
START_TEST(loop_is_late)
{
    world_begin();
    coroutine_start(first, drain_body, NULL);
    for (unsigned i = 0; i < 5; i++)
        turn(first);
    ck_assert(!over);
    ck_assert(!user.loops[second->index].paused);
    turn(second);
    turn(first);
    ck_assert(over);
    error_clear(&drain_error);
    world_end();
}
END_TEST

/* Grace periods and the end of a thread. */

struct waiting {
    struct grace_call call;
    bool over;
};

static void waiting_over(struct grace_call *call)
{
    container_of(call, struct waiting, call)->over = true;
}

static struct loop *thread_begin(void)
{
    static const struct iothread_options options = {.poll_max_ns = 0};

    loop_set_ring(LOOP_RING_THREADS);
    ck_assert_int_eq(loop_create(&first, "main", NULL, NULL), 0);
    loop_set_current(first);
    ck_assert_int_eq(iothread_add("t", &options, NULL), 0);
    return iothread_get("t", NULL)->loop;
}

/* With time in between, in which the thread does what it can; no test needs it to have done anything. */
static void turns(void)
{
    for (unsigned i = 0; i < 10; i++) {
        usleep(1000);
        turn(first);
    }
}

/* Its answer is on the way. */
START_TEST(thread_ends_with_an_answer)
{
    struct waiting one = {.call.run = waiting_over};

    thread_begin();
    grace_call(&one.call);
    turn(first);
    /* If it takes longer, this is the next test. */
    usleep(20000);
    iothread_stop_all();
    turns();
    ck_assert(one.over);
    loop_destroy(first);
}
END_TEST

struct unit {
    struct loop_message message;
    struct loop *loop;
};

static void unit_begin(struct loop_message *message)
{
    loop_unit_begin(container_of(message, struct unit, message)->loop);
}

/* It has not answered, and others wait for the next period already. */
START_TEST(thread_ends_in_a_period)
{
    struct waiting one = {.call.run = waiting_over}, two = {.call.run = waiting_over};
    struct unit unit = {.message.run = unit_begin, .loop = thread_begin()};

    loop_post(unit.loop, &unit.message);
    grace_call(&one.call);
    turns();
    ck_assert(!one.over);
    grace_call(&two.call);
    turns();
    iothread_stop_all();
    turns();
    ck_assert(one.over);
    ck_assert(two.over);
    loop_destroy(first);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("drain");
    TCase *tests = tcase_create("drain");

    tcase_add_test(tests, answer_comes_too_late);
    tcase_add_test(tests, loop_is_late);
    tcase_add_test(tests, thread_ends_with_an_answer);
    tcase_add_test(tests, thread_ends_in_a_period);
    tcase_set_timeout(tests, 20);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
