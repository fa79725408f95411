/*
 * Load: see load.h.
 */
#include "tests/sim/load.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/driver.h"
#include "core/memory.h"
#include "core/object.h"
#include "tests/sim/ring_sim.h"

static struct load loads[LOAD_MAX];
static unsigned load_count;

static const char *load_name(const struct consumer *consumer)
{
    return ((const struct load *)consumer->object)->name;
}

static const struct consumer_ops load_ops = {.kind = "load", .name = load_name};

static void slot_done(struct request *req)
{
    struct load_slot *slot = NULL;

    for (unsigned c = 0; c < load_count && !slot; c++) {
        for (unsigned i = 0; i < LOAD_DEPTH_MAX; i++) {
            if (loads[c].slots[req->loop->index][i].request == req)
                slot = &loads[c].slots[req->loop->index][i];
        }
    }
    ENSURE(slot && slot->busy);
    slot->busy = false;
    slot->load->done += req->result == 0;
    slot->load->done_second += req->result == 0 && req->client == 1;
    slot->load->failed += req->result != 0;
}

static bool slot_submit(struct load *load, unsigned loop, unsigned i)
{
    static unsigned char data[LOAD_SIZE_MAX];
    struct load_slot *slot = &load->slots[loop][i];

    if (slot->busy)
        return false;
    if (!slot->request)
        slot->request = memory_zero(sizeof(struct request) + 256);
    slot->load = load;
    slot->busy = true;
    slot->iov = (struct iovec){.iov_base = data, .iov_len = load->size};
    *slot->request = (struct request){.op = load->op,
                                      .length = load->size,
                                      .iov = &slot->iov,
                                      .iov_count = 1,
                                      .scratch_size = 256,
                                      .client = i < load->second,
                                      .done = slot_done};
    consumer_submit(&load->consumer, slot->request);
    return true;
}

bool load_work(struct loop *loop, void *arg)
{
    bool any = false;

    (void)arg;
    for (unsigned c = 0; c < load_count; c++) {
        for (unsigned i = 0; i < loads[c].depth && loads[c].loops & (1u << loop->index); i++)
            any |= !consumer_paused(&loads[c].consumer, loop) && slot_submit(&loads[c], loop->index, i);
    }
    return any;
}

/* What is under way on all loops. */
static unsigned load_busy(const struct load *load)
{
    unsigned count = 0;

    for (unsigned l = 0; l < LOAD_LOOPS; l++) {
        for (unsigned i = 0; i < LOAD_DEPTH_MAX; i++)
            count += load->slots[l][i].busy;
    }
    return count;
}

struct load *load_add(const char *node, unsigned loops, unsigned depth, uint8_t op, uint64_t size)
{
    struct load *load = &loads[load_count];
    struct change *change = change_new();

    *load = (struct load){.op = op, .size = size};
    snprintf(load->name, sizeof(load->name), "load%u", load_count);
    consumer_init(&load->consumer, &load_ops, load,
                  (struct permission){.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL});
    ck_assert_int_eq(consumer_attach(change, &load->consumer, node, NULL), 0);
    ck_assert_int_eq(change_apply(change, NULL), 0);
    load->loops = loops;
    load->depth = depth;
    load_count++;
    return load;
}

void load_stop(void)
{
    for (unsigned c = 0; c < load_count; c++) {
        struct change *change = change_new();

        loads[c].depth = 0;
        consumer_detach(change, &loads[c].consumer);
        ck_assert_int_eq(change_apply(change, NULL), 0);
        for (unsigned i = 0; i < 1000 && load_busy(&loads[c]); i++)
            coroutine_sleep(1000000);
        ck_assert_uint_eq(load_busy(&loads[c]), 0);
        ck_assert_uint_eq(loads[c].failed, 0);
        consumer_destroy(&loads[c].consumer);
    }
}

void load_remove_nodes(void)
{
    struct object *objects = object_container("objects"), *object;
    struct node *node;

    while (!list_is_empty(&node_registry)) {
        struct change *change = change_new();

        list_for_each(node, &node_registry, in_registry) {
            if (list_is_empty(&node->parents))
                break;
        }
        ck_assert_int_eq(node_remove(change, node, NULL), 0);
        ck_assert_int_eq(change_apply(change, NULL), 0);
    }
    while ((object = list_first(&objects->children, struct object, in_parent))) {
        ck_assert(!object->type->in_use(object));
        object->type->destroy(object);
    }
}

void load_free(void)
{
    for (unsigned c = 0; c < load_count; c++) {
        for (unsigned i = 0; i < LOAD_LOOPS * LOAD_DEPTH_MAX; i++)
            free(loads[c].slots[i / LOAD_DEPTH_MAX][i % LOAD_DEPTH_MAX].request);
    }
    load_count = 0;
}
