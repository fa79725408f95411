/*
 * Loops: the order of phases in a turn, messages, timers, pollers and hooks.
 * The tests step a loop by hand, on a ring that completes what it is told to
 * and has a clock of its own.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/loop_buffer.h"
#include "core/memory.h"
#include "core/timer.h"

#define POLLS 16u
#define COLD_AFTER 20u      /* turns without work after which a poller waits for readiness */

static struct loop *loop;
static char history[256];

static void note(const char *what)
{
    ck_assert_uint_lt(strlen(history) + strlen(what), sizeof(history));
    strcat(history, what);
}

/* The ring. */

static uint64_t clock_ns;
static struct ring_op *polls[POLLS], *cancelled[POLLS];
static unsigned poll_count, cancelled_count;

static void fake_poll(struct ring *ring, struct ring_op *op, int fd, unsigned events)
{
    (void)ring;
    (void)fd;
    (void)events;
    ck_assert_uint_lt(poll_count, POLLS);
    polls[poll_count++] = op;
}

/* The end is told by the next reap, as rings have it. */
static void fake_cancel_poll(struct ring *ring, struct ring_op *op)
{
    (void)ring;
    for (unsigned i = 0; i < poll_count; i++) {
        if (polls[i] == op) {
            polls[i] = polls[--poll_count];
            cancelled[cancelled_count++] = op;
            return;
        }
    }
    ck_abort_msg("a poll that is not there");
}

static unsigned fake_reap(struct ring *ring)
{
    unsigned count = cancelled_count;

    (void)ring;
    note("R");
    cancelled_count = 0;
    for (unsigned i = 0; i < count; i++)
        cancelled[i]->complete(cancelled[i], -ECANCELED);
    return count;
}

static void fake_ready(struct ring_op *op)
{
    for (unsigned i = 0; i < poll_count; i++) {
        if (polls[i] == op) {
            polls[i] = polls[--poll_count];
            op->complete(op, 1);
            return;
        }
    }
    ck_abort_msg("nobody waits for it");
}

static uint64_t fake_now(struct ring *ring)
{
    (void)ring;
    return clock_ns;
}

static void fake_wake(struct ring *ring)
{
    (void)ring;
}

static void fake_destroy(struct ring *ring)
{
    (void)ring;
}

static const struct ring_ops fake_ops = {
    .name = "fake",
    .poll = fake_poll,
    .cancel_poll = fake_cancel_poll,
    .reap = fake_reap,
    .now = fake_now,
    .wake = fake_wake,
    .destroy = fake_destroy,
};
static struct ring fake = {.ops = &fake_ops};

static void begin(void)
{
    AUTO_ERROR struct error err = {0};

    ck_assert_msg(loop_create(&loop, "main", &fake, &err) == 0, "%s", err.text);
    loop_set_current(loop);
    ck_assert_ptr_eq(loop_main, loop);
}

static void end(void)
{
    loop_destroy(loop);
    ck_assert_ptr_null(loop_main);
}

/* What happens in a turn. */

static void message_noted(struct loop_message *message)
{
    (void)message;
    note("m");
}

static void timer_noted(struct timer *timer)
{
    (void)timer;
    note("t");
}

static bool poller_noted(struct poller *poller)
{
    (void)poller;
    note("p");
    return false;
}

static void hook_noted(struct loop_hook *hook)
{
    (void)hook;
    note("h");
}

static void poller_is_gone(struct poller *poller)
{
    (void)poller;
    note("g");
}

static struct coroutine *sleeper;

static void coroutine_noted(void *arg)
{
    (void)arg;
    sleeper = coroutine_self();
    coroutine_yield();
    note("c");
}

START_TEST(order_of_phases)
{
    struct loop_hook hook = {.run = hook_noted};
    struct timer timer = {.expired = timer_noted};
    struct loop_message message = {.run = message_noted};
    struct poller poller = {.poll = poller_noted};

    begin();
    list_link_init(&hook.link);
    coroutine_start(loop, coroutine_noted, NULL);
    /* In the opposite order. */
    loop_hook_queue(loop, &hook);
    coroutine_wake(sleeper);
    poller_add(loop, &poller);
    timer_set(&timer, loop, clock_ns);
    loop_post(loop, &message);
    ck_assert(loop_turn(loop));
    ck_assert_str_eq(history, "mtpcRh");
    history[0] = 0;
    ck_assert(!loop_turn(loop));
    ck_assert_str_eq(history, "pR");
    history[0] = 0;
    poller_remove(&poller, poller_is_gone);
    ck_assert(!loop_turn(loop));
    ck_assert_str_eq(history, "gR");
    end();
}
END_TEST

/* What one phase causes for a later one happens in the same turn, for an earlier one in the next. */

static struct loop_hook chained_hook = {.run = hook_noted};
static struct loop_message chained_message = {.run = message_noted};

static void timer_causes(struct timer *timer)
{
    (void)timer;
    note("t");
    loop_post(loop, &chained_message);
    coroutine_wake(sleeper);
    loop_hook_queue(loop, &chained_hook);
    loop_hook_queue(loop, &chained_hook);
}

START_TEST(causes)
{
    struct timer timer = {.expired = timer_causes};

    begin();
    list_link_init(&chained_hook.link);
    coroutine_start(loop, coroutine_noted, NULL);
    timer_set(&timer, loop, clock_ns);
    loop_turn(loop);
    ck_assert_str_eq(history, "tcRh");
    loop_turn(loop);
    ck_assert_str_eq(history, "tcRhmR");
    end();
}
END_TEST

/* Hooks. */

static void hook_again(struct loop_hook *hook)
{
    note("h");
    if (strlen(history) < 3)
        loop_hook_queue(loop, hook);
}

START_TEST(a_hook_that_queues_itself)
{
    struct loop_hook hook = {.run = hook_again};

    begin();
    list_link_init(&hook.link);
    loop_hook_queue(loop, &hook);
    loop_turn(loop);
    ck_assert_str_eq(history, "Rhh");
    end();
}
END_TEST

/* Timers. */

struct mark {
    struct timer timer;
    uint64_t expired_at;
    unsigned count;
};

static uint64_t last_deadline;

static void mark_expired(struct timer *timer)
{
    struct mark *mark = container_of(timer, struct mark, timer);

    mark->expired_at = loop->now_ns;
    mark->count++;
    /* Those that are due in one turn come by deadline. */
    ck_assert_uint_ge(timer->deadline_ns, last_deadline);
    last_deadline = timer->deadline_ns;
}

START_TEST(many_timers)
{
    enum { COUNT = 500 };
    struct mark *marks = memory_array(COUNT, sizeof(*marks));
    unsigned random = 1;

    begin();
    clock_ns = 1000;
    for (unsigned i = 0; i < COUNT; i++) {
        random = random * 1103515245u + 12345u;
        marks[i].timer.expired = mark_expired;
        timer_set(&marks[i].timer, loop, 1000 + random / 65536 % 1000);
    }
    /* Every fifth is taken back, every seventh set to another time, as many times as it takes. */
    for (unsigned i = 0; i < COUNT; i += 5)
        timer_cancel(&marks[i].timer);
    for (unsigned i = 0; i < COUNT; i += 5)
        timer_cancel(&marks[i].timer);
    for (unsigned i = 1; i < COUNT; i += 7)
        timer_set(&marks[i].timer, loop, 2500 - i);
    for (; clock_ns <= 2600; clock_ns += 13) {
        ck_assert(timer_next(loop) > clock_ns - 13);
        loop_turn(loop);
        history[0] = 0;
    }
    ck_assert_uint_eq(timer_next(loop), UINT64_MAX);
    for (unsigned i = 0; i < COUNT; i++) {
        bool again = i % 7 == 1, dropped = i % 5 == 0 && !again;

        ck_assert_uint_eq(marks[i].count, !dropped);
        if (!dropped) {
            ck_assert_uint_ge(marks[i].expired_at, marks[i].timer.deadline_ns);
            ck_assert_uint_lt(marks[i].expired_at, marks[i].timer.deadline_ns + 13);
        }
    }
    free(marks);
    end();
}
END_TEST

static struct timer other_timer = {.expired = timer_noted};

static void timer_cancels(struct timer *timer)
{
    note("x");
    timer_cancel(&other_timer);
    timer_cancel(timer);
}

static void timer_repeats(struct timer *timer)
{
    note("r");
    timer_set(timer, loop, loop->now_ns + 10);
}

START_TEST(timers_change_timers)
{
    struct timer timer = {.expired = timer_cancels}, repeated = {.expired = timer_repeats};

    begin();
    timer_set(&timer, loop, 5);
    timer_set(&other_timer, loop, 6);
    timer_set(&repeated, loop, 1);
    clock_ns = 10;
    loop_turn(loop);
    /* The one is gone before its turn; the other is due again only later. */
    ck_assert_str_eq(history, "rxR");
    ck_assert_uint_eq(timer_next(loop), 20);
    timer_cancel(&repeated);
    end();
}
END_TEST

/* Pollers. */

struct source {
    struct poller poller;
    unsigned work, asked;
    bool gone;
};

static bool source_poll(struct poller *poller)
{
    struct source *source = container_of(poller, struct source, poller);

    source->asked++;
    if (!source->work)
        return false;
    source->work--;
    return true;
}

static void source_gone(struct poller *poller)
{
    container_of(poller, struct source, poller)->gone = true;
}

static void turns(unsigned count)
{
    while (count--)
        loop_turn(loop);
    history[0] = 0;
}

START_TEST(pollers_grow_cold)
{
    struct source busy = {.poller.poll = source_poll, .work = 1000}, idle = {.poller.poll = source_poll};

    begin();
    poller_add(loop, &busy.poller);
    poller_add(loop, &idle.poller);
    turns(COLD_AFTER);
    /* The idle one waits in the ring, and is not asked any more; the busy one is. */
    ck_assert_uint_eq(busy.asked, COLD_AFTER);
    ck_assert_uint_lt(idle.asked, COLD_AFTER);
    ck_assert_uint_eq(poll_count, 1);
    ck_assert(idle.poller.armed);
    unsigned asked = idle.asked;

    turns(5);
    ck_assert_uint_eq(idle.asked, asked);
    idle.work = 1;
    fake_ready(&idle.poller.op);
    turns(2);
    ck_assert_uint_eq(idle.asked, asked + 2);
    poller_remove(&idle.poller, source_gone);
    poller_remove(&busy.poller, source_gone);
    ck_assert(idle.gone && busy.gone);
    end();
}
END_TEST

START_TEST(a_cold_poller_is_heated)
{
    struct source source = {.poller.poll = source_poll};

    begin();
    poller_add(loop, &source.poller);
    turns(COLD_AFTER);
    unsigned asked = source.asked;

    /* Asked at once, whatever its descriptor says; the poll that is armed stays. */
    poller_heat(&source.poller);
    poller_heat(&source.poller);
    turns(1);
    ck_assert_uint_eq(source.asked, asked + 1);
    turns(COLD_AFTER);
    ck_assert_uint_eq(poll_count, 1);
    /* Removed while armed: gone only when the ring has let go. */
    poller_remove(&source.poller, source_gone);
    ck_assert(!source.gone);
    poller_heat(&source.poller);
    asked = source.asked;
    turns(1);
    ck_assert(source.gone);
    ck_assert_uint_eq(source.asked, asked);
    end();
}
END_TEST

static struct source *victim;

static bool source_removes(struct poller *poller)
{
    (void)poller;
    if (victim)
        poller_remove(&take_ptr(&victim)->poller, source_gone);
    return true;
}

START_TEST(a_poller_removes_others)
{
    struct source first = {.poller.poll = source_removes}, second = {.poller.poll = source_poll},
                  third = {.poller.poll = source_poll};

    begin();
    poller_add(loop, &first.poller);
    poller_add(loop, &second.poller);
    poller_add(loop, &third.poller);
    victim = &second;
    turns(1);
    ck_assert(second.gone);
    ck_assert_uint_eq(second.asked, 0);
    ck_assert_uint_eq(third.asked, 1);
    /* Itself. */
    victim = &first;
    turns(1);
    ck_assert(first.gone);
    ck_assert_uint_eq(third.asked, 2);
    poller_remove(&third.poller, source_gone);
    end();
}
END_TEST

static bool source_rests(struct poller *poller)
{
    container_of(poller, struct source, poller)->asked++;
    poller_rest(poller);
    return true;
}

START_TEST(a_poller_that_rests)
{
    struct source source = {.poller.poll = source_rests};

    begin();
    poller_add(loop, &source.poller);
    turns(COLD_AFTER);
    ck_assert_uint_eq(source.asked, 1);
    ck_assert_uint_eq(poll_count, 0);
    poller_heat(&source.poller);
    turns(3);
    ck_assert_uint_eq(source.asked, 2);
    poller_remove(&source.poller, source_gone);
    ck_assert(source.gone);
    end();
}
END_TEST

/* Messages. */

static void message_posts(struct loop_message *message)
{
    note("1");
    message->run = message_noted;
    loop_post(loop, message);
}

START_TEST(a_message_posted_again)
{
    struct loop_message first = {.run = message_posts}, second = {.run = message_noted};

    begin();
    loop_post(loop, &first);
    loop_post(loop, &second);
    loop_turn(loop);
    ck_assert_str_eq(history, "1mR");
    loop_turn(loop);
    ck_assert_str_eq(history, "1mRmR");
    end();
}
END_TEST

/* Sizes are powers of two of which some stay, the last one first; large ones, and too many, go. */
START_TEST(buffers_are_kept)
{
    struct loop_buffer some[40];
    void *small;

    begin();
    some[0] = loop_buffer_take(1);
    some[1] = loop_buffer_take(4097);
    ck_assert_uint_eq((uintptr_t)some[0].data % BUFFER_ALIGN, 0);
    ck_assert_uint_eq((uintptr_t)some[1].data % BUFFER_ALIGN, 0);
    memset(some[1].data, 1, 8192);
    small = some[0].data;
    loop_buffer_give(&some[0]);
    ck_assert_ptr_null(some[0].data);
    loop_buffer_give(&some[0]);
    loop_buffer_give(&some[1]);
    some[0] = loop_buffer_take(4096);
    ck_assert_ptr_eq(some[0].data, small);
    loop_buffer_give(&some[0]);
    for (unsigned i = 0; i < array_size(some); i++) {
        some[i] = loop_buffer_take(i % 4 ? 1 << 20 : (4 << 20) + 1);
        memset(some[i].data, 1, i % 4 ? 1 << 20 : (4 << 20) + 1);
    }
    for (unsigned i = 0; i < array_size(some); i++)
        loop_buffer_give(&some[i]);
    some[0] = loop_buffer_take(SIZE_MAX);
    ck_assert_ptr_null(some[0].data);
    loop_buffer_give(&some[0]);
    end();
}
END_TEST

int main(void)
{
    const TTest *const all[] = {order_of_phases,
                                causes,
                                many_timers,
                                timers_change_timers,
                                pollers_grow_cold,
                                a_cold_poller_is_heated,
                                a_poller_removes_others,
                                a_poller_that_rests,
                                a_message_posted_again,
                                buffers_are_kept,
                                a_hook_that_queues_itself};
    Suite *suite = suite_create("loop");
    TCase *tests = tcase_create("loop");

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
