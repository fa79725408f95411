/*
 * Nodes in the object tree: /nodes/<name>.
 */
#include "core/node_object.h"

#include <string.h>

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

#define NODE_PROPERTIES 4u

static const struct object_property node_properties[NODE_PROPERTIES + 1] = {
    {"driver", "string", node_get_driver, NULL},
    {"size", "uint64", node_get_size, NULL},
    {"read-only", "bool", node_get_read_only, NULL},
    {"corrupted", "bool", node_get_corrupted, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct object_type node_plain_type = {.name = "node", .properties = node_properties};

/* Types of drivers with properties of their own: made at first use, and as long-lived as the drivers. */
static struct node_object_made {
    struct object_type type;
    const struct driver *driver;
    struct node_object_made *next;
} * node_object_types;

const struct object_type *node_object_type(const struct driver *driver)
{
    struct node_object_made *made = node_object_types;
    unsigned count = 0;

    if (!driver->properties)
        return &node_plain_type;
    while (made && made->driver != driver)
        made = made->next;
    if (made)
        return &made->type;
    while (driver->properties[count].name)
        count++;
    struct object_property *all = memory_array(NODE_PROPERTIES + count + 1, sizeof(*all));

    memcpy(all, node_properties, NODE_PROPERTIES * sizeof(*all));
    memcpy(all + NODE_PROPERTIES, driver->properties, count * sizeof(*all));
    made = memory_new(struct node_object_made);
    *made = (struct node_object_made){
        .type = {.name = "node", .properties = all}, .driver = driver, .next = node_object_types};
    node_object_types = made;
    return &made->type;
}

/* Edges */

static const struct edge *edge_of(const struct object *object)
{
    return container_of(object, struct edge, object);
}

static int edge_get_node(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_string(edge_of(object)->child->name)};
    return 0;
}

/* "consistent-read,write" */
static int edge_get_permissions(uint32_t permissions, struct object_value *ret)
{
    char *text = memory_string("");

    for (unsigned bit = 0; PERM_ALL >> bit; bit++) {
        AUTO_FREE char *before = text;

        text = permissions & 1u << bit ? memory_format("%s%s%s", before, *before ? "," : "", permission_name(bit))
                                       : memory_string(before);
    }
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = text};
    return 0;
}

static int edge_get_taken(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    return edge_get_permissions(edge_of(object)->have.taken, ret);
}

static int edge_get_shared(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    return edge_get_permissions(edge_of(object)->have.shared, ret);
}

static int edge_get_frozen(const struct object *object, struct object_value *ret, struct error *err)
{
    const char *job = edge_of(object)->frozen_by;

    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_string(job ? job : "")};
    return 0;
}

static const struct object_property edge_properties[] = {
    {"node", "string", edge_get_node, NULL},
    {"perm", "string", edge_get_taken, NULL},
    {"shared-perm", "string", edge_get_shared, NULL},
    {"frozen-by", "string", edge_get_frozen, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct object_type edge_object_type = {.name = "edge", .properties = edge_properties};

void edge_object_attach(struct edge *edge)
{
    struct node *parent = edge_parent_node_of(edge);

    if (parent && parent->child_objects.parent && edge->child && !edge->object.parent)
        object_attach(&edge->object, &edge_object_type, &parent->child_objects, edge->name, NULL);
}

void edge_object_detach(struct edge *edge)
{
    object_detach(&edge->object);
}
