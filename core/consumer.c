/*
 * Consumers: see consumer.h. consumer_submit() is where every client request
 * enters the graph.
 */
#include "core/consumer.h"

#include <errno.h>
#include <string.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/drain_loop.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/source.h"
#include "core/trace.h"

struct list consumer_registry = LIST_INIT(consumer_registry);

static const char *consumer_edge_name(const struct edge *edge)
{
    const struct consumer *consumer = edge->parent.object;

    return consumer->ops->name(consumer);
}

static void consumer_edge_resized(struct edge *edge, uint64_t size)
{
    struct consumer *consumer = edge->parent.object;

    if (consumer->ops->resized)
        consumer->ops->resized(consumer, size);
}

const struct edge_parent_ops edge_parent_consumer = {
    .kind = "export",
    .name = consumer_edge_name,
    .resized = consumer_edge_resized,
};

void consumer_init(struct consumer *consumer, const struct consumer_ops *ops, void *object, struct permission want)
{
    *consumer = (struct consumer){
        .edge = {.parent = {.ops = &edge_parent_consumer, .object = consumer}, .want = want},
        .ops = ops,
        .object = object,
    };
    consumer->edge.name = memory_string("root");
    list_link_init(&consumer->edge.in_child);
    list_link_init(&consumer->in_source);
    consumer->loops = memory_aligned(LOOP_MAX * sizeof(*consumer->loops), 64);
    for (unsigned i = 0; i < LOOP_MAX; i++) {
        consumer->loops[i].parked_tail = &consumer->loops[i].parked;
        list_init(&consumer->loops[i].entering);
    }
    list_append(&consumer_registry, &consumer->in_registry);
}

void consumer_destroy(struct consumer *consumer)
{
    list_remove(&consumer->in_registry);
    list_remove(&consumer->in_source);
    free(take_ptr(&consumer->edge.name));
    free(take_ptr(&consumer->loops));
}

struct consumer_follow {
    struct consumer *consumer;
    struct source *source;
};

static void consumer_follow_commit(void *action)
{
    struct consumer_follow *follow = action;

    list_remove(&follow->consumer->in_source);
    follow->consumer->source = follow->source;
    if (follow->source)
        list_append(&follow->source->consumers, &follow->consumer->in_source);
}

static void consumer_follow_abort(void *action)
{
    struct consumer *consumer = ((struct consumer_follow *)action)->consumer;

    consumer->next_source = consumer->source;
}

static const struct change_type consumer_follow_type = {
    .name = "follow source", .commit = consumer_follow_commit, .abort = consumer_follow_abort};

static void consumer_follow(struct change *change, struct consumer *consumer, struct source *source)
{
    struct consumer_follow *follow = change_add(change, &consumer_follow_type, sizeof(*follow));

    follow->consumer = consumer;
    follow->source = source;
    consumer->next_source = source;
}

int consumer_attach(struct change *change, struct consumer *consumer, const char *name, struct error *err)
{
    struct source *source = source_find(name);
    struct node *node = source ? source->top.next_child : node_lookup(name, err);

    if (!node)
        return -ENODEV;
    int result = change_attach(change, &consumer->edge, node, err);

    if (result == 0)
        consumer_follow(change, consumer, source);
    return result;
}

int consumer_move(struct change *change, struct consumer *consumer, const char *name, struct error *err)
{
    struct source *source = source_find(name);
    struct node *node = source ? source->top.next_child : node_lookup(name, err);

    if (!node)
        return -ENODEV;
    int result = change_replace(change, &consumer->edge, node, err);

    if (result == 0)
        consumer_follow(change, consumer, source);
    return result;
}

void consumer_detach(struct change *change, struct consumer *consumer)
{
    if (!consumer->edge.next_child)
        return;
    consumer_follow(change, consumer, NULL);
    change_detach(change, &consumer->edge, NULL);
}

static void consumer_begin(struct consumer *consumer, struct consumer_loop *local, struct request *req)
{
    struct loop *loop = req->loop;
    uint64_t size = consumer_size(consumer);

    local->inflight++;
    req->epoch = loop_unit_begin(loop);
    req->edge = &consumer->edge;
    TRACE(request_start, req, consumer->edge.child ? consumer->edge.child->name : NULL, req->op, req->offset,
          req->length, req->flags);
    if (unlikely(!consumer->edge.child))
        request_walk(req, request_up(req, -ESHUTDOWN));
    else if (unlikely(req->op != REQ_FLUSH && (req->offset > size || req->length > size - req->offset)))
        request_walk(req, request_up(req, -EIO));
    else
        request_walk(req, STEP_DOWN);
}

void consumer_submit(struct consumer *consumer, struct request *req)
{
    struct loop *loop = loop_current();
    struct consumer_loop *local = &consumer->loops[loop->index];

    req->loop = loop;
    req->consumer = consumer;
    req->result = 0;
    req->scratch_used = 0;
    req->slow = NULL;
    req->stat_op = req->op;
    req->total = req->length;
    req->started_ns = loop->now_ns;
    if (unlikely(local->paused)) {
        req->next = NULL;
        *local->parked_tail = req;
        local->parked_tail = &req->next;
        return;
    }
    consumer_begin(consumer, local, req);
}

struct consumer_entering {
    struct list_link link;
    struct coroutine *co;
};

void consumer_enter(struct consumer *consumer)
{
    struct loop *loop = loop_current();
    struct consumer_loop *local = &consumer->loops[loop->index];

    while (local->paused) {
        struct consumer_entering waiter = {.co = coroutine_self()};

        list_append(&local->entering, &waiter.link);
        coroutine_yield();
    }
    local->inflight++;
    coroutine_set_epoch(loop_unit_begin(loop));
}

void consumer_leave(struct consumer *consumer)
{
    struct loop *loop = loop_current();
    struct consumer_loop *local = &consumer->loops[loop->index];

    loop_unit_end(loop, coroutine_epoch());
    if (--local->inflight == 0 && local->drain)
        drain_loop_quiet(local);
}

void consumer_resume_loop(struct consumer *consumer, struct loop *loop)
{
    struct consumer_loop *local = &consumer->loops[loop->index];
    struct request *req = take_ptr(&local->parked);
    struct consumer_entering *waiter;

    local->parked_tail = &local->parked;
    local->paused = false;
    while (req) {
        struct request *next = req->next;

        consumer_begin(consumer, local, req);
        req = next;
    }
    while ((waiter = list_first(&local->entering, struct consumer_entering, link))) {
        list_remove(&waiter->link);
        coroutine_wake(waiter->co);
    }
    if (consumer->ops->resumed)
        consumer->ops->resumed(consumer, loop);
}

unsigned consumer_scratch(const struct consumer *consumer)
{
    return consumer->edge.child ? consumer->edge.child->scratch_need : 0;
}

void consumer_stats(const struct consumer *consumer, struct io_stats *ret)
{
    *ret = (struct io_stats){0};
    for (unsigned l = 0; l < LOOP_MAX; l++) {
        const struct io_stats *stats = &consumer->loops[l].stats;

        /* Their loops write while we read: each counter is right by itself. */
        for (unsigned op = 0; op < REQ_OP_COUNT; op++) {
            ret->count[op] += __atomic_load_n(&stats->count[op], __ATOMIC_RELAXED);
            ret->failed[op] += __atomic_load_n(&stats->failed[op], __ATOMIC_RELAXED);
            ret->bytes[op] += __atomic_load_n(&stats->bytes[op], __ATOMIC_RELAXED);
            ret->time_ns[op] += __atomic_load_n(&stats->time_ns[op], __ATOMIC_RELAXED);
        }
    }
}
