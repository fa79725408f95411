/*
 * See cairnctl_tree.h. The picture is made from x-debug-query-block-graph
 * (what hangs on what), query-named-block-nodes (drivers, sizes, files) and
 * query-block-exports (which attachment is which export).
 */
#include "daemon/tools/cairnctl_tree.h"

#include <json-c/json.h>
#include <langinfo.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_print.h"
#include "daemon/tools/cairnctl_session.h"

#define TREE_DEPTH_MAX 64

struct tree_node {
    int64_t id;
    const char *type, *name;
    struct json_object *info;       /* of query-named-block-nodes, or query-block-exports; may be NULL */
    bool has_parent, shown;
};

struct tree {
    struct json_object *graph, *named, *exports;    /* what the texts below point into */
    struct json_object *edges;
    struct tree_node *nodes;
    size_t node_count;
    bool color, utf8;
};

static struct json_object *tree_member(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;

    json_object_object_get_ex(object, name, &value);
    return value;
}

static const char *tree_text(struct json_object *object, const char *name)
{
    struct json_object *value = tree_member(object, name);

    return value ? json_object_get_string(value) : "";
}

/* The row of a list whose member name has that text. */
static struct json_object *tree_row(struct json_object *list, const char *name, const char *text)
{
    for (size_t i = 0; *text && i < json_object_array_length(list); i++) {
        struct json_object *row = json_object_array_get_idx(list, i);
        if (strcmp(tree_text(row, name), text) == 0)
            return row;
    }
    return NULL;
}

static struct tree_node *tree_find(struct tree *tree, int64_t id)
{
    for (size_t i = 0; i < tree->node_count; i++)
        if (tree->nodes[i].id == id)
            return &tree->nodes[i];
    return NULL;
}

static struct tree_node *tree_edge_end(struct tree *tree, size_t edge, const char *end)
{
    return tree_find(tree, json_object_get_int64(tree_member(json_object_array_get_idx(tree->edges, edge), end)));
}

static bool tree_is_node(const struct tree_node *node)
{
    return strcmp(node->type, "block-driver") == 0;
}

static void tree_build(struct tree *tree)
{
    struct json_object *nodes = tree_member(tree->graph, "nodes");

    tree->edges = tree_member(tree->graph, "edges");
    tree->node_count = json_object_array_length(nodes);
    tree->nodes = memory_array(tree->node_count, sizeof(*tree->nodes));
    for (size_t i = 0; i < tree->node_count; i++) {
        struct json_object *row = json_object_array_get_idx(nodes, i);
        struct tree_node *node = &tree->nodes[i];
        node->id = json_object_get_int64(tree_member(row, "id"));
        node->type = tree_text(row, "type");
        node->name = tree_text(row, "name");
        node->info = tree_is_node(node) ? tree_row(tree->named, "node-name", node->name)
                                        : tree_row(tree->exports, "id", node->name);
    }
    for (size_t i = 0; i < json_object_array_length(tree->edges); i++) {
        struct tree_node *child = tree_edge_end(tree, i, "child");
        if (child)
            child->has_parent = true;
    }
}

static size_t tree_child_count(struct tree *tree, const struct tree_node *node)
{
    size_t count = 0;

    for (size_t i = 0; i < json_object_array_length(tree->edges); i++)
        count += tree_edge_end(tree, i, "parent") == node;
    return count;
}

static void tree_print_node(struct tree *tree, const struct tree_node *node)
{
    struct json_object *image = tree_member(node->info, "image");
    char size[32] = "";

    print_text(stdout, node->name);
    if (!node->info)
        return;
    print_size(size, sizeof(size), json_object_get_uint64(tree_member(image, "virtual-size")));
    printf(" (%s, %s%s)", tree_text(node->info, "drv"), size,
           json_object_get_boolean(tree_member(node->info, "ro")) ? ", read-only" : "");
    const char *file = tree_text(node->info, "file");
    bool path = *file && strncmp(file, "json:", 5) != 0 && !strstr(file, "://");
    if (path && tree_child_count(tree, node) == 0) {
        fputs(tree->color ? "\033[2m " : " ", stdout);
        print_text(stdout, file);
        fputs(tree->color ? "\033[0m" : "", stdout);
    }
}

static void tree_print_label(struct tree *tree, const struct tree_node *node)
{
    if (tree_is_node(node)) {
        tree_print_node(tree, node);
        return;
    }
    bool export = node->info != NULL;
    bool prefixed = strncmp(node->type, "block-", 6) == 0;
    const char *kind = export ? "export" : prefixed ? node->type + 6 : node->type;
    printf("%s%s%s ", tree->color ? "\033[1m" : "", kind, tree->color ? "\033[0m" : "");
    print_text(stdout, *node->name ? node->name : "(no name)");
    if (!export)
        return;
    const char *of = tree_text(node->info, "node-name");
    printf(" (%s", tree_text(node->info, "type"));
    if (!tree_row(tree->named, "node-name", of)) {
        fputs(", source ", stdout);
        print_text(stdout, of);
    }
    fputs(json_object_get_boolean(tree_member(node->info, "shutting-down")) ? ", shutting down)" : ")", stdout);
}

static void tree_print(struct tree *tree, struct tree_node *node, const char *indent, unsigned depth)
{
    size_t left = tree_child_count(tree, node);
    bool again = node->shown && left > 0;

    tree_print_label(tree, node);
    puts(again ? " ..." : "");
    node->shown = true;
    for (size_t i = 0; !again && depth < TREE_DEPTH_MAX && left > 0; i++) {
        if (tree_edge_end(tree, i, "parent") != node)
            continue;
        struct tree_node *child = tree_edge_end(tree, i, "child");
        bool last = --left == 0;
        if (!child)
            continue;
        const char *branch = tree->utf8 ? last ? "\u2514\u2500 " : "\u251c\u2500 " : last ? "`- " : "|- ";
        const char *trunk = last ? "   " : tree->utf8 ? "\u2502  " : "|  ";
        printf("%s%s", indent, branch);
        print_text(stdout, tree_text(json_object_array_get_idx(tree->edges, i), "name"));
        fputs(": ", stdout);
        AUTO_FREE char *deeper = memory_format("%s%s", indent, trunk);
        tree_print(tree, child, deeper, depth + 1);
    }
}

/* Exports and sources first, then nodes that nobody uses. */
static void tree_print_all(struct tree *tree)
{
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < tree->node_count; i++) {
            struct tree_node *node = &tree->nodes[i];
            if (!node->has_parent && tree_is_node(node) == (pass == 1))
                tree_print(tree, node, "", 0);
        }
}

static int tree_fetch(struct tree *tree, struct session *session, struct error *err)
{
    struct json_object *flat = json_object_new_object();

    json_object_object_add(flat, "flat", json_object_new_boolean(true));
    tree->graph = session_query(session, "x-debug-query-block-graph", NULL, err);
    if (tree->graph)
        tree->named = session_query(session, "query-named-block-nodes", flat, err);
    if (tree->named)
        tree->exports = session_query(session, "query-block-exports", NULL, err);
    json_object_put(flat);
    return tree->exports ? 0 : err->code;
}

int tree_show(struct session *session)
{
    AUTO_ERROR struct error err = {0};
    struct tree tree = {.color = session->color, .utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};
    int status = SESSION_OK;

    if (tree_fetch(&tree, session, &err) == 0) {
        tree_build(&tree);
        tree_print_all(&tree);
    } else {
        status = session_fail(&err);
    }
    free(tree.nodes);
    json_object_put(tree.graph);
    json_object_put(tree.named);
    json_object_put(tree.exports);
    return status;
}
