/*
 * A node's options and its children: what the node is, written as options that
 * make it again; and options with another child.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/change.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/node_make.h"
#include "generated/options.h"

/* Places in a list of children that a name may leave empty below it. */
#define CHILD_GAP_MAX 64u

static struct node_ref *child_ref_to(const struct node *child)
{
    struct node_ref *ref = memory_new(struct node_ref);

    ref->name = memory_string(child->name);
    return ref;
}

/* Description */

static int describe_child(const struct option_field *field, const char *name, struct node_ref **where, void *arg)
{
    struct node *node = arg;
    const struct edge *edge = node_child_by_name(node_next(node), name);
    struct node *child = edge ? edge->next_child : NULL;

    (void)field;
    /* What an image names it will name again. */
    if (!*where || !child)
        return 0;
    node_ref_free(*where);
    *where = child_ref_to(child);
    if (!(child->flags & NODE_IMPLICIT))
        return 0;
    struct node_options *options = node_describe(child);

    /* A name that nobody can give. */
    if (options->node_name[0] == '#') {
        free(options->node_name);
        options->node_name = NULL;
    }
    free((*where)->name);
    (*where)->name = NULL;
    (*where)->node = options;
    return 0;
}

struct node_options *node_describe(struct node *node)
{
    struct node_options *options = option_copy(&node_options_type, node_next(node)->options);

    node_each_ref(options, describe_child, node);
    return options;
}

struct node_ref **node_filtered_ref(const struct node_options *options)
{
    const struct option_type *type = NULL;
    char *branch = option_branch_of(&node_options_type, options, &type);

    for (unsigned i = 0; branch && i < type->field_count; i++) {
        if (type->fields[i].child_role & ROLE_FILTERED)
            return (struct node_ref **)(void *)(branch + type->fields[i].offset);
    }
    return NULL;
}

/* Another child */

static int child_by_its_name(const struct option_field *field, const char *name, struct node_ref **where, void *arg)
{
    const struct edge *edge = node_child_by_name(arg, name);

    (void)field;
    if (!*where || !edge || !edge->next_child)
        return 0;
    node_ref_free(*where);
    *where = child_ref_to(edge->next_child);
    return 0;
}

struct node_options *node_next_options(struct node *node)
{
    struct node *next = node_next(node);
    struct node_options *options = option_copy(&node_options_type, next->options);

    node_each_ref(options, child_by_its_name, next);
    return options;
}

/* The number N of "children.N"; false if name is no such one. */
static bool child_number(const char *field, const char *name, size_t *ret)
{
    size_t length = strlen(field);
    char back[24];

    if (strncmp(name, field, length) != 0 || name[length] != '.')
        return false;
    *ret = strtoul(name + length + 1, NULL, 10);
    snprintf(back, sizeof(back), "%zu", *ret);
    return strcmp(back, name + length + 1) == 0;
}

static bool child_is_none(const struct node_ref *ref)
{
    return !ref || ref->null;
}

static int child_set_element(const struct node *node, const struct option_field *field, struct option_array *array,
                             size_t number, const struct node_ref *ref, struct error *err)
{
    uint64_t most = field->type.array_maximum;
    struct node_ref **items;

    if (number >= array->count + CHILD_GAP_MAX || (most && number >= most))
        return error_set(err, -EINVAL, "Node '%s' cannot have a child '%s.%zu'", node->name, field->name, number);
    if (child_is_none(ref) && number >= array->count)
        return error_set(err, -ENOENT, "Node '%s' has no child '%s.%zu'", node->name, field->name, number);
    if (number >= array->count) {
        array->items = memory_grow(array->items, number + 1, sizeof(*items));
        items = array->items;
        for (size_t i = array->count; i <= number; i++) {
            items[i] = memory_new(struct node_ref);
            items[i]->null = true;
        }
        array->count = number + 1;
    }
    items = array->items;
    node_ref_free(items[number]);
    items[number] = child_is_none(ref) ? memory_new(struct node_ref) : node_ref_copy(ref);
    items[number]->null = child_is_none(ref);
    while (array->count && child_is_none(items[array->count - 1]))
        node_ref_free(items[--array->count]);
    return 0;
}

static int child_set_single(const struct node *node, const struct option_field *field, struct node_ref **where,
                            const struct node_ref *ref, struct error *err)
{
    if (child_is_none(ref) && field->flags & OPTION_REQUIRED)
        return error_set(err, -EINVAL, "Node '%s' cannot be without its child '%s'", node->name, field->name);
    node_ref_free(*where);
    *where = NULL;
    if (!child_is_none(ref)) {
        *where = node_ref_copy(ref);
    } else if (field->flags & OPTION_ALLOW_NULL) {
        *where = memory_new(struct node_ref);
        (*where)->null = true;
    }
    return 0;
}

static int child_set(const struct node *node, struct node_options *options, const char *name,
                     const struct node_ref *ref, struct error *err)
{
    const struct option_type *type;
    char *branch = option_branch_of(&node_options_type, options, &type);

    for (unsigned i = 0; branch && i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];
        void *slot = branch + field->offset;
        size_t number;

        if (!field->child_role)
            continue;
        if (field->type.kind == OPTION_ARRAY && child_number(field->name, name, &number))
            return child_set_element(node, field, slot, number, ref, err);
        if (field->type.kind != OPTION_ARRAY && strcmp(field->name, name) == 0)
            return child_set_single(node, field, slot, ref, err);
    }
    return error_set(err, -EINVAL, "Node '%s' of driver '%s' has no child '%s'", node->name, node->driver->name, name);
}

int node_set_child(struct change *change, struct node *node, const char *name, const struct node_ref *ref,
                   struct error *err)
{
    struct node_options *options = node_next_options(node);
    int result = child_set(node, options, name, ref, err);

    if (result == 0)
        result = node_reopen(change, node, options, err);
    option_free(&node_options_type, options);
    return result;
}

int node_set_child_node(struct change *change, struct node *node, const char *name, const struct node *child,
                        struct error *err)
{
    struct node_ref ref = {.name = (char *)(uintptr_t)child->name};

    return node_set_child(change, node, name, &ref, err);
}
