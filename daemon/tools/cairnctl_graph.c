/*
 * See cairnctl_graph.h. Made from query-block-graph. Who uses a disk is at the
 * top, where its bytes are at the bottom; the kinds of node differ in shape and
 * colour, writers' edges are bold, what lies behind an image is dashed.
 */
#include "daemon/tools/cairnctl_graph.h"

#include <json-c/json.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_print.h"
#include "daemon/tools/cairnctl_session.h"

static const struct graph_style {
    const char *kind, *shape, *fill;
} graph_styles[] = {
    {"export", "box", "#dbe9f6"},      {"source", "ellipse", "#ffffff"}, {"protocol", "cylinder", "#e8e8e8"},
    {"format", "box3d", "#e2f0d9"},    {"view", "note", "#e2f0d9"},      {"filter", "cds", "#fff2cc"},
    {"composite", "house", "#f8dfd4"}, {NULL, "box", "#ffffff"},
};

static const char *graph_text(struct json_object *row, const char *name)
{
    struct json_object *value = NULL;

    return json_object_object_get_ex(row, name, &value) ? json_object_get_string(value) : "";
}

static bool graph_flag(struct json_object *row, const char *name)
{
    struct json_object *value = NULL;

    return json_object_object_get_ex(row, name, &value) && json_object_get_boolean(value);
}

static bool graph_has(struct json_object *row, const char *list, const char *text)
{
    struct json_object *items = NULL;

    json_object_object_get_ex(row, list, &items);
    for (size_t i = 0; items && i < json_object_array_length(items); i++)
        if (strcmp(json_object_get_string(json_object_array_get_idx(items, i)), text) == 0)
            return true;
    return false;
}

/* Inside of a quoted string of Graphviz. */
static void graph_print_quoted(const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar((unsigned char)*text < ' ' ? '?' : *text);
    }
}

static void graph_print_member(struct json_object *row)
{
    const char *kind = graph_text(row, "kind"), *driver = graph_text(row, "driver");
    const struct graph_style *style = graph_styles;
    struct json_object *size = NULL;
    bool is_node = *driver;

    while (style->kind && strcmp(style->kind, is_node ? kind : graph_text(row, "type")) != 0)
        style++;
    printf("    n%s [shape=%s, fillcolor=\"%s\"%s, label=\"", graph_text(row, "id"), style->shape, style->fill,
           graph_flag(row, "corrupted") ? ", color=\"#c00000\", penwidth=3" : "");
    if (!is_node)
        printf("%s ", graph_text(row, "type"));
    graph_print_quoted(graph_text(row, "name"));
    if (is_node) {
        char bytes[32] = "";

        json_object_object_get_ex(row, "size", &size);
        print_size(bytes, sizeof(bytes), json_object_get_uint64(size));
        printf("\\n%s, %s%s%s", driver, bytes, graph_flag(row, "read-only") ? ", read-only" : "",
               graph_flag(row, "corrupted") ? ", corrupted" : "");
    }
    puts("\"];");
}

/* The source that an export holds is on its way, though its requests take none. */
static void graph_print_holder(struct json_object *row, struct json_object *nodes)
{
    const char *source = graph_text(row, "source");

    for (size_t i = 0; *source && i < json_object_array_length(nodes); i++) {
        struct json_object *other = json_object_array_get_idx(nodes, i);

        if (strcmp(graph_text(other, "type"), "source") == 0 && strcmp(graph_text(other, "name"), source) == 0)
            printf("    n%s -> n%s [style=dotted, arrowhead=none];\n", graph_text(row, "id"), graph_text(other, "id"));
    }
}

static void graph_print_edge(struct json_object *row)
{
    static const struct {
        const char *permission, *letter;
    } letters[] = {{"consistent-read", "r"}, {"write", "w"}, {"write-unchanged", "u"}, {"resize", "s"}};

    printf("    n%s -> n%s [label=\" ", graph_text(row, "parent"), graph_text(row, "child"));
    graph_print_quoted(graph_text(row, "name"));
    fputs(" ", stdout);
    for (size_t i = 0; i < array_size(letters); i++)
        if (graph_has(row, "perm", letters[i].permission))
            fputs(letters[i].letter, stdout);
    printf("\"%s%s%s];\n", graph_has(row, "role", "backing") ? ", style=dashed" : "",
           graph_has(row, "perm", "write") ? ", penwidth=2" : "", *graph_text(row, "frozen-by") ? ", color=blue" : "");
}

static void graph_print(struct json_object *graph)
{
    struct json_object *nodes = NULL, *edges = NULL;

    json_object_object_get_ex(graph, "nodes", &nodes);
    json_object_object_get_ex(graph, "edges", &edges);
    puts("digraph cairn {\n    rankdir=TB;\n    node [fontname=\"sans-serif\", fontsize=11, style=filled];\n"
         "    edge [fontname=\"sans-serif\", fontsize=9, arrowsize=0.7];");
    for (size_t i = 0; i < json_object_array_length(nodes); i++)
        graph_print_member(json_object_array_get_idx(nodes, i));
    for (size_t i = 0; i < json_object_array_length(nodes); i++)
        graph_print_holder(json_object_array_get_idx(nodes, i), nodes);
    for (size_t i = 0; i < json_object_array_length(edges); i++)
        graph_print_edge(json_object_array_get_idx(edges, i));
    puts("}");
}

int graph_show(struct session *session)
{
    AUTO_ERROR struct error err = {0};
    struct json_object *graph = session_query(session, "query-block-graph", NULL, &err);

    if (!graph)
        return session_fail(&err);
    graph_print(graph);
    json_object_put(graph);
    return SESSION_OK;
}
