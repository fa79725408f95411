/*
 * Sources: see source.h. A source costs nothing per request: the edges of its
 * consumers point at its top node directly.
 */
#include "core/source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/node_make.h"

struct list source_registry = LIST_INIT(source_registry);
static struct list source_pending = LIST_INIT(source_pending);

static const char *source_edge_name(const struct edge *edge)
{
    return ((const struct source *)edge->parent.object)->id;
}

static const struct edge_parent_ops edge_parent_source = {.kind = "source", .name = source_edge_name};

static struct source *source_find_in(const struct list *list, const char *id)
{
    struct source *source;

    list_for_each(source, list, in_registry) {
        if (!source->leaving && strcmp(source->id, id) == 0)
            return source;
    }
    return NULL;
}

struct source *source_find(const char *id)
{
    struct source *source = source_find_in(&source_registry, id);

    return source ? source : source_find_in(&source_pending, id);
}

static int source_get_top(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct source *source = container_of(object, struct source, object);

    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_string(source->top.child->name)};
    return 0;
}

static const struct object_property source_properties[] = {
    {"top", "string", source_get_top, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct object_type source_object_type = {.name = "source", .properties = source_properties};

static void source_free(struct source *source)
{
    list_remove(&source->in_registry);
    free(source->top.name);
    free(source);
}

struct source_action {
    struct source *source;
    bool ended;         /* clean() frees it */
};

static void source_add_commit(void *action)
{
    struct source *source = ((struct source_action *)action)->source;

    list_remove(&source->in_registry);
    list_append(&source_registry, &source->in_registry);
    object_attach(&source->object, &source_object_type, object_container("sources"), source->id, NULL);
}

static void source_add_abort(void *action)
{
    /* The change still resets the edge after this: the source goes in clean(). */
    ((struct source_action *)action)->ended = true;
}

static void source_add_clean(void *action)
{
    struct source_action *adding = action;

    if (adding->ended)
        source_free(adding->source);
}

static const struct change_type source_add_type = {
    .name = "add source", .commit = source_add_commit, .abort = source_add_abort, .clean = source_add_clean};

int source_add(struct change *change, const char *id, const char *node_name, struct source **ret, struct error *err)
{
    struct node *node = node_lookup(node_name, err);

    if (!node)
        return -ENODEV;
    if (id[0] == '\0' || strlen(id) > SOURCE_ID_MAX)
        return error_set(err, -EINVAL, "Source id '%s' must have 1 to %d bytes", id, SOURCE_ID_MAX);
    if (source_find(id))
        return error_set(err, -EEXIST, "Source '%s' already exists", id);
    /* consumer_attach() takes either: a name must mean one thing. */
    if (node_find(id))
        return error_set(err, -EEXIST, "Source id '%s' is the name of a node", id);
    struct source *source = memory_new(struct source);

    snprintf(source->id, sizeof(source->id), "%s", id);
    list_init(&source->consumers);
    source->top = (struct edge){.parent = {.ops = &edge_parent_source, .object = source}, .want = {.shared = PERM_ALL}};
    source->top.name = memory_string("top");
    list_append(&source_pending, &source->in_registry);
    struct source_action *adding = change_add(change, &source_add_type, sizeof(*adding));

    adding->source = source;
    *ret = source;
    return change_attach(change, &source->top, node, err);
}

static void source_remove_commit(void *action)
{
    struct source_action *removing = action;

    list_remove(&removing->source->in_registry);
    object_detach(&removing->source->object);
    removing->ended = true;
}

static void source_remove_abort(void *action)
{
    ((struct source_action *)action)->source->leaving = false;
}

static void source_remove_clean(void *action)
{
    struct source_action *removing = action;

    if (removing->ended)
        source_free(removing->source);
}

static const struct change_type source_remove_type = {
    .name = "remove source",
    .commit = source_remove_commit,
    .abort = source_remove_abort,
    .clean = source_remove_clean,
};

int source_remove(struct change *change, struct source *source, struct error *err)
{
    struct consumer *user;

    list_for_each(user, &consumer_registry, in_registry) {
        if (user->next_source == source)
            return error_set(err, -EBUSY, "Source '%s' is in use by %s '%s'", source->id, user->ops->kind,
                             user->ops->name(user));
    }
    struct node *top = source->top.next_child;
    int result = change_detach(change, &source->top, err);

    /* Filters that were pushed were only there for it. */
    if (result == 0)
        result = node_release(change, top, err);
    if (result < 0)
        return result;
    struct source_action *removing = change_add(change, &source_remove_type, sizeof(*removing));

    removing->source = source;
    source->leaving = true;
    return 0;
}
