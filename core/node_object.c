/*
 * Nodes in the object tree: /nodes/<name>.
 */
#include "core/node_object.h"

#include "core/driver.h"
#include "core/memory.h"
#include "core/node.h"

static const struct node *node_of(const struct object *object)
{
    return container_of(object, struct node, object);
}

static int node_get_driver(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_string(node_of(object)->driver->name)};
    return 0;
}

static int node_get_size(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = node_of(object)->size};
    return 0;
}

static int node_get_flag(const struct object *object, uint32_t flag, struct object_value *ret)
{
    *ret = (struct object_value){.kind = OBJECT_BOOL, .boolean = node_of(object)->flags & flag};
    return 0;
}

static int node_get_read_only(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    return node_get_flag(object, NODE_READ_ONLY, ret);
}

static int node_get_corrupted(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    return node_get_flag(object, NODE_CORRUPTED, ret);
}

static const struct object_property node_properties[] = {
    {"driver", "string", node_get_driver, NULL},
    {"size", "uint64", node_get_size, NULL},
    {"read-only", "bool", node_get_read_only, NULL},
    {"corrupted", "bool", node_get_corrupted, NULL},
    {NULL, NULL, NULL, NULL},
};

const struct object_type node_object_type = {.name = "node", .properties = node_properties};
