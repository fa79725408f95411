/*
 * throttle: holds requests that come faster than the group's limits allow.
 *
 * A loop lets requests pass while its lease lasts, which it takes from the
 * group for about a millisecond (throttle_group.h). Beyond that they are held
 * in a queue of the loop and way, with a timer and no coroutine. Of a node,
 * one queue for each way at a time has a turn, in which it takes the next
 * lease and waits until that begins, so that the nodes of a group share
 * evenly however many loops and requests each has. Within a queue, clients
 * take turns.
 *
 * A queue belongs to its loop, but for `waiting`, which like `turns` is under
 * the node's guard. Flushes and questions pass. Nothing is held that a change
 * waits for: what is held when it drains the node, and what it reads and writes
 * itself, for which those pay that come later.
 */
#include <errno.h>
#include <pthread.h>

#include "core/change.h"
#include "core/driver.h"
#include "core/loop.h"
#include "core/memory.h"
#include "drivers/filter/throttle_group.h"
#include "generated/options.h"

#define THROTTLE_READING REQ_BIT(REQ_READ)
#define THROTTLE_LIMITED (THROTTLE_READING | REQ_BITS_WRITING)

/* Clients of a queue that are told apart; more of them share. */
#define THROTTLE_CLIENTS 8u

enum throttle_state { THROTTLE_IDLE, THROTTLE_WAITS, THROTTLE_HAS_TURN };

struct throttle_client {
    const struct consumer *consumer;
    uint32_t number;                        /* of the consumer's clients */
    struct request *first, *last;
};

struct throttle_queue {
    struct throttle *throttle;
    struct loop *loop;                      /* NULL: not used yet */
    enum throttle_way way;
    enum throttle_state state;
    bool quiesced;
    uint64_t lease[THROTTLE_UNITS];         /* may pass now */
    uint64_t coming[THROTTLE_UNITS];        /* taken, for when the timer expires */
    struct timer timer;
    unsigned held, next;                    /* requests; the client whose turn it is */
    struct throttle_client clients[THROTTLE_CLIENTS];
    struct list_link waiting;               /* in turn.queues */
    struct loop_message given;              /* the turn, from another loop */
};

struct throttle_turn {
    struct throttle_queue *holder;
    struct list queues;                     /* struct throttle_queue, by waiting */
};

struct throttle {
    struct throttle_group *group;
    struct throttle_queue (*queues)[THROTTLE_WAYS];     /* [LOOP_MAX] */
    struct list_link in_group;
    struct node *node;
    pthread_mutex_t guard;
    struct throttle_turn turns[THROTTLE_WAYS];
};

static const struct throttle_rates *throttle_rates(const struct throttle *throttle)
{
    return atomic_load_explicit(&throttle->group->rates, memory_order_acquire);
}

/* Leases */

static void throttle_need(const struct throttle_rates *rates, const struct request *req, uint64_t need[THROTTLE_UNITS])
{
    need[THROTTLE_BYTES] = req->length;
    need[THROTTLE_OPS] = THROTTLE_ONE_OP;
    if (rates->iops_size && req->length > rates->iops_size)
        need[THROTTLE_OPS] = req->length < UINT64_MAX / THROTTLE_ONE_OP
                                 ? req->length * THROTTLE_ONE_OP / rates->iops_size
                                 : UINT64_MAX / THROTTLE_ONE_OP;
}

static bool lease_covers(const struct throttle_queue *queue, const struct throttle_rates *rates,
                         const uint64_t need[THROTTLE_UNITS])
{
    bool covers = true;

    for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++)
        covers &= !rates->lease[queue->way][unit] || need[unit] <= queue->lease[unit];
    return covers;
}

static void lease_use(struct throttle_queue *queue, const uint64_t need[THROTTLE_UNITS])
{
    for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++)
        queue->lease[unit] -= need[unit] < queue->lease[unit] ? need[unit] : queue->lease[unit];
}

/* Takes what the lease lacks, or a whole one. The time from which on it may be used. */
static uint64_t lease_take(const struct throttle_queue *queue, const struct throttle_rates *rates,
                           const uint64_t need[THROTTLE_UNITS], uint64_t ret[THROTTLE_UNITS])
{
    for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++) {
        uint64_t whole = rates->lease[queue->way][unit], lease = queue->lease[unit];
        uint64_t lack = need[unit] > lease ? need[unit] - lease : 0;

        ret[unit] = whole && lack ? (lack > whole ? lack : whole) : 0;
    }
    return throttle_group_take(queue->throttle->group, rates, queue->way, ret, queue->loop->now_ns);
}

static void lease_add(struct throttle_queue *queue, uint64_t units[THROTTLE_UNITS])
{
    for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++) {
        queue->lease[unit] += units[unit];
        units[unit] = 0;
    }
}

/* Held requests */

static struct throttle_client *queue_client(struct throttle_queue *queue, const struct request *req)
{
    struct throttle_client *unused = NULL;

    for (unsigned i = 0; i < THROTTLE_CLIENTS; i++) {
        struct throttle_client *client = &queue->clients[i];

        if (client->first && client->consumer == req->consumer && client->number == req->client)
            return client;
        if (!client->first && !unused)
            unused = client;
    }
    if (!unused)
        return &queue->clients[((uintptr_t)req->consumer / 64 + req->client) % THROTTLE_CLIENTS];
    unused->consumer = req->consumer;
    unused->number = req->client;
    return unused;
}

static void queue_hold(struct throttle_queue *queue, struct request *req)
{
    struct throttle_client *client = queue_client(queue, req);

    req->next = NULL;
    if (client->first)
        client->last->next = req;
    else
        client->first = req;
    client->last = req;
    queue->held++;
    request_park(req, queue->throttle->node);
}

/* The client whose request goes next. Something is held. */
static struct throttle_client *queue_next(struct throttle_queue *queue)
{
    while (!queue->clients[queue->next].first)
        queue->next = (queue->next + 1) % THROTTLE_CLIENTS;
    return &queue->clients[queue->next];
}

static void queue_let_go(struct throttle_queue *queue, struct throttle_client *client)
{
    struct request *req = client->first;

    client->first = req->next;
    queue->held--;
    queue->next = (queue->next + 1) % THROTTLE_CLIENTS;
    request_unpark(req);
    request_resume(req, STEP_DOWN);
}

/* As far as the lease reaches. */
static void queue_let_pass(struct throttle_queue *queue)
{
    while (queue->held) {
        const struct throttle_rates *rates = throttle_rates(queue->throttle);
        struct throttle_client *client = queue_next(queue);
        uint64_t need[THROTTLE_UNITS];

        if (rates) {
            throttle_need(rates, client->first, need);
            if (!lease_covers(queue, rates, need))
                return;
            lease_use(queue, need);
        }
        queue_let_go(queue, client);
    }
}

/* All, at once; the limits are overdrawn for that. */
static void queue_let_all_pass(struct throttle_queue *queue)
{
    while (queue->held) {
        const struct throttle_rates *rates = throttle_rates(queue->throttle);
        struct throttle_client *client = queue_next(queue);
        uint64_t need[THROTTLE_UNITS], more[THROTTLE_UNITS];

        if (rates) {
            throttle_need(rates, client->first, need);
            lease_take(queue, rates, need, more);
            lease_add(queue, more);
            lease_use(queue, need);
        }
        queue_let_go(queue, client);
    }
}

/* Turns */

/* Something is held, and this queue has the turn: until when it waits. */
static void turn_begin(struct throttle_queue *queue)
{
    const struct throttle_rates *rates = throttle_rates(queue->throttle);
    uint64_t need[THROTTLE_UNITS], from_ns = 0;

    queue->state = THROTTLE_HAS_TURN;
    if (rates) {
        throttle_need(rates, queue_next(queue)->first, need);
        from_ns = lease_take(queue, rates, need, queue->coming);
    }
    timer_set(&queue->timer, queue->loop, from_ns);
}

static void turn_ask(struct throttle_queue *queue)
{
    struct throttle_turn *turn = &queue->throttle->turns[queue->way];

    pthread_mutex_lock(&queue->throttle->guard);
    bool mine = !turn->holder;

    if (mine)
        turn->holder = queue;
    else
        list_append(&turn->queues, &queue->waiting);
    pthread_mutex_unlock(&queue->throttle->guard);
    queue->state = THROTTLE_WAITS;
    if (mine)
        turn_begin(queue);
}

/* Whoever waits longest is next. */
static void turn_end(struct throttle_queue *queue)
{
    struct throttle_turn *turn = &queue->throttle->turns[queue->way];

    queue->state = queue->held ? THROTTLE_WAITS : THROTTLE_IDLE;
    pthread_mutex_lock(&queue->throttle->guard);
    if (queue->held)
        list_append(&turn->queues, &queue->waiting);
    struct throttle_queue *next = list_first(&turn->queues, struct throttle_queue, waiting);

    if (next)
        list_remove(&next->waiting);
    turn->holder = next;
    pthread_mutex_unlock(&queue->throttle->guard);
    if (next == queue)
        turn_begin(queue);
    else if (next)
        loop_post(next->loop, &next->given);
}

static void turn_given(struct loop_message *message)
{
    struct throttle_queue *queue = container_of(message, struct throttle_queue, given);

    if (queue->held)
        turn_begin(queue);
    else
        turn_end(queue);
}

static void turn_expired(struct timer *timer)
{
    struct throttle_queue *queue = container_of(timer, struct throttle_queue, timer);

    lease_add(queue, queue->coming);
    queue_let_pass(queue);
    turn_end(queue);
}

/* Stops waiting, and gives the turn away unless it is still on its way here. */
static void turn_leave(struct throttle_queue *queue)
{
    struct throttle_turn *turn = &queue->throttle->turns[queue->way];

    if (queue->state == THROTTLE_HAS_TURN) {
        timer_cancel(&queue->timer);
        lease_add(queue, queue->coming);
        turn_end(queue);
        return;
    }
    pthread_mutex_lock(&queue->throttle->guard);
    list_remove(&queue->waiting);
    bool coming = turn->holder == queue;

    pthread_mutex_unlock(&queue->throttle->guard);
    queue->state = coming ? THROTTLE_WAITS : THROTTLE_IDLE;
}

/* The walk */

static struct throttle_queue *throttle_queue(struct throttle *throttle, struct loop *loop, enum throttle_way way)
{
    struct throttle_queue *queue = &throttle->queues[loop->index][way];

    /* Another one may have the place of a loop that has ended. */
    if (unlikely(queue->loop != loop)) {
        queue->throttle = throttle;
        queue->loop = loop;
        queue->way = way;
        queue->timer.expired = turn_expired;
        queue->given.run = turn_given;
        list_link_init(&queue->waiting);
    }
    return queue;
}

static enum step throttle_limit(struct throttle *throttle, const struct throttle_rates *rates, struct request *req)
{
    enum throttle_way way = REQ_BIT(req->op) & THROTTLE_READING ? THROTTLE_READ : THROTTLE_WRITE;
    struct throttle_queue *queue = throttle_queue(throttle, req->loop, way);
    uint64_t need[THROTTLE_UNITS], more[THROTTLE_UNITS];

    if (!rates->lease[way][THROTTLE_BYTES] && !rates->lease[way][THROTTLE_OPS])
        return STEP_DOWN;
    throttle_need(rates, req, need);
    if (!queue->held && !lease_covers(queue, rates, need) &&
        throttle_group_has_room(throttle->group, rates, way, req->loop->now_ns)) {
        lease_take(queue, rates, need, more);
        lease_add(queue, more);
    }
    if (!queue->held && lease_covers(queue, rates, need)) {
        lease_use(queue, need);
        return STEP_DOWN;
    }
    if (queue->quiesced || (req->loop == loop_main && change_is_under_way())) {
        lease_take(queue, rates, need, more);
        lease_add(queue, more);
        lease_use(queue, need);
        return STEP_DOWN;
    }
    queue_hold(queue, req);
    if (queue->state == THROTTLE_IDLE)
        turn_ask(queue);
    return STEP_HELD;
}

static enum step throttle_map(struct node *node, struct request *req)
{
    struct throttle *throttle = node->state;
    const struct throttle_rates *rates = throttle_rates(throttle);

    request_down(req, node->filtered);
    if (likely(!rates) || !(REQ_BIT(req->op) & THROTTLE_LIMITED))
        return STEP_DOWN;
    return throttle_limit(throttle, rates, req);
}

/* Control */

static void throttle_quiesce(struct node *node, bool begin)
{
    for (unsigned way = 0; way < THROTTLE_WAYS; way++) {
        struct throttle_queue *queue = throttle_queue(node->state, loop_current(), way);

        queue->quiesced = begin;
        if (!begin)
            continue;
        queue_let_all_pass(queue);
        if (queue->state != THROTTLE_IDLE)
            turn_leave(queue);
    }
}

/* What waits for a lease of the old limits takes one of the new. */
void throttle_limits_changed(struct loop *loop, void *opaque)
{
    struct throttle_group *group = opaque;
    const struct throttle_rates *rates = atomic_load_explicit(&group->rates, memory_order_acquire);
    struct throttle *throttle;

    list_for_each(throttle, &group->nodes, in_group) {
        for (unsigned way = 0; way < THROTTLE_WAYS; way++) {
            struct throttle_queue *queue = throttle_queue(throttle, loop, way);

            for (unsigned unit = 0; unit < THROTTLE_UNITS; unit++)
                queue->lease[unit] = queue->coming[unit] = 0;
            if (!rates)
                queue_let_all_pass(queue);
            if (queue->state == THROTTLE_HAS_TURN && queue->held)
                turn_begin(queue);
        }
    }
}

static int throttle_open(struct node *node, const void *opaque, struct error *err)
{
    const struct throttle_options *options = opaque;
    struct throttle *throttle = node->state;

    throttle->node = node;
    throttle->group = throttle_group_find(options->throttle_group, err);
    if (!throttle->group)
        return -ENOENT;
    throttle->queues = memory_array(LOOP_MAX, sizeof(*throttle->queues));
    pthread_mutex_init(&throttle->guard, NULL);
    for (unsigned way = 0; way < THROTTLE_WAYS; way++)
        list_init(&throttle->turns[way].queues);
    list_append(&throttle->group->nodes, &throttle->in_group);
    return 0;
}

static void throttle_close(struct node *node)
{
    struct throttle *throttle = node->state;

    list_remove(&throttle->in_group);
    pthread_mutex_destroy(&throttle->guard);
    free(throttle->queues);
}

const struct driver throttle_driver = {
    .name = "throttle",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct throttle),
    .open = throttle_open,
    .close = throttle_close,
    .quiesce = throttle_quiesce,
    .map = throttle_map,
};
