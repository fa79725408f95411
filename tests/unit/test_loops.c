/*
 * Loops in threads of their own: messages from many senders; how many loops
 * there can be.
 */
#include <check.h>
#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"

#define SENDERS 4u
#define MESSAGES 5000u

struct letter {
    struct loop_message message;
    unsigned sender, number;
};

static unsigned expected[SENDERS];
static _Atomic unsigned wrong;
static sem_t letters_read;

static void letter_read(struct loop_message *message)
{
    struct letter *letter = container_of(message, struct letter, message);

    if (letter->number != expected[letter->sender]++)
        atomic_fetch_add(&wrong, 1);
    if (letter->number == MESSAGES - 1)
        sem_post(&letters_read);
}

struct sender {
    pthread_t thread;
    struct loop *to;
    struct letter *letters;
    unsigned number;
};

static void *sender_main(void *arg)
{
    struct sender *sender = arg;

    for (unsigned i = 0; i < MESSAGES; i++) {
        sender->letters[i] = (struct letter){.message.run = letter_read, .sender = sender->number, .number = i};
        loop_post(sender->to, &sender->letters[i].message);
        /* So that it also falls asleep. */
        if (i % 1000 == 0)
            usleep(2000);
    }
    return NULL;
}

static void letters(enum loop_ring kind)
{
    AUTO_ERROR struct error err = {0};
    struct sender senders[SENDERS];
    struct loop *main_loop, *reader;

    loop_set_ring(kind);
    memset(expected, 0, sizeof(expected));
    sem_init(&letters_read, 0, 0);
    if (loop_create(&main_loop, "main", NULL, &err) < 0)
        return;     /* no io_uring here */
    ck_assert_int_eq(loop_create(&reader, "reader", NULL, &err), 0);
    ck_assert_int_eq(loop_start_thread(reader, &err), 0);
    for (unsigned i = 0; i < SENDERS; i++) {
        senders[i] =
            (struct sender){.to = reader, .number = i, .letters = memory_array(MESSAGES, sizeof(struct letter))};
        ck_assert_int_eq(pthread_create(&senders[i].thread, NULL, sender_main, &senders[i]), 0);
    }
    for (unsigned i = 0; i < SENDERS; i++)
        sem_wait(&letters_read);
    for (unsigned i = 0; i < SENDERS; i++)
        pthread_join(senders[i].thread, NULL);
    loop_stop_thread(reader);
    loop_destroy(reader);
    loop_destroy(main_loop);
    for (unsigned i = 0; i < SENDERS; i++) {
        ck_assert_uint_eq(expected[i], MESSAGES);
        free(senders[i].letters);
    }
    ck_assert_uint_eq(wrong, 0);
    sem_destroy(&letters_read);
}

START_TEST(messages_of_each_thread_in_order)
{
    letters(LOOP_RING_URING);
    letters(LOOP_RING_THREADS);
}
END_TEST

/* Leavers: one that leaves at once, and one that takes its time. */

struct stayer {
    struct loop_leaver leaver;
    struct timer timer;
    struct loop_message message;
    struct loop *loop;
    bool slow;
    _Atomic unsigned told, left, late;
};

static void stayer_late(struct loop_message *message)
{
    atomic_fetch_add(&container_of(message, struct stayer, message)->late, 1);
}

/* What is posted as the last thing is still read. */
static void stayer_left(struct stayer *stayer)
{
    ck_assert_ptr_eq(loop_current(), stayer->loop);
    loop_leave(&stayer->leaver);
    stayer->message.run = stayer_late;
    loop_post(stayer->loop, &stayer->message);
    atomic_fetch_add(&stayer->left, 1);
}

static void stayer_timer(struct timer *timer)
{
    stayer_left(container_of(timer, struct stayer, timer));
}

static void stayer_told(struct loop_leaver *leaver)
{
    struct stayer *stayer = container_of(leaver, struct stayer, leaver);

    atomic_fetch_add(&stayer->told, 1);
    stayer->timer.expired = stayer_timer;
    if (stayer->slow)
        timer_set(&stayer->timer, stayer->loop, stayer->loop->now_ns + 20000000);
    else
        stayer_left(stayer);
}

static void leavers(enum loop_ring kind)
{
    AUTO_ERROR struct error err = {0};
    struct stayer stayers[3] = {{.slow = true}, {.slow = false}, {.slow = true}};
    struct loop *main_loop, *loop;

    loop_set_ring(kind);
    ck_assert_int_eq(loop_create(&main_loop, "main", NULL, &err), 0);
    ck_assert_int_eq(loop_create(&loop, "io", NULL, &err), 0);
    for (unsigned i = 0; i < array_size(stayers); i++) {
        stayers[i].loop = loop;
        stayers[i].leaver.leave = stayer_told;
        loop_stay(loop, &stayers[i].leaver);
    }
    ck_assert_int_eq(loop_start_thread(loop, &err), 0);
    usleep(10000);
    for (unsigned i = 0; i < array_size(stayers); i++)
        ck_assert_uint_eq(atomic_load(&stayers[i].told), 0);
    loop_stop_thread(loop);
    for (unsigned i = 0; i < array_size(stayers); i++) {
        ck_assert_uint_eq(atomic_load(&stayers[i].told), 1);
        ck_assert_uint_eq(atomic_load(&stayers[i].left), 1);
        ck_assert_uint_eq(atomic_load(&stayers[i].late), 1);
    }
    loop_destroy(loop);
    loop_destroy(main_loop);
}

START_TEST(the_thread_waits_for_those_who_stay)
{
    leavers(LOOP_RING_THREADS);
    leavers(LOOP_RING_AUTO);
}
END_TEST

START_TEST(at_most_so_many_loops)
{
    AUTO_ERROR struct error err = {0};
    struct loop *all[LOOP_MAX], *more;

    loop_set_ring(LOOP_RING_THREADS);
    for (unsigned i = 0; i < LOOP_MAX; i++) {
        ck_assert_int_eq(loop_create(&all[i], "loop", NULL, &err), 0);
        ck_assert_uint_eq(all[i]->index, i);
    }
    ck_assert_int_eq(loop_create(&more, "more", NULL, &err), -EAGAIN);
    ck_assert_ptr_nonnull(strstr(err.text, "63"));
    loop_destroy(all[7]);
    error_clear(&err);
    ck_assert_int_eq(loop_create(&all[7], "again", NULL, &err), 0);
    ck_assert_uint_eq(all[7]->index, 7);
    for (unsigned i = LOOP_MAX; i > 0; i--)
        loop_destroy(all[i - 1]);
}
END_TEST

int main(void)
{
    const TTest *const all[] = {messages_of_each_thread_in_order, the_thread_waits_for_those_who_stay,
                                at_most_so_many_loops};
    Suite *suite = suite_create("loops");
    TCase *tests = tcase_create("loops");

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
