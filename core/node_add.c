/*
 * How nodes come and go. A node is made from its options in a change: its
 * inline children first, then its edges, then the driver's open(). Until the
 * change is applied it is only in node_pending; nothing of the existing graph
 * knows it.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/change.h"
#include "core/change_list.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/node_make.h"
#include "core/node_object.h"
#include "core/request_side.h"
#include "core/source.h"
#include "generated/options.h"

/* Inline definitions inside inline definitions. */
#define NODE_DEPTH_MAX 256

/* Images of one backing chain that images name. */
#define NODE_CHAIN_MAX 1024

static enum step node_map_filter(struct node *node, struct request *req)
{
    return request_down(req, node->filtered);
}

static enum step node_map_slow(struct node *node, struct request *req)
{
    (void)node;
    (void)req;
    return STEP_SLOW;
}

static int node_check_name(const char *name, struct error *err)
{
    size_t length = strlen(name);
    bool well = isalpha((unsigned char)name[0]);

    for (size_t i = 1; i < length && well; i++)
        well = isalnum((unsigned char)name[i]) || strchr("-._", name[i]);
    if (!well)
        return error_set(err, -EINVAL, "Invalid node-name: '%s'", name);
    if (length > NODE_NAME_MAX)
        return error_set(err, -EINVAL, "Node name too long");
    if (node_find(name))
        return error_set(err, -EEXIST, "Duplicate nodes with node-name='%s'", name);
    /* As in source_add(). */
    if (source_find(name))
        return error_set(err, -EEXIST, "Node name '%s' is the id of a source", name);
    return 0;
}

/* Names that nobody can choose. */
static char *node_make_name(void)
{
    static unsigned next = 100;

    return memory_format("#block%u", next++);
}

void node_edge_free(struct edge *edge)
{
    free(edge->name);
    free(edge);
}

void node_free(struct node *node)
{
    for (unsigned i = 0; i < node->child_count; i++)
        node_edge_free(node->children[i]);
    free(node->children);
    free(node->state);
    option_free(&node_options_type, node->options);
    free(node);
}

/* The action: node is pending, then in the registry; or gone again. */

struct node_adding {
    struct change *change;
    struct node *node;
    bool opened;
};

static void node_add_commit(void *action)
{
    struct node_adding *adding = action;

    list_remove(&adding->node->in_registry);
    list_append(&node_registry, &adding->node->in_registry);
    object_attach(&adding->node->object, node_object_type(adding->node->driver), object_container("nodes"),
                  adding->node->name, NULL);
    object_attach(&adding->node->child_objects, &object_container_type, &adding->node->object, "children", NULL);
}

static void node_add_abort(void *action)
{
    struct node_adding *adding = action;
    struct node *node = adding->node;

    if (adding->opened && node->driver->close)
        node->driver->close(node);
    list_remove(&node->in_registry);
    for (unsigned i = 0; i < node->child_count; i++)
        change_forget_edge(adding->change, node->children[i]);
    node_free(node);
}

static const struct change_type node_add_type = {
    .name = "add node", .commit = node_add_commit, .abort = node_add_abort};

/* Overlays do not write to what is below. */
struct node_options *node_inherit(const struct node_options *options, struct node_place place)
{
    const struct node *inside = place.inside;
    struct node_options *own = option_copy(&node_options_type, options);

    if (!inside)
        return own;
    own->read_only |= inside->options->read_only || place.role & ROLE_BACKING;
    own->auto_read_only |= inside->options->auto_read_only;
    own->force_share |= inside->options->force_share;
    if (own->discard == NODE_DISCARD_IGNORE)
        own->discard = inside->options->discard;
    if (!own->cache)
        own->cache = option_copy(&node_cache_type, inside->options->cache);
    return own;
}

struct edge *node_edge_new(struct node *parent, const char *name, uint32_t role)
{
    struct edge *edge = memory_new(struct edge);

    edge->parent = (struct edge_parent){.ops = &edge_parent_node, .object = parent};
    edge->name = memory_string(name);
    edge->role = role;
    list_link_init(&edge->in_child);
    return edge;
}

void node_edge_append(struct node *node, struct edge *edge)
{
    node->children = memory_grow(node->children, node->child_count + 1u, sizeof(*node->children));
    node->children[node->child_count++] = edge;
    if (edge->role & ROLE_FILTERED)
        node->filtered = edge;
}

static int node_attach_child(struct change *change, struct node *node, const char *name, uint32_t role,
                             struct node *child, struct error *err)
{
    struct edge *edge = node_edge_new(node, name, role);
    int result = change_attach(change, edge, child, err);

    node_edge_append(node, edge);
    /* open() reads through it; others see nothing before the commit. */
    edge->child = child;
    return result;
}

int node_each_ref(const struct node_options *options,
                  int (*visit)(const struct option_field *field, const char *name, struct node_ref **ref, void *arg),
                  void *arg)
{
    const struct option_type *type;
    char *branch = option_branch_of(&node_options_type, options, &type);

    for (unsigned i = 0; branch && i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];
        const struct option_array *array = (const void *)(branch + field->offset);
        int result = 0;

        if (!field->child_role)
            continue;
        if (field->type.kind != OPTION_ARRAY)
            result = visit(field, field->name, (struct node_ref **)(void *)(branch + field->offset), arg);
        for (size_t n = 0; field->type.kind == OPTION_ARRAY && n < array->count && result == 0; n++) {
            AUTO_FREE char *name = memory_format("%s.%zu", field->name, n);

            result = visit(field, name, (struct node_ref **)array->items + n, arg);
        }
        if (result != 0)
            return result;
    }
    return 0;
}

struct node_children {
    struct change *change;
    struct node *node;
    unsigned depth;
    struct error *err;
};

static int node_find_child(const struct node_children *children, const char *edge_name, const char *node_name,
                           struct node **ret)
{
    *ret = node_lookup(node_name, children->err);
    if (!*ret)
        return -ENODEV;
    /* Here, since who opens looks at what is below. */
    if ((*ret)->flags & NODE_OPENING)
        return error_set(children->err, -ELOOP, "Making node '%s' the '%s' child of node '%s' would form a loop",
                         node_name, edge_name, children->node->name);
    return 0;
}

static int node_add_child(const struct option_field *field, const char *name, struct node_ref **where, void *arg)
{
    const struct node_children *children = arg;
    const struct node_ref *ref = *where;
    struct node_place place = {.inside = children->node, .role = field->child_role, .depth = children->depth + 1};
    struct node *child = NULL;
    int result;

    if (!ref || ref->null)
        return 0;
    if (ref->name)
        result = node_find_child(children, name, ref->name, &child);
    else
        result = node_add_at(children->change, ref->node, place, &child, children->err);
    return result < 0
               ? result
               : node_attach_child(children->change, children->node, name, field->child_role, child, children->err);
}

static int node_add_children(struct change *change, struct node *node, unsigned depth, struct error *err)
{
    struct node_children children = {.change = change, .node = node, .depth = depth, .err = err};

    return node_each_ref(node->options, node_add_child, &children);
}

int node_check_common(const struct node_options *options, struct error *err)
{
    if (options->force_share && !options->read_only)
        return error_set(err, -EINVAL, "force-share=on needs read-only=on");
    if (options->detect_zeroes == NODE_DETECT_ZEROES_UNMAP && options->discard != NODE_DISCARD_UNMAP)
        return error_set(err, -EINVAL, "detect-zeroes=unmap needs discard=unmap");
    return 0;
}

static int node_check_options(const struct node_options *options, struct node_place place, struct error *err)
{
    int result = node_check_common(options, err);

    if (result < 0)
        return result;
    if (options->node_name)
        return node_check_name(options->node_name, err);
    return place.inside || place.implicit ? 0
                                          : error_set(err, -EINVAL, "'node-name' must be specified for the root node");
}

struct node *node_new(struct node_options *options, bool implicit)
{
    const struct driver *driver = driver_table[options->driver];
    struct node *node = memory_aligned(sizeof(*node), 64);

    if (!options->node_name)
        options->node_name = node_make_name();
    snprintf(node->name, sizeof(node->name), "%s", options->node_name);
    node->driver = driver;
    node->options = options;
    node->flags = (options->read_only ? NODE_READ_ONLY : 0) | (implicit ? NODE_IMPLICIT : 0) | NODE_OPENING;
    node->state = driver->state_size ? memory_aligned(driver->state_size, 64) : NULL;
    node->map = driver->map ? driver->map : driver->slow ? node_map_slow : node_map_filter;
    node->total.shared = PERM_ALL;
    list_init(&node->parents);
    list_link_init(&node->in_registry);
    return node;
}

void node_count_scratch(struct node *node)
{
    unsigned below = 0;

    for (unsigned i = 0; i < node->child_count; i++) {
        const struct node *child = node->children[i]->child;

        if (child && child->scratch_need > below)
            below = child->scratch_need;
    }
    below += node->driver->after ? (unsigned)FRAME_SIZE(node->driver->scratch_size) : 0;
    node->scratch_need = below < SCRATCH_MAX ? (uint16_t)below : SCRATCH_MAX;
}

/* The node and what its options name, opened. */
static int node_add_one(struct change *change, const struct node_options *options, struct node_place place,
                        struct node **ret, struct error *err)
{
    if (place.depth > NODE_DEPTH_MAX)
        return error_set(err, -E2BIG, "More than %d nodes are defined inside each other", NODE_DEPTH_MAX);
    struct node_options *own = node_inherit(options, place);
    int result = node_check_options(own, place, err);

    if (result < 0) {
        option_free(&node_options_type, own);
        return result;
    }
    struct node *node = node_new(own, place.inside || place.implicit);
    struct node_adding *adding = change_add(change, &node_add_type, sizeof(*adding));

    *adding = (struct node_adding){.change = change, .node = node};
    list_append(&node_pending, &node->in_registry);
    result = node_add_children(change, node, place.depth, err);
    /* Tables are read, and repaired, only where others are kept out. */
    if (result == 0 && node_child_by_role(node, ROLE_METADATA))
        result = change_claim_below(change, node, err);
    if (result < 0)
        return result;
    request_side_update(node);
    node_count_scratch(node);
    if (node->filtered)
        node->size = node->filtered->child->size;
    result = node->driver->open ? node->driver->open(node, node_driver_options(node), err) : 0;
    if (result < 0)
        return result;
    adding->opened = true;
    node->flags &= ~(uint32_t)NODE_OPENING;
    request_side_update(node);
    *ret = node;
    return 0;
}

/* The node that the image of `node` names as its backing; *ret is NULL if there is none. */
static int node_add_backing(struct change *change, struct node *node, struct node **ret, struct error *err)
{
    struct node_place place = {.inside = node, .role = ROLE_BACKING};
    struct node_options *options = NULL;

    *ret = NULL;
    if (!node->driver->backing || node_child_by_role(node, ROLE_BACKING))
        return 0;
    int result = node->driver->backing(node, &options, err);

    if (result == 0 && options) {
        result = node_add_one(change, options, place, ret, err);
        if (result == 0)
            result = node_attach_child(change, node, "backing", ROLE_BACKING, *ret, err);
        if (result == 0 && node->driver->children_changed)
            node->driver->children_changed(node);
    }
    option_free(&node_options_type, options);
    return result;
}

/* A chain is followed in a loop: its length is its images' matter, the stack is ours. */
int node_add_at(struct change *change, const struct node_options *options, struct node_place place, struct node **ret,
                struct error *err)
{
    AUTO_FREE struct node **chain = NULL;
    unsigned count = 0;
    int result = node_add_one(change, options, place, ret, err);

    if (result < 0 || !(*ret)->driver->backing)
        return result;
    chain = memory_array(NODE_CHAIN_MAX, sizeof(*chain));
    for (struct node *node = *ret; result == 0 && node; count++) {
        if (count == NODE_CHAIN_MAX)
            return error_set(err, -E2BIG, "The backing chain of node '%s' is longer than %d images", (*ret)->name,
                             NODE_CHAIN_MAX);
        chain[count] = node;
        result = node_add_backing(change, node, &node, err);
    }
    while (result == 0 && count)
        node_count_scratch(chain[--count]);
    return result;
}

int node_add(struct change *change, const struct node_options *options, struct node **ret, struct error *err)
{
    *ret = NULL;
    return node_add_at(change, options, (struct node_place){0}, ret, err);
}

/* Removal. */

struct node_removing {
    struct node *node;
};

/* A failure does not keep a broken disk in the graph: its clients were told by their own flushes. */
static int node_remove_settle(void *action, struct error *err)
{
    struct node_removing *removing = action;
    struct node *node = removing->node;
    struct edge self = {.child = node};
    int result = 0;

    (void)err;
    if (node->flags & NODE_READ_ONLY)
        return 0;
    if (node->driver->finish)
        result = node->driver->finish(node);
    int flushed = edge_flush(&self);

    result = result < 0 ? result : flushed;
    if (result < 0)
        log_warning("Node '%s' is removed although its last flush failed: %s", node->name, strerror(-result));
    return 0;
}

static void node_remove_commit(void *action)
{
    struct node_removing *removing = action;

    list_remove(&removing->node->in_registry);
    object_detach(&removing->node->child_objects);
    object_detach(&removing->node->object);
}

static void node_remove_abort(void *action)
{
    struct node_removing *removing = action;

    /* A node that was added by this change is freed next. */
    removing->node->flags &= ~(uint32_t)NODE_REMOVED;
    removing->node = NULL;
}

static void node_remove_clean(void *action)
{
    struct node_removing *removing = action;
    struct node *node = removing->node;

    if (!node)
        return;
    if (node->driver->close)
        node->driver->close(node);
    node_free(node);
}

static const struct change_type node_remove_type = {
    .name = "remove node",
    .settle = node_remove_settle,
    .commit = node_remove_commit,
    .abort = node_remove_abort,
    .clean = node_remove_clean,
};

static int node_still_used(struct edge *edge, void *arg)
{
    struct error *err = arg;

    return error_set(err, -EBUSY, "Node %s is in use: by %s '%s' as '%s'", edge->next_child->name,
                     edge->parent.ops->kind, edge->parent.ops->name(edge), edge->name);
}

static int node_remove_one(struct change *change, struct node *node, struct error *err)
{
    const struct node *next = node_next(node);
    int result = change_each_parent(change, node, node_still_used, err);

    for (unsigned i = 0; i < next->child_count && result == 0; i++)
        result = change_detach(change, next->children[i], err);
    if (result < 0)
        return result;
    struct node_removing *removing = change_add(change, &node_remove_type, sizeof(*removing));

    removing->node = node;
    node->flags |= NODE_REMOVED;
    return 0;
}

/* Parents before children, in a loop: a chain of images may be long. */
int node_remove(struct change *change, struct node *node, struct error *err)
{
    AUTO_FREE struct node **queue = memory_array(1, sizeof(struct node *));
    unsigned count = 1;

    queue[0] = node;
    for (unsigned done = 0; done < count; done++) {
        node = queue[done];
        /* Who is the child of several, or several times, came as often. */
        if (done && node->flags & NODE_REMOVED)
            continue;
        int result = node_remove_one(change, node, err);

        if (result < 0)
            return result;
        for (unsigned i = 0; i < node_next(node)->child_count; i++) {
            struct node *child = node_next(node)->children[i]->child;

            if (!child || !(child->flags & NODE_IMPLICIT) || child->flags & NODE_REMOVED ||
                change_each_parent(change, child, node_still_used, NULL) != 0)
                continue;
            queue = memory_grow(queue, count + 1u, sizeof(struct node *));
            queue[count++] = child;
        }
    }
    return 0;
}

int node_release(struct change *change, struct node *node, struct error *err)
{
    if (!(node->flags & NODE_IMPLICIT) || node->flags & NODE_REMOVED ||
        change_each_parent(change, node, node_still_used, NULL) != 0)
        return 0;
    return node_remove(change, node, err);
}
