/*
 * The ring where io_uring is refused: system calls on the thread pool,
 * readiness through the loop's libevent base. Same semantics as
 * ring_uring.c, some microseconds slower for each operation.
 */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/error.h"
#include "core/list.h"
#include "core/memory.h"
#include "core/ring.h"
#include "core/thread_pool.h"

enum threads_call { THREADS_READ, THREADS_WRITE, THREADS_FSYNC, THREADS_FDATASYNC, THREADS_FALLOCATE, THREADS_FN };

struct threads_ring;

/* One operation; kept for reuse by its ring. */
struct threads_task {
    struct pool_task task;
    struct threads_task *next;      /* done or idle list */
    struct threads_ring *ring;
    struct ring_op *op;
    int (*fn)(void *arg);
    void *arg;
    const struct iovec *iov;
    uint64_t offset, length;
    enum threads_call call;
    int fd, count, flags, result;
};

/* One poll; kept for reuse as well. */
struct threads_poll {
    struct list_link link;          /* in polls, ended or idle_polls of its ring */
    struct threads_ring *ring;
    struct ring_op *op;
    struct event *event;
    int result;
};

struct threads_ring {
    struct ring ring;
    struct event_base *events;
    int wake_fd;
    struct event *wake_event;
    pthread_mutex_t mutex;
    struct threads_task *done, **done_tail;     /* under the mutex */
    /* The loop's own: */
    struct threads_task *idle;
    struct list polls, ended, idle_polls;       /* ended: to be completed by reap() */
};

static struct threads_ring *threads_of(struct ring *ring)
{
    return container_of(ring, struct threads_ring, ring);
}

static int threads_do(struct threads_task *task)
{
    ssize_t result;

    do {
        switch (task->call) {
        case THREADS_READ:
            result = preadv2(task->fd, task->iov, task->count, (off_t)task->offset, task->flags);
            break;
        case THREADS_WRITE:
            result = pwritev2(task->fd, task->iov, task->count, (off_t)task->offset, task->flags);
            break;
        case THREADS_FSYNC:
            result = fsync(task->fd);
            break;
        case THREADS_FDATASYNC:
            result = fdatasync(task->fd);
            break;
        case THREADS_FALLOCATE:
            result = fallocate(task->fd, task->flags, (off_t)task->offset, (off_t)task->length);
            break;
        default:
            return task->fn(task->arg);
        }
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : (int)result;
}

/* On a pool thread. */
static void threads_run(struct pool_task *pool_task)
{
    struct threads_task *task = container_of(pool_task, struct threads_task, task);
    struct threads_ring *ring = task->ring;

    task->result = threads_do(task);
    task->next = NULL;
    pthread_mutex_lock(&ring->mutex);
    bool first = ring->done == NULL;
    *ring->done_tail = task;
    ring->done_tail = &task->next;
    /* Under the mutex: once reap() has the task, the ring may be gone. */
    if (first)
        eventfd_write(ring->wake_fd, 1);
    pthread_mutex_unlock(&ring->mutex);
}

static struct threads_task *threads_task(struct ring *ring, struct ring_op *op, enum threads_call call)
{
    struct threads_ring *threads = threads_of(ring);
    struct threads_task *task = threads->idle;

    if (task)
        threads->idle = task->next;
    else
        task = memory_new(struct threads_task);
    *task = (struct threads_task){.task.run = threads_run, .ring = threads, .op = op, .call = call};
    return task;
}

static void threads_rw(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov,
                       unsigned count, uint64_t offset, int rw_flags)
{
    struct threads_task *task = threads_task(ring, op, write ? THREADS_WRITE : THREADS_READ);

    task->fd = fd;
    task->iov = iov;
    task->count = (int)count;
    task->offset = offset;
    task->flags = rw_flags & ~RING_FLAGS;
    thread_pool_submit(&task->task);
}

static void threads_fsync(struct ring *ring, struct ring_op *op, int fd, bool data_only)
{
    struct threads_task *task = threads_task(ring, op, data_only ? THREADS_FDATASYNC : THREADS_FSYNC);

    task->fd = fd;
    thread_pool_submit(&task->task);
}

static void threads_fallocate(struct ring *ring, struct ring_op *op, int fd, int mode, uint64_t offset, uint64_t length)
{
    struct threads_task *task = threads_task(ring, op, THREADS_FALLOCATE);

    task->fd = fd;
    task->flags = mode;
    task->offset = offset;
    task->length = length;
    thread_pool_submit(&task->task);
}

static void threads_call(struct ring *ring, struct ring_op *op, int (*fn)(void *arg), void *arg)
{
    struct threads_task *task = threads_task(ring, op, THREADS_FN);

    task->fn = fn;
    task->arg = arg;
    thread_pool_submit(&task->task);
}

static void threads_poll_end(struct threads_poll *poll, int result)
{
    list_remove(&poll->link);
    event_del(poll->event);
    poll->result = result;
    list_append(&poll->ring->ended, &poll->link);
}

static void threads_poll_event(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    threads_poll_end(arg, (what & EV_READ ? POLLIN : 0) | (what & EV_WRITE ? POLLOUT : 0));
}

static struct threads_poll *threads_poll_new(struct threads_ring *ring)
{
    struct threads_poll *poll = list_first(&ring->idle_polls, struct threads_poll, link);

    if (poll) {
        list_remove(&poll->link);
        return poll;
    }
    poll = memory_new(struct threads_poll);
    poll->ring = ring;
    poll->event = event_new(ring->events, -1, 0, threads_poll_event, poll);
    if (!poll->event)
        abort();
    return poll;
}

static void threads_poll(struct ring *ring, struct ring_op *op, int fd, unsigned events)
{
    struct threads_ring *threads = threads_of(ring);
    struct threads_poll *poll = threads_poll_new(threads);
    short what = (short)((events & POLLIN ? EV_READ : 0) | (events & POLLOUT ? EV_WRITE : 0));

    poll->op = op;
    list_append(&threads->polls, &poll->link);
    event_assign(poll->event, threads->events, fd, what, threads_poll_event, poll);
    if (event_add(poll->event, NULL) == 0)
        return;
    /* A file that cannot be waited for is always ready, as poll(2) has it. The loop does not sleep on what has ended. */
    threads_poll_end(poll, errno == EPERM ? (int)(events & (POLLIN | POLLOUT)) : -errno);
}

static void threads_cancel_poll(struct ring *ring, struct ring_op *op)
{
    struct threads_ring *threads = threads_of(ring);
    struct threads_poll *poll;

    list_for_each(poll, &threads->polls, link) {
        if (poll->op == op) {
            threads_poll_end(poll, -ECANCELED);
            return;
        }
    }
}

/* Those that had ended before: what they do may end others, which are for the next turn. */
static unsigned threads_complete_polls(struct threads_ring *ring)
{
    struct threads_poll *poll;
    struct list ended;
    unsigned count = 0;

    list_init(&ended);
    list_splice(&ended, &ring->ended);
    for (; (poll = list_first(&ended, struct threads_poll, link)); count++) {
        list_remove(&poll->link);
        list_append(&ring->idle_polls, &poll->link);
        poll->op->complete(poll->op, poll->result);
    }
    return count;
}

static unsigned threads_reap(struct ring *ring)
{
    struct threads_ring *threads = threads_of(ring);
    unsigned count = threads_complete_polls(threads);

    pthread_mutex_lock(&threads->mutex);
    struct threads_task *task = take_ptr(&threads->done);
    threads->done_tail = &threads->done;
    pthread_mutex_unlock(&threads->mutex);
    for (; task; count++) {
        struct threads_task *next = task->next;
        struct ring_op *op = task->op;
        int result = task->result;

        task->next = threads->idle;
        threads->idle = task;
        op->complete(op, result);
        task = next;
    }
    return count;
}

static void threads_wake(struct ring *ring)
{
    eventfd_write(threads_of(ring)->wake_fd, 1);
}

static void threads_wake_event(evutil_socket_t fd, short what, void *arg)
{
    eventfd_t value;

    (void)what;
    (void)arg;
    eventfd_read((int)fd, &value);
}

static uint64_t threads_now(struct ring *ring)
{
    (void)ring;
    return ring_clock();
}

static void threads_destroy(struct ring *ring)
{
    struct threads_ring *threads = threads_of(ring);
    struct threads_poll *poll;

    /* A pool thread may still be about to leave the mutex. */
    pthread_mutex_lock(&threads->mutex);
    pthread_mutex_unlock(&threads->mutex);
    while (threads->idle) {
        struct threads_task *task = threads->idle;

        threads->idle = task->next;
        free(task);
    }
    while ((poll = list_first(&threads->idle_polls, struct threads_poll, link))) {
        list_remove(&poll->link);
        event_free(poll->event);
        free(poll);
    }
    if (threads->wake_event)
        event_free(threads->wake_event);
    if (threads->wake_fd >= 0)
        close(threads->wake_fd);
    pthread_mutex_destroy(&threads->mutex);
    free(threads);
}

static const struct ring_ops threads_ops = {
    .name = "threads",
    .rw = threads_rw,
    .fsync = threads_fsync,
    .fallocate = threads_fallocate,
    .poll = threads_poll,
    .cancel_poll = threads_cancel_poll,
    .call = threads_call,
    .reap = threads_reap,
    .wake = threads_wake,
    .now = threads_now,
    .destroy = threads_destroy,
};

int ring_threads_create(struct ring **ret, struct event_base *events, struct error *err)
{
    struct threads_ring *threads = memory_new(struct threads_ring);

    threads->ring.ops = &threads_ops;
    threads->events = events;
    threads->done_tail = &threads->done;
    list_init(&threads->polls);
    list_init(&threads->ended);
    list_init(&threads->idle_polls);
    pthread_mutex_init(&threads->mutex, NULL);
    threads->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (threads->wake_fd >= 0)
        threads->wake_event = event_new(events, threads->wake_fd, EV_READ | EV_PERSIST, threads_wake_event, NULL);
    if (!threads->wake_event || event_add(threads->wake_event, NULL) < 0) {
        threads_destroy(&threads->ring);
        return error_set(err, -ENOMEM, "Cannot create an eventfd for the thread ring");
    }
    *ret = &threads->ring;
    return 0;
}
