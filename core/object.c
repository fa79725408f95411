/*
 * The object tree: see object.h.
 */
#include "core/object.h"

#include <errno.h>
#include <string.h>

#include "core/memory.h"
#include "core/options.h"

const struct object_type object_container_type = {.name = "container"};

struct object object_root = {
    .type = &object_container_type,
    .children = LIST_INIT(object_root.children),
};

void object_value_clear(struct object_value *value)
{
    if (value->kind == OBJECT_STRING)
        free(value->string);
    if (value->kind == OBJECT_OPTIONS)
        option_free(value->options.type, value->options.data);
    if (value->kind == OBJECT_NUMBERS)
        free(value->numbers.items);
    *value = (struct object_value){0};
}

struct object *object_child(const struct object *object, const char *name)
{
    struct object *child;

    list_for_each(child, &object->children, in_parent) {
        if (strcmp(child->name, name) == 0)
            return child;
    }
    return NULL;
}

int object_attach(struct object *object, const struct object_type *type, struct object *parent, const char *name,
                  struct error *err)
{
    if (object_child(parent, name))
        return error_set(err, -EEXIST, "attempt to add duplicate property '%s' to object (type '%s')", name,
                         parent->type->name);
    *object = (struct object){.type = type, .name = memory_string(name), .parent = parent};
    list_init(&object->children);
    list_append(&parent->children, &object->in_parent);
    return 0;
}

void object_detach(struct object *object)
{
    if (!object->parent)
        return;
    list_remove(&object->in_parent);
    object->parent = NULL;
    free(take_ptr(&object->name));
}

/* Containers live as long as the process. */
struct object *object_container(const char *name)
{
    struct object *container = object_child(&object_root, name);

    if (!container) {
        container = memory_new(struct object);
        object_attach(container, &object_container_type, &object_root, name, NULL);
    }
    return container;
}

static struct object *object_not_found(const char *path, struct error *err)
{
    error_set_class(err, ERROR_DEVICE_NOT_FOUND, -ENOENT, "Device '%s' not found", path);
    return NULL;
}

static struct object *object_walk(const char *path)
{
    struct object *object = &object_root;
    AUTO_FREE char *copy = memory_string(path);
    char *rest = copy, *part;

    while (object && (part = strsep(&rest, "/"))) {
        if (part[0])
            object = object_child(object, part);
    }
    return object;
}

/* All objects called name, two levels deep: the tree has no more. */
static unsigned object_count_named(const char *name, struct object **ret)
{
    struct object *container, *found;
    unsigned count = 0;

    list_for_each(container, &object_root.children, in_parent) {
        if ((found = object_child(container, name))) {
            *ret = found;
            count++;
        }
    }
    return count;
}

/* Those that are always there, also with nothing in them. */
static void object_show_containers(void)
{
    static const char *const names[] = {"nodes", "sources", "exports", "objects"};

    for (unsigned i = 0; i < array_size(names); i++)
        object_container(names[i]);
}

struct object *object_resolve(const char *path, struct error *err)
{
    struct object *object = NULL;

    object_show_containers();
    if (path[0] == '/') {
        object = object_walk(path);
        return object ? object : object_not_found(path, err);
    }
    unsigned count = object_count_named(path, &object);

    if (count > 1) {
        error_set(err, -EINVAL, "Path '%s' does not uniquely identify an object", path);
        return NULL;
    }
    return count ? object : object_not_found(path, err);
}

static const struct object_property *object_find_property(const struct object *object, const char *name,
                                                          struct error *err)
{
    const struct object_property *property = object->type->properties;

    for (; property && property->name; property++) {
        if (strcmp(property->name, name) == 0)
            return property;
    }
    error_set(err, -ENOENT, "Property '%s.%s' not found", object->type->name, name);
    return NULL;
}

int object_get(const struct object *object, const char *name, struct object_value *ret, struct error *err)
{
    const struct object_property *property = object_find_property(object, name, err);

    return property ? property->get(object, ret, err) : -ENOENT;
}

int object_set(struct object *object, const char *name, const struct object_value *value, struct error *err)
{
    static const char *const kinds[] = {[OBJECT_BOOL] = "bool",
                                        [OBJECT_INT] = "int",
                                        [OBJECT_SIZE] = "uint64",
                                        [OBJECT_STRING] = "string",
                                        [OBJECT_NUMBERS] = "uint64List"};
    const struct object_property *property = object_find_property(object, name, err);

    if (!property)
        return -ENOENT;
    if (!property->set)
        return error_set(err, -EPERM, "Property '%s.%s' is read-only", object->type->name, name);
    const char *kind = value->kind == OBJECT_OPTIONS ? value->options.type->name : kinds[value->kind];

    if (strcmp(property->type, kind) != 0)
        return error_set(err, -EINVAL, "Property '%s.%s' expects a value of type '%s'", object->type->name, name,
                         property->type);
    return property->set(object, value, err);
}
