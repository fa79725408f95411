/*
 * Filters come and go while the disk is in use: pushing, popping, another
 * base. See source.h. Everything looks at the next graph, so that several of
 * these go into one change.
 */
#include <errno.h>
#include <string.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/node_make.h"
#include "core/source.h"
#include "generated/options.h"

static struct node *stack_below(struct node *node)
{
    const struct node *next = node_next(node);

    return next->driver->kind == DRIVER_FILTER && next->filtered ? next->filtered->next_child : NULL;
}

struct node *source_base(struct node *node)
{
    for (struct node *below; (below = stack_below(node));)
        node = below;
    return node;
}

int source_move(struct change *change, struct source *source, struct node *node, struct error *err)
{
    struct consumer *consumer;
    int result = change_replace(change, &source->top, node, err);

    list_for_each(consumer, &consumer_registry, in_registry) {
        if (result == 0 && consumer->next_source == source)
            result = change_replace(change, &consumer->edge, node, err);
    }
    return result;
}

/* The filter of the source's stack whose filtered child is at that depth. */
static int stack_above(const struct source_place *place, struct node **ret, struct error *err)
{
    struct node *node = place->source->top.next_child;

    for (unsigned depth = 1; depth < place->depth && node; depth++)
        node = stack_below(node);
    if (!node || !stack_below(node))
        return error_set(err, -ENOENT, "Source '%s' has fewer than %u filters", place->source->id, place->depth);
    *ret = node;
    return 0;
}

int source_place_get(const struct source_place *place, struct node **ret, struct error *err)
{
    if (place->source && place->depth == 0) {
        *ret = place->source->top.next_child;
        return 0;
    }
    if (place->source) {
        int result = stack_above(place, ret, err);

        if (result == 0)
            *ret = stack_below(*ret);
        return result;
    }
    const struct edge *edge = node_child_by_name(node_next(place->parent), place->child);

    if (!edge || !edge->next_child)
        return error_set(err, -ENOENT, "Node '%s' has no child '%s'", place->parent->name, place->child);
    *ret = edge->next_child;
    return 0;
}

int source_place_set(struct change *change, const struct source_place *place, struct node *node, struct error *err)
{
    struct node *above = place->parent;

    if (place->source && place->depth == 0)
        return source_move(change, place->source, node, err);
    if (!place->source)
        return node_set_child_node(change, above, place->child, node, err);
    int result = stack_above(place, &above, err);

    return result < 0 ? result : node_set_child_node(change, above, node_next(above)->filtered->name, node, err);
}

static int stack_check_filter(const struct node *filter, struct error *err)
{
    return filter->driver->kind == DRIVER_FILTER && filter->filtered
               ? 0
               : error_set(err, -EINVAL, "Node '%s' of driver '%s' is no filter", filter->name, filter->driver->name);
}

/* A filter node from options: over `below`, and what that gives back it gives back too. */
static int stack_add_filter(struct change *change, const struct node_options *options, const struct node *below,
                            struct node **ret, struct error *err)
{
    struct node_place top = {.implicit = true};
    struct node_options *own = option_copy(&node_options_type, options);
    struct node_ref **ref = node_filtered_ref(own);
    int result;

    if (!ref)
        result = error_set(err, -EINVAL, "Driver '%s' is no filter", node_options_type.branches[own->driver].name);
    else if (*ref)
        result = error_set(err, -EINVAL, "What a filter is put over is not part of its options");
    else
        result = 0;
    if (result == 0) {
        *ref = memory_new(struct node_ref);
        (*ref)->name = memory_string(below->name);
        if (own->discard == NODE_DISCARD_IGNORE)
            own->discard = below->options->discard;
        result = node_add_at(change, own, top, ret, err);
    }
    option_free(&node_options_type, own);
    return result;
}

int source_push(struct change *change, const struct source_place *place, const struct node_options *options,
                struct node *filter, struct error *err)
{
    struct node *below;
    int result = source_place_get(place, &below, err);

    if (result < 0)
        return result;
    if (filter) {
        result = stack_check_filter(filter, err);
        if (result == 0)
            result = node_set_child_node(change, filter, filter->filtered->name, below, err);
    } else {
        result = stack_add_filter(change, options, below, &filter, err);
    }
    return result < 0 ? result : source_place_set(change, place, filter, err);
}

/* Where in the stack of the place the node is. */
static int stack_find(const struct source_place *place, const char *name, struct source_place *ret, struct error *err)
{
    struct node *node;

    *ret = *place;
    if (!place->source) {
        int result = source_place_get(place, &node, err);

        if (result == 0 && strcmp(node->name, name) != 0)
            result = error_set(err, -ENOENT, "Child '%s' of node '%s' is node '%s', not '%s'", place->child,
                               place->parent->name, node->name, name);
        return result;
    }
    node = place->source->top.next_child;
    for (ret->depth = 0; node && strcmp(node->name, name) != 0; ret->depth++)
        node = stack_below(node);
    return node ? 0 : error_set(err, -ENOENT, "Source '%s' has no filter '%s'", place->source->id, name);
}

int source_pop(struct change *change, const struct source_place *place, const char *name, struct error *err)
{
    struct source_place found;
    struct node *filter, *below;
    int result = stack_find(place, name, &found, err);

    if (result == 0)
        result = source_place_get(&found, &filter, err);
    if (result < 0)
        return result;
    if (!(below = stack_below(filter)))
        return error_set(err, -EINVAL, "Node '%s' is the base of source '%s', not a filter", name,
                         place->source ? place->source->id : place->child);
    result = source_place_set(change, &found, below, err);
    return result < 0 ? result : node_release(change, filter, err);
}

int source_switch(struct change *change, struct source *source, struct node *node, struct error *err)
{
    struct source_place place = {.source = source};
    struct node *base = source->top.next_child;

    for (struct node *below; (below = stack_below(base)); place.depth++)
        base = below;
    int result = source_place_set(change, &place, node, err);

    /* What was pushed for this source alone is below its filters no more. */
    return result < 0 ? result : node_release(change, base, err);
}
