/*
 * What the walk of a request costs by itself: reads of a null disk, with no
 * socket and no ring, through stacks of layers that pass them on: `raw` moves
 * the offset, the others are filters with nothing to do. `mixed` is one of each
 * in turn.
 *
 *   walk                         ns per request and per layer: the least of many short rounds, in CPU time
 *   walk KIND LAYERS REQUESTS    only walks, for a count of instructions: scripts/bench_walk.py
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "drivers/filter/throttle_group.h"
#include "generated/options.h"

#define WALK_LAYERS_MAX 16u
#define WALK_SLOTS 32u          /* as many requests as a client of depth 32 has */
#define WALK_SCRATCH 512u
#define WALK_BYTES 4096u
#define WALK_DISK (1u << 30)
#define WALK_GROUP "group"
#define WALK_ROUNDS 200u
#define WALK_ROUND 20000u       /* requests: some hundred microseconds, so that most rounds are not disturbed */

/* Bars of the design, in ns. */
#define BAR_REQUEST 40.0
#define BAR_LAYER 5.0

union walk_slot {
    struct request req;
    unsigned char room[sizeof(struct request) + WALK_SCRATCH];
} __attribute__((aligned(64)));

static struct loop *loop;
static struct consumer consumer;
static union walk_slot slots[WALK_SLOTS];
static unsigned char buffer[WALK_BYTES];
static struct iovec iov = {.iov_base = buffer, .iov_len = sizeof(buffer)};
static uint64_t walked;

static void check(int result, const struct error *err)
{
    if (result == 0)
        return;
    fprintf(stderr, "walk: %s\n", err->text);
    exit(1);
}

static const char *walk_name(const struct consumer *unused)
{
    (void)unused;
    return "walk";
}

static const struct consumer_ops walk_ops = {.kind = "export", .name = walk_name};

static void walk_done(struct request *req)
{
    walked += req->result == 0;
}

/* Not inlined: by its name the instructions are counted. */
__attribute__((noinline)) void walk_requests(uint64_t count);

void walk_requests(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct request *req = &slots[i % WALK_SLOTS].req;

        req->op = REQ_READ;
        req->flags = 0;
        req->offset = i * WALK_BYTES % (WALK_DISK / 2);
        req->length = WALK_BYTES;
        req->iov = &iov;
        req->iov_count = 1;
        consumer_submit(&consumer, req);
    }
}

/* The graph. */

struct walk_stack {
    unsigned kind, layers;
    bool done;
};

static void add_node(struct change *change, const char *name, struct node_options options)
{
    AUTO_ERROR struct error err = {0};
    struct node *node;

    options.node_name = (char *)(uintptr_t)name;
    options.discard = NODE_DISCARD_UNMAP;
    check(node_add(change, &options, &node, &err), &err);
}

enum { KIND_RAW, KIND_DELAY, KIND_THROTTLE, KIND_BLKDEBUG, KIND_COPY_ON_READ, KIND_MIXED, KINDS };

static const char *const kinds[KINDS] = {"raw", "delay", "throttle", "blkdebug", "copy-on-read", "mixed"};

/* KINDS if there is none of that name. */
static unsigned kind_of(const char *name)
{
    unsigned kind = 0;

    while (kind < KINDS && strcmp(kinds[kind], name) != 0)
        kind++;
    return kind;
}

static void add_layer(struct change *change, unsigned kind, const char *name, const char *below)
{
    struct node_ref file = {.name = (char *)(uintptr_t)below};
    const struct node_options layers[KINDS] = {
        [KIND_RAW] = {.driver = NODE_DRIVER_RAW, .u.raw = {.file = &file, .offset = 4096}},
        [KIND_DELAY] = {.driver = NODE_DRIVER_DELAY, .u.delay = {.file = &file}},
        [KIND_THROTTLE] = {.driver = NODE_DRIVER_THROTTLE,
                           .u.throttle = {.throttle_group = (char *)(uintptr_t)WALK_GROUP, .file = &file}},
        [KIND_BLKDEBUG] = {.driver = NODE_DRIVER_BLKDEBUG, .u.blkdebug = {.image = &file}},
        [KIND_COPY_ON_READ] = {.driver = NODE_DRIVER_COPY_ON_READ, .u.copy_on_read = {.file = &file}},
    };

    add_node(change, name, layers[kind]);
}

static void stack_build(void *arg)
{
    struct walk_stack *stack = arg;
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();
    char names[WALK_LAYERS_MAX + 1][16] = {"disk"};

    add_node(change, "disk", (struct node_options){.driver = NODE_DRIVER_NULL_CO, .u.null_co = {.size = WALK_DISK}});
    for (unsigned i = 1; i <= stack->layers; i++) {
        snprintf(names[i], sizeof(names[i]), "layer%u", i);
        add_layer(change, stack->kind == KIND_MIXED ? i % KIND_MIXED : stack->kind, names[i], names[i - 1]);
    }
    consumer_init(&consumer, &walk_ops, NULL, (struct permission){.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL});
    check(consumer_attach(change, &consumer, names[stack->layers], &err), &err);
    check(change_apply(change, &err), &err);
    stack->done = true;
}

static void stack_remove(void *arg)
{
    struct walk_stack *stack = arg;
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();

    consumer_detach(change, &consumer);
    for (unsigned i = stack->layers; i > 0; i--) {
        AUTO_FREE char *name = memory_format("layer%u", i);

        check(node_remove(change, node_find(name), &err), &err);
    }
    check(node_remove(change, node_find("disk"), &err), &err);
    check(change_apply(change, &err), &err);
    consumer_destroy(&consumer);
    stack->done = true;
}

static void in_coroutine(void (*entry)(void *arg), struct walk_stack *stack)
{
    stack->done = false;
    coroutine_start(loop, entry, stack);
    while (!stack->done)
        loop_turn(loop);
}

static void prepare(void)
{
    static const struct throttle_group_options no_limits;
    AUTO_ERROR struct error err = {0};

    loop_set_ring(LOOP_RING_THREADS);
    check(loop_create(&loop, "main", NULL, &err), &err);
    loop_set_current(loop);
    check(throttle_group_add(WALK_GROUP, &no_limits, &err), &err);
    for (unsigned i = 0; i < WALK_SLOTS; i++)
        slots[i].req = (struct request){.done = walk_done, .scratch_size = WALK_SCRATCH};
}

/* The two uses. */

static double cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double measure(unsigned kind, unsigned layers)
{
    struct walk_stack stack = {.kind = kind, .layers = layers};
    double least = 1e9;

    in_coroutine(stack_build, &stack);
    for (unsigned round = 0; round < WALK_ROUNDS; round++) {
        double start = cpu_ns();

        walk_requests(WALK_ROUND);
        double took = (cpu_ns() - start) / WALK_ROUND;
        least = took < least ? took : least;
    }
    in_coroutine(stack_remove, &stack);
    return least;
}

static void table(void)
{
    static const unsigned layers[] = {1, 4, 10};
    double bare = measure(KIND_RAW, 0);

    printf("%-12s %6s %12s %10s\n", "layers", "count", "ns/request", "ns/layer");
    printf("%-12s %6u %12.1f %10s  bar %.0f: %s\n", "none", 0u, bare, "", BAR_REQUEST,
           bare <= BAR_REQUEST ? "met" : "NOT MET");
    for (unsigned k = 0; k < KINDS; k++) {
        for (unsigned l = 0; l < array_size(layers); l++) {
            double ns = measure(k, layers[l]), layer = (ns - bare) / layers[l];

            printf("%-12s %6u %12.1f %10.1f  bar %.0f: %s\n", kinds[k], layers[l], ns, layer, BAR_LAYER,
                   layer <= BAR_LAYER ? "met" : "NOT MET");
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 1 && argc != 4) {
        fprintf(stderr, "usage: walk [KIND LAYERS REQUESTS]\n");
        return 2;
    }
    prepare();
    if (argc == 1) {
        table();
    } else {
        struct walk_stack stack = {.kind = kind_of(argv[1]), .layers = (unsigned)strtoul(argv[2], NULL, 10)};
        uint64_t count = strtoull(argv[3], NULL, 10);

        if (stack.layers > WALK_LAYERS_MAX || stack.kind == KINDS) {
            fprintf(stderr, "walk: at most %u layers, of a kind in the table\n", WALK_LAYERS_MAX);
            return 2;
        }
        in_coroutine(stack_build, &stack);
        walk_requests(count);
        in_coroutine(stack_remove, &stack);
        if (walked != count) {
            fprintf(stderr, "walk: requests failed\n");
            return 1;
        }
    }
    loop_destroy(loop);
    return 0;
}
