/*
 * Checks of the graph as a change would make it: order, permissions, claims
 * of drivers, frame bytes; and who is affected. All nodes are looked at: a
 * change is rare, a graph has hundreds of nodes, and a rule without special
 * cases is easier to trust.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/change_list.h"
#include "core/consumer.h"
#include "core/driver.h"
#include "core/memory.h"
#include "core/node.h"
#include "generated/options.h"

int change_each_parent(const struct change *change, const struct node *node, int (*visit)(struct edge *edge, void *arg),
                       void *arg)
{
    struct change_edge *changed;
    struct edge *edge;
    int result = 0;

    list_for_each(edge, &node->parents, in_child) {
        if (edge->next_child == node && (result = visit(edge, arg)) != 0)
            return result;
    }
    list_for_each(changed, &change->edges, link) {
        edge = changed->edge;
        if (edge->next_child != node)
            continue;
        /* Those already in parents were seen. */
        bool seen = list_is_linked(&edge->in_child) && edge->child == node;

        if (!seen && (result = visit(edge, arg)) != 0)
            return result;
    }
    return 0;
}

/* Order: depth first with an explicit stack, since chains may be long and coroutine stacks are not. */

enum { ORDER_NEW, ORDER_OPEN, ORDER_DONE };

struct order_frame {
    struct node *node;
    unsigned next;
};

struct order_walk {
    struct change *change;
    struct order_frame *stack;
    unsigned depth, room;
};

static void order_push(struct order_walk *walk, struct node *node)
{
    if (walk->depth == walk->room) {
        walk->room = walk->room ? 2 * walk->room : 64;
        walk->stack = memory_grow(walk->stack, walk->room, sizeof(*walk->stack));
    }
    node->next.order = ORDER_OPEN;
    walk->stack[walk->depth++] = (struct order_frame){.node = node};
}

static void order_emit(struct change *change, struct node *node)
{
    if (change->order_count == change->order_room) {
        change->order_room = change->order_room ? 2 * change->order_room : 64;
        change->order = memory_grow(change->order, change->order_room, sizeof(*change->order));
    }
    node->next.order = ORDER_DONE;
    change->order[change->order_count++] = node;
}

static int order_from(struct order_walk *walk, struct node *root, struct error *err)
{
    order_push(walk, root);
    while (walk->depth) {
        struct order_frame *frame = &walk->stack[walk->depth - 1];

        const struct node *next = node_next(frame->node);

        if (frame->next == next->child_count) {
            order_emit(walk->change, frame->node);
            walk->depth--;
            continue;
        }
        struct edge *edge = next->children[frame->next++];
        struct node *child = edge->next_child;

        if (!child || child->next.order == ORDER_DONE)
            continue;
        if (child->next.order == ORDER_OPEN)
            return error_set(err, -ELOOP, "Making node '%s' the '%s' child of node '%s' would form a loop", child->name,
                             edge->name, frame->node->name);
        order_push(walk, child);
    }
    return 0;
}

/* From root down; of all nodes if it is NULL. */
static int order_make(struct change *change, struct node *root, struct error *err)
{
    struct order_walk walk = {.change = change};
    struct list *const lists[] = {&node_registry, &node_pending};
    struct node *node;
    int result = 0;

    change->order_count = 0;
    for (unsigned i = 0; i < array_size(lists); i++) {
        list_for_each(node, lists[i], in_registry) {
            node->next.order = ORDER_NEW;
            node->next.total = node->total;
        }
    }
    if (root)
        result = order_from(&walk, root, err);
    for (unsigned i = 0; i < array_size(lists) && !root; i++) {
        list_for_each(node, lists[i], in_registry) {
            if (result == 0 && node->next.order == ORDER_NEW)
                result = order_from(&walk, node, err);
        }
    }
    free(walk.stack);
    /* Depth first emits children before parents. */
    for (unsigned a = 0, b = change->order_count; a + 1 < b; a++) {
        struct node *swap = change->order[a];

        change->order[a] = change->order[--b];
        change->order[b] = swap;
    }
    return result;
}

int change_order(struct change *change, struct error *err)
{
    return order_make(change, NULL, err);
}

/* Permissions. */

#define PERM_CHANGING (PERM_WRITE | PERM_RESIZE)

struct permission_fold {
    const struct change *change;
    struct node *node;
    struct permission total;
    unsigned writers; /* parents that would write or resize */
    struct edge *asking;
    struct error *err;
};

static void edge_compute_want(struct edge *edge)
{
    struct node *parent = edge_parent_node_of(edge);

    if (!parent)
        return;
    edge->want = permission_default(node_next(parent), edge, &parent->next.total);
    if (parent->driver->permissions)
        parent->driver->permissions(node_next(parent), edge, &edge->want);
}

static int permission_conflict(struct edge *other, void *arg)
{
    struct permission_fold *fold = arg;
    struct edge *asking = fold->asking;

    if (other == asking)
        return 0;
    uint32_t denied = asking->want.taken & ~other->want.shared;

    if (!denied)
        return 0;
    return error_set(fold->err, -EPERM,
                     "Conflicts with use by %s '%s' as '%s', which does not allow '%s' on node '%s' (needed by %s '%s' "
                     "as '%s')",
                     other->parent.ops->kind, other->parent.ops->name(other), other->name,
                     permission_name((unsigned)__builtin_ctz(denied)), fold->node->name, asking->parent.ops->kind,
                     asking->parent.ops->name(asking), asking->name);
}

static int permission_want(struct edge *edge, void *arg)
{
    struct permission_fold *fold = arg;

    edge_compute_want(edge);
    fold->writers += (edge->want.taken & PERM_CHANGING) != 0;
    fold->total.taken |= edge->want.taken;
    fold->total.shared &= edge->want.shared;
    return 0;
}

static int permission_check(struct edge *edge, void *arg)
{
    struct permission_fold *fold = arg;

    fold->asking = edge;
    return edge->want.taken ? change_each_parent(fold->change, fold->node, permission_conflict, fold) : 0;
}

static unsigned permission_writers_now(const struct node *node)
{
    struct edge *edge;
    unsigned count = 0;

    list_for_each(edge, &node->parents, in_child)
        count += (edge->have.taken & PERM_CHANGING) != 0;
    return count;
}

static int permission_refuse_writer(struct edge *edge, void *arg)
{
    const struct permission_fold *fold = arg;
    uint32_t changing = edge->want.taken & PERM_CHANGING;

    if (!changing)
        return 0;
    return error_set(fold->err, -EPERM,
                     "Block node '%s' is read-only, which does not allow '%s' (needed by %s '%s' as '%s')",
                     fold->node->name, permission_name((unsigned)__builtin_ctz(changing)), edge->parent.ops->kind,
                     edge->parent.ops->name(edge), edge->name);
}

/* What writes to a corrupted node may stay, and filters may come in between; there is never one more. */
static int permission_read_only(struct permission_fold *fold)
{
    struct node *node = fold->node;

    if (node_next(node)->flags & NODE_READ_ONLY && node->next.total.taken & PERM_CHANGING)
        return change_each_parent(fold->change, node, permission_refuse_writer, fold);
    if (node->flags & NODE_CORRUPTED &&
        (node->next.total.taken & ~node->total.taken & PERM_CHANGING || fold->writers > permission_writers_now(node)))
        return error_set(fold->err, -EPERM, "Block node '%s' is corrupted and cannot be written", node->name);
    return 0;
}

static struct permission_fold permission_sum(const struct change *change, struct node *node, struct error *err)
{
    struct permission_fold fold = {.change = change, .node = node, .total = {.shared = PERM_ALL}, .err = err};

    change_each_parent(change, node, permission_want, &fold);
    node->next.total = fold.total;
    return fold;
}

/* What follows from a leaf's flags is only whether it can be written, so that the order stays. */
int change_let_write(struct change *change, struct error *err)
{
    int result = 0;

    for (unsigned i = 0; i < change->order_count && result == 0; i++) {
        struct node *node = change->order[i];
        const struct node *next = node_next(node);

        permission_sum(change, node, NULL);
        if (next->flags & NODE_READ_ONLY && next->options->auto_read_only && !next->options->read_only &&
            node->next.total.taken & PERM_CHANGING && node->driver->reopen && next->child_count == 0)
            result = node_reopen(change, node, next->options, err);
    }
    return result;
}

int change_permissions(struct change *change, struct error *err)
{
    for (unsigned i = 0; i < change->order_count; i++) {
        struct node *node = change->order[i];
        struct permission_fold fold = permission_sum(change, node, err);
        int result = change_each_parent(change, node, permission_check, &fold);

        if (result == 0)
            result = permission_read_only(&fold);
        if (result < 0)
            return result;
    }
    return 0;
}

/* What was claimed for the part of the graph that a node was made from stays claimed. */
int change_claim(struct change *change, struct error *err)
{
    for (unsigned i = 0; i < change->order_count; i++) {
        struct node *node = change->order[i];

        if (!node->driver->claim ||
            (!node->next.self && memcmp(&node->total, &node->next.total, sizeof(node->total)) == 0))
            continue;
        node->next.claimed = true;
        int result = node->driver->claim(node, &node->next.total, false, err);

        if (result < 0)
            return result;
    }
    return 0;
}

int change_claim_below(struct change *change, struct node *root, struct error *err)
{
    int result = order_make(change, root, err);

    if (result == 0)
        result = change_permissions(change, err);
    return result < 0 ? result : change_claim(change, err);
}

void change_unclaim(void)
{
    struct list *const lists[] = {&node_registry, &node_pending};
    struct node *node;

    for (unsigned i = 0; i < array_size(lists); i++) {
        list_for_each(node, lists[i], in_registry) {
            if (node->next.claimed)
                node->driver->claim(node, &node->total, true, NULL);
            node->next.claimed = false;
        }
    }
}

/* Frames. */

static int scratch_of_consumer(struct edge *edge, void *arg)
{
    struct permission_fold *fold = arg;
    struct consumer *consumer = edge->parent.object;

    if (edge->parent.ops != &edge_parent_consumer || !consumer->ops->scratch)
        return 0;
    if (edge->child && fold->node->next.scratch <= consumer_scratch(consumer))
        return 0;
    return consumer->ops->scratch(consumer, fold->node->next.scratch, fold->err);
}

int change_scratch(struct change *change, struct error *err)
{
    for (unsigned i = change->order_count; i-- > 0;) {
        struct node *node = change->order[i];
        struct permission_fold fold = {.change = change, .node = node, .err = err};
        unsigned below = 0;

        for (unsigned c = 0; c < node_next(node)->child_count; c++) {
            const struct node *child = node_next(node)->children[c]->next_child;

            if (child && child->next.scratch > below)
                below = child->next.scratch;
        }
        node->next.scratch = below + (node->driver->after ? (unsigned)FRAME_SIZE(node->driver->scratch_size) : 0);
        if (node->next.scratch > SCRATCH_MAX)
            return error_set(err, -E2BIG, "Too many layers below node '%s'", node->name);
        int result = change_each_parent(change, node, scratch_of_consumer, &fold);

        if (result < 0)
            return result;
    }
    return 0;
}

/* Parents were looked at before. Set while others may walk here: what comes from a new parent comes after this. */
static void node_find_uppermost(struct node *node)
{
    const struct edge *edge;
    bool uppermost = true;

    list_for_each(edge, &node->parents, in_child) {
        const struct node *parent = edge_parent_node_of(edge);

        if (parent && (parent->driver->kind != DRIVER_FILTER || !(parent->flags & NODE_UPPERMOST)))
            uppermost = false;
    }
    if (uppermost)
        atomic_fetch_or(&node->flags, NODE_UPPERMOST);
    else
        atomic_fetch_and(&node->flags, ~(uint32_t)NODE_UPPERMOST);
}

void change_commit_graph(struct change *change)
{
    for (unsigned i = 0; i < change->order_count; i++) {
        struct node *node = change->order[i];
        struct edge *edge;

        list_for_each(edge, &node->parents, in_child)
            edge->have = edge->want;
        node_find_uppermost(node);
        if (node->next.claimed)
            node->driver->claim(node, &node->next.total, true, NULL);
        node->next.claimed = false;
        node->total = node->next.total;
        if (node->scratch_need != node->next.scratch)
            node->scratch_need = (uint16_t)node->next.scratch;
    }
}

/* Affected consumers. */

static void affected_add(struct consumer *consumer, struct consumer ***list, unsigned *count)
{
    for (unsigned i = 0; i < *count; i++) {
        if ((*list)[i] == consumer)
            return;
    }
    *list = memory_grow(*list, *count + 1, sizeof(**list));
    (*list)[(*count)++] = consumer;
}

unsigned change_affected(struct change *change, struct consumer ***ret)
{
    struct change_edge *changed;
    struct edge *edge;
    unsigned count = 0;

    *ret = NULL;
    for (unsigned i = 0; i < change->order_count; i++)
        change->order[i]->next.affected = false;
    for (unsigned i = 0; i < change->touched_count; i++)
        change->touched[i]->next.affected = true;
    list_for_each(changed, &change->edges, link) {
        struct node *parent = edge_parent_node_of(changed->edge);

        if (parent)
            parent->next.affected = true;
        else if (changed->edge->child && changed->edge->parent.ops == &edge_parent_consumer)
            affected_add(changed->edge->parent.object, ret, &count);
    }
    /* Children come after their parents: from the leaves up, what is affected spreads to parents. */
    for (unsigned i = change->order_count; i-- > 0;) {
        struct node *node = change->order[i];

        if (!node->next.affected)
            continue;
        list_for_each(edge, &node->parents, in_child) {
            struct node *parent = edge_parent_node_of(edge);

            if (parent)
                parent->next.affected = true;
            else if (edge->parent.ops == &edge_parent_consumer)
                affected_add(edge->parent.object, ret, &count);
        }
    }
    return count;
}
