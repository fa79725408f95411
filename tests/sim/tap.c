/*
 * Tap: see tap.h. There is no schema for it, so that it is made of a raw node
 * by exchange of the driver.
 */
#include "tests/sim/tap.h"

#include <check.h>
#include <stdlib.h>

#include "core/coroutine.h"
#include "core/driver.h"
#include "core/memory.h"
#include "generated/options.h"
#include "tests/sim/ring_sim.h"

static struct sim *tap_sim;
static struct driver tap_driver;

/* What after() must find as it was, and what a second pass begins with. */
struct tap_frame {
    struct node *node;
    uint64_t offset, length;
    uint32_t flags;
    uint8_t op;
    bool again;
};

struct tap_hold {
    struct timer timer;
    struct request *req;
    struct node *node;
};

static enum step tap_pass(struct node *node, struct request *req)
{
    struct tap_frame *frame = request_frame(req, node);

    *frame = (struct tap_frame){
        .node = node, .offset = req->offset, .length = req->length, .flags = req->flags, .op = req->op};
    return driver_table[NODE_DRIVER_RAW]->map(node, req);
}

static void tap_expired(struct timer *timer)
{
    struct tap_hold *hold = container_of(timer, struct tap_hold, timer);
    struct request *req = hold->req;
    struct node *node = hold->node;

    ENSURE(loop_current() == req->loop);
    free(hold);
    request_resume(req, tap_pass(node, req));
}

static enum step tap_hold(struct node *node, struct request *req)
{
    struct tap_hold *hold = memory_new(struct tap_hold);

    *hold = (struct tap_hold){.timer.expired = tap_expired, .req = req, .node = node};
    timer_set(&hold->timer, req->loop, req->loop->now_ns + sim_random(tap_sim, 200000));
    return STEP_HELD;
}

static enum step tap_map(struct node *node, struct request *req)
{
    unsigned way = (unsigned)sim_random(tap_sim, 10);

    return way == 0 ? STEP_SLOW : way == 1 ? tap_hold(node, req) : tap_pass(node, req);
}

static enum step tap_slow(struct node *node, struct request *req)
{
    coroutine_sleep(sim_random(tap_sim, 200000));
    ENSURE(loop_current() == req->loop);
    return tap_pass(node, req);
}

static enum step tap_after(struct node *node, struct request *req, void *scratch)
{
    struct tap_frame *frame = scratch;

    ENSURE(frame->node == node);
    ENSURE(loop_current() == req->loop);
    if (frame->again || req->result < 0 || req->op == REQ_STATUS || !sim_chance(tap_sim, 100))
        return STEP_UP;
    /* Once more from here: what was read or written does not change by it. */
    frame->again = true;
    req->op = frame->op;
    req->flags = frame->flags;
    req->offset = frame->offset;
    req->length = frame->length;
    return driver_table[NODE_DRIVER_RAW]->map(node, req);
}

void tap_take_over(struct node *node, struct sim *sim)
{
    tap_sim = sim;
    tap_driver = *driver_table[NODE_DRIVER_RAW];
    tap_driver.map = tap_map;
    tap_driver.slow = tap_slow;
    tap_driver.after = tap_after;
    tap_driver.scratch_size = sizeof(struct tap_frame);
    node->driver = &tap_driver;
    node->map = tap_map;
}
