/*
 * The world: see world.h.
 */
#include "tests/sim/world.h"

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/source.h"
#include "generated/options.h"
#include "tests/sim/ring_sim.h"
#include "tests/sim/tap.h"

struct world world;

uint64_t world_random(uint64_t below)
{
    return sim_random(world.sim, below);
}

static void print_edge(FILE *out, const struct edge *edge)
{
    fprintf(out, "  %s %s '%s' -> %s%s have %x/%x\n", edge->parent.ops->kind, edge->parent.ops->name(edge),
            edge->name ? edge->name : "", edge->child ? edge->child->name : "nothing",
            edge->next_child == edge->child ? "" : " (and another one next)", edge->have.taken, edge->have.shared);
}

char *world_picture(void)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct node *node;
    struct edge *edge;
    struct source *source;

    list_for_each(node, &node_registry, in_registry) {
        fprintf(out, "%s %s flags %x size %" PRIu64 " total %x/%x scratch %u ops %x\n", node->driver->name, node->name,
                node->flags, node->size, node->total.taken, node->total.shared, node->scratch_need, node->side_ops);
        for (unsigned i = 0; i < node->child_count; i++)
            print_edge(out, node->children[i]);
        list_for_each(edge, &node->parents, in_child)
            print_edge(out, edge);
    }
    fprintf(out, "%s\n", list_is_empty(&node_pending) ? "" : "pending nodes");
    list_for_each(source, &source_registry, in_registry)
        fprintf(out, "source %s -> %s\n", source->id, source->top.child->name);
    for (unsigned c = 0; c < MODEL_CLIENTS; c++)
        print_edge(out, &world.model->clients[c].consumer.edge);
    fclose(out);
    return text;
}

/* A witness in a change: who is touched must be quiet while it happens. */

static void witness_look(const struct witness *witness)
{
    struct model *model = world.model;

    for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
        struct model_client *client = &model->clients[c];
        bool touched = client == witness->client && client->consumer.edge.child;

        for (unsigned i = 0; i < witness->node_count; i++)
            touched |= model_reaches(client, witness->nodes[i]);
        if (touched)
            model_assert_quiet(client);
    }
    for (unsigned d = 0; d < MODEL_DISKS; d++) {
        for (unsigned i = 0; i < witness->node_count; i++) {
            if (model->disks[d].fd >= 0 && strcmp(witness->nodes[i]->name, model->disks[d].node) == 0)
                ck_assert_uint_eq(sim_inflight(world.sim, model->disks[d].fd), 0);
        }
    }
}

static int witness_settle(void *action, struct error *err)
{
    struct witness *witness = action;

    witness->settled = true;
    witness_look(witness);
    if (world_random(2)) {
        coroutine_sleep(world_random(300000));
        witness_look(witness);
    }
    return witness->fails ? error_set(err, -ECANCELED, "The test wants it to fail") : 0;
}

static void witness_commit(void *action)
{
    struct witness *witness = action;

    ck_assert(witness->settled && !witness->ended);
    witness->ended = true;
}

static void witness_abort(void *action)
{
    struct witness *witness = action;

    ck_assert(!witness->ended);
    witness->ended = true;
}

static void witness_clean(void *action)
{
    ck_assert(((struct witness *)action)->ended);
}

static const struct change_type witness_type = {
    .name = "witness",
    .settle = witness_settle,
    .commit = witness_commit,
    .abort = witness_abort,
    .clean = witness_clean,
};

struct witness *witness_add(struct change *change, struct node *node, struct model_client *client)
{
    struct witness *witness = change_add(change, &witness_type, sizeof(*witness));

    witness->client = client;
    if (node)
        witness->nodes[witness->node_count++] = node;
    return witness;
}

/* Stacks. */

struct node *world_add_raw(struct change *change, const char *name, const char *below, uint64_t offset, uint64_t size)
{
    struct node_ref file = {.name = (char *)(uintptr_t)below};
    struct node_options options = {
        .driver = NODE_DRIVER_RAW,
        .node_name = (char *)(uintptr_t)name,
        .discard = NODE_DISCARD_UNMAP,
        .detect_zeroes = world_random(4) ? NODE_DETECT_ZEROES_OFF : NODE_DETECT_ZEROES_ON,
        .u.raw = {.offset = offset, .size = size, .has_size = size != 0, .file = &file},
    };
    struct node *node = NULL;

    if (node_add(change, &options, &node, NULL) < 0)
        return NULL;
    if (world_random(5) < 2)
        tap_take_over(node, world.sim);
    return node;
}

/* The name of what lies below layer i. */
const char *stack_below(const struct stack *stack, unsigned i, const struct model_disk *disk)
{
    return i + 1 < stack->count ? stack->names[i + 1] : disk->node;
}

const char *stack_top(const struct stack *stack, const struct model_disk *disk)
{
    return stack->count ? stack->names[0] : disk->node;
}

int stack_add(struct change *change, struct stack *stack, const struct model_disk *disk, uint64_t offset)
{
    uint64_t left = offset;

    *stack = (struct stack){.count = (unsigned)world_random(4)};
    if (offset && !stack->count)
        stack->count = 1;
    for (unsigned i = stack->count; i-- > 0;) {
        const char *below = stack_below(stack, i, disk);
        uint64_t room = node_find(below)->size, size = 0;

        stack->offsets[i] = i ? world_random(left / 512 + 1) * 512 : left;
        left -= stack->offsets[i];
        if (i == 0 && room > stack->offsets[i] + 512 && world_random(4) == 0)
            size = (1 + world_random((room - stack->offsets[i]) / 512)) * 512;
        snprintf(stack->names[i], sizeof(stack->names[i]), "raw%u", world.next_name++);
        if (!world_add_raw(change, stack->names[i], below, stack->offsets[i], size))
            return -EINVAL;
    }
    return 0;
}

int stack_remove(struct change *change, const struct stack *stack)
{
    int result = 0;

    for (unsigned i = 0; i < stack->count && result == 0; i++)
        result = node_remove(change, node_find(stack->names[i]), NULL);
    return result;
}

struct change *world_begin(void)
{
    struct change *change = change_new();

    free(world.before);
    world.before = world_picture();
    return change;
}

/* Applies what was prepared so far with that result, and sees to it that a failure leaves nothing behind. */
bool world_apply(struct change *change, int result)
{
    AUTO_ERROR struct error err = {0};

    if (result < 0)
        change_abort(change);
    else
        result = change_apply(change, &err);
    if (result == 0) {
        world.applied++;
        return true;
    }
    world.refused++;
    AUTO_FREE char *after = world_picture();

    ck_assert_msg(strcmp(world.before, after) == 0, "a change that failed (%s) changed something:\n%s\n---\n%s",
                  err.text ? err.text : "abort", world.before, after);
    return false;
}
