/*
 * Reopening: a node in use gets other options and children. See node_reopen().
 *
 * What the node will be is a second struct node that nobody finds, its `next`:
 * it has the new options, flags and list of children, and perhaps a state.
 * Edges that stay are in both lists; new ones belong to the node from the
 * start and lead to their child at once. While all users are drained the two
 * swap what they have (node_swap()), children before parents, so that a driver
 * that opens anew already reads through what will be. If anything fails they
 * swap back.
 *
 * A node may be reopened more than once in a change; each time begins with
 * what the last one made.
 */
#include <errno.h>
#include <string.h>

#include "core/change.h"
#include "core/change_list.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/node_make.h"
#include "core/request_side.h"
#include "generated/options.h"

struct node_reopening {
    struct change *change;
    struct node *node, *next, *previous;    /* previous: what node_next() was; NULL: the node itself */
    struct edge **made, **dropped;          /* children that next has and previous had not, and the reverse */
    unsigned made_count, dropped_count;
    enum reopen kind;
    bool swapped, opened;
};

/* The action */

static void reopening_close_state(struct node_reopening *reopening, bool is_open)
{
    struct node *next = reopening->next;

    if (next->state && is_open && next->driver->close)
        next->driver->close(next);
}

static void reopening_free(struct node_reopening *reopening)
{
    struct node *next = reopening->next;

    if (next) {
        free(next->children);
        free(next->state);
        option_free(&node_options_type, next->options);
        free(next);
    }
    free(reopening->made);
    free(reopening->dropped);
}

static void node_reopen_commit(void *action)
{
    struct node_reopening *reopening = action;
    struct node *node = reopening->node;

    if (!reopening->swapped)
        return;
    node->next.self = NULL;
    if (node->size != reopening->next->size)
        node_size_changed(node, node->size);
}

static void node_reopen_abort(void *action)
{
    struct node_reopening *reopening = action;

    if (reopening->next)
        reopening_close_state(reopening, reopening->kind == REOPEN_PREPARED);
    for (unsigned i = 0; i < reopening->made_count; i++) {
        change_forget_edge(reopening->change, reopening->made[i]);
        node_edge_free(reopening->made[i]);
    }
    reopening->node->next.self = reopening->previous;
    reopening_free(reopening);
    *reopening = (struct node_reopening){0};
}

/* After the commit next has what the node had before. */
static void node_reopen_clean(void *action)
{
    struct node_reopening *reopening = action;

    if (!reopening->next)
        return;
    reopening_close_state(reopening, reopening->swapped || reopening->kind == REOPEN_PREPARED);
    for (unsigned i = 0; i < reopening->dropped_count; i++)
        node_edge_free(reopening->dropped[i]);
    reopening_free(reopening);
}

static const struct change_type node_reopen_type = {
    .name = "reopen node", .commit = node_reopen_commit, .abort = node_reopen_abort, .clean = node_reopen_clean};

/* Under the drain */

static void node_swap(struct node *node, struct node *next)
{
    struct node was = *node;
    uint32_t flags = node->flags;

    node->options = next->options;
    node->children = next->children;
    node->child_count = next->child_count;
    node->filtered = next->filtered;
    node->flags = (flags & ~(uint32_t)NODE_READ_ONLY) | (next->flags & NODE_READ_ONLY);
    next->options = was.options;
    next->children = was.children;
    next->child_count = was.child_count;
    next->filtered = was.filtered;
    next->flags = flags;
    if (next->state) {
        node->state = next->state;
        next->state = was.state;
    }
    uint64_t size = next->size;

    next->size = was.size;
    node->size = size;
    request_side_update(node);
}

static struct node_reopening *reopening_of(struct node *node)
{
    return node->next.self ? (struct node_reopening *)node->next.self->next.reopening : NULL;
}

/* Before anything is swapped: what is on disk is complete, for those who will read it anew. */
static int settle_finish(struct node_reopening *reopening, struct error *err)
{
    struct node *node = reopening->node;
    struct edge self = {.child = node};
    int result = 0;

    /* What is damaged cannot be made complete: its clients were told, and a repair is why it is opened again. */
    if (node->flags & (NODE_READ_ONLY | NODE_CORRUPTED) || reopening->kind == REOPEN_KEPT)
        return 0;
    if (node->driver->finish)
        result = node->driver->finish(node);
    if (result == 0 && (node->driver->finish || reopening->kind == REOPEN_PREPARED))
        result = edge_flush(&self);
    return result < 0 ? error_set(err, result, "Could not flush node '%s' before it is reopened: %s", node->name,
                                  strerror(-result))
                      : 0;
}

/* A parent that is reopened itself sees the size when its turn comes. */
static int resize_refused(struct edge *edge, void *arg)
{
    struct error *err = arg;
    const struct node *parent = edge_parent_node_of(edge);

    if (edge->want.shared & PERM_RESIZE || (parent && parent->next.self))
        return 0;
    return error_set(err, -EPERM, "Conflicts with use by %s '%s' as '%s', which does not allow 'resize' on node '%s'",
                     edge->parent.ops->kind, edge->parent.ops->name(edge), edge->name, edge->next_child->name);
}

static int settle_swap(struct node_reopening *reopening, struct error *err)
{
    struct node *node = reopening->node;
    uint64_t before = node->size;
    int result = 0;

    node_swap(node, reopening->next);
    reopening->swapped = true;
    if (reopening->kind == REOPEN_KEPT)
        node->size = before;
    if (node->filtered)
        node->size = node->filtered->child->size;
    if (reopening->kind == REOPEN_AGAIN) {
        node->flags &= ~(uint32_t)NODE_CORRUPTED;
        result = node->driver->open ? node->driver->open(node, node_driver_options(node), err) : 0;
        reopening->opened = result == 0;
        request_side_update(node);
    }
    if (result == 0 && reopening->kind != REOPEN_KEPT && node->driver->adopt)
        node->driver->adopt(node, reopening->next->state);
    if (result == 0 && node->flags & NODE_READ_ONLY && node->next.total.taken & (PERM_WRITE | PERM_RESIZE))
        result = error_set(err, -EPERM, "Block node '%s' is read-only", node->name);
    if (result == 0 && node->size != before)
        result = change_each_parent(reopening->change, node, resize_refused, err);
    return result;
}

static void settle_undo(struct node_reopening *reopening)
{
    struct node *node = reopening->node;

    if (reopening->opened && node->driver->close)
        node->driver->close(node);
    if (reopening->swapped) {
        uint32_t flags = reopening->next->flags;

        node_swap(node, reopening->next);
        node->flags = flags;
        request_side_update(node);
    }
    reopening->swapped = reopening->opened = false;
}

int change_settle_nodes(struct change *change, struct error *err)
{
    struct node_reopening *reopening;
    int result = 0;

    for (unsigned i = 0; i < change->order_count && result == 0; i++) {
        struct node *node = change->order[i];

        reopening = reopening_of(node);
        result = reopening ? settle_finish(reopening, err) : 0;
        /* For what open() sends down; too much does no harm. */
        if (node->next.scratch > node->scratch_need)
            node->scratch_need = (uint16_t)node->next.scratch;
    }
    for (unsigned i = change->order_count; i-- > 0 && result == 0;) {
        reopening = reopening_of(change->order[i]);
        result = reopening ? settle_swap(reopening, err) : 0;
    }
    for (unsigned i = 0; i < change->order_count && result < 0; i++) {
        reopening = reopening_of(change->order[i]);
        if (reopening && reopening->swapped)
            settle_undo(reopening);
    }
    return result;
}

/* Preparing */

/* Whether options can become those of the node: what never changes is the same. */
static const char *reopen_never_field(const struct option_type *type, const void *a, const void *b)
{
    for (unsigned i = 0; i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];

        if (!field->child_role && field->change == OPTION_CHANGE_NEVER && !option_field_equal(field, a, b))
            return field->name;
    }
    return NULL;
}

/* The name of an option that stands against it, or NULL. */
static const char *reopen_obstacle(const struct node_options *is, const struct node_options *wanted)
{
    const struct option_type *type;
    const void *branch = option_branch_of(&node_options_type, is, &type);

    if (is->driver != wanted->driver)
        return "driver";
    const char *name = reopen_never_field(&node_options_type, is, wanted);

    if (name || !branch)
        return name;
    return reopen_never_field(type, branch, option_branch_of(&node_options_type, wanted, NULL));
}

struct reopen_walk {
    struct node_reopening *reopening;
    struct node *before;            /* what the node is so far */
    unsigned depth;
    struct error *err;
};

static int node_reopen_at(struct change *change, struct node *node, struct node_options *own, unsigned depth,
                          struct error *err);

static int reopen_attach(struct reopen_walk *walk, const struct option_field *field, const char *name,
                         struct node *child)
{
    struct node_reopening *reopening = walk->reopening;
    struct edge *edge = node_edge_new(reopening->node, name, field->child_role);
    int result = change_attach(reopening->change, edge, child, walk->err);

    /* Nobody goes this way before the swap. */
    edge->child = child;
    node_edge_append(reopening->next, edge);
    reopening->made = memory_grow(reopening->made, reopening->made_count + 1u, sizeof(*reopening->made));
    reopening->made[reopening->made_count++] = edge;
    return result;
}

/* The child that is there is meant, if it can have these options and names do not differ. */
static int reopen_inline(struct reopen_walk *walk, const struct option_field *field, const char *name,
                         struct edge *edge, const struct node_options *options)
{
    struct node_reopening *reopening = walk->reopening;
    struct node_place place = {.inside = reopening->next, .role = field->child_role, .depth = walk->depth + 1};
    struct node *child = edge ? edge->next_child : NULL;

    if (child && child->flags & NODE_IMPLICIT) {
        struct node_options *own = node_inherit(options, place);
        bool named = own->node_name != NULL;

        if (!own->node_name)
            own->node_name = memory_string(child->name);
        if (strcmp(own->node_name, child->name) == 0 && (named || !reopen_obstacle(child->options, own))) {
            node_edge_append(reopening->next, edge);
            return node_reopen_at(reopening->change, child, own, place.depth, walk->err);
        }
        option_free(&node_options_type, own);
    }
    int result = node_add_at(reopening->change, options, place, &child, walk->err);

    return result < 0 ? result : reopen_attach(walk, field, name, child);
}

/* Nothing is said about the child. What an image named stays; what was given must be given again, or taken away. */
static int reopen_absent(struct reopen_walk *walk, const struct option_field *field, struct edge *edge)
{
    const struct node *node = walk->reopening->node;

    if (!edge || !(field->flags & OPTION_ALLOW_NULL))
        return 0;
    const struct node_ref *ref = NULL;
    const char *branch = option_branch_of(&node_options_type, walk->before->options, NULL);

    memcpy(&ref, branch + field->offset, sizeof(ref));
    if (ref)
        return error_set(walk->err, -EINVAL, "%s is missing for '%s'", field->name, node->name);
    node_edge_append(walk->reopening->next, edge);
    return 0;
}

static int reopen_child(const struct option_field *field, const char *name, struct node_ref **where, void *arg)
{
    struct reopen_walk *walk = arg;
    const struct node_ref *ref = *where;
    struct edge *edge = node_child_by_name(walk->before, name);

    if (!ref)
        return reopen_absent(walk, field, edge);
    if (ref->null)
        return 0;
    if (!ref->name)
        return reopen_inline(walk, field, name, edge, ref->node);
    struct node *child = node_lookup(ref->name, walk->err);

    if (!child)
        return -ENODEV;
    if (!edge || edge->next_child != child)
        return reopen_attach(walk, field, name, child);
    node_edge_append(walk->reopening->next, edge);
    return 0;
}

static bool reopen_has_edge(const struct node *node, const struct edge *edge)
{
    for (unsigned i = 0; i < node->child_count; i++) {
        if (node->children[i] == edge)
            return true;
    }
    return false;
}

/* What next has no more. Implicit children that nobody else has go with it. */
static int reopen_drop(struct reopen_walk *walk)
{
    struct node_reopening *reopening = walk->reopening;
    const struct node *before = walk->before;
    int result = 0;

    reopening->dropped = memory_array(before->child_count + 1u, sizeof(*reopening->dropped));
    for (unsigned i = 0; i < before->child_count && result == 0; i++) {
        struct edge *edge = before->children[i];
        struct node *child = edge->next_child;

        if (reopen_has_edge(reopening->next, edge))
            continue;
        reopening->dropped[reopening->dropped_count++] = edge;
        result = change_detach(reopening->change, edge, walk->err);
        /* One that this change made never comes into being. */
        if (!list_is_linked(&edge->in_child))
            change_forget_edge(reopening->change, edge);
        if (result == 0)
            result = node_release(reopening->change, child, walk->err);
    }
    return result;
}

static struct node *reopen_next(struct node *node, const struct node *before, struct node_options *own)
{
    struct node *next = memory_aligned(sizeof(*next), 64);

    next->driver = node->driver;
    next->map = node->map;
    next->options = own;
    next->flags = (before->flags & ~(uint32_t)NODE_READ_ONLY) | (own->read_only ? NODE_READ_ONLY : 0);
    next->size = before->size;
    memcpy(next->name, node->name, sizeof(next->name));
    list_init(&next->parents);
    list_link_init(&next->in_registry);
    return next;
}

static bool reopen_same_children(const struct node *a, const struct node *b)
{
    return a->child_count == b->child_count &&
           (a->child_count == 0 || memcmp(a->children, b->children, a->child_count * sizeof(*a->children)) == 0);
}

/* What was found when it was opened may be otherwise now: damage, a file that could not be written. */
static bool reopen_is_worth_it(const struct node *node)
{
    return node->flags & NODE_CORRUPTED || (node->flags & NODE_READ_ONLY && !node->options->read_only);
}

static int reopen_ask_driver(struct reopen_walk *walk)
{
    struct node_reopening *reopening = walk->reopening;
    struct node *node = reopening->node, *next = reopening->next;
    int result = REOPEN_AGAIN;

    /* Nothing at all: nobody need be disturbed. */
    if (!reopen_is_worth_it(node) && reopen_same_children(walk->before, next) &&
        option_equal(&node_options_type, walk->before->options, next->options)) {
        node->next.self = reopening->previous;
        return 0;
    }
    if (node->driver->reopen)
        result = node->driver->reopen(node, next, reopening->change, walk->err);
    if (result < 0)
        return result;
    reopening->kind = (enum reopen)result;
    change_touch(reopening->change, node);
    if (result == REOPEN_AGAIN && node->driver->state_size && !next->state)
        next->state = memory_aligned(node->driver->state_size, 64);
    return 0;
}

/* own: becomes the node's. */
static int node_reopen_at(struct change *change, struct node *node, struct node_options *own, unsigned depth,
                          struct error *err)
{
    struct node *before = node_next(node);
    const char *obstacle = reopen_obstacle(before->options, own);
    int result = obstacle ? error_set(err, -EINVAL, "Cannot change the option '%s' of node '%s'", obstacle, node->name)
                          : node_check_common(own, err);

    if (result < 0) {
        option_free(&node_options_type, own);
        return result;
    }
    struct node_reopening *reopening = change_add(change, &node_reopen_type, sizeof(*reopening));
    struct reopen_walk walk = {.reopening = reopening, .before = before, .depth = depth, .err = err};

    *reopening = (struct node_reopening){.change = change,
                                         .node = node,
                                         .next = reopen_next(node, before, own),
                                         .previous = node->next.self,
                                         .kind = REOPEN_KEPT};
    reopening->next->next.reopening = reopening;
    result = node_each_ref(own, reopen_child, &walk);
    if (result == 0) {
        node->next.self = reopening->next;
        result = reopen_drop(&walk);
    }
    return result == 0 ? reopen_ask_driver(&walk) : result;
}

int node_reopen(struct change *change, struct node *node, const struct node_options *options, struct error *err)
{
    struct node_options *own = option_copy(&node_options_type, options);

    if (!own->node_name)
        own->node_name = memory_string(node->name);
    return node_reopen_at(change, node, own, 0, err);
}
