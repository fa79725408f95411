/*
 * What tests of filters and composites share: nodes from JSON with single
 * quotes, and what a node answers. On top of node_harness.h; tests run in a
 * coroutine of the main loop.
 */
#ifndef TESTS_UNIT_GRAPH_HARNESS_H
#define TESTS_UNIT_GRAPH_HARNESS_H

#include <inttypes.h>
#include <json-c/json.h>

#include "qmp/option_json.h"
#include "tests/unit/node_harness.h"

/* The file of the test is what %s stands for. */
static struct node *graph_try(const char *text, struct error *err)
{
    AUTO_FREE char *json_text = memory_zero(strlen(text) + strlen(test_path) + 1);
    void *options = NULL;
    struct node *node = NULL;
    const char *file = strstr(text, "%s");

    sprintf(json_text, "%.*s%s%s", (int)(file ? file - text : (long)strlen(text)), text, file ? test_path : "",
            file ? file + 2 : "");
    for (char *c = json_text; *c; c++)
        *c = *c == '\'' ? '"' : *c;
    struct json_tokener *tokener = json_tokener_new_ex(OPTION_DEPTH_MAX);
    struct json_object *json = json_tokener_parse_ex(tokener, json_text, -1);

    json_tokener_free(tokener);
    ck_assert_msg(json != NULL, "%s", json_text);
    int result = option_parse_json(&node_options_type, json, "", 0, &options, err);

    json_object_put(json);
    if (result < 0)
        return NULL;
    struct change *change = change_new();

    result = node_add(change, options, &node, err);
    option_free(&node_options_type, options);
    if (result < 0)
        change_abort(change);
    else
        result = change_apply(change, err);
    return result < 0 ? NULL : node;
}

static struct node *graph_add(const char *text)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = graph_try(text, &err);

    ck_assert_msg(node != NULL, "%s", err.text);
    return node;
}

__attribute__((unused)) static void graph_refuses(const char *text, const char *words)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = graph_try(text, &err);

    ck_assert_msg(node == NULL, "it was accepted: %s", text);
    ck_assert_msg(strstr(err.text, words), "%s", err.text);
}

/* The extents of the whole node, as text: "4096:0 8192:3". Static. */
__attribute__((unused)) static const char *graph_map(struct node *node)
{
    static char text[1024];
    struct edge edge = {.child = node};
    struct extent extents[32];
    uint64_t offset = 0;
    struct extent_list all = {.limit = array_size(extents), .extents = extents};

    while (offset < node->size) {
        struct extent part[8];
        struct extent_list list = {.limit = array_size(part), .extents = part};

        ck_assert_int_eq(edge_status(&edge, offset, node->size - offset, &list), 0);
        ck_assert_uint_gt(list.count, 0);
        for (unsigned i = 0; i < list.count; i++) {
            ck_assert(extent_add(&all, list.extents[i].length, list.extents[i].flags));
            offset += list.extents[i].length;
        }
    }
    text[0] = 0;
    for (unsigned i = 0; i < all.count; i++)
        sprintf(text + strlen(text), "%s%" PRIu64 ":%u", i ? " " : "", extents[i].length, extents[i].flags);
    return text;
}

/* Whether all bytes of the range are `byte`. */
__attribute__((unused)) static bool graph_holds(struct node *node, uint64_t offset, size_t size, int byte)
{
    struct edge edge = {.child = node};
    AUTO_FREE unsigned char *data = memory_zero(size);

    ck_assert_int_eq(edge_read(&edge, offset, data, size), 0);
    for (size_t i = 0; i < size; i++) {
        if (data[i] != byte)
            return false;
    }
    return true;
}

/* Result of a write of that byte. */
__attribute__((unused)) static int graph_write(struct node *node, uint64_t offset, size_t size, int byte,
                                               uint32_t flags)
{
    struct edge edge = {.child = node};
    AUTO_FREE unsigned char *data = memory_zero(size);

    memset(data, byte, size);
    return edge_write(&edge, offset, data, size, flags);
}

#endif
