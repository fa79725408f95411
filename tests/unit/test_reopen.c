/*
 * Reopening of nodes, and changes made of it: frozen edges, a node reopened
 * more than once in a change, children that are defined inside, what is undone
 * when a change fails late. Null disks; what real files do is in tests/e2e.
 */
#include "core/source.h"
#include "tests/unit/graph_harness.h"

static struct node_options *options_of_text(const char *text)
{
    AUTO_ERROR struct error err = {0};
    AUTO_FREE char *copy = memory_string(text);
    void *options = NULL;

    for (char *c = copy; *c; c++)
        *c = *c == '\'' ? '"' : *c;
    struct json_object *json = json_tokener_parse(copy);

    ck_assert_msg(json != NULL, "%s", copy);
    ck_assert_msg(option_parse_json(&node_options_type, json, "", 0, &options, &err) == 0, "%s", err.text);
    json_object_put(json);
    return options;
}

/* Adds the reopening to change; words: what it must be refused with. */
static void reopen_in(struct change *change, const char *text, const char *words)
{
    AUTO_ERROR struct error err = {0};
    struct node_options *options = options_of_text(text);
    int result = node_reopen(change, node_find(options->node_name), options, &err);

    option_free(&node_options_type, options);
    ck_assert_msg((result < 0) == (words != NULL), "%s", err.text ? err.text : "it was not refused");
    if (words)
        ck_assert_msg(strstr(err.text, words), "%s", err.text);
}

static void apply(struct change *change, const char *words)
{
    AUTO_ERROR struct error err = {0};
    int result = change_apply(change, &err);

    ck_assert_msg((result < 0) == (words != NULL), "%s", err.text ? err.text : "it was not refused");
    if (words)
        ck_assert_msg(strstr(err.text, words), "%s", err.text);
}

static void reopen(const char *text)
{
    struct change *change = change_new();

    reopen_in(change, text, NULL);
    apply(change, NULL);
}

static const char *child_of(const struct node *node, const char *edge)
{
    const struct edge *found = node_child_by_name(node, edge);

    return found ? found->child->name : NULL;
}

static unsigned node_count(void)
{
    struct node *node;
    unsigned count = 0;

    ck_assert(list_is_empty(&node_pending));
    list_for_each(node, &node_registry, in_registry) {
        ck_assert_ptr_null(node->next.self);
        count++;
    }
    return count;
}

static void frozen(void)
{
    graph_add("{'driver': 'null-co', 'node-name': 'a', 'size': 1048576}");
    graph_add("{'driver': 'null-co', 'node-name': 'b', 'size': 1048576}");
    struct node *node = graph_add("{'driver': 'raw', 'node-name': 'r', 'file': 'a'}");
    struct change *change = change_new();

    node->children[0]->frozen_by = "job7";
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': 'b'}",
              "Cannot change 'file' link of node 'r': it is frozen by job 'job7'");
    change_abort(change);
    ck_assert_str_eq(child_of(node, "file"), "a");
    /* Other options are not the job's matter. */
    reopen("{'driver': 'raw', 'node-name': 'r', 'file': 'a', 'offset': 512}");
    ck_assert_uint_eq(node->size, 1048064);
    ck_assert_str_eq(node->children[0]->frozen_by, "job7");
    node->children[0]->frozen_by = NULL;
    reopen("{'driver': 'raw', 'node-name': 'r', 'file': 'b'}");
    ck_assert_str_eq(child_of(node, "file"), "b");
    close_node(node);
    close_node(node_find("a"));
    close_node(node_find("b"));
}

/* The last one counts, and what was made in between leaves nothing. */
static void more_than_once(void)
{
    graph_add("{'driver': 'null-co', 'node-name': 'a', 'size': 1048576}");
    graph_add("{'driver': 'null-co', 'node-name': 'b', 'size': 2097152}");
    struct node *node = graph_add("{'driver': 'raw', 'node-name': 'r', 'file': 'a'}");
    struct change *change = change_new();

    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': 'b', 'offset': 512}", NULL);
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'null-co', 'node-name': 'i'}}", NULL);
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': 'b', 'offset': 1024}", NULL);
    ck_assert_str_eq(child_of(node, "file"), "a");
    apply(change, NULL);
    ck_assert_str_eq(child_of(node, "file"), "b");
    ck_assert_uint_eq(node->size, 2097152 - 1024);
    ck_assert_ptr_null(node_find("i"));
    ck_assert_uint_eq(node_count(), 3);
    /* And undone as often. */
    change = change_new();
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': 'a'}", NULL);
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'null-co', 'node-name': 'i'}}", NULL);
    change_abort(change);
    ck_assert_str_eq(child_of(node, "file"), "b");
    ck_assert_uint_eq(node_count(), 3);
    /* Reopened and removed. */
    change = change_new();
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': 'a'}", NULL);
    ck_assert_int_eq(node_remove(change, node, NULL), 0);
    apply(change, NULL);
    ck_assert_uint_eq(node_count(), 2);
    close_node(node_find("a"));
    close_node(node_find("b"));
}

static void inside(void)
{
    struct node *node = graph_add("{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'delay', 'node-name': 'd', "
                                  "'file': {'driver': 'null-co', 'node-name': 'n', 'size': 1048576}}}");
    struct node *filter = node_find("d"), *null = node_find("n");
    struct change *change;

    /* In place, as deep as it goes. */
    reopen("{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'delay', 'node-name': 'd', 'latency-ns': 5, "
           "'file': {'driver': 'null-co', 'node-name': 'n', 'size': 1048576, 'read-zeroes': true}}}");
    ck_assert_ptr_eq(node_find("d"), filter);
    ck_assert_ptr_eq(node_find("n"), null);
    ck_assert_uint_eq(((struct delay_options *)node_driver_options(filter))->latency_ns, 5);
    ck_assert(graph_holds(node, 0, 512, 0));
    /* What never changes is refused where the child is named, and gives another child where it is not. */
    change = change_new();
    reopen_in(change,
              "{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'delay', 'node-name': 'd', "
              "'file': {'driver': 'null-co', 'node-name': 'n', 'size': 4096}}}",
              "Cannot change the option 'size' of node 'n'");
    change_abort(change);
    reopen("{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'delay', 'node-name': 'd', "
           "'file': {'driver': 'null-co', 'size': 4096}}}");
    ck_assert_ptr_null(node_find("n"));
    ck_assert_uint_eq(node->size, 4096);
    /* Taken out of the middle: the filter goes, what is below stays. */
    const char *below = child_of(filter, "file");
    AUTO_FREE char *text = memory_format("{'driver': 'raw', 'node-name': 'r', 'file': '%s'}", below);

    reopen(text);
    ck_assert_ptr_null(node_find("d"));
    ck_assert_uint_eq(node_count(), 2);
    struct node_options *options = node_describe(node);

    ck_assert_ptr_nonnull(options->u.raw.file->node);
    ck_assert_ptr_null(options->u.raw.file->node->node_name);
    option_free(&node_options_type, options);
    close_node(node);
    ck_assert_uint_eq(node_count(), 0);
}

/* The second of two fails when it is opened, under the drain: the first is as it was. */
static void late_failure(void)
{
    graph_add("{'driver': 'null-co', 'node-name': 'a', 'size': 1048576}");
    struct node *below = graph_add("{'driver': 'raw', 'node-name': 'r', 'file': 'a', 'offset': 512}");
    struct node *above = graph_add("{'driver': 'raw', 'node-name': 's', 'file': 'r', 'offset': 512}");
    struct change *change = change_new();

    reopen_in(change, "{'driver': 'raw', 'node-name': 's', 'file': 'r', 'offset': 8192}", NULL);
    reopen_in(change, "{'driver': 'raw', 'node-name': 'r', 'file': 'a', 'offset': 1048000}", NULL);
    apply(change, "Offset (8192) cannot be greater than size of the containing file (576)");
    ck_assert_uint_eq(below->size, 1048576 - 512);
    ck_assert_uint_eq(above->size, 1048576 - 1024);
    ck_assert_uint_eq(((struct raw_options *)node_driver_options(below))->offset, 512);
    ck_assert_uint_eq(node_count(), 3);
    ck_assert_int_eq(graph_write(above, 0, 512, 1, 0), 0);
    close_node(above);
    close_node(below);
    close_node(node_find("a"));
}

static void pushed(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *null = graph_add("{'driver': 'null-co', 'node-name': 'n', 'size': 1048576, 'discard': 'unmap'}");
    struct change *change = change_new();
    struct node_options filter = {.driver = NODE_DRIVER_DELAY};
    struct source *source;

    ck_assert_int_eq(source_add(change, "s", "n", &source, &err), 0);
    struct source_place place = {.source = source};

    /* Two, and one of them out again, in the change that makes the source. */
    ck_assert_int_eq(source_push(change, &place, &filter, NULL, &err), 0);
    filter.node_name = (char *)(uintptr_t) "f";
    ck_assert_msg(source_push(change, &place, &filter, NULL, &err) == 0, "%s", err.text);
    ck_assert_msg(source_pop(change, &place, "f", &err) == 0, "%s", err.text);
    apply(change, NULL);
    ck_assert_ptr_null(node_find("f"));
    ck_assert_uint_eq(node_count(), 2);
    ck_assert_ptr_eq(source_base(source->top.child), null);
    ck_assert_int_eq(source->top.child->options->discard, NODE_DISCARD_UNMAP);
    /* What was pushed for the source goes with it. */
    change = change_new();
    ck_assert_int_eq(source_remove(change, source, &err), 0);
    apply(change, NULL);
    ck_assert_uint_eq(node_count(), 1);
    close_node(null);
}

BOTH_RINGS(frozen)
BOTH_RINGS(more_than_once)
BOTH_RINGS(inside)
BOTH_RINGS(late_failure)
BOTH_RINGS(pushed)

int main(void)
{
    const TTest *const all[] = {test_frozen, test_more_than_once, test_inside, test_late_failure, test_pushed};

    return run_tests("reopen", all, array_size(all));
}
