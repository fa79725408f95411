/*
 * delay: holds requests for some time before they go on. Each waits by a
 * timer of its own in its frame, on its own loop; what is not to be held
 * passes as through any filter. A drain does not wait for what is held: that
 * goes on at once. The state changes only under a drain.
 */
#include <stdlib.h>

#include "core/driver.h"
#include "core/loop.h"
#include "core/memory.h"
#include "generated/options.h"

struct delay_loop {
    struct list held;               /* struct delay_frame, by link */
    bool ready, quiesced;
} __attribute__((aligned(64)));

struct delay {
    uint64_t ns[REQ_OP_COUNT];
    uint64_t jitter_ns;
    struct delay_loop *loops;       /* [LOOP_MAX], each of its loop */
};

struct delay_frame {
    struct list_link link;
    struct timer timer;
    struct request *req;
};

static int delay_open(struct node *node, const void *opaque, struct error *err)
{
    const struct delay_options *options = opaque;
    struct delay *delay = node->state;
    uint64_t other = options->latency_ns;

    (void)err;
    for (unsigned op = 0; op < REQ_OP_COUNT; op++)
        delay->ns[op] = other;
    delay->ns[REQ_READ] = options->has_read_ns ? options->read_ns : other;
    delay->ns[REQ_WRITE] = delay->ns[REQ_WRITE_ZEROES] = options->has_write_ns ? options->write_ns : other;
    delay->ns[REQ_FLUSH] = options->has_flush_ns ? options->flush_ns : other;
    delay->ns[REQ_DISCARD] = options->has_discard_ns ? options->discard_ns : other;
    delay->jitter_ns = options->jitter_ns;
    delay->loops = memory_aligned(LOOP_MAX * sizeof(*delay->loops), 64);
    return 0;
}

static void delay_close(struct node *node)
{
    struct delay *delay = node->state;

    free(delay->loops);
}

static struct delay_loop *delay_loop(const struct delay *delay, const struct loop *loop)
{
    struct delay_loop *local = &delay->loops[loop->index];

    if (unlikely(!local->ready)) {
        list_init(&local->held);
        local->ready = true;
    }
    return local;
}

static void delay_let_go(struct delay_frame *frame)
{
    list_remove(&frame->link);
    request_resume(frame->req, STEP_DOWN);
}

static void delay_expired(struct timer *timer)
{
    delay_let_go(container_of(timer, struct delay_frame, timer));
}

static void delay_quiesce(struct node *node, bool begin)
{
    struct delay_loop *local = delay_loop(node->state, loop_current());
    struct delay_frame *frame;

    local->quiesced = begin;
    while (begin && (frame = list_first(&local->held, struct delay_frame, link))) {
        timer_cancel(&frame->timer);
        delay_let_go(frame);
    }
}

/* Good enough for latencies, and needs no state that loops would share: the splitmix64 step on the clock and address. */
static uint64_t delay_random(const struct request *req, uint64_t limit)
{
    uint64_t x = req->loop->now_ns + (uintptr_t)req + req->offset;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % (limit + 1);
}

static enum step delay_map(struct node *node, struct request *req)
{
    const struct delay *delay = node->state;
    uint64_t ns = delay->ns[req->op];

    request_down(req, node->filtered);
    if (likely(ns == 0))
        return STEP_DOWN;
    struct delay_loop *local = delay_loop(delay, req->loop);

    if (unlikely(local->quiesced))
        return STEP_DOWN;
    struct delay_frame *frame = request_frame(req, node);

    *frame = (struct delay_frame){.timer.expired = delay_expired, .req = req};
    if (delay->jitter_ns)
        ns += delay_random(req, delay->jitter_ns);
    /* Not from now_ns: a long turn would be taken off the delay. */
    timer_set(&frame->timer, req->loop, req->loop->ring->ops->now(req->loop->ring) + ns);
    list_append(&local->held, &frame->link);
    return STEP_HELD;
}

/* Nothing to see: the frame was the timer's memory. */
static enum step delay_after(struct node *node, struct request *req, void *scratch)
{
    (void)node;
    (void)req;
    (void)scratch;
    return STEP_UP;
}

const struct driver delay_driver = {
    .name = "delay",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct delay),
    .scratch_size = sizeof(struct delay_frame),
    .open = delay_open,
    .close = delay_close,
    .quiesce = delay_quiesce,
    .map = delay_map,
    .after = delay_after,
};
