/*
 * Options: faults are named in the expected words, and key=value text means
 * what it should.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/options.h"
#include "generated/options.h"
#include "qmp/option_keyval.h"

struct fault {
    const struct option_type *type;
    const char *text;           /* JSON, or key=value */
    const char *error;
};

#define NODE &node_options_type
static const struct fault json_faults[] = {
    {NODE, "{}", "Parameter 'driver' is missing"},
    {NODE, "{\"driver\": \"nope\"}", "Parameter 'driver' does not accept value 'nope'"},
    {NODE, "{\"driver\": 7}", "Invalid parameter type for 'driver', expected: string"},
    {NODE, "{\"driver\": null}", "Invalid parameter type for 'driver', expected: string"},
    {NODE, "{\"driver\": \"null-co\", \"x\": 1}", "Parameter 'x' is unexpected"},
    {NODE, "{\"driver\": \"null-co\", \"\": 1}", "Parameter '' is unexpected"},
    {NODE, "{\"driver\": \"null-co\", \"filename\": \"a\"}", "Parameter 'filename' is unexpected"},
    {NODE, "{\"driver\": \"null-co\", \"data\": {}}", "Parameter 'data' is unexpected"},
    {NODE, "{\"driver\": \"null-co\", \"size\": \"1\"}", "Invalid parameter type for 'size', expected: integer"},
    {NODE, "{\"driver\": \"null-co\", \"size\": 1.5}", "Invalid parameter type for 'size', expected: integer"},
    {NODE, "{\"driver\": \"null-co\", \"size\": -1}",
     "Parameter 'size' expects a value in range [0, 9223372036854774784]"},
    {NODE, "{\"driver\": \"null-co\", \"size\": 9223372036854774785}",
     "Parameter 'size' expects a value in range [0, 9223372036854774784]"},
    {NODE, "{\"driver\": \"null-co\", \"size\": 18446744073709551615}",
     "Parameter 'size' expects a value in range [0, 9223372036854774784]"},
    {NODE, "{\"driver\": \"null-co\", \"size\": 99999999999999999999999}",
     "Invalid parameter type for 'size', expected: integer"},
    {NODE, "{\"driver\": \"null-co\", \"read-only\": 1}", "Invalid parameter type for 'read-only', expected: boolean"},
    {NODE, "{\"driver\": \"null-co\", \"cache\": 1}", "Invalid parameter type for 'cache', expected: object"},
    {NODE, "{\"driver\": \"null-co\", \"cache\": {\"x\": 1}}", "Parameter 'cache.x' is unexpected"},
    {NODE, "{\"driver\": \"null-co\", \"cache\": {\"direct\": \"on\"}}",
     "Invalid parameter type for 'cache.direct', expected: boolean"},
    {NODE, "{\"driver\": \"null-co\", \"node-name\": \"a23456789012345678901234567890xy\"}",
     "Parameter 'node-name' is longer than 31 bytes"},
    {NODE, "{\"driver\": \"null-co\", \"node-name\": \"a\\u0000b\"}",
     "JSON parse error, \\u0000 is not a valid Unicode character"},
    {NODE, "{\"driver\": \"raw\"}", "Parameter 'file' is missing"},
    {NODE, "{\"driver\": \"raw\", \"file\": 3}", "Invalid parameter type for 'file', expected: BlockdevRef"},
    {NODE, "{\"driver\": \"raw\", \"file\": null}", "Invalid parameter type for 'file', expected: BlockdevRef"},
    {NODE, "{\"driver\": \"raw\", \"file\": {\"driver\": \"file\"}}", "Parameter 'file.filename' is missing"},
    {NODE, "{\"driver\": \"raw\", \"file\": {\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": 1}}}",
     "Invalid parameter type for 'file.file.filename', expected: string"},
    {&transaction_args_type, "{\"actions\": 1}", "Invalid parameter type for 'actions', expected: array"},
    {&transaction_args_type, "{\"actions\": {\"0\": {}}}", "Invalid parameter type for 'actions', expected: array"},
    {&transaction_args_type, "{\"actions\": [1]}", "Invalid parameter type for 'actions[0]', expected: object"},
    {&transaction_args_type, "{\"actions\": [{\"type\": \"abort\"}]}", "Parameter 'actions[0].data' is missing"},
    {&transaction_args_type, "{\"actions\": [{\"type\": \"abort\", \"data\": 1}]}",
     "Invalid parameter type for 'actions[0].data', expected: object"},
    {&transaction_args_type, "{\"actions\": [{\"type\": \"abort\", \"data\": {\"x\": 1}}]}",
     "Parameter 'actions[0].data.x' is unexpected"},
    {&transaction_args_type, "{\"actions\": [{\"type\": \"abort\", \"data\": {}, \"x\": 1}]}",
     "Parameter 'actions[0].x' is unexpected"},
    {&transaction_args_type,
     "{\"actions\": [{\"type\": \"abort\", \"data\": {}}, {\"type\": \"blockdev-del\", \"data\": {\"node-name\": 1}}]}",
     "Invalid parameter type for 'actions[1].data.node-name', expected: string"},
    {&nbd_server_start_args_type, "{\"addr\": {\"type\": \"unix\", \"data\": {}}}",
     "Parameter 'addr.data.path' is missing"},
    {&nbd_server_start_args_type, "{\"addr\": {\"type\": \"unix\", \"path\": \"x\"}}",
     "Parameter 'addr.data' is missing"},
    {&nbd_server_start_args_type,
     "{\"addr\": {\"type\": \"unix\", \"data\": {\"path\": \"x\"}}, \"max-connections\": 4294967296}",
     "Parameter 'max-connections' expects uint32_t"},
    {&nbd_server_start_args_type, "{\"addr\": {\"type\": \"inet\", \"data\": {\"host\": \"a\", \"port\": true}}}",
     "Invalid parameter type for 'addr.data.port', expected: string"},
    {&block_export_del_args_type, "{\"id\": \"a\", \"mode\": \"soft\"}",
     "Parameter 'mode' does not accept value 'soft'"},
    {&qom_set_args_type, "{\"path\": \"a\", \"property\": \"b\"}", "Parameter 'value' is missing"},
};

START_TEST(test_json_faults)
{
    const struct fault *fault = &json_faults[_i];
    AUTO_ERROR struct error err = {0};
    void *options;

    /* By key=value parsing, which takes JSON as well and does so by our own parser. */
    ck_assert_int_eq(option_parse_keyval(fault->type, fault->text, NULL, &options, &err), -EINVAL);
    ck_assert_str_eq(err.text, fault->error);
    ck_assert_ptr_null(options);
}
END_TEST

static const struct fault keyval_faults[] = {
    {NODE, "", "Parameter 'driver' is missing"},
    {NODE, "driver=nope", "Parameter 'driver' does not accept value 'nope'"},
    {NODE, "null-co,size=1x", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=-1", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=0x", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=K", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=1KB", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=16E", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=18446744073709551616", "Parameter 'size' expects a size, such as 512, 64K or 1G"},
    {NODE, "null-co,size=8E", "Parameter 'size' expects a value in range [0, 9223372036854774784]"},
    {NODE, "null-co,latency-ns=1k", "Parameter 'latency-ns' expects integer"},
    {NODE, "null-co,latency-ns=-1", "Parameter 'latency-ns' expects a value in range [0, 9223372036854775807]"},
    {NODE, "null-co,latency-ns=1.5", "Parameter 'latency-ns' expects integer"},
    {NODE, "null-co,read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"},
    {NODE, "null-co,read-only", "Expected '=' after parameter 'read-only'"},
    {NODE, "null-co,x=1", "Parameter 'x' is unexpected"},
    {NODE, "null-co,=1", "Invalid parameter ''"},
    {NODE, ",driver=null-co", "Invalid parameter ''"},
    {NODE, "null-co,cache=1", "Invalid parameter type for 'cache', expected: object"},
    {NODE, "null-co,cache=1,cache.direct=on", "Parameters 'cache.*' used inconsistently"},
    {NODE, "null-co,cache.direct=on,cache=1", "Parameters 'cache.*' used inconsistently"},
    {NODE, "null-co,cache.direct.x=on", "Invalid parameter type for 'cache.direct', expected: boolean"},
    {NODE, "raw,file.=3", "Invalid parameter 'file.'"},
    {NODE, "raw,.file=3", "Invalid parameter '.file'"},
    {NODE, "raw,file..a=3", "Invalid parameter 'file..a'"},
    {NODE, "raw,fi le=3", "Invalid parameter 'fi le'"},
    {NODE, "raw,file.driver=nope", "Parameter 'file.driver' does not accept value 'nope'"},
    {NODE, "raw,file.driver=file", "Parameter 'file.filename' is missing"},
    {NODE, "{", "JSON parse error, premature EOI"},
    {NODE, "{} x", "Expecting at most one JSON value"},
    {&export_options_type, "nbd", "Parameter 'id' is missing"},
    {&export_options_type, "nbd,id=a,node-name=b,iothreads.1=x", "Parameter 'iothreads.0' is missing"},
    {&export_options_type, "nbd,id=a,node-name=b,iothreads.x=x", "Parameter 'iothreads.0' is missing"},
    {&export_options_type, "nbd,id=a,node-name=b,iothreads=x",
     "Invalid parameter type for 'iothreads', expected: array"},
    {&export_options_type, "nbd,id=a,node-name=b,iothreads.0.a=x",
     "Invalid parameter type for 'iothreads.0', expected: string"},
    {&nbd_server_options_type, "addr.type=inet,addr.host=::1,addr.port=x,max-connections=4294967296",
     "Parameter 'max-connections' expects uint32_t"},
};

static const char *implied_key(const struct option_type *type)
{
    return type->discriminator ? type->discriminator->name : NULL;
}

START_TEST(test_keyval_faults)
{
    const struct fault *fault = &keyval_faults[_i];
    AUTO_ERROR struct error err = {0};
    void *options;

    ck_assert_int_eq(option_parse_keyval(fault->type, fault->text, implied_key(fault->type), &options, &err), -EINVAL);
    ck_assert_str_eq(err.text, fault->error);
    ck_assert_ptr_null(options);
}
END_TEST

/* Forms of key=value text, and what they are in JSON. */
static const struct {
    const struct option_type *type;
    const char *text, *json;
} keyval_forms[] = {
    {NODE, "null-co", "{\"driver\": \"null-co\"}"},
    {NODE, "driver=null-co,", "{\"driver\": \"null-co\"}"},
    {NODE, "null-co,size=64K", "{\"driver\": \"null-co\", \"size\": 65536}"},
    {NODE, "null-co,size=2g", "{\"driver\": \"null-co\", \"size\": 2147483648}"},
    {NODE, "null-co,size=1T,size=512", "{\"driver\": \"null-co\", \"size\": 512}"},
    {NODE, "null-co,size=0x200", "{\"driver\": \"null-co\", \"size\": 512}"},
    {NODE, "null-co,size=0010", "{\"driver\": \"null-co\", \"size\": 10}"},
    {NODE, "null-co,read-only=on,read-zeroes=yes,cache.direct=true,cache.no-flush=off",
     "{\"driver\": \"null-co\", \"read-only\": true, \"read-zeroes\": true, \"cache\": {\"direct\": true}}"},
    {NODE, "file,filename=a,,b,,,,c=d", "{\"driver\": \"file\", \"filename\": \"a,b,,c=d\"}"},
    {NODE, "file,filename=", "{\"driver\": \"file\", \"filename\": \"\"}"},
    {NODE, "raw,file=disk", "{\"driver\": \"raw\", \"file\": \"disk\"}"},
    {NODE, "raw,offset=1M,file.driver=file,file.filename=x,file.locking=off",
     "{\"driver\": \"raw\", \"offset\": 1048576, "
     "\"file\": {\"driver\": \"file\", \"filename\": \"x\", \"locking\": \"off\"}}"},
    {&export_options_type, "nbd,id=e,node-name=n,iothreads.1=b,iothreads.0=a",
     "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"iothreads\": [\"a\", \"b\"]}"},
    {&nbd_server_options_type, "addr.type=inet,addr.host=h,addr.port=1,max-connections=0",
     "{\"addr\": {\"type\": \"inet\", \"host\": \"h\", \"port\": 1}, \"max-connections\": 0}"},
};

START_TEST(test_keyval_forms)
{
    const struct option_type *type = keyval_forms[_i].type;
    AUTO_ERROR struct error err = {0};
    void *from_text, *from_json;

    ck_assert_msg(!option_parse_keyval(type, keyval_forms[_i].text, implied_key(type), &from_text, &err), "%s",
                  err.text);
    ck_assert_msg(!option_parse_keyval(type, keyval_forms[_i].json, NULL, &from_json, &err), "%s", err.text);
    ck_assert(option_equal(type, from_text, from_json));
    option_free(type, from_text);
    option_free(type, from_json);
}
END_TEST

START_TEST(test_defaults)
{
    AUTO_ERROR struct error err = {0};
    void *parsed;

    ck_assert(!option_parse_keyval(&node_options_type, "null-co", "driver", &parsed, &err));
    struct node_options *node = parsed;

    ck_assert_uint_eq(node->u.null_co.size, 1 << 30);
    ck_assert_int_eq(node->detect_zeroes, NODE_DETECT_ZEROES_OFF);
    ck_assert_ptr_null(node->cache);
    ck_assert_ptr_null(node->node_name);
    option_free(&node_options_type, node);

    ck_assert(!option_parse_keyval(&nbd_server_options_type, "addr.type=unix,addr.path=x", NULL, &parsed, &err));
    struct nbd_server_options *server = parsed;

    ck_assert_str_eq(server->id, "");
    ck_assert_uint_eq(server->max_connections, 100);
    ck_assert_uint_eq(server->handshake_max_seconds, 10);
    option_free(&nbd_server_options_type, server);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("option text");
    TCase *cases = tcase_create("option text");
    SRunner *runner;

    suite_add_tcase(suite, cases);
    tcase_add_loop_test(cases, test_json_faults, 0, (int)array_size(json_faults));
    tcase_add_loop_test(cases, test_keyval_faults, 0, (int)array_size(keyval_faults));
    tcase_add_loop_test(cases, test_keyval_forms, 0, (int)array_size(keyval_forms));
    tcase_add_test(cases, test_defaults);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
