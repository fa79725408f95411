/*
 * Requests and their replies: shape, negotiation, lookup, arguments. Bad
 * input by table; nothing here may have an effect.
 */
#include <check.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "qmp/dispatch.h"
#include "qmp/json_stream.h"
#include "qmp/json_write.h"

/* The reply to a request as text; JSON errors do not come this far. */
static char *reply_text(struct qmp_client *client, const char *request)
{
    struct json_stream *stream = json_stream_new();
    struct json_text text = {0};
    struct json_item item;

    json_stream_feed(stream, request, strlen(request), &item);
    ck_assert_int_eq(item.kind, JSON_ITEM_VALUE);
    struct json_object *reply = qmp_dispatch(client, item.value);

    json_write(&text, reply, false);
    json_text_append(&text, "", 1);
    json_object_put(reply);
    json_item_clear(&item);
    json_stream_free(stream);
    return text.data;
}

#define GENERIC(text) "{\"error\": {\"class\": \"GenericError\", \"desc\": \"" text "\"}}"
#define GENERIC_ID(text, id) "{\"error\": {\"class\": \"GenericError\", \"desc\": \"" text "\"}, \"id\": " id "}"
#define NOT_FOUND(text) "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"" text "\"}}"

static const struct dispatch_case {
    bool negotiated;
    const char *request, *reply;
} cases[] = {
    /* the shape of a request */
    {true, "[]", GENERIC("QMP input must be a JSON object")},
    {true, "\"abc\"", GENERIC("QMP input must be a JSON object")},
    {true, "5 ", GENERIC("QMP input must be a JSON object")},
    {true, "null ", GENERIC("QMP input must be a JSON object")},
    {true, "{}", GENERIC("QMP input lacks member 'execute'")},
    {true, "{\"id\":1}", GENERIC_ID("QMP input lacks member 'execute'", "1")},
    {true, "{\"arguments\":{}}", GENERIC("QMP input lacks member 'execute'")},
    {true, "{\"return\":{}}", GENERIC("QMP input member 'return' is unexpected")},
    {true, "{\"\":{}}", GENERIC("QMP input member '' is unexpected")},
    {true, "{\"exec-oob\":\"quit\",\"id\":1}", GENERIC_ID("QMP input member 'exec-oob' is unexpected", "1")},
    {true, "{\"execute\":5}", GENERIC("QMP input member 'execute' must be a string")},
    {true, "{\"execute\":null}", GENERIC("QMP input member 'execute' must be a string")},
    {true, "{\"execute\":{\"a\":1}}", GENERIC("QMP input member 'execute' must be a string")},
    {true, "{\"execute\":\"quit\",\"arguments\":[]}", GENERIC("QMP input member 'arguments' must be an object")},
    {true, "{\"execute\":\"quit\",\"arguments\":null}", GENERIC("QMP input member 'arguments' must be an object")},
    {true, "{\"execute\":\"quit\",\"control\":{},\"id\":\"x\"}",
     GENERIC_ID("QMP input member 'control' is unexpected", "\"x\"")},
    /* ids of all types come back */
    {true, "{\"id\":null}", GENERIC_ID("QMP input lacks member 'execute'", "null")},
    {true, "{\"id\":true}", GENERIC_ID("QMP input lacks member 'execute'", "true")},
    {true, "{\"id\":-1.5}", GENERIC_ID("QMP input lacks member 'execute'", "-1.5")},
    {true, "{\"id\":\"\\u00e9'\"}", GENERIC_ID("QMP input lacks member 'execute'", "\"\\u00E9'\"")},
    {true, "{\"id\":[]}", GENERIC_ID("QMP input lacks member 'execute'", "[]")},
    {true, "{\"id\":{\"a\":[1,{}]}}", GENERIC_ID("QMP input lacks member 'execute'", "{\"a\": [1, {}]}")},
    /* commands */
    {true, "{\"execute\":\"nope\"}", NOT_FOUND("The command nope has not been found")},
    {true, "{\"execute\":\"\"}", NOT_FOUND("The command  has not been found")},
    {true, "{\"execute\":\"Query-Version\"}", NOT_FOUND("The command Query-Version has not been found")},
    {true, "{\"execute\":\"qmp_capabilities\"}",
     NOT_FOUND("Capabilities negotiation is already complete, command ignored")},
    {false, "{\"execute\":\"query-version\"}", NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'")},
    {false, "{\"execute\":\"nope\"}", NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'")},
    {false, "{\"nope\":\"nope\"}", GENERIC("QMP input member 'nope' is unexpected")},
    {false, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":\"oob\"}}",
     GENERIC("Invalid parameter type for 'enable', expected: array")},
    {false, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[5]}}",
     GENERIC("Invalid parameter type for 'enable[0]', expected: string")},
    {false, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}",
     GENERIC("Parameter 'enable' does not accept value 'oob'")},
    {false, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"x\":[]}}", GENERIC("Parameter 'x' is unexpected")},
    /* arguments */
    {true, "{\"execute\":\"query-version\",\"arguments\":{\"x\":1}}", GENERIC("Parameter 'x' is unexpected")},
    {true, "{\"execute\":\"blockdev-del\"}", GENERIC("Parameter 'node-name' is missing")},
    {true, "{\"execute\":\"blockdev-del\",\"arguments\":{\"node-name\":null}}",
     GENERIC("Invalid parameter type for 'node-name', expected: string")},
    {true, "{\"execute\":\"blockdev-del\",\"arguments\":{\"node-name\":\"a\",\"x\":1}}",
     GENERIC("Parameter 'x' is unexpected")},
    {true, "{\"execute\":\"blockdev-add\"}", GENERIC("Parameter 'driver' is missing")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":5}}",
     GENERIC("Invalid parameter type for 'driver', expected: string")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"nope\"}}",
     GENERIC("Parameter 'driver' does not accept value 'nope'")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"null-co\",\"foo\":1}}",
     GENERIC("Parameter 'foo' is unexpected")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"null-co\",\"cache\":{\"foo\":1}}}",
     GENERIC("Parameter 'cache.foo' is unexpected")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"null-co\",\"size\":\"x\"}}",
     GENERIC("Invalid parameter type for 'size', expected: integer")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"null-co\",\"size\":1.0}}",
     GENERIC("Invalid parameter type for 'size', expected: integer")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"null-co\"}}",
     GENERIC("'node-name' must be specified for the root node")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"raw\",\"node-name\":\"r\"}}",
     GENERIC("Parameter 'file' is missing")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"raw\",\"node-name\":\"r\",\"file\":5}}",
     GENERIC("Invalid parameter type for 'file', expected: BlockdevRef")},
    {true, "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"raw\",\"node-name\":\"r\",\"file\":{}}}",
     GENERIC("Parameter 'file.driver' is missing")},
    {true, "{\"execute\":\"block_resize\",\"arguments\":{\"node-name\":\"a\",\"size\":1e30}}",
     GENERIC("Invalid parameter type for 'size', expected: integer")},
    {true, "{\"execute\":\"transaction\",\"arguments\":{\"actions\":{}}}",
     GENERIC("Invalid parameter type for 'actions', expected: array")},
    {true, "{\"execute\":\"transaction\",\"arguments\":{\"actions\":[5]}}",
     GENERIC("Invalid parameter type for 'actions[0]', expected: object")},
    {true, "{\"execute\":\"transaction\",\"arguments\":{\"actions\":[{\"data\":{}}]}}",
     GENERIC("Parameter 'actions[0].type' is missing")},
    {true, "{\"execute\":\"transaction\",\"arguments\":{\"actions\":[{\"type\":\"blockdev-del\"}]}}",
     GENERIC("Parameter 'actions[0].data' is missing")},
    {true,
     "{\"execute\":\"transaction\",\"arguments\":{\"actions\":[{\"type\":\"blockdev-add\",\"data\":{\"driver\":"
     "\"null-co\"}}]}}",
     GENERIC("'node-name' must be specified for the root node")},
    {true, "{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"iothread\",\"id\":\"i o\"}}",
     GENERIC("Parameter 'id' expects an identifier")},
    {true, "{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"iothread\",\"id\":\"\"}}",
     GENERIC("Parameter 'id' expects an identifier")},
    {true, "{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"nope\",\"id\":\"a\"}}",
     GENERIC("Parameter 'qom-type' does not accept value 'nope'")},
    {true, "{\"execute\":\"object-del\",\"arguments\":{\"id\":\"nope\"}}", GENERIC("object 'nope' not found")},
    {true, "{\"execute\":\"qom-list\",\"arguments\":{\"path\":\"/nope\"}}",
     "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"Device '/nope' not found\"}}"},
    {true, "{\"execute\":\"qom-set\",\"arguments\":{\"path\":\"/\",\"property\":\"a\"}}",
     GENERIC("Parameter 'value' is missing")},
    {true, "{\"execute\":\"qom-set\",\"arguments\":{\"path\":\"/\",\"property\":\"type\",\"value\":1}}",
     GENERIC("Property 'container.type' is not writable")},
    {true, "{\"execute\":\"query-node-options\",\"arguments\":{\"node-name\":\"nope\"}}",
     GENERIC("Cannot find device='' nor node-name='nope'")},
    /* what works */
    {true, "{\"execute\":\"query-named-block-nodes\",\"arguments\":{\"flat\":1}}",
     GENERIC("Invalid parameter type for 'flat', expected: boolean")},
    {true, "{\"execute\":\"query-block-exports\",\"id\":7}", "{\"return\": [], \"id\": 7}"},
    {true, "{\"execute\":\"query-sources\"}", "{\"return\": []}"},
    {true, "{\"execute\":\"query-iothreads\",\"arguments\":{}}", "{\"return\": []}"},
    {true, "{\"execute\":\"query-blockstats\",\"arguments\":{\"query-nodes\":true}}", "{\"return\": []}"},
    {true, "{\"execute\":\"query-node-options\"}", "{\"return\": []}"},
    {true, "{\"execute\":\"x-debug-query-block-graph\"}", "{\"return\": {\"nodes\": [], \"edges\": []}}"},
};

START_TEST(test_dispatch_table)
{
    const struct dispatch_case *row = &cases[_i];
    struct qmp_client client = {.negotiated = row->negotiated};
    AUTO_FREE char *text = reply_text(&client, row->request);

    ck_assert_str_eq(text, row->reply);
    ck_assert(client.negotiated == row->negotiated);
    ck_assert(!client.quit);
}
END_TEST

START_TEST(test_dispatch_negotiation)
{
    struct qmp_client client = {0};
    AUTO_FREE char *first = reply_text(&client, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[]}}");

    ck_assert_str_eq(first, "{\"return\": {}}");
    ck_assert(client.negotiated);
    AUTO_FREE char *second = reply_text(&client, "{\"execute\":\"qmp_capabilities\"}");

    ck_assert_ptr_nonnull(strstr(second, "CommandNotFound"));
    AUTO_FREE char *third = reply_text(&client, "{\"execute\":\"quit\",\"id\":\"q\"}");

    ck_assert_str_eq(third, "{\"return\": {}, \"id\": \"q\"}");
    ck_assert(client.quit);
}
END_TEST

/* What query-qmp-schema lists as commands is what query-commands lists. */
START_TEST(test_dispatch_introspection)
{
    struct qmp_client client = {.negotiated = true};
    AUTO_FREE char *commands_text = reply_text(&client, "{\"execute\":\"query-commands\"}");
    AUTO_FREE char *schema_text = reply_text(&client, "{\"execute\":\"query-qmp-schema\"}");
    struct json_object *commands_reply = json_tokener_parse(commands_text);
    struct json_object *schema_reply = json_tokener_parse(schema_text);
    struct json_object *commands = json_object_object_get(commands_reply, "return");
    struct json_object *schema = json_object_object_get(schema_reply, "return");
    size_t described = 0;

    ck_assert_uint_ge(json_object_array_length(commands), 25);
    for (size_t i = 0; i < json_object_array_length(schema); i++) {
        struct json_object *entry = json_object_array_get_idx(schema, i);

        described += !strcmp(json_object_get_string(json_object_object_get(entry, "meta-type")), "command");
    }
    ck_assert_uint_eq(described, json_object_array_length(commands));
    json_object_put(commands_reply);
    json_object_put(schema_reply);
}
END_TEST

START_TEST(test_dispatch_greeting)
{
    struct json_object *greeting = qmp_greeting();
    struct json_object *body = json_object_object_get(greeting, "QMP");
    struct json_object *version = json_object_object_get(body, "version");

    ck_assert_int_eq(json_object_array_length(json_object_object_get(body, "capabilities")), 0);
    ck_assert_ptr_nonnull(json_object_object_get(json_object_object_get(version, "qemu"), "major"));
    ck_assert_ptr_nonnull(json_object_object_get(version, "package"));
    json_object_put(greeting);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dispatch");
    TCase *tests = tcase_create("dispatch");

    tcase_add_loop_test(tests, test_dispatch_table, 0, (int)array_size(cases));
    tcase_add_test(tests, test_dispatch_negotiation);
    tcase_add_test(tests, test_dispatch_introspection);
    tcase_add_test(tests, test_dispatch_greeting);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
