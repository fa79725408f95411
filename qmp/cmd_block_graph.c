/*
 * query-block-graph and x-debug-query-block-graph: all nodes, sources and
 * consumers, and the edges between them. The second is what the peers have.
 */
#include <json-c/json.h>

#include "core/consumer.h"
#include "core/driver.h"
#include "core/edge.h"
#include "core/list.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/permission.h"
#include "core/source.h"
#include "generated/commands.h"
#include "qmp/json_build.h"

/* Ids are places in this array, counted from 1. */
struct graph_query {
    const void **objects;
    unsigned count, room;
    struct json_object *nodes, *edges;
    bool plain;                 /* only what the peers tell */
};

static int graph_id(const struct graph_query *query, const void *object)
{
    for (unsigned i = 0; i < query->count; i++)
        if (query->objects[i] == object)
            return (int)i + 1;
    return 0;
}

/* type: what the peers call it; kind: what we do. */
static struct json_object *graph_add_object(struct graph_query *query, const void *object, const char *type,
                                            const char *kind, const char *name)
{
    struct json_object *row = json_append_object(query->nodes);

    if (query->count == query->room) {
        query->room = query->room * 2 + 16;
        query->objects = memory_grow(query->objects, query->room, sizeof(query->objects[0]));
    }
    query->objects[query->count++] = object;
    json_add_int(row, "id", query->count);
    json_add_string(row, "type", query->plain ? type : kind);
    json_add_string(row, "name", name);
    return row;
}

static const char *graph_kind(const struct node *node)
{
    static const char *const names[] = {
        [DRIVER_PROTOCOL] = "protocol", [DRIVER_FORMAT] = "format",       [DRIVER_VIEW] = "view",
        [DRIVER_FILTER] = "filter",     [DRIVER_COMPOSITE] = "composite",
    };

    return names[node->driver->kind];
}

static void graph_add_node(struct graph_query *query, const struct node *node)
{
    struct json_object *row = graph_add_object(query, node, "block-driver", "node", node->name);

    if (query->plain)
        return;
    json_add_string(row, "driver", node->driver->name);
    json_add_string(row, "kind", graph_kind(node));
    json_add_uint(row, "size", atomic_load(&node->size));
    json_add_bool(row, "read-only", node->flags & NODE_READ_ONLY);
    json_add_bool(row, "implicit", node->flags & NODE_IMPLICIT);
    json_add_bool(row, "corrupted", node->flags & NODE_CORRUPTED);
}

static void graph_add_consumer(struct graph_query *query, const struct consumer *consumer)
{
    struct json_object *row =
        graph_add_object(query, consumer, "block-backend", consumer->ops->kind, consumer->ops->name(consumer));

    if (!query->plain && consumer->source)
        json_add_string(row, "source", consumer->source->id);
}

/* The roles of an edge, in the order of their bits. */
static void graph_add_roles(struct json_object *row, uint32_t role)
{
    static const char *const names[] = {"data", "metadata", "filtered", "backing", "primary"};
    struct json_object *roles = json_add_array(row, "role");

    for (unsigned bit = 0; bit < array_size(names); bit++)
        if (role & 1u << bit)
            json_object_array_add(roles, json_object_new_string(names[bit]));
}

static void graph_add_permissions(struct json_object *row, const char *key, uint32_t permissions)
{
    struct json_object *names = json_add_array(row, key);

    for (unsigned bit = 0; PERM_ALL >> bit; bit++)
        if (permissions & 1u << bit)
            json_object_array_add(names, json_object_new_string(permission_name(bit)));
}

static void graph_add_edge(struct graph_query *query, const struct edge *edge)
{
    int parent = graph_id(query, edge->parent.object);
    struct json_object *row;

    if (!parent || !edge->child)
        return;
    row = json_append_object(query->edges);
    json_add_int(row, "parent", parent);
    json_add_int(row, "child", graph_id(query, edge->child));
    json_add_string(row, "name", edge->name);
    graph_add_permissions(row, "perm", edge->have.taken);
    graph_add_permissions(row, "shared-perm", edge->have.shared);
    if (query->plain)
        return;
    graph_add_roles(row, edge->role);
    if (edge->frozen_by)
        json_add_string(row, "frozen-by", edge->frozen_by);
}

static struct json_object *graph_query(bool plain)
{
    struct json_object *graph = json_object_new_object();
    struct consumer *consumer;
    struct source *source;
    struct node *node;

    struct graph_query query = {
        .nodes = json_add_array(graph, "nodes"), .edges = json_add_array(graph, "edges"), .plain = plain};

    list_for_each(consumer, &consumer_registry, in_registry)
        graph_add_consumer(&query, consumer);
    list_for_each(source, &source_registry, in_registry)
        graph_add_object(&query, source, "block-source", "source", source->id);
    list_for_each(node, &node_registry, in_registry)
        graph_add_node(&query, node);
    list_for_each(consumer, &consumer_registry, in_registry)
        graph_add_edge(&query, &consumer->edge);
    list_for_each(source, &source_registry, in_registry)
        graph_add_edge(&query, &source->top);
    list_for_each(node, &node_registry, in_registry)
        for (unsigned i = 0; i < node->child_count; i++)
            graph_add_edge(&query, node->children[i]);
    free(query.objects);
    return graph;
}

int qmp_query_block_graph(struct qmp_client *client, const struct query_block_graph_args *args,
                          struct json_object **ret, struct error *err)
{
    (void)client;
    (void)args;
    (void)err;
    *ret = graph_query(false);
    return 0;
}

int qmp_x_debug_query_block_graph(struct qmp_client *client, const struct x_debug_query_block_graph_args *args,
                                  struct json_object **ret, struct error *err)
{
    (void)client;
    (void)args;
    (void)err;
    *ret = graph_query(true);
    return 0;
}
