/*
 * See cairnctl_graph.h. Made from query-block-graph, and for the names of
 * files and the types of exports from query-named-block-nodes and
 * query-block-exports. Who uses a disk is at the top, where its bytes are at
 * the bottom; the kinds of node differ in shape and colour, writers' edges are
 * bold, what lies behind an image is dashed.
 */
#include "daemon/tools/cairnctl_graph.h"

#include <json-c/json.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_print.h"
#include "daemon/tools/cairnctl_session.h"

/* Of the name of a file the end is shown, in so many bytes. */
#define GRAPH_FILE_MAX 40u

static const struct graph_style {
    const char *kind, *shape, *style, *fill;
} graph_styles[] = {
    {"export", "box", "filled", "#dbe9f6"},        {"source", "ellipse", "filled", "#ffffff"},
    {"protocol", "cylinder", "filled", "#eeeeee"}, {"format", "box3d", "filled", "#e2f0d9"},
    {"view", "note", "filled", "#e2f0d9"},         {"filter", "box", "filled,rounded", "#fff2cc"},
    {"composite", "house", "filled", "#f8dfd4"},   {NULL, "box", "filled", "#ffffff"},
};

static const struct {
    const char *permission;
    char letter;
} graph_letters[] = {{"consistent-read", 'r'}, {"write", 'w'}, {"write-unchanged", 'u'}, {"resize", 's'}};

#define GRAPH_WRITES 2u     /* of the bits that stand for the letters */

struct graph {
    struct json_object *graph, *named, *exports;    /* what the rows below belong to */
    struct json_object *nodes, *edges;
};

static struct json_object *graph_member(struct json_object *row, const char *name)
{
    struct json_object *value = NULL;

    json_object_object_get_ex(row, name, &value);
    return value;
}

static const char *graph_text(struct json_object *row, const char *name)
{
    struct json_object *value = graph_member(row, name);

    return value ? json_object_get_string(value) : "";
}

static bool graph_flag(struct json_object *row, const char *name)
{
    return json_object_get_boolean(graph_member(row, name));
}

static bool graph_has(struct json_object *row, const char *list, const char *text)
{
    struct json_object *items = graph_member(row, list);

    for (size_t i = 0; items && i < json_object_array_length(items); i++)
        if (strcmp(json_object_get_string(json_object_array_get_idx(items, i)), text) == 0)
            return true;
    return false;
}

/* The row of a list that has both texts; what is NULL matters not. */
static struct json_object *graph_row(struct json_object *list, const char *key, const char *text, const char *type)
{
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *row = json_object_array_get_idx(list, i);

        if (strcmp(graph_text(row, key), text) == 0 && (!type || strcmp(graph_text(row, "type"), type) == 0))
            return row;
    }
    return NULL;
}

/* Inside of a label, whose text is like HTML. */
static void graph_print_escaped(const char *text)
{
    for (; *text; text++) {
        if (*text == '<' || *text == '>' || *text == '&' || *text == '"')
            printf("&#%d;", *text);
        else
            putchar((unsigned char)*text < ' ' ? '?' : *text);
    }
}

/* Where its bytes are, if that is more than the name of the driver says. */
static void graph_print_file(const struct graph *graph, struct json_object *row)
{
    struct json_object *named = graph_row(graph->named, "node-name", graph_text(row, "name"), NULL);
    const char *file = named ? graph_text(named, "file") : "", *driver = graph_text(row, "driver");
    size_t length = strlen(file);

    if (!length || strncmp(file, "json:", 5) == 0 ||
        (strncmp(file, driver, strlen(driver)) == 0 && strcmp(file + strlen(driver), "://") == 0))
        return;
    fputs("<br/><font point-size=\"9\">", stdout);
    if (length > GRAPH_FILE_MAX) {
        file += length - GRAPH_FILE_MAX;
        while ((*file & 0xc0) == 0x80)
            file++;
        fputs("...", stdout);
    }
    graph_print_escaped(file);
    fputs("</font>", stdout);
}

static void graph_print_node_label(const struct graph *graph, struct json_object *row)
{
    const char *name = graph_text(row, "name");
    char bytes[32] = "";

    /* What was made up for a node that was given none says nothing. */
    if (*name != '#') {
        fputs("<b>", stdout);
        graph_print_escaped(name);
        fputs("</b><br/>", stdout);
    }
    print_size(bytes, sizeof(bytes), json_object_get_uint64(graph_member(row, "size")));
    printf("%s, %s%s%s", graph_text(row, "driver"), bytes, graph_flag(row, "read-only") ? ", read-only" : "",
           graph_flag(row, "corrupted") ? ", corrupted" : "");
    if (strcmp(graph_text(row, "kind"), "protocol") == 0)
        graph_print_file(graph, row);
}

static void graph_print_user_label(const struct graph *graph, struct json_object *row)
{
    const char *name = graph_text(row, "name"), *type = graph_text(row, "type");
    struct json_object *export = strcmp(type, "export") == 0 ? graph_row(graph->exports, "id", name, NULL) : NULL;

    fputs("<b>", stdout);
    graph_print_escaped(name);
    printf("</b><br/>%s%s%s", type, export ? ", " : "", export ? graph_text(export, "type") : "");
}

static void graph_print_member(const struct graph *graph, struct json_object *row)
{
    const struct graph_style *style = graph_styles;
    bool is_node = *graph_text(row, "driver");

    while (style->kind && strcmp(style->kind, graph_text(row, is_node ? "kind" : "type")) != 0)
        style++;
    printf("    n%s [shape=%s, style=\"%s\", fillcolor=\"%s\"%s, tooltip=<", graph_text(row, "id"), style->shape,
           style->style, style->fill, graph_flag(row, "corrupted") ? ", color=\"#c00000\", penwidth=3" : "");
    graph_print_escaped(graph_text(row, "name"));
    fputs(">, label=<", stdout);
    if (is_node)
        graph_print_node_label(graph, row);
    else
        graph_print_user_label(graph, row);
    puts(">];");
}

static unsigned graph_permissions(struct json_object *edge)
{
    unsigned bits = 0;

    for (size_t i = 0; i < array_size(graph_letters); i++)
        bits |= graph_has(edge, "perm", graph_letters[i].permission) ? 1u << i : 0;
    return bits;
}

/* What all do that hold a source, whose own edge takes nothing. */
static unsigned graph_permissions_of_holders(const struct graph *graph, const char *source)
{
    unsigned bits = 0;

    for (size_t i = 0; i < json_object_array_length(graph->edges); i++) {
        struct json_object *edge = json_object_array_get_idx(graph->edges, i);
        struct json_object *parent = graph_row(graph->nodes, "id", graph_text(edge, "parent"), NULL);

        if (parent && strcmp(graph_text(parent, "source"), source) == 0)
            bits |= graph_permissions(edge);
    }
    return bits;
}

/* An export that holds a source goes through it, though its requests go straight to the first node. */
static void graph_print_edge(const struct graph *graph, struct json_object *row)
{
    struct json_object *parent = graph_row(graph->nodes, "id", graph_text(row, "parent"), NULL), *source = NULL;
    unsigned bits = graph_permissions(row);

    if (parent && *graph_text(parent, "source"))
        source = graph_row(graph->nodes, "name", graph_text(parent, "source"), "source");
    if (parent && strcmp(graph_text(parent, "type"), "source") == 0)
        bits |= graph_permissions_of_holders(graph, graph_text(parent, "name"));
    printf("    n%s -> n%s [label=< ", graph_text(row, "parent"),
           source ? graph_text(source, "id") : graph_text(row, "child"));
    graph_print_escaped(graph_text(row, "name"));
    putchar(' ');
    for (size_t i = 0; i < array_size(graph_letters); i++)
        if (bits & 1u << i)
            putchar(graph_letters[i].letter);
    printf(">%s%s%s];\n", graph_has(row, "role", "backing") ? ", style=dashed" : "",
           bits & GRAPH_WRITES ? ", penwidth=2" : "", *graph_text(row, "frozen-by") ? ", color=blue" : "");
}

static void graph_print(const struct graph *graph)
{
    puts("digraph cairn {\n"
         "    graph [rankdir=TB, nodesep=0.35, ranksep=0.4, fontname=\"sans-serif\", fontsize=9, "
         "fontcolor=\"#777777\",\n"
         "        label=\"r: reads, w: writes, u: writes what is there already, s: resizes\"];\n"
         "    node [fontname=\"sans-serif\", fontsize=11, color=\"#555555\", margin=\"0.15,0.08\"];\n"
         "    edge [fontname=\"sans-serif\", fontsize=9, color=\"#555555\", arrowsize=0.7];");
    for (size_t i = 0; i < json_object_array_length(graph->nodes); i++)
        graph_print_member(graph, json_object_array_get_idx(graph->nodes, i));
    for (size_t i = 0; i < json_object_array_length(graph->edges); i++)
        graph_print_edge(graph, json_object_array_get_idx(graph->edges, i));
    puts("}");
}

static int graph_fetch(struct graph *graph, struct session *session, struct error *err)
{
    struct json_object *flat = json_object_new_object();

    json_object_object_add(flat, "flat", json_object_new_boolean(true));
    graph->graph = session_query(session, "query-block-graph", NULL, err);
    if (graph->graph)
        graph->named = session_query(session, "query-named-block-nodes", flat, err);
    if (graph->named)
        graph->exports = session_query(session, "query-block-exports", NULL, err);
    json_object_put(flat);
    graph->nodes = graph_member(graph->graph, "nodes");
    graph->edges = graph_member(graph->graph, "edges");
    return graph->exports ? 0 : err->code;
}

int graph_show(struct session *session)
{
    AUTO_ERROR struct error err = {0};
    struct graph graph = {0};
    int status = SESSION_OK;

    if (graph_fetch(&graph, session, &err) == 0)
        graph_print(&graph);
    else
        status = session_fail(&err);
    json_object_put(graph.graph);
    json_object_put(graph.named);
    json_object_put(graph.exports);
    return status;
}
