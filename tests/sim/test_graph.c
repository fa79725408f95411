/*
 * The graph under load, by seed: clients on several loops read and write
 * while changes add, replace, resize and remove what is below them, fail, or
 * wait for a request that does not come back. Nothing may be lost or stale,
 * a drain must see nobody inside, and what fails must leave no trace.
 *
 * The last number that Check prints before a failure's text is the seed. CAIRN_SEED=N runs one seed, CAIRN_SEEDS=N so
 * many from 0 on.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/grace.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/source.h"
#include "generated/options.h"
#include "tests/sim/ring_sim.h"
#include "tests/sim/world.h"

#define SEEDS 300
#define STEPS 40            /* of the control coroutine in one run */

/* Steps of the control coroutine. Each begins with all decisions open and ends with a whole graph. */

static struct model_client *some_client(bool attached)
{
    unsigned first = (unsigned)world_random(MODEL_CLIENTS);

    for (unsigned i = 0; i < MODEL_CLIENTS; i++) {
        struct model_client *client = &world.model->clients[(first + i) % MODEL_CLIENTS];

        if (client->attached == attached)
            return client;
    }
    return NULL;
}

static struct stack *stack_of(const struct model_client *client)
{
    return &world.stacks[client - world.model->clients];
}

static void step_attach(void)
{
    struct model_client *client = some_client(false);
    struct source *source;
    struct stack stack;

    if (!client)
        return;
    struct model_disk *disk = &world.model->disks[world_random(MODEL_DISKS)];
    struct change *change = world_begin();
    uint64_t blocks = node_find(disk->node)->size / 512, offset = world_random(2) ? world_random(blocks + 1) * 512 : 0;
    int result = stack_add(change, &stack, disk, offset);
    const char *name = stack_top(&stack, disk);

    if (result == 0 && world_random(3) == 0) {
        snprintf(stack.source, sizeof(stack.source), "source%u", world.next_name++);
        result = source_add(change, stack.source, name, &source, NULL);
        name = stack.source;
    }
    if (result == 0)
        result = consumer_attach(change, &client->consumer, name, NULL);
    witness_add(change, NULL, client);
    if (!world_apply(change, result))
        return;
    client->disk = disk;
    client->offset = offset;
    *stack_of(client) = stack;
    client->attached = true;
}

static void step_detach(void)
{
    struct model_client *client = some_client(true);

    if (!client)
        return;
    struct stack *stack = stack_of(client);
    struct change *change = world_begin();
    int result = 0;

    client->attached = false;
    consumer_detach(change, &client->consumer);
    if (!stack->source[0])
        result = stack_remove(change, stack);
    witness_add(change, NULL, client);
    if (!world_apply(change, result)) {
        client->attached = true;
        return;
    }
    ck_assert_msg(model_is_idle(client), "%s has requests after it was detached", client->name);
    if (!stack->source[0])
        return;
    change = world_begin();
    result = source_remove(change, source_find(stack->source), NULL);
    if (result == 0)
        result = stack_remove(change, stack);
    ck_assert(world_apply(change, result));
}

/* Another way to the same bytes. */
static void step_replace(void)
{
    struct model_client *client = some_client(true);
    struct stack stack;

    if (!client || stack_of(client)->source[0])
        return;
    struct change *change = world_begin();
    int result = stack_add(change, &stack, client->disk, client->offset);

    if (result == 0)
        result = change_replace(change, &client->consumer.edge, node_find(stack_top(&stack, client->disk)), NULL);
    if (result == 0)
        result = stack_remove(change, stack_of(client));
    witness_add(change, NULL, client);
    if (world_apply(change, result))
        *stack_of(client) = stack;
}

static void step_insert(void)
{
    struct model_client *client = some_client(true);
    struct stack *stack = client ? stack_of(client) : NULL;

    if (!stack || stack->count == 0 || stack->count == LAYERS_MAX)
        return;
    unsigned at = (unsigned)world_random(stack->count);
    struct change *change = world_begin();
    struct node *above = node_find(stack->names[at]);
    char name[16];

    snprintf(name, sizeof(name), "raw%u", world.next_name++);
    struct node *node = world_add_raw(change, name, stack_below(stack, at, client->disk), 0, 0);
    int result = node ? change_replace(change, above->children[0], node, NULL) : -EINVAL;

    witness_add(change, above, NULL);
    if (!world_apply(change, result))
        return;
    for (unsigned i = stack->count++; i > at + 1; i--) {
        memcpy(stack->names[i], stack->names[i - 1], sizeof(stack->names[i]));
        stack->offsets[i] = stack->offsets[i - 1];
    }
    memcpy(stack->names[at + 1], name, sizeof(name));
    stack->offsets[at + 1] = 0;
}

static void step_remove_layer(void)
{
    struct model_client *client = some_client(true);
    struct stack *stack = client ? stack_of(client) : NULL;
    unsigned at = stack && stack->count > 1 ? 1 + (unsigned)world_random(stack->count - 1) : 0;

    if (!at || stack->offsets[at])
        return;
    struct change *change = world_begin();
    struct node *above = node_find(stack->names[at - 1]), *node = node_find(stack->names[at]);
    int result = change_replace(change, above->children[0], node->children[0]->child, NULL);

    if (result == 0)
        result = node_remove(change, node, NULL);
    witness_add(change, node, NULL);
    if (!world_apply(change, result))
        return;
    stack->count--;
    for (unsigned i = at; i < stack->count; i++) {
        memcpy(stack->names[i], stack->names[i + 1], sizeof(stack->names[i]));
        stack->offsets[i] = stack->offsets[i + 1];
    }
}

static void step_resize(void)
{
    AUTO_ERROR struct error err = {0};
    struct model_client *client = some_client(true);
    struct model_disk *disk = &world.model->disks[world_random(MODEL_DISKS)];
    struct node *node = node_find(disk->node);
    uint64_t below = 0;

    if (client && world_random(2)) {
        disk = client->disk;
        node = client->consumer.edge.child;
        below = client->offset;
    }
    AUTO_FREE char *before = world_picture();
    uint64_t size = world_random((MODEL_DISK_MAX - below) / 512 + 1) * 512;

    if (node_resize(node, size, &err) == 0) {
        model_resized(disk, node_find(disk->node)->size);
        ck_assert_uint_eq(node->size, size);
        world.applied++;
        return;
    }
    AUTO_FREE char *after = world_picture();

    ck_assert_str_eq(before, after);
    world.refused++;
}

/* Changes that must fail, each behind others that would have gone well. */

static int fail_loop(struct change *change, struct witness *witness)
{
    struct node *top = world_add_raw(change, "loop0", world.model->disks[0].node, 0, 0);
    struct node *next = world_add_raw(change, "loop1", "loop0", 0, 0);

    (void)witness;
    return change_replace(change, top->children[0], next, NULL);
}

static int fail_name(struct change *change, struct witness *witness)
{
    (void)witness;
    return world_add_raw(change, world.model->disks[1].node, world.model->disks[0].node, 0, 0) ? 0 : -EEXIST;
}

static int fail_in_use(struct change *change, struct witness *witness)
{
    (void)witness;
    world_add_raw(change, "user", world.model->disks[0].node, 0, 0);
    return node_remove(change, node_find(world.model->disks[0].node), NULL);
}

static int fail_open(struct change *change, struct witness *witness)
{
    char nowhere[] = "/nowhere/at/all", name[] = "nowhere";
    struct node_options options = {.driver = NODE_DRIVER_FILE, .node_name = name, .u.file = {.filename = nowhere}};
    struct node *node;

    (void)witness;
    return node_add(change, &options, &node, NULL);
}

static int fail_settle(struct change *change, struct witness *witness)
{
    struct node *node = node_find(world.model->disks[world_random(MODEL_DISKS)].node);

    change_touch(change, node);
    witness->nodes[witness->node_count++] = node;
    witness->fails = true;
    return 0;
}

static int fail_window(struct change *change, struct witness *witness)
{
    (void)witness;
    return world_add_raw(change, "window", world.model->disks[0].node, MODEL_DISK_MAX + 512, 0) ? 0 : -EINVAL;
}

static void step_fail(void)
{
    static int (*const faults[])(struct change *, struct witness *) = {fail_loop, fail_name,   fail_in_use,
                                                                       fail_open, fail_settle, fail_window};
    struct model_client *client = some_client(true);
    struct change *change = world_begin();
    struct stack stack;
    bool replaces = client && !stack_of(client)->source[0] && world_random(2);
    int result = 0;

    if (replaces) {
        result = stack_add(change, &stack, client->disk, client->offset);
        if (result == 0)
            result = change_replace(change, &client->consumer.edge, node_find(stack_top(&stack, client->disk)), NULL);
    }
    struct witness *witness = witness_add(change, NULL, replaces ? client : NULL);

    if (result == 0)
        result = faults[world_random(array_size(faults))](change, witness);
    ck_assert_msg(!world_apply(change, result), "a change went well that should have failed");
}

/* A request that does not come back: the drain ends, names the client, and all others go on. */

static void touch(struct node *node, const char *expect)
{
    AUTO_ERROR struct error err = {0};
    struct change *change = world_begin();

    change_touch(change, node);
    witness_add(change, node, NULL);
    int result = change_apply(change, &err);
    AUTO_FREE char *after = world_picture();

    ck_assert_str_eq(world.before, after);
    ck_assert_msg(result == (expect ? -ETIMEDOUT : 0), "%d: %s", result, err.text);
    if (expect)
        ck_assert_msg(strstr(err.text, expect), "%s\nshould have said %s", err.text, expect);
}

static struct model_client *who_hangs(void)
{
    for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
        struct model_client *client = &world.model->clients[c];

        for (unsigned l = 0; l < world.model->loop_count; l++) {
            if (client->consumer.loops[l].inflight)
                return client;
        }
    }
    return NULL;
}

static void step_hang(void)
{
    struct model_disk *disk = &world.model->disks[world_random(MODEL_DISKS)];
    struct sim_fault fault = {.kinds = SIM_READ | SIM_WRITE, .fd = disk->fd, .count = 1, .result = SIM_NEVER};

    if (disk->fd < 0)
        return;
    sim_fault(world.sim, &fault);
    for (unsigned i = 0; i < 50 && !sim_held(world.sim); i++)
        coroutine_sleep(20000);
    if (sim_held(world.sim)) {
        /* All others end; it is still there. */
        world.model->stopped = true;
        coroutine_sleep(100000000);
        struct model_client *client = who_hangs();
        AUTO_FREE char *text = memory_format("client '%s' still has 1 requests in flight after 4 ms", client->name);

        world.model->stopped = false;
        change_drain_limit_ns = 4000000;
        touch(node_find(disk->node), text);
        for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
            for (unsigned l = 0; l < world.model->loop_count; l++)
                ck_assert(!world.model->clients[c].consumer.loops[l].paused);
        }
        change_drain_limit_ns = 30000000000u;
        ck_assert_uint_eq(sim_release(world.sim), 1);
        touch(node_find(disk->node), NULL);
    }
    sim_forget_faults(world.sim);
}

/* All that was in the graph before must be out of it. */
static void step_grace(void)
{
    static uint64_t inside[MODEL_CLIENTS][MODEL_LOOPS][MODEL_SLOTS];

    for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
        for (unsigned l = 0; l < MODEL_LOOPS; l++) {
            for (unsigned i = 0; i < MODEL_SLOTS; i++) {
                const struct model_slot *slot = &world.model->clients[c].slots[l][i];

                inside[c][l][i] = slot->busy && !slot->waiting ? slot->generation : UINT64_MAX;
            }
        }
    }
    grace_wait();
    for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
        for (unsigned l = 0; l < MODEL_LOOPS; l++) {
            for (unsigned i = 0; i < MODEL_SLOTS; i++)
                ck_assert_uint_ne(inside[c][l][i], world.model->clients[c].slots[l][i].generation);
        }
    }
}

static void step_touch(void)
{
    touch(node_find(world.model->disks[world_random(MODEL_DISKS)].node), NULL);
}

/* Errors of some disks, from now on and for a while. */
static void step_break(void)
{
    sim_forget_faults(world.sim);
    for (unsigned d = 0; d < MODEL_DISKS; d++) {
        const struct model_disk *disk = &world.model->disks[d];
        struct sim_fault bad = {
            .kinds = SIM_READ | SIM_WRITE | SIM_FALLOCATE, .fd = disk->fd, .permille = 50, .result = -EIO};
        struct sim_fault full = {.kinds = SIM_WRITE | SIM_FALLOCATE, .fd = disk->fd, .permille = 50, .result = -ENOSPC};
        struct sim_fault gone = {.kinds = SIM_FSYNC, .fd = disk->fd, .permille = 10, .count = 1, .result = -EIO};

        if (disk->fd < 0 || !disk->faulty || world_random(2))
            continue;
        sim_fault(world.sim, &bad);
        sim_fault(world.sim, &full);
        if (world_random(4) == 0)
            sim_fault(world.sim, &gone);
    }
}

/* Runs. */

static void add_disks(void)
{
    struct change *change = world_begin();
    int result = 0;

    for (unsigned d = 0; d < MODEL_DISKS && result == 0; d++) {
        struct model_disk *disk = &world.model->disks[d];
        struct node_options options = {.driver = NODE_DRIVER_NULL_CO, .node_name = disk->node};
        struct node *node;

        if (disk->fd < 0) {
            options.u.null_co = (struct null_co_options){
                .size = MODEL_DISK_MAX, .latency_ns = world_random(2) * 50000, .read_zeroes = true};
        } else {
            options.driver = NODE_DRIVER_FILE;
            options.discard = disk->unmaps ? NODE_DISCARD_UNMAP : NODE_DISCARD_IGNORE;
            options.u.file = (struct file_options){.filename = disk->path};
        }
        result = node_add(change, &options, &node, NULL);
    }
    ck_assert(world_apply(change, result));
}

static void remove_disks(void)
{
    struct change *change = world_begin();
    int result = 0;

    for (unsigned d = 0; d < MODEL_DISKS && result == 0; d++)
        result = node_remove(change, node_find(world.model->disks[d].node), NULL);
    ck_assert(world_apply(change, result));
}

static void finish(void)
{
    sim_forget_faults(world.sim);
    world.model->stopped = true;
    for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
        while (!model_is_idle(&world.model->clients[c]))
            coroutine_sleep(1000000);
    }
    model_assert_content(world.model);
    world.model->refuse_scratch = 0;
    while (some_client(true))
        step_detach();
    remove_disks();
    ck_assert(list_is_empty(&node_registry) && list_is_empty(&source_registry));
    world.done = true;
}

static void control(void *arg)
{
    static void (*const steps[])(void) = {
        step_attach, step_attach, step_attach,       step_detach, step_replace, step_replace,
        step_insert, step_insert, step_remove_layer, step_resize, step_resize,  step_fail,
        step_fail,   step_hang,   step_grace,        step_touch,  step_break,
    };

    (void)arg;
    add_disks();
    for (unsigned i = 0; i < 3; i++)
        step_attach();
    for (; world.steps < STEPS; world.steps++) {
        steps[world_random(array_size(steps))]();
        coroutine_sleep(world_random(400000));
    }
    finish();
}

static uint64_t run(uint64_t seed)
{
    world = (struct world){.sim = sim_new(seed)};
    unsigned loops = 1 + (unsigned)world_random(MODEL_LOOPS);

    sim_manner(world.sim)->delay_max_ns = 1000 << world_random(11);
    for (unsigned l = 0; l < loops; l++)
        sim_loop(world.sim, l ? "io" : "main");
    world.model = model_new(world.sim, loops);
    loop_set_current(loop_main);
    coroutine_start(loop_main, control, NULL);
    while (sim_step(world.sim, model_work, world.model))
        continue;
    ck_assert_msg(world.done, "everything waits, after %u steps", world.steps);
    ck_assert_uint_eq(sim_inflight(world.sim, -1), 0);
    uint64_t digest = sim_digest(world.sim) ^ world.model->requests;

    free(world.before);
    model_free(world.model);
    sim_free(world.sim);
    return digest;
}

START_TEST(graph_by_seed)
{
    run((uint64_t)_i);
}
END_TEST

START_TEST(same_seed_same_run)
{
    for (uint64_t seed = 1000; seed < 1005; seed++) {
        uint64_t first = run(seed);

        ck_assert_uint_eq(run(seed), first);
        ck_assert_uint_ne(run(seed + 1), first);
    }
}
END_TEST

int main(void)
{
    const char *seed = getenv("CAIRN_SEED"), *seeds = getenv("CAIRN_SEEDS");
    int first = seed ? atoi(seed) : 0, end = seed ? first + 1 : seeds ? atoi(seeds) : SEEDS;
    /* That flushes of broken disks fail is no news. */
    log_set_level(LOG_LEVEL_ERROR);
    Suite *suite = suite_create("graph");
    TCase *tests = tcase_create("seed");

    tcase_add_loop_test(tests, graph_by_seed, first, end);
    tcase_add_test(tests, same_seed_same_run);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
