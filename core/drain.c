/*
 * Drain: see drain.h. The main loop asks every loop by message to pause the
 * consumers, and the nodes below them to let go of what they hold; each answers
 * when nothing of theirs is in flight there. Plain stores by the main loop in
 * between are ordered by these messages.
 */
#include "core/drain.h"

#include <errno.h>
#include <string.h>

#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/drain_loop.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/trace.h"

struct drain_loop {
    struct loop_message pause, quiet, resume, resumed;     /* a late loop may find both in its inbox */
    struct drain *drain;
    struct loop *loop;
    unsigned pending;       /* the loop's own: consumers with units in flight */
};

struct drain {
    struct consumer **consumers;
    struct drain_holder {           /* nodes below them that hold requests */
        struct node *node;
        void *state;
    } * holders;
    unsigned consumer_count, holder_count, loop_count;
    unsigned noisy, paused;         /* loops that have not answered the pause, the resume */
    struct coroutine *waiter;
    struct timer limit;
    bool late;
    struct drain_loop loops[];
};

static void drain_wake(struct drain *drain)
{
    struct coroutine *waiter = take_ptr(&drain->waiter);

    if (waiter)
        coroutine_wake(waiter);
}

static void drain_wait(struct drain *drain)
{
    drain->waiter = coroutine_self();
    coroutine_yield();
}

static void drain_is_quiet(struct loop_message *message)
{
    struct drain *drain = container_of(message, struct drain_loop, quiet)->drain;

    if (--drain->noisy == 0)
        drain_wake(drain);
}

static void drain_has_resumed(struct loop_message *message)
{
    struct drain *drain = container_of(message, struct drain_loop, resumed)->drain;

    if (--drain->paused == 0)
        drain_wake(drain);
}

void drain_loop_quiet(struct consumer_loop *local)
{
    struct drain_loop *dl = take_ptr(&local->drain);

    if (--dl->pending == 0)
        loop_post(loop_main, &dl->quiet);
}

static void drain_quiesce_loop(const struct drain *drain, bool begin)
{
    /* A state that was opened meanwhile never began. */
    for (unsigned i = 0; i < drain->holder_count; i++) {
        struct node *node = drain->holders[i].node;

        if (node->state == drain->holders[i].state)
            node->driver->quiesce(node, begin);
    }
}

/* What holders let go may end at once: it is counted after that. */
static void drain_pause_loop(struct loop_message *message)
{
    struct drain_loop *dl = container_of(message, struct drain_loop, pause);

    for (unsigned i = 0; i < dl->drain->consumer_count; i++)
        dl->drain->consumers[i]->loops[dl->loop->index].paused = true;
    drain_quiesce_loop(dl->drain, true);
    for (unsigned i = 0; i < dl->drain->consumer_count; i++) {
        struct consumer_loop *local = &dl->drain->consumers[i]->loops[dl->loop->index];

        if (local->inflight) {
            local->drain = dl;
            dl->pending++;
        }
    }
    if (dl->pending == 0)
        loop_post(loop_main, &dl->quiet);
}

static void drain_resume_loop(struct loop_message *message)
{
    struct drain_loop *dl = container_of(message, struct drain_loop, resume);

    for (unsigned i = 0; i < dl->drain->consumer_count; i++)
        dl->drain->consumers[i]->loops[dl->loop->index].drain = NULL;
    drain_quiesce_loop(dl->drain, false);
    for (unsigned i = 0; i < dl->drain->consumer_count; i++)
        consumer_resume_loop(dl->drain->consumers[i], dl->loop);
    loop_post(loop_main, &dl->resumed);
}

static void drain_is_late(struct timer *timer)
{
    struct drain *drain = container_of(timer, struct drain, limit);

    drain->late = true;
    drain_wake(drain);
}

/* Read while other loops still count: the figures are for people only. */
static int drain_report(const struct drain *drain, uint64_t limit_ns, struct error *err)
{
    for (unsigned i = 0; i < drain->consumer_count; i++) {
        const struct consumer *consumer = drain->consumers[i];
        unsigned inflight = 0;

        for (unsigned l = 0; l < LOOP_MAX; l++)
            inflight += __atomic_load_n(&consumer->loops[l].inflight, __ATOMIC_RELAXED);
        if (inflight)
            return error_set(err, -ETIMEDOUT, "%s '%s' still has %u requests in flight after %llu ms",
                             consumer->ops->kind, consumer->ops->name(consumer), inflight,
                             (unsigned long long)(limit_ns / 1000000));
    }
    return error_set(err, -ETIMEDOUT, "Requests in flight did not end in %llu ms",
                     (unsigned long long)(limit_ns / 1000000));
}

static void drain_reach(struct node ***nodes, unsigned *count, struct node *node)
{
    if (!node || node->next.reached)
        return;
    node->next.reached = true;
    *nodes = memory_grow(*nodes, *count + 1u, sizeof(**nodes));
    (*nodes)[(*count)++] = node;
}

/* All that the consumers reach, and what the change is about, of which those that hold requests stay. */
static void drain_find_holders(struct drain *drain)
{
    struct node **nodes = NULL, *node;
    unsigned count = 0;

    list_for_each(node, &node_registry, in_registry) {
        if (node->next.affected)
            drain_reach(&nodes, &count, node);
    }
    for (unsigned i = 0; i < drain->consumer_count; i++)
        drain_reach(&nodes, &count, drain->consumers[i]->edge.child);
    for (unsigned done = 0; done < count; done++) {
        for (unsigned i = 0; i < nodes[done]->child_count; i++)
            drain_reach(&nodes, &count, nodes[done]->children[i]->child);
    }
    drain->holders = memory_array(count, sizeof(*drain->holders));
    for (unsigned i = 0; i < count; i++) {
        nodes[i]->next.reached = false;
        if (nodes[i]->driver->quiesce)
            drain->holders[drain->holder_count++] = (struct drain_holder){nodes[i], nodes[i]->state};
    }
    free(nodes);
}

int drain_begin(struct drain **ret, struct consumer *const *consumers, unsigned count, uint64_t limit_ns,
                struct error *err)
{
    struct drain *drain = memory_zero(sizeof(*drain) + LOOP_MAX * sizeof(drain->loops[0]));

    drain->consumers = memory_array(count, sizeof(*consumers));
    if (count)
        memcpy(drain->consumers, consumers, count * sizeof(*consumers));
    drain->consumer_count = count;
    TRACE(drain_begin, drain, count);
    drain->limit.expired = drain_is_late;
    drain_find_holders(drain);
    for (unsigned i = 0; i < LOOP_MAX && (count || drain->holder_count); i++) {
        if (loop_by_index[i])
            drain->loops[drain->loop_count++] = (struct drain_loop){
                .pause.run = drain_pause_loop,
                .quiet.run = drain_is_quiet,
                .resume.run = drain_resume_loop,
                .resumed.run = drain_has_resumed,
                .drain = drain,
                .loop = loop_by_index[i],
            };
    }
    drain->noisy = drain->loop_count;
    for (unsigned i = 0; i < drain->loop_count; i++)
        loop_post(drain->loops[i].loop, &drain->loops[i].pause);
    if (drain->noisy) {
        timer_set(&drain->limit, loop_main, loop_main->ring->ops->now(loop_main->ring) + limit_ns);
        drain_wait(drain);
        timer_cancel(&drain->limit);
    }
    if (drain->noisy) {
        int result = drain_report(drain, limit_ns, err);

        drain_end(drain);
        return result;
    }
    *ret = drain;
    return 0;
}

void drain_end(struct drain *drain)
{
    drain->paused = drain->loop_count;
    for (unsigned i = 0; i < drain->loop_count; i++)
        loop_post(drain->loops[i].loop, &drain->loops[i].resume);
    /* An answer to the pause that comes too late wakes as well. */
    while (drain->paused)
        drain_wait(drain);
    TRACE(drain_end, drain, drain->late);
    free(drain->consumers);
    free(drain->holders);
    free(drain);
}
