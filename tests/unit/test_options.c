/*
 * Options: random values of every type survive all ways between text, JSON
 * and structs; limits hold.
 */
#include <check.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/options.h"
#include "generated/commands.h"
#include "qmp/option_json.h"
#include "qmp/option_keyval.h"

#define ROUNDS 400

/* Random values that the tables allow. */

static uint64_t random_state;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static unsigned random_below(unsigned limit)
{
    return (unsigned)(random_next() % limit);
}

static struct json_object *random_struct(const struct option_type *type, unsigned depth);

static struct json_object *random_string(uint64_t maximum)
{
    static const char letters[] = "ab=,.{}\\\" '[]:/-_09\n\xc3\xa9";
    char text[24];
    unsigned length = random_below(maximum && maximum < 16 ? (unsigned)maximum : 16);

    for (unsigned i = 0; i < length; i++)
        text[i] = letters[random_below(sizeof(letters) - 3)];
    if (length + 2 <= 16 && random_below(4) == 0) {
        memcpy(text + length, "\xc3\xa9", 2);
        length += 2;
    }
    return json_object_new_string_len(text, (int)length);
}

static struct json_object *random_integer(const struct option_value_type *type)
{
    uint64_t low = (uint64_t)type->minimum, span = type->maximum - low, value;

    switch (random_below(4)) {
    case 0:
        value = low;
        break;
    case 1:
        value = type->maximum;
        break;
    default:
        value = span == UINT64_MAX ? random_next() : low + random_next() % (span + 1);
        break;
    }
    return type->kind == OPTION_INT ? json_object_new_int64((int64_t)value) : json_object_new_uint64(value);
}

static struct json_object *random_any(unsigned depth)
{
    struct json_object *array;

    switch (random_below(depth > 4 ? 4 : 5)) {
    case 0:
        return NULL;
    case 1:
        return json_object_new_boolean(random_below(2));
    case 2:
        return json_object_new_int64((int64_t)random_next());
    case 3:
        return random_string(0);
    default:
        array = json_object_new_array();
        for (unsigned i = random_below(3); i > 0; i--)
            json_object_array_add(array, random_any(depth + 1));
        return array;
    }
}

/* A node's name is not empty: in text, nothing stands for null. */
static struct json_object *random_reference(void)
{
    struct json_object *name = random_string(0);

    if (json_object_get_string_len(name) > 0)
        return name;
    json_object_put(name);
    return json_object_new_string("n");
}

static struct json_object *random_value(const struct option_value_type *type, unsigned depth)
{
    struct json_object *array;

    switch (type->kind) {
    case OPTION_BOOL:
        return json_object_new_boolean(random_below(2));
    case OPTION_INT:
    case OPTION_UINT:
        return random_integer(type);
    case OPTION_STRING:
        return random_string(type->maximum);
    case OPTION_ENUM:
        return json_object_new_string(type->enumeration->names[random_below(type->enumeration->count)]);
    case OPTION_ARRAY:
        array = json_object_new_array();
        for (unsigned i = 1 + random_below(4); i > 0; i--)
            json_object_array_add(array, random_value(type->element, depth + 1));
        return array;
    case OPTION_NODE_REF:
        return depth > 6 || random_below(2) ? random_reference() : random_struct(&node_options_type, depth + 1);
    case OPTION_ANY:
        return random_any(depth);
    default:
        return random_struct(type->object, depth + 1);
    }
}

static void random_fields(const struct option_type *type, struct json_object *json, unsigned depth)
{
    for (unsigned i = 0; i < type->field_count; i++)
        if ((type->fields[i].flags & OPTION_REQUIRED) || random_below(2))
            json_object_object_add(json, type->fields[i].name, random_value(&type->fields[i].type, depth));
}

static struct json_object *random_struct(const struct option_type *type, unsigned depth)
{
    struct json_object *json = json_object_new_object(), *tag;

    random_fields(type, json, depth);
    if (!type->discriminator)
        return json;
    json_object_object_get_ex(json, type->discriminator->name, &tag);
    for (unsigned i = 0; i < type->branch_count; i++) {
        const struct option_type *branch = type->branches[i].type;

        if (strcmp(type->branches[i].name, json_object_get_string(tag)))
            continue;
        if (type->wrapped)
            json_object_object_add(json, "data", branch ? random_struct(branch, depth + 1) : json_object_new_object());
        else if (branch)
            random_fields(branch, json, depth);
    }
    return json;
}

/* All types that stand on their own. */

static const struct option_type *type_at(unsigned i)
{
    static const struct option_type *const others[] = {
        &nbd_server_options_type,
        &block_export_deleted_event_type,
        &block_image_corrupted_event_type,
        &block_io_error_event_type,
        &shutdown_event_type,
        &socket_address_type,
    };

    if (i < command_count)
        return command_table[i].args;
    i -= command_count;
    return i < array_size(others) ? others[i] : NULL;
}

static void *parse_ok(const struct option_type *type, struct json_object *json)
{
    AUTO_ERROR struct error err = {0};
    void *options;
    int result = option_parse_json(type, json, "", 0, &options, &err);

    ck_assert_msg(result == 0, "%s: %s: %s", type->name, err.text, json_object_to_json_string(json));
    ck_assert_ptr_nonnull(options);
    return options;
}

/* Both unparsed forms of options parse to equal options. */
static void check_unparsed(const struct option_type *type, const void *options)
{
    struct json_object *full = option_to_json(type, options), *brief = option_to_json_brief(type, options);
    void *from_full = parse_ok(type, full), *from_brief = parse_ok(type, brief);

    ck_assert(option_equal(type, options, from_full));
    ck_assert(option_equal(type, options, from_brief));
    ck_assert_int_le(json_object_object_length(brief), json_object_object_length(full));
    option_free(type, from_full);
    option_free(type, from_brief);
    json_object_put(full);
    json_object_put(brief);
}

static void check_copy(const struct option_type *type, const void *options)
{
    void *copy = option_copy(type, options);
    char *zero = memory_zero(type->size);

    ck_assert(option_equal(type, options, copy));
    option_clear(type, copy);
    ck_assert(!memcmp(copy, zero, type->size));
    free(copy);
    free(zero);
}

START_TEST(test_round_trip)
{
    const struct option_type *type = type_at((unsigned)_i);

    for (unsigned round = 0; round < ROUNDS; round++) {
        random_state = ((uint64_t)_i << 32) + round + 1;
        struct json_object *json = random_struct(type, 0);
        void *options = parse_ok(type, json);

        check_unparsed(type, options);
        check_copy(type, options);
        option_free(type, options);
        json_object_put(json);
    }
}
END_TEST

/* Options are equal exactly if their JSON is. */
START_TEST(test_equal)
{
    const struct option_type *type = type_at((unsigned)_i);
    void *previous = NULL;

    for (unsigned round = 0; round < ROUNDS; round++) {
        random_state = ((uint64_t)_i << 32) + round / 2 * 7919 + 1;
        struct json_object *json = random_struct(type, 0);
        void *options = parse_ok(type, json);
        struct json_object *a = option_to_json(type, previous), *b = option_to_json(type, options);
        bool same = a && !strcmp(json_object_to_json_string(a), json_object_to_json_string(b));

        ck_assert_int_eq(option_equal(type, previous, options), same);
        if (round % 2)
            ck_assert(same);
        option_free(type, previous);
        previous = options;
        json_object_put(a);
        json_object_put(b);
        json_object_put(json);
    }
    option_free(type, previous);
    ck_assert(option_equal(type, NULL, NULL));
    ck_assert_ptr_null(option_copy(type, NULL));
}
END_TEST

/* json as key=value text; false if it cannot be written so. */
static bool keyval_print(struct json_object *json, const char *path, FILE *out)
{
    switch (json_object_get_type(json)) {
    case json_type_null:
        return false;
    case json_type_object: {
        if (!json_object_object_length(json))
            return false;
        json_object_object_foreach(json, name, member)
        {
            AUTO_FREE char *below = memory_format("%s%s%s", path, *path ? "." : "", name);

            if (!keyval_print(member, below, out))
                return false;
        }
        return true;
    }
    case json_type_array:
        for (size_t i = 0; i < json_object_array_length(json); i++) {
            AUTO_FREE char *below = memory_format("%s.%zu", path, i);

            if (!keyval_print(json_object_array_get_idx(json, i), below, out))
                return false;
        }
        return json_object_array_length(json) > 0;
    case json_type_boolean:
        fprintf(out, "%s=%s,", path, json_object_get_boolean(json) ? "on" : "off");
        return true;
    default:
        fprintf(out, "%s=", path);
        for (const char *c = json_object_get_string(json); *c; c++)
            fprintf(out, *c == ',' ? ",," : "%c", *c);
        fputc(',', out);
        return true;
    }
}

static void check_keyval(const struct option_type *type, struct json_object *json)
{
    AUTO_ERROR struct error err = {0};
    AUTO_FREE char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    bool printed = keyval_print(json, "", out);
    void *from_json, *from_text;

    fclose(out);
    if (!printed)
        return;
    from_json = parse_ok(type, json);
    int result = option_parse_keyval(type, text, NULL, &from_text, &err);

    ck_assert_msg(result == 0, "%s: %s: %s", type->name, err.text, text);
    ck_assert_msg(option_equal(type, from_json, from_text), "%s: %s", type->name, text);
    option_free(type, from_json);
    option_free(type, from_text);
}

START_TEST(test_keyval_round_trip)
{
    const struct option_type *type = type_at((unsigned)_i);

    /* In text, a value of any type is always a string. */
    if (!strcmp(type->name, "qom-set"))
        return;
    for (unsigned round = 0; round < ROUNDS; round++) {
        random_state = ((uint64_t)_i << 32) + round + 1;
        struct json_object *json = random_struct(type, 0);

        check_keyval(type, json);
        json_object_put(json);
    }
}
END_TEST

/* 'file' inside 'file', deeper than anybody needs. */
static struct json_object *nested_nodes(unsigned depth)
{
    struct json_object *json = json_object_new_string("disk");

    while (depth--) {
        struct json_object *outer = json_object_new_object();

        json_object_object_add(outer, "driver", json_object_new_string("raw"));
        json_object_object_add(outer, "file", json);
        json = outer;
    }
    return json;
}

START_TEST(test_depth)
{
    AUTO_ERROR struct error err = {0};
    struct json_object *fine = nested_nodes(OPTION_DEPTH_MAX), *deep = nested_nodes(OPTION_DEPTH_MAX + 1);
    void *options = parse_ok(&node_options_type, fine);

    check_unparsed(&node_options_type, options);
    option_free(&node_options_type, options);
    ck_assert_int_eq(option_parse_json(&node_options_type, deep, "", 0, &options, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "is nested too deeply"));
    ck_assert_ptr_null(options);
    json_object_put(fine);
    json_object_put(deep);
}
END_TEST

/* Errors repeat only a piece of long input, cut between characters. */
START_TEST(test_echo)
{
    AUTO_ERROR struct error err = {0};
    char name[4096];
    void *options;

    for (size_t i = 0; i + 2 < sizeof(name); i += 2)
        memcpy(name + i, "\xc3\xa9", 3);
    struct json_object *json = json_object_new_object();

    json_object_object_add(json, "driver", json_object_new_string(name));
    ck_assert_int_eq(option_parse_json(&node_options_type, json, "", 0, &options, &err), -EINVAL);
    ck_assert_uint_lt(strlen(err.text), 200);
    ck_assert_ptr_nonnull(strstr(err.text, "\xc3\xa9..."));
    json_object_put(json);

    json = json_object_new_object();
    json_object_object_add(json, "driver", json_object_new_string("null-co"));
    json_object_object_add(json, name, NULL);
    ck_assert_int_eq(option_parse_json(&node_options_type, json, "top", 0, &options, &err), -EINVAL);
    ck_assert_uint_lt(strlen(err.text), 200);
    ck_assert(!strncmp(err.text, "Parameter 'top.\xc3\xa9", 17));
    json_object_put(json);
}
END_TEST

/* Our parser lets no NUL through, another one might. */
START_TEST(test_nul)
{
    AUTO_ERROR struct error err = {0};
    struct json_object *json = json_object_new_object();
    void *options;

    json_object_object_add(json, "driver", json_object_new_string("null-co"));
    json_object_object_add(json, "node-name", json_object_new_string_len("a\0b", 3));
    ck_assert_int_eq(option_parse_json(&node_options_type, json, "", 0, &options, &err), -EINVAL);
    ck_assert_str_eq(err.text, "Parameter 'node-name' contains a NUL character");
    json_object_put(json);
}
END_TEST

START_TEST(test_node_ref)
{
    struct node_ref null = {.null = true};
    struct node_ref *copy = node_ref_copy(&null);

    ck_assert(copy->null && !copy->name && !copy->node);
    node_ref_free(copy);
    node_ref_free(NULL);
    ck_assert_ptr_null(node_ref_copy(NULL));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("options");
    TCase *cases = tcase_create("options");
    SRunner *runner;
    unsigned types = 0;

    while (type_at(types))
        types++;
    suite_add_tcase(suite, cases);
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, test_round_trip, 0, (int)types);
    tcase_add_loop_test(cases, test_equal, 0, (int)types);
    tcase_add_loop_test(cases, test_keyval_round_trip, 0, (int)types);
    tcase_add_test(cases, test_depth);
    tcase_add_test(cases, test_echo);
    tcase_add_test(cases, test_nul);
    tcase_add_test(cases, test_node_ref);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
