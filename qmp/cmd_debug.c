/*
 * x-debug-query-block-graph: all nodes, sources and consumers, and the edges
 * between them.
 */
#include <json-c/json.h>

#include "core/consumer.h"
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
};

static int graph_id(const struct graph_query *query, const void *object)
{
    for (unsigned i = 0; i < query->count; i++)
        if (query->objects[i] == object)
            return (int)i + 1;
    return 0;
}

static void graph_add_object(struct graph_query *query, const void *object, const char *type, const char *name)
{
    struct json_object *row = json_append_object(query->nodes);

    if (query->count == query->room) {
        query->room = query->room * 2 + 16;
        query->objects = memory_grow(query->objects, query->room, sizeof(query->objects[0]));
    }
    query->objects[query->count++] = object;
    json_add_int(row, "id", query->count);
    json_add_string(row, "type", type);
    json_add_string(row, "name", name);
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
}

int qmp_x_debug_query_block_graph(struct qmp_client *client, const struct x_debug_query_block_graph_args *args,
                                  struct json_object **ret, struct error *err)
{
    struct consumer *consumer;
    struct source *source;
    struct node *node;
    struct edge *edge;

    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_object();
    struct graph_query query = {.nodes = json_add_array(*ret, "nodes"), .edges = json_add_array(*ret, "edges")};

    list_for_each(consumer, &consumer_registry, in_registry)
        graph_add_object(&query, consumer, "block-backend", consumer->ops->name(consumer));
    list_for_each(source, &source_registry, in_registry)
        graph_add_object(&query, source, "block-source", source->id);
    list_for_each(node, &node_registry, in_registry)
        graph_add_object(&query, node, "block-driver", node->name);
    list_for_each(node, &node_registry, in_registry)
        list_for_each(edge, &node->parents, in_child)
            graph_add_edge(&query, edge);
    free(query.objects);
    return 0;
}
