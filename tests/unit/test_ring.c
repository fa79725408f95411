/*
 * Rings: io_uring and threads keep the same promises, on the main loop, which
 * sleeps in libevent, and on I/O loops.
 */
#include <check.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/ring.h"

/* One loop of each kind; test functions run once for each. */
static const struct ring_case {
    enum loop_ring kind;
    bool io;            /* an I/O loop beside the main loop */
    const char *name;
} cases[] = {
    {LOOP_RING_URING, false, "io_uring"},
    {LOOP_RING_URING, true, "io_uring"},
    {LOOP_RING_THREADS, false, "threads"},
    {LOOP_RING_THREADS, true, "threads"},
};

static struct loop *loop;
static struct ring *ring;

static bool start(int index)
{
    AUTO_ERROR struct error err = {0};
    const struct ring_case *one = &cases[index];
    struct loop *main_loop;

    loop_set_ring(LOOP_RING_THREADS);
    ck_assert_int_eq(loop_create(&main_loop, "main", NULL, &err), 0);
    if (!one->io) {
        loop_destroy(main_loop);
    }
    loop_set_ring(one->kind);
    if (loop_create(&loop, one->io ? "io" : "main", NULL, &err) < 0) {
        ck_assert_int_eq(one->kind, LOOP_RING_URING);
        return false;       /* refused here */
    }
    loop_set_current(loop);
    ring = loop->ring;
    ck_assert_str_eq(ring->ops->name, one->name);
    return true;
}

struct answer {
    struct ring_op op;
    int result, count;
};

static void answered(struct ring_op *op, int result)
{
    struct answer *answer = container_of(op, struct answer, op);

    ck_assert_ptr_eq(loop_current(), loop);
    answer->result = result;
    answer->count++;
}

#define ANSWER                  \
    {                           \
        .op.complete = answered \
    }

static void turn(void)
{
    if (loop->events)
        event_base_loop(loop->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    if (!loop_turn(loop))
        usleep(50);
}

static int wait_for(struct answer *answer)
{
    ck_assert_int_eq(answer->count, 0);     /* never from inside the call */
    while (!answer->count)
        turn();
    for (int i = 0; i < 3; i++)
        turn();
    ck_assert_int_eq(answer->count, 1);
    return answer->result;
}

static int scratch_file(void)
{
    char name[] = "/tmp/cairn-ring-XXXXXX";
    int fd = mkstemp(name);

    ck_assert_int_ge(fd, 0);
    unlink(name);
    return fd;
}

static int rw(bool write, int fd, void *data, size_t size, uint64_t offset, int flags)
{
    struct answer answer = ANSWER;
    struct iovec iov = {.iov_base = data, .iov_len = size};

    ring->ops->rw(ring, &answer.op, write, fd, &iov, 1, offset, flags);
    return wait_for(&answer);
}

START_TEST(read_and_write)
{
    AUTO_CLOSE int fd = scratch_file();
    char text[8] = "";

    if (!start(_i))
        return;
    ck_assert_int_eq(rw(true, fd, (char[]){"abcdef"}, 6, 10, 0), 6);
    ck_assert_int_eq(rw(false, fd, text, 4, 11, 0), 4);
    ck_assert_str_eq(text, "bcde");
    ck_assert_int_eq(rw(false, fd, text, 4, 14, 0), 2);     /* short at the end of the file */
    ck_assert_int_eq(rw(false, fd, text, 4, 16, 0), 0);
    ck_assert_int_eq(rw(true, fd, (char[]){"X"}, 1, 0, RWF_DSYNC), 1);
    ck_assert_int_eq(rw(true, fd, (char[]){"Y"}, 1, 1, RING_CACHED), 1);
    ck_assert_int_eq(rw(false, fd, text, 2, 0, 0), 2);
    ck_assert_int_eq(memcmp(text, "XY", 2), 0);
    ck_assert_int_eq(rw(false, -1, text, 4, 0, 0), -EBADF);
    ck_assert_int_eq(rw(true, fd, NULL, 4, 0, 0), -EFAULT);
}
END_TEST

START_TEST(vectors)
{
    AUTO_CLOSE int fd = scratch_file();
    char a[3] = "ab", b[3] = "cd", c[3] = "ef", all[8] = "";
    struct iovec iov[] = {{a, 2}, {b, 2}, {c, 2}};
    struct answer written = ANSWER, got = ANSWER;

    if (!start(_i))
        return;
    ring->ops->rw(ring, &written.op, true, fd, iov, 3, 5, 0);
    ck_assert_int_eq(wait_for(&written), 6);
    ck_assert_int_eq(pread(fd, all, 7, 5), 6);
    ck_assert_str_eq(all, "abcdef");
    memset(b, 0, sizeof(b));
    ring->ops->rw(ring, &got.op, false, fd, iov, 3, 6, 0);
    ck_assert_int_eq(wait_for(&got), 5);
    ck_assert(!memcmp(a, "bc", 2) && !memcmp(b, "de", 2) && !memcmp(c, "ff", 2));
}
END_TEST

START_TEST(sync_and_allocate)
{
    AUTO_CLOSE int fd = scratch_file();
    struct answer answers[5] = {ANSWER, ANSWER, ANSWER, ANSWER, ANSWER};

    if (!start(_i))
        return;
    ring->ops->fsync(ring, &answers[0].op, fd, true);
    ck_assert_int_eq(wait_for(&answers[0]), 0);
    ring->ops->fsync(ring, &answers[1].op, fd, false);
    ck_assert_int_eq(wait_for(&answers[1]), 0);
    ring->ops->fallocate(ring, &answers[2].op, fd, 0, 0, 65536);
    ck_assert_int_eq(wait_for(&answers[2]), 0);
    ck_assert_int_eq(lseek(fd, 0, SEEK_END), 65536);
    ring->ops->fallocate(ring, &answers[3].op, fd, 0, 0, 0);
    ck_assert_int_eq(wait_for(&answers[3]), -EINVAL);
    ring->ops->fsync(ring, &answers[4].op, -1, true);
    ck_assert_int_eq(wait_for(&answers[4]), -EBADF);
}
END_TEST

START_TEST(readiness)
{
    struct answer in = ANSWER, out = ANSWER, hangup = ANSWER, file = ANSWER;
    AUTO_CLOSE int fd = scratch_file();
    int ends[2];

    if (!start(_i))
        return;
    ck_assert_int_eq(pipe(ends), 0);
    ring->ops->poll(ring, &in.op, ends[0], POLLIN);
    ring->ops->poll(ring, &out.op, ends[1], POLLOUT);
    ck_assert_int_eq(wait_for(&out) & (POLLIN | POLLOUT), POLLOUT);
    ck_assert_int_eq(in.count, 0);
    ck_assert_int_eq(write(ends[1], "x", 1), 1);
    ck_assert_int_eq(wait_for(&in) & (POLLIN | POLLOUT), POLLIN);
    ck_assert_int_eq(read(ends[0], (char[1]){0}, 1), 1);
    ring->ops->poll(ring, &hangup.op, ends[0], POLLIN);
    turn();
    ck_assert_int_eq(hangup.count, 0);
    close(ends[1]);
    ck_assert_int_gt(wait_for(&hangup), 0);
    close(ends[0]);
    ring->ops->poll(ring, &file.op, fd, POLLIN);
    ck_assert_int_eq(wait_for(&file), POLLIN);
}
END_TEST

START_TEST(cancelled_polls)
{
    struct answer answers[50];
    int ends[2];

    if (!start(_i))
        return;
    ck_assert_int_eq(pipe(ends), 0);
    for (int round = 0; round < 20; round++) {
        for (unsigned i = 0; i < array_size(answers); i++) {
            answers[i] = (struct answer)ANSWER;
            ring->ops->poll(ring, &answers[i].op, ends[0], POLLIN);
        }
        if (round % 2)
            turn();
        for (unsigned i = 0; i < array_size(answers); i++)
            ring->ops->cancel_poll(ring, &answers[(i * 7) % array_size(answers)].op);
        for (unsigned i = 0; i < array_size(answers); i++) {
            while (!answers[i].count)
                turn();
            ck_assert_int_eq(answers[i].result, -ECANCELED);
        }
    }
    turn();
    for (unsigned i = 0; i < array_size(answers); i++)
        ck_assert_int_eq(answers[i].count, 1);
    close(ends[0]);
    close(ends[1]);
}
END_TEST

/* Ready and cancelled in one turn: one end, either of the two. */
START_TEST(cancel_of_a_ready_poll)
{
    if (!start(_i))
        return;
    for (int round = 0; round < 50; round++) {
        struct answer answer = ANSWER;
        AUTO_CLOSE int fd = eventfd(0, EFD_CLOEXEC);

        ring->ops->poll(ring, &answer.op, fd, POLLIN);
        turn();
        eventfd_write(fd, 1);
        if (round % 2 && loop->events)
            event_base_loop(loop->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        ring->ops->cancel_poll(ring, &answer.op);
        int result = wait_for(&answer);

        ck_assert(result == -ECANCELED || result == POLLIN);
    }
}
END_TEST

static int other_thread(void *arg)
{
    pthread_t *loop_thread = arg;

    return pthread_equal(pthread_self(), *loop_thread) ? 0 : 42;
}

static int wait_for_semaphore(void *arg)
{
    while (sem_wait(arg) < 0 && errno == EINTR)
        continue;
    return 1;
}

static int post_semaphore(void *arg)
{
    sem_post(arg);
    return 2;
}

START_TEST(calls)
{
    struct answer answer = ANSWER, answers[21] = {0};
    pthread_t self = pthread_self();
    sem_t semaphore;

    if (!start(_i))
        return;
    ring->ops->call(ring, &answer.op, other_thread, &self);
    ck_assert_int_eq(wait_for(&answer), 42);
    sem_init(&semaphore, 0, 0);
    /* There is an idle thread now. A call that blocks keeps nobody behind it waiting. */
    for (int i = 0; i < 2; i++) {
        answers[i] = (struct answer)ANSWER;
        ring->ops->call(ring, &answers[i].op, i ? post_semaphore : wait_for_semaphore, &semaphore);
    }
    while (!answers[0].count || !answers[1].count)
        turn();
    ck_assert(answers[0].result == 1 && answers[1].result == 2);
    /* More than there are threads: the rest waits, the loop does not. */
    for (unsigned i = 0; i < array_size(answers); i++) {
        answers[i] = (struct answer)ANSWER;
        ring->ops->call(ring, &answers[i].op, wait_for_semaphore, &semaphore);
    }
    for (int i = 0; i < 20; i++)
        turn();
    for (unsigned i = 0; i < array_size(answers); i++)
        ck_assert_int_eq(answers[i].count, 0);
    for (unsigned i = 0; i < array_size(answers); i++)
        sem_post(&semaphore);
    for (unsigned i = 0; i < array_size(answers); i++) {
        while (!answers[i].count)
            turn();
    }
    sem_destroy(&semaphore);
}
END_TEST

/* What goes beyond the limit reaches the kernel at once, the rest at the end of the turn. */
START_TEST(batches)
{
    struct answer answers[21];
    eventfd_t one = 1, sum = 0;
    struct iovec iov = {&one, sizeof(one)};
    AUTO_CLOSE int fd = eventfd(0, EFD_NONBLOCK);

    if (!start(_i) || !cases[_i].io || cases[_i].kind != LOOP_RING_URING)
        return;
    for (unsigned batch_max = 0; batch_max <= 5; batch_max++) {
        unsigned together = batch_max ? batch_max : 8;

        ring->batch_max = batch_max;
        for (unsigned i = 0; i < array_size(answers); i++) {
            answers[i] = (struct answer)ANSWER;
            ring->ops->rw(ring, &answers[i].op, true, fd, &iov, 1, 0, 0);
        }
        sum = 0;
        eventfd_read(fd, &sum);
        ck_assert_uint_eq(sum, (array_size(answers) - 1) / together * together);
        for (unsigned i = 0; i < array_size(answers); i++) {
            while (!answers[i].count)
                turn();
            ck_assert_int_eq(answers[i].result, sizeof(one));
        }
        eventfd_read(fd, &sum);
    }
}
END_TEST

#define FILES 200u

static int transfer(bool write, int fd, uint32_t *value, int flags)
{
    struct answer answer = ANSWER;
    struct iovec iov = {value, sizeof(*value)};

    ring->ops->rw(ring, &answer.op, write, fd, &iov, 1, 0, flags);
    while (!answer.count)
        turn();
    return answer.result;
}

static void forget(int fd)
{
    if (ring->ops->forget)
        ring->ops->forget(ring, fd);
}

/* More files than the kernel's table has places; then others that have the same descriptors. */
START_TEST(kept_files)
{
    int first[FILES];
    uint32_t value;

    if (!start(_i))
        return;
    for (uint32_t i = 0; i < FILES; i++) {
        first[i] = scratch_file();
        ck_assert_int_eq(transfer(true, first[i], &i, RING_KEPT), sizeof(i));
    }
    for (uint32_t i = 0; i < FILES; i++) {
        AUTO_CLOSE int old = fcntl(first[i], F_DUPFD_CLOEXEC, 1000), second = scratch_file();

        forget(first[i]);
        ck_assert_int_eq(dup3(second, first[i], O_CLOEXEC), first[i]);
        value = ~i;
        ck_assert_int_eq(transfer(true, first[i], &value, RING_KEPT), sizeof(value));
        ck_assert_int_eq(transfer(false, second, &value, 0), sizeof(value));
        ck_assert_uint_eq(value, ~i);
        ck_assert_int_eq(transfer(false, old, &value, 0), sizeof(value));
        ck_assert_uint_eq(value, i);
    }
    for (uint32_t i = 0; i < FILES; i++) {
        forget(first[i]);
        close(first[i]);
    }
}
END_TEST

#define MANY 3000

START_TEST(many)
{
    AUTO_CLOSE int fd = scratch_file();
    AUTO_FREE struct answer *answers = memory_array(MANY, sizeof(*answers));
    AUTO_FREE struct iovec *iov = memory_array(MANY, sizeof(*iov));
    AUTO_FREE uint32_t *numbers = memory_array(MANY, sizeof(*numbers));

    if (!start(_i))
        return;
    for (int write = 1; write >= 0; write--) {
        for (unsigned i = 0; i < MANY; i++) {
            answers[i] = (struct answer)ANSWER;
            numbers[i] = write ? i : UINT32_MAX;
            iov[i] = (struct iovec){&numbers[i], sizeof(numbers[i])};
            ring->ops->rw(ring, &answers[i].op, write, fd, &iov[i], 1, i * sizeof(numbers[i]), 0);
        }
        for (unsigned i = 0; i < MANY; i++) {
            while (!answers[i].count)
                turn();
            ck_assert_int_eq(answers[i].result, sizeof(numbers[i]));
            ck_assert_uint_eq(numbers[i], i);
        }
    }
    for (unsigned i = 0; i < MANY; i++)
        ck_assert_int_eq(answers[i].count, 1);
}
END_TEST

/* Two loops with threads of their own: each message must wake the other. */
#define ROUNDS 3000

struct ball {
    struct loop_message message;
    struct loop *players[2];
    struct timer timer;
    int passes;
    sem_t done;
};

static void ball_expired(struct timer *timer)
{
    sem_post(&container_of(timer, struct ball, timer)->done);
}

static void ball_hit(struct loop_message *message)
{
    struct ball *ball = container_of(message, struct ball, message);

    ck_assert_ptr_eq(loop_current(), ball->players[ball->passes % 2]);
    if (++ball->passes < ROUNDS)
        loop_post(ball->players[ball->passes % 2], message);
    else
        timer_set(&ball->timer, loop_current(), loop_current()->now_ns + 2000000);
}

START_TEST(wakes)
{
    AUTO_ERROR struct error err = {0};
    struct ball ball = {.message.run = ball_hit, .timer.expired = ball_expired};

    if (!start(_i))
        return;
    sem_init(&ball.done, 0, 0);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(loop_create(&ball.players[i], i ? "b" : "a", NULL, &err), 0);
        ck_assert_int_eq(loop_start_thread(ball.players[i], &err), 0);
    }
    loop_post(ball.players[0], &ball.message);
    wait_for_semaphore(&ball.done);
    ck_assert_int_eq(ball.passes, ROUNDS);
    for (int i = 0; i < 2; i++) {
        loop_stop_thread(ball.players[i]);
        loop_destroy(ball.players[i]);
    }
    sem_destroy(&ball.done);
}
END_TEST

/* What a loop is given while it sleeps in its ring or in libevent ends its sleep. */
struct sleeper {
    struct loop_message message;
    struct answer answer;
    struct poller poller;
    int fd, got;
    sem_t done;
};

static bool sleeper_poll(struct poller *poller)
{
    struct sleeper *sleeper = container_of(poller, struct sleeper, poller);
    eventfd_t value;

    if (eventfd_read(sleeper->fd, &value) < 0)
        return false;
    sleeper->got += (int)value;
    sem_post(&sleeper->done);
    return true;
}

static void sleeper_removed(struct poller *poller)
{
    sem_post(&container_of(poller, struct sleeper, poller)->done);
}

static void sleeper_begin(struct loop_message *message)
{
    poller_add(loop_current(), &container_of(message, struct sleeper, message)->poller);
}

static void sleeper_end(struct loop_message *message)
{
    poller_remove(&container_of(message, struct sleeper, message)->poller, sleeper_removed);
}

START_TEST(pollers)
{
    AUTO_ERROR struct error err = {0};
    struct sleeper sleeper = {.fd = eventfd(0, EFD_NONBLOCK), .message.run = sleeper_begin};
    struct loop *other;

    if (!start(_i))
        return;
    sleeper.poller.fd = sleeper.fd;
    sleeper.poller.poll = sleeper_poll;
    sem_init(&sleeper.done, 0, 0);
    ck_assert_int_eq(loop_create(&other, "sleeper", NULL, &err), 0);
    ck_assert_int_eq(loop_start_thread(other, &err), 0);
    loop_post(other, &sleeper.message);
    for (int i = 0; i < 200; i++) {
        if (i % 3 == 0)
            usleep(1000);
        eventfd_write(sleeper.fd, 1);
        wait_for_semaphore(&sleeper.done);
    }
    ck_assert_int_eq(sleeper.got, 200);
    sleeper.message.run = sleeper_end;
    loop_post(other, &sleeper.message);
    wait_for_semaphore(&sleeper.done);
    loop_stop_thread(other);
    loop_destroy(other);
    close(sleeper.fd);
    sem_destroy(&sleeper.done);
}
END_TEST

int main(void)
{
    const TTest *const all[] = {
        read_and_write, vectors, sync_and_allocate, readiness, cancelled_polls, cancel_of_a_ready_poll,
        calls,          batches, kept_files,        many,      wakes,           pollers,
    };
    Suite *suite = suite_create("ring");
    TCase *tests = tcase_create("ring");

    for (unsigned i = 0; i < array_size(all); i++)
        tcase_add_loop_test(tests, all[i], 0, (int)array_size(cases));
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
