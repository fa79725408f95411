/*
 * The walk: how a request goes down through the layers and comes back up.
 * Runs on the request's own loop, for every request of every client.
 */
#include "core/request.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/drain_loop.h"
#include "core/driver.h"
#include "core/event.h"
#include "core/grace.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/request_side.h"
#include "core/trace.h"
#include "generated/options.h"

#define REQUEST_REPORT_NS 100000000u
#define REQUEST_NO_EPOCH 2

int extent_add(struct extent_list *list, uint64_t length, uint32_t flags)
{
    if (list->count && list->extents[list->count - 1].flags == flags) {
        list->extents[list->count - 1].length += length;
        return true;
    }
    if (list->count == list->limit)
        return false;
    list->extents[list->count++] = (struct extent){.length = length, .flags = flags};
    return true;
}

void *request_frame(struct request *req, struct node *node)
{
    unsigned char *scratch = req->scratch + req->scratch_used;
    size_t size = FRAME_SIZE(node->driver->scratch_size);
    struct frame *frame = (struct frame *)(void *)(scratch + size) - 1;

    assert(req->scratch_used + size <= req->scratch_size);
    req->scratch_used = (uint16_t)(req->scratch_used + size);
    frame->node = node;
    frame->size = size;
    return scratch;
}

static enum step request_after(struct request *req)
{
    struct frame *frame = (struct frame *)(void *)(req->scratch + req->scratch_used) - 1;
    struct node *node = frame->node;
    uint64_t size = frame->size;
    enum step step = node->driver->after(node, req, req->scratch + req->scratch_used - size);

    if (step == STEP_UP)
        req->scratch_used = (uint16_t)(req->scratch_used - size);
    return step;
}

static void request_slow_entry(void *arg)
{
    struct request *req = arg;
    struct node *node = req->edge->child;
    enum step (*slow)(struct node *, struct request *) = req->slow ? req->slow : node->driver->slow;

    req->slow = NULL;
    request_walk(req, slow(node, req));
}

/* A plain addition: only this loop writes. The store is atomic for consumer_stats(), which reads from outside. */
static inline void request_count(uint64_t *counter, uint64_t more)
{
    __atomic_store_n(counter, *counter + more, __ATOMIC_RELAXED);
}

/* Told once in a while, however fast a broken disk fails: REQUEST_REPORT_NS. What is refused is no
 * error of the disk. */
static void request_report(const struct request *req, struct consumer_loop *local)
{
    int result = req->result;
    const struct node *node = req->consumer->edge.child;

    if (result == -ESHUTDOWN || result == -ENOTSUP || result == -EPERM || result == -EINVAL || !node)
        return;
    if (local->reported_ns && req->loop->now_ns - local->reported_ns < REQUEST_REPORT_NS)
        return;
    local->reported_ns = req->loop->now_ns;
    struct block_io_error_event event = {
        .device = (char *)(uintptr_t)req->consumer->ops->name(req->consumer),
        .node_name = (char *)(uintptr_t)node->name,
        .operation = req->stat_op == REQ_READ || req->stat_op == REQ_STATUS ? BLOCK_IO_ERROR_OPERATION_READ
                                                                            : BLOCK_IO_ERROR_OPERATION_WRITE,
        .action = BLOCK_IO_ERROR_ACTION_REPORT,
        .nospace = result == -ENOSPC || result == -EDQUOT || result == -EFBIG,
        .reason = strerror(-result),
    };

    event_emit("BLOCK_IO_ERROR", &block_io_error_event_type, &event);
}

static void request_finish(struct request *req)
{
    struct consumer *consumer = req->consumer;

    if (consumer) {
        TRACE(request_end, req, req->stat_op, req->result);
        struct loop *loop = req->loop;
        struct consumer_loop *local = &consumer->loops[loop->index];
        unsigned op = req->stat_op;

        if (likely(req->result >= 0)) {
            request_count(&local->stats.count[op], 1);
            request_count(&local->stats.bytes[op], req->total);
            request_count(&local->stats.time_ns[op], loop->now_ns - req->started_ns);
        } else {
            request_count(&local->stats.failed[op], 1);
            request_report(req, local);
        }
        loop_unit_end(loop, req->epoch);
        if (--local->inflight == 0 && unlikely(local->drain != NULL))
            drain_loop_quiet(local);
    }
    req->done(req);
}

void request_walk(struct request *req, enum step step)
{
    for (;;) {
        switch (step) {
        case STEP_DOWN: {
            struct node *node = req->edge->child;

            if (unlikely((atomic_load_explicit(&node->side_ops, memory_order_relaxed) & REQ_BIT(req->op)) |
                         (atomic_load_explicit(&node->side_flags, memory_order_relaxed) & req->flags)))
                step = request_side(req, node);
            else
                step = node->map(node, req);
            break;
        }
        case STEP_UP:
            if (likely(req->scratch_used == 0)) {
                request_finish(req);
                return;
            }
            step = request_after(req);
            break;
        case STEP_SLOW:
            TRACE(request_slow, req, req->edge->child->name, req->op);
            if (likely(coroutine_try_start(req->loop, request_slow_entry, req)))
                return;
            step = request_up(req, -ENOMEM);
            break;
        case STEP_HELD:
            return;
        }
    }
}

void request_resume(struct request *req, enum step step)
{
    request_walk(req, step);
}

void request_park(struct request *req, const struct node *node)
{
    if (!req->consumer || !(atomic_load_explicit(&node->flags, memory_order_relaxed) & NODE_UPPERMOST))
        return;
    loop_unit_end(req->loop, req->epoch);
    req->epoch = REQUEST_NO_EPOCH;
}

void request_unpark(struct request *req)
{
    if (req->consumer && req->epoch == REQUEST_NO_EPOCH)
        req->epoch = loop_unit_begin(req->loop);
}
