/*
 * JSON input and output of QMP: good and bad input by table, in one piece and
 * byte by byte; limits; recovery.
 */
#include <check.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "qmp/json_stream.h"
#include "qmp/json_write.h"

/* All items of input in order: values as text, errors behind '!'; separated by " | ". */
static char *items_text(const char *input, size_t size, size_t piece)
{
    struct json_stream *stream = json_stream_new();
    struct json_text out = {0};

    for (size_t offset = 0; offset < size;) {
        struct json_item item;
        size_t length = size - offset < piece ? size - offset : piece;

        offset += json_stream_feed(stream, input + offset, length, &item);
        if (item.kind == JSON_ITEM_NONE)
            continue;
        if (out.size)
            json_text_append(&out, " | ", 3);
        if (item.kind == JSON_ITEM_ERROR) {
            json_text_append(&out, "!", 1);
            json_text_append(&out, item.error, strlen(item.error));
        } else {
            json_write(&out, item.value, false);
        }
        json_item_clear(&item);
    }
    json_stream_free(stream);
    json_text_append(&out, "", 1);
    ck_assert(!out.failed);
    return out.data;
}

#define P "!JSON parse error, "

static const struct json_case {
    const char *input, *expected;
} cases[] = {
    {"", ""},
    {" \t\r\n ", ""},
    {"{}", "{}"},
    {"[]", "[]"},
    {"null ", "null"},
    {"true ", "true"},
    {"[false]", "[false]"},
    {"{\"a\":[1,2,{\"b\":null}]}", "{\"a\": [1, 2, {\"b\": null}]}"},
    {"{'a':'b\"c'}", "{\"a\": \"b\\\"c\"}"},
    {"'it\\'s'", "\"it's\""},
    {"\"\\'\"", "\"'\""},
    {"1 2", "1"},
    {"1 2 ", "1 | 2"},
    {"-1 -0 0 ", "-1 | 0 | 0"},
    {"1.5 1e3 1.25E-3 0.1 ", "1.5 | 1000 | 0.00125 | 0.1"},
    {"9223372036854775807 ", "9223372036854775807"},
    {"-9223372036854775808 ", "-9223372036854775808"},
    {"9223372036854775808 ", "9223372036854775808"},
    {"18446744073709551615 ", "18446744073709551615"},
    {"18446744073709551616 ", "1.8446744073709552e+19"},
    {"-9223372036854775809 ", "-9.223372036854776e+18"},
    {"1e999 ", P "number '1e999' is out of range"},
    {"\"\\b\\f\\n\\r\\t\\\\\\/\"", "\"\\b\\f\\n\\r\\t\\\\/\""},
    {"\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"", "\"\\u00E9\\u20AC\\uD83D\\uDE00\\u007F\""},
    {"\"\\ud83d\\uDE00\"", "\"\\uD83D\\uDE00\""},
    {"{}{}", "{} | {}"},
    {"\xff{}", P "stray '\xff' | {}"},
    /* errors */
    {"}", P "expecting value"},
    {"]", P "expecting value"},
    {",", P "expecting value"},
    {":", P "expecting value"},
    {"{]", P "expecting value"},
    {"[}", P "expecting value"},
    {"{,}", P "expecting value"},
    {"[,]", P "expecting value"},
    {"[1,]", P "expecting value"},
    {"{\"a\"}", P "missing : in object pair"},
    {"{\"a\" 1} {}", P "missing : in object pair | {}"},
    {"{\"a\":}", P "expecting value"},
    {"{\"a\":1,}", P "expecting value"},
    {"{\"a\":1 \"b\":2} {}", P "expected separator in dict | {}"},
    {"[1 2] {}", P "expected separator in list | {}"},
    {"{\"a\":1]} {}", P "expected separator in dict | " P "expecting value | {}"},
    {"[{\"a\":1]} {}", P "expected separator in dict | {}"},
    {"{\"a\":{\"b\":[}}} {}", P "expecting value | {}"},
    {"{1:2} {}", P "key is not a string in object | {}"},
    {"{null:2} {}", P "key is not a string in object | {}"},
    {"{{}:2} {}", P "key is not a string in object | {}"},
    {"{nul:2} {}", P "invalid keyword 'nul' | {}"},
    {"{\"a\":1,\"a\":2} {}", P "duplicate key | {}"},
    {"{\"a\":1,'\\u0061':2} {}", P "duplicate key | {}"},
    {"foo bar ", P "invalid keyword 'foo' | " P "invalid keyword 'bar'"},
    {"nulll ", P "invalid keyword 'nulll'"},
    {"# {}", P "stray '#' | {}"},
    {"#abc\n1 ", P "stray '#' | 1"},
    {"# \"abc\" {}", P "stray '#' | {}"},
    {"01 {}", P "stray '01' | {}"},
    {"-} {}", P "stray '-}' | {}"},
    {"1. {}", P "stray '1. ' | {}"},
    {"1e+ {}", P "stray '1e+ ' | {}"},
    {"+1 {}", P "stray '+' | {}"},
    {".5 {}", P "stray '.' | {}"},
    {"NaN\n{}", P "stray 'N' | {}"},
    {"\"a\nb\" {}", P "stray '\"a\n' | {}"},
    {"\"a\tb\" {}", P "stray '\"a\t' | {}"},
    {"{\"a\":\x01{}", P "stray '\x01' | {}"},
    {"{\"a\":\xff{}", P "stray '\xff' | {}"},
    {"\xfe\xff{}", P "stray '\xfe' | " P "stray '\xff' | {}"},
    {"{\"a\" 1 \xff{}", P "missing : in object pair | " P "stray '\xff' | {}"},
    {"{\"a\":\"\\x\"} {}", P "invalid escape sequence in string | {}"},
    {"\"\\u12g4\" {}", P "\\u12g4 is not a valid Unicode character | {}"},
    {"\"\\u12\" {}", P "\\u12 is not a valid Unicode character | {}"},
    {"\"\\u\" {}", P "\\u is not a valid Unicode character | {}"},
    {"\"\\ud83d\" {}", P "\\ud83d is not a valid Unicode character | {}"},
    {"\"\\ud800\\u0041\" {}", P "\\ud800 is not a valid Unicode character | {}"},
    {"\"\\udc00\" {}", P "\\udc00 is not a valid Unicode character | {}"},
    {"\"\\uffff\" {}", P "\\uffff is not a valid Unicode character | {}"},
    {"\"\\u0000\" {}", P "\\u0000 is not a valid Unicode character | {}"},
    {"\"\xc3\" {}", P "invalid UTF-8 sequence in string | {}"},
    {"\"\xc0\x80\" {}", P "invalid UTF-8 sequence in string | {}"},
    {"\"\xed\xa0\x80\" {}", P "invalid UTF-8 sequence in string | {}"},
    {"\"\xf4\x90\x80\x80\" {}", P "invalid UTF-8 sequence in string | {}"},
    {"\"\x80\" {}", P "invalid UTF-8 sequence in string | {}"},
};

START_TEST(test_json_table)
{
    const struct json_case *row = &cases[_i];
    AUTO_FREE char *whole = items_text(row->input, strlen(row->input), SIZE_MAX);
    AUTO_FREE char *bytes = items_text(row->input, strlen(row->input), 1);

    ck_assert_str_eq(whole, row->expected);
    ck_assert_str_eq(bytes, row->expected);
}
END_TEST

START_TEST(test_json_nul)
{
    AUTO_FREE char *text = items_text("\0{}", 3, SIZE_MAX);

    ck_assert_str_eq(text, P "stray '' | {}");
}
END_TEST

/* open and close, count times each, then "{}". */
static char *nested(const char *open, const char *close, unsigned count, size_t *ret_size)
{
    struct json_text text = {0};

    for (unsigned i = 0; i < count; i++)
        json_text_append(&text, open, strlen(open));
    json_text_append(&text, "0", 1);
    for (unsigned i = 0; i < count; i++)
        json_text_append(&text, close, strlen(close));
    json_text_append(&text, "{}", 2);
    *ret_size = text.size;
    return text.data;
}

START_TEST(test_json_depth)
{
    size_t size;
    AUTO_FREE char *fits = nested("[", "]", JSON_STREAM_DEPTH_MAX, &size);
    AUTO_FREE char *fits_text = items_text(fits, size, SIZE_MAX);

    ck_assert_ptr_null(strchr(fits_text, '!'));
    static const char *const open[] = {"[", "{\"a\":", "[1,{\"a\":"};
    static const char *const close[] = {"]", "}", "}]"};
    static const unsigned counts[] = {JSON_STREAM_DEPTH_MAX + 1, JSON_STREAM_DEPTH_MAX + 50, 100000};

    for (unsigned i = 0; i < 3; i++) {
        for (unsigned j = 0; j < 3; j++) {
            AUTO_FREE char *deep = nested(open[i], close[i], counts[j], &size);
            AUTO_FREE char *deep_text = items_text(deep, size, 4096);

            ck_assert_str_eq(deep_text, "!JSON nesting depth limit exceeded (at most 64 levels) | {}");
        }
    }
}
END_TEST

START_TEST(test_json_tokens)
{
    size_t count = JSON_STREAM_TOKENS_MAX;
    AUTO_FREE char *input = malloc(2 * count + 16);

    input[0] = '[';
    for (size_t i = 0; i < count; i++)
        memcpy(input + 1 + 2 * i, "0,", 2);
    memcpy(input + 2 * count, "]{}", 3);
    AUTO_FREE char *text = items_text(input, 2 * count + 3, 65536);

    ck_assert_str_eq(text, "!JSON token count limit exceeded (at most 262144 tokens in a message) | {}");
}
END_TEST

/* A message of one string that is too long, inside of prefix and suffix, does no more harm than one error. */
START_TEST(test_json_size)
{
    static const char *const prefix[] = {"\"", "[\"", "{\"a\":\"", "[", "7"};
    static const char *const suffix[] = {"\"", "\"]", "\"}", "]", ""};
    static const char fill[] = {'x', 'y', 'z', ' ', '7'};
    size_t body = (size_t)JSON_STREAM_SIZE_MAX + 10;
    AUTO_FREE char *input = malloc(body + 32);
    size_t size = strlen(prefix[_i]);

    memcpy(input, prefix[_i], size);
    memset(input + size, fill[_i], body);
    size += body;
    memcpy(input + size, suffix[_i], strlen(suffix[_i]));
    size += strlen(suffix[_i]);
    memcpy(input + size, " {}", 3);
    AUTO_FREE char *text = items_text(input, size + 3, 65536);

    ck_assert_str_eq(text, "!JSON message size limit exceeded (at most 64 MiB) | {}");
}
END_TEST

/* What is between messages is nobody's. */
START_TEST(test_json_blanks)
{
    size_t size = (size_t)JSON_STREAM_SIZE_MAX + 100;
    AUTO_FREE char *input = malloc(size);

    memset(input, ' ', size);
    memcpy(input + size - 2, "{}", 2);
    AUTO_FREE char *text = items_text(input, size, 65536);

    ck_assert_str_eq(text, "{}");
}
END_TEST

START_TEST(test_json_pretty)
{
    struct json_text text = {0};
    struct json_object *value = json_tokener_parse("{\"a\": {}, \"b\": [[], 1, {\"c\": 2}]}");

    json_write(&text, value, true);
    json_text_append(&text, "", 1);
    ck_assert_str_eq(text.data,
                     "{\r\n    \"a\": {\r\n    },\r\n    \"b\": [\r\n        [\r\n        ],\r\n        1,\r\n"
                     "        {\r\n            \"c\": 2\r\n        }\r\n    ]\r\n}");
    json_text_clear(&text);
    json_object_put(value);
}
END_TEST

START_TEST(test_json_limit)
{
    struct json_text text = {.limit = 10};
    struct json_object *value = json_object_new_string("12345678");

    json_write(&text, value, false);
    ck_assert(!text.failed);
    ck_assert_uint_eq(text.size, 10);
    json_text_append(&text, "x", 1);
    ck_assert(text.failed);
    ck_assert_uint_eq(text.size, 10);
    json_text_clear(&text);
    json_object_put(value);
}
END_TEST

/* Bytes that are no UTF-8 come out as replacement characters. */
START_TEST(test_json_bad_output)
{
    struct json_text text = {0};
    struct json_object *value = json_object_new_string("a\xff\xc3z");

    json_write(&text, value, false);
    json_text_append(&text, "", 1);
    ck_assert_str_eq(text.data, "\"a\\uFFFD\\uFFFDz\"");
    json_text_clear(&text);
    json_object_put(value);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json_stream");
    TCase *tests = tcase_create("json_stream");

    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, test_json_table, 0, (int)array_size(cases));
    tcase_add_test(tests, test_json_nul);
    tcase_add_test(tests, test_json_depth);
    tcase_add_test(tests, test_json_tokens);
    tcase_add_loop_test(tests, test_json_size, 0, 5);
    tcase_add_test(tests, test_json_blanks);
    tcase_add_test(tests, test_json_pretty);
    tcase_add_test(tests, test_json_limit);
    tcase_add_test(tests, test_json_bad_output);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
