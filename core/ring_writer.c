/*
 * Batched writes into the page cache: see ring_writer.h.
 *
 * The loop pushes on todo, the pool thread takes the whole stack and pushes
 * groups of results on done; whoever pushes on an empty done stack posts the
 * message that makes the loop take it.
 */
#include "core/ring_writer.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>

#include "core/loop.h"
#include "core/memory.h"
#include "core/ring.h"
#include "core/thread_pool.h"

/* Results that travel together: enough to spare wake-ups, few enough to keep the client busy. */
#define WRITER_GROUP 8u
/* Rounds before the thread goes back to the pool's queue, behind others who wait there. */
#define WRITER_ROUNDS 8u

struct writer_entry {
    struct writer_entry *next;
    struct ring_op *op;
    const struct iovec *iov;
    uint64_t offset;
    int fd, count, flags, result;
};

struct ring_writer {
    _Atomic(struct writer_entry *) todo, done;
    _Atomic bool running;           /* task is queued or runs */
    struct pool_task task;
    struct loop_message message;
    struct loop *loop;
    struct writer_entry *idle;      /* the loop's own */
};

static struct writer_entry *writer_take(_Atomic(struct writer_entry *) *stack)
{
    struct writer_entry *entry = atomic_exchange(stack, NULL), *in_order = NULL;

    while (entry) {
        struct writer_entry *next = entry->next;

        entry->next = in_order;
        in_order = entry;
        entry = next;
    }
    return in_order;
}

/* Pushes the chain first ... last; true if the stack was empty. */
static bool writer_push(_Atomic(struct writer_entry *) *stack, struct writer_entry *first, struct writer_entry *last)
{
    struct writer_entry *top = atomic_load_explicit(stack, memory_order_relaxed);

    do
        last->next = top;
    while (!atomic_compare_exchange_weak(stack, &top, first));
    return top == NULL;
}

static void writer_write(struct writer_entry *entry)
{
    ssize_t result;

    do
        result = pwritev2(entry->fd, entry->iov, entry->count, (off_t)entry->offset, entry->flags);
    while (result < 0 && errno == EINTR);
    entry->result = result < 0 ? -errno : (int)result;
}

static void writer_round(struct ring_writer *writer)
{
    struct writer_entry *entry = writer_take(&writer->todo);

    while (entry) {
        /* Pushed last first, so that taking the stack gives the order of arrival. */
        struct writer_entry *group = NULL, *last = NULL;

        for (unsigned i = 0; entry && i < WRITER_GROUP; i++) {
            struct writer_entry *next = entry->next;

            writer_write(entry);
            entry->next = group;
            group = entry;
            if (!last)
                last = entry;
            entry = next;
        }
        if (writer_push(&writer->done, group, last))
            loop_post(writer->loop, &writer->message);
    }
}

static void writer_run(struct pool_task *task)
{
    struct ring_writer *writer = container_of(task, struct ring_writer, task);

    for (unsigned i = 0; i < WRITER_ROUNDS && atomic_load(&writer->todo); i++)
        writer_round(writer);
    if (!atomic_load(&writer->todo)) {
        atomic_store(&writer->running, false);
        /* A push that came in between saw us running and relies on us. */
        if (!atomic_load(&writer->todo) || atomic_exchange(&writer->running, true))
            return;
    }
    thread_pool_submit(&writer->task);
}

static void writer_done(struct loop_message *message)
{
    struct ring_writer *writer = container_of(message, struct ring_writer, message);
    struct writer_entry *entry = writer_take(&writer->done);

    while (entry) {
        struct writer_entry *next = entry->next;
        struct ring_op *op = entry->op;
        int result = entry->result;

        entry->next = writer->idle;
        writer->idle = entry;
        op->complete(op, result);
        entry = next;
    }
}

void ring_writer_submit(struct ring_writer *writer, struct ring_op *op, int fd, const struct iovec *iov,
                        unsigned count, uint64_t offset, int rw_flags)
{
    struct writer_entry *entry = writer->idle;

    if (entry)
        writer->idle = entry->next;
    else
        entry = memory_new(struct writer_entry);
    *entry = (struct writer_entry){
        .op = op, .iov = iov, .offset = offset, .fd = fd, .count = (int)count, .flags = rw_flags};
    if (!writer->loop)
        writer->loop = loop_current();
    writer_push(&writer->todo, entry, entry);
    if (!atomic_load(&writer->running) && !atomic_exchange(&writer->running, true))
        thread_pool_submit(&writer->task);
}

struct ring_writer *ring_writer_new(void)
{
    struct ring_writer *writer = memory_new(struct ring_writer);

    writer->task.run = writer_run;
    writer->message.run = writer_done;
    return writer;
}

void ring_writer_free(struct ring_writer *writer)
{
    if (!writer)
        return;
    /* The thread that answered the last write may still be on its way out. */
    while (atomic_load(&writer->running))
        sched_yield();
    while (writer->idle) {
        struct writer_entry *entry = writer->idle;

        writer->idle = entry->next;
        free(entry);
    }
    free(writer);
}
