/*
 * Changes: see change.h. Every action is prepared when it is added; what
 * remains to fail is checked here against the graph as it would be.
 */
#include "core/change.h"

#include <errno.h>
#include <string.h>

#include "core/change_list.h"
#include "core/colock.h"
#include "core/consumer.h"
#include "core/drain.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/node_object.h"
#include "core/trace.h"

struct change_action {
    struct list_link link;
    const struct change_type *type;
    unsigned char data[] __attribute__((aligned(16)));
};

uint64_t change_drain_limit_ns = 30000000000u;

/* One change at a time. Set up at the first use: changes run in the main loop only. */
static struct comutex change_mutex;
static bool change_mutex_ready, change_running;

struct change *change_new(void)
{
    if (!change_mutex_ready) {
        comutex_init(&change_mutex);
        change_mutex_ready = true;
    }
    comutex_lock(&change_mutex);
    change_running = true;
    struct change *change = memory_new(struct change);

    list_init(&change->actions);
    list_init(&change->edges);
    return change;
}

void *change_add(struct change *change, const struct change_type *type, size_t size)
{
    struct change_action *action = memory_zero(sizeof(*action) + size);

    action->type = type;
    list_append(&change->actions, &action->link);
    return action->data;
}

void change_touch(struct change *change, struct node *node)
{
    change->touched = memory_grow(change->touched, change->touched_count + 1, sizeof(*change->touched));
    change->touched[change->touched_count++] = node;
}

static int change_edge_to(struct change *change, struct edge *edge, struct node *child, struct error *err)
{
    struct change_edge *changed;

    if (edge->frozen_by)
        return error_set(err, -EBUSY, "Cannot change '%s' link of %s '%s': it is frozen by job '%s'", edge->name,
                         edge->parent.ops->kind, edge->parent.ops->name(edge), edge->frozen_by);
    edge->next_child = child;
    list_for_each(changed, &change->edges, link) {
        if (changed->edge == edge)
            return 0;
    }
    changed = memory_new(struct change_edge);
    changed->edge = edge;
    list_append(&change->edges, &changed->link);
    return 0;
}

int change_attach(struct change *change, struct edge *edge, struct node *child, struct error *err)
{
    list_link_init(&edge->in_child);
    return change_edge_to(change, edge, child, err);
}

int change_replace(struct change *change, struct edge *edge, struct node *child, struct error *err)
{
    return change_edge_to(change, edge, child, err);
}

int change_detach(struct change *change, struct edge *edge, struct error *err)
{
    return change_edge_to(change, edge, NULL, err);
}

static void change_free(struct change *change)
{
    struct change_action *action, *after;
    struct change_edge *changed, *after_edge;

    list_for_each_safe(action, after, &change->actions, link) {
        list_remove(&action->link);
        if (action->type->clean)
            action->type->clean(action->data);
        free(action);
    }
    list_for_each_safe(changed, after_edge, &change->edges, link) {
        list_remove(&changed->link);
        free(changed);
    }
    free(change->touched);
    free(change->order);
    free(change);
    change_running = false;
    comutex_unlock(&change_mutex);
}

bool change_is_under_way(void)
{
    return change_running;
}

void change_abort(struct change *change)
{
    struct change_edge *changed;

    change_unclaim();
    for (struct list_link *link = change->actions.head.previous; link != &change->actions.head; link = link->previous) {
        struct change_action *action = container_of(link, struct change_action, link);

        if (action->type->abort)
            action->type->abort(action->data);
    }
    /* Edges of nodes that abort() freed are not here any more: see node_add(). */
    list_for_each(changed, &change->edges, link)
        changed->edge->next_child = changed->edge->child;
    change_free(change);
}

void change_forget_edge(struct change *change, struct edge *edge)
{
    struct change_edge *changed, *after;

    list_for_each_safe(changed, after, &change->edges, link) {
        if (changed->edge != edge)
            continue;
        list_remove(&changed->link);
        free(changed);
    }
}

static int change_check_nodes(const struct change *change, struct error *err)
{
    for (unsigned i = 0; i < change->order_count; i++) {
        struct node *node = change->order[i];

        if (!node->driver->check || node->flags & NODE_REMOVED)
            continue;
        int result = node->driver->check(node, err);

        if (result < 0)
            return result;
    }
    return 0;
}

static int change_check(struct change *change, struct error *err)
{
    int result = change_order(change, err);

    if (result == 0)
        result = change_let_write(change, err);
    if (result == 0)
        result = change_permissions(change, err);
    if (result == 0)
        result = change_scratch(change, err);
    if (result == 0)
        result = change_check_nodes(change, err);
    return result < 0 ? result : change_claim(change, err);
}

static struct node *change_below_filters(struct node *node, bool next)
{
    while (node) {
        const struct edge *filtered = next ? node_next(node)->filtered : node->filtered;
        struct node *below = filtered ? next ? filtered->next_child : filtered->child : NULL;

        if (!below)
            break;
        node = below;
    }
    return node;
}

/* What a writer is taken away from gets no flush of his any more. Filters that come and go make no difference. */
static bool change_leaves_writes(const struct edge *edge)
{
    struct node *parent = edge_parent_node_of(edge), *child = edge->next_child;

    if (!list_is_linked(&edge->in_child) || !(edge->have.taken & PERM_WRITE) ||
        (!child && (!parent || parent->flags & NODE_REMOVED)))
        return false;
    if (!child) {
        const struct edge *other = node_child_by_name(node_next(parent), edge->name);

        child = other ? other->next_child : NULL;
    }
    return change_below_filters(edge->child, false) != change_below_filters(child, true);
}

static int change_flush(struct change *change, struct error *err)
{
    struct change_edge *changed;

    list_for_each(changed, &change->edges, link) {
        struct edge self = {.child = changed->edge->child};
        int result = change_leaves_writes(changed->edge) ? edge_flush(&self) : 0;

        if (result < 0)
            return error_set(err, result, "Could not flush node '%s' before it is replaced: %s", self.child->name,
                             strerror(-result));
    }
    return 0;
}

static int change_settle(struct change *change, struct error *err)
{
    struct change_action *action;

    list_for_each(action, &change->actions, link) {
        int result = action->type->settle ? action->type->settle(action->data, err) : 0;

        if (result < 0)
            return result;
    }
    return 0;
}

static void change_commit(struct change *change)
{
    struct change_edge *changed;
    struct change_action *action;

    list_for_each(changed, &change->edges, link) {
        struct edge *edge = changed->edge;
        const struct node *before = edge->parent.ops == &edge_parent_consumer ? edge->child : NULL;

        list_remove(&edge->in_child);
        if (!edge->next_child)
            edge_object_detach(edge);
        edge->child = edge->next_child;
        if (!edge->child)
            continue;
        list_append(&edge->child->parents, &edge->in_child);
        if (before && before->size != edge->child->size)
            edge->parent.ops->resized(edge, edge->child->size);
    }
    change_commit_graph(change);
    for (unsigned i = 0; i < change->order_count; i++) {
        struct node *node = change->order[i];

        if (node->next.affected && node->driver->children_changed)
            node->driver->children_changed(node);
    }
    list_for_each(action, &change->actions, link) {
        if (action->type->commit)
            action->type->commit(action->data);
    }
    list_for_each(changed, &change->edges, link)
        edge_object_attach(changed->edge);
}

int change_try(struct change *change, void (*tell)(const struct change_step *step, void *arg), void *arg,
               struct error *err)
{
    int result = change_check(change, err);

    if (result == 0)
        change_tell(change, tell, arg);
    change_abort(change);
    return result;
}

int change_apply(struct change *change, struct error *err)
{
    struct drain *drain = NULL;
    AUTO_FREE struct consumer **consumers = NULL;
    int result = change_check(change, err);

    if (result < 0) {
        TRACE(change, change, 0, result);
        change_abort(change);
        return result;
    }
    unsigned count = change_affected(change, &consumers);
    result = drain_begin(&drain, consumers, count, change_drain_limit_ns, err);
    if (result == 0)
        result = change_flush(change, err);
    if (result == 0)
        result = change_settle(change, err);
    if (result == 0)
        result = change_settle_nodes(change, err);
    if (result == 0)
        change_commit(change);
    if (drain)
        drain_end(drain);
    TRACE(change, change, count, result);
    if (result < 0)
        change_abort(change);
    else
        change_free(change);
    return result;
}
