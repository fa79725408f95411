/*
 * Batched writes into the page cache: see ring_writer.h.
 *
 * The loop pushes on todo, the pool thread takes the whole stack and pushes
 * groups of results on done; whoever pushes on an empty done stack posts the
 * message that makes the loop take it. While no pool thread has the task, todo
 * is &writer_nobody: who replaces that submits the task, and after putting it
 * there the pool thread touches nothing, so that the writer may be freed.
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

static struct writer_entry writer_nobody;

struct ring_writer {
    _Atomic(struct writer_entry *) todo, done;
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

/* Pushes the chain first ... last; returns what was on top. */
static const struct writer_entry *writer_push(_Atomic(struct writer_entry *) *stack, struct writer_entry *first,
                                              struct writer_entry *last)
{
    struct writer_entry *top = atomic_load_explicit(stack, memory_order_relaxed);

    do
        last->next = top == &writer_nobody ? NULL : top;
    while (!atomic_compare_exchange_weak(stack, &top, first));
    return top;
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
        if (!writer_push(&writer->done, group, last))
            loop_post(writer->loop, &writer->message);
    }
}

static void writer_run(struct pool_task *task)
{
    struct ring_writer *writer = container_of(task, struct ring_writer, task);

    for (unsigned i = 0; i < WRITER_ROUNDS; i++) {
        struct writer_entry *empty = NULL;

        writer_round(writer);
        if (atomic_compare_exchange_strong(&writer->todo, &empty, &writer_nobody))
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

void ring_writer_submit(struct ring_writer *writer, struct ring_op *op, int fd, const struct iovec *iov, unsigned count,
                        uint64_t offset, int rw_flags)
{
    struct writer_entry *entry = writer->idle;

    if (entry)
        writer->idle = entry->next;
    else
        entry = memory_new(struct writer_entry);
    *entry =
        (struct writer_entry){.op = op, .iov = iov, .offset = offset, .fd = fd, .count = (int)count, .flags = rw_flags};
    if (!writer->loop)
        writer->loop = loop_current();
    if (writer_push(&writer->todo, entry, entry) == &writer_nobody)
        thread_pool_submit(&writer->task);
}

struct ring_writer *ring_writer_new(void)
{
    struct ring_writer *writer = memory_new(struct ring_writer);

    atomic_store(&writer->todo, &writer_nobody);
    writer->task.run = writer_run;
    writer->message.run = writer_done;
    return writer;
}

void ring_writer_free(struct ring_writer *writer)
{
    if (!writer)
        return;
    /* The thread that answered the last write may still be on its way out. */
    while (atomic_load(&writer->todo) != &writer_nobody)
        sched_yield();
    while (writer->idle) {
        struct writer_entry *entry = writer->idle;

        writer->idle = entry->next;
        free(entry);
    }
    free(writer);
}
