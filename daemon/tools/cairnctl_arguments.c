/*
 * See cairnctl_arguments.h. Words are first put into a tree of texts, in which
 * every value that waits for its type carries a mark; then the tree is walked
 * beside the schema. In this order the discriminator of a union is known
 * wherever it stands.
 */
#include "daemon/tools/cairnctl_arguments.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_schema.h"
#include "qmp/option_scalar.h"

#define ARGUMENTS_DEPTH_MAX 32
#define ARGUMENTS_INPUT_MAX (64u << 20)

static char arguments_mark;     /* its address marks texts and objects made from words */

static void arguments_set_mark(struct json_object *value)
{
    json_object_set_userdata(value, &arguments_mark, NULL);
}

static bool arguments_marked(struct json_object *value)
{
    return value && json_object_get_userdata(value) == &arguments_mark;
}

/* Puts value at a dotted path; takes it in any case. */
static int arguments_put(struct json_object *root, const char *path, struct json_object *value, struct error *err)
{
    AUTO_FREE char *copy = memory_string(path);
    struct json_object *at = root, *child;
    unsigned depth = 0;

    for (char *part = copy;; part = strchr(part, '\0') + 1) {
        char *dot = strchr(part, '.');
        if (dot)
            *dot = '\0';
        if (*part == '\0' || ++depth > ARGUMENTS_DEPTH_MAX) {
            json_object_put(value);
            return error_set(err, -EINVAL, "'%s' is no name of an argument", path);
        }
        bool there = json_object_object_get_ex(at, part, &child);
        if (!dot && !there) {
            json_object_object_add(at, part, value);
            return 0;
        }
        if (there && (!dot || !json_object_is_type(child, json_type_object))) {
            json_object_put(value);
            return error_set(err, -EINVAL, "argument '%s' is given twice", path);
        }
        if (!there) {
            child = json_object_new_object();
            arguments_set_mark(child);
            json_object_object_add(at, part, child);
        }
        at = child;
    }
}

static int arguments_json(const char *text, struct json_object **ret, struct error *err)
{
    enum json_tokener_error why;

    *ret = json_tokener_parse_verbose(text, &why);
    if (why != json_tokener_success)
        return error_set(err, -EINVAL, "not JSON (%s): %s", json_tokener_error_desc(why), text);
    return 0;
}

static int arguments_merge(struct json_object *root, const char *text, struct error *err)
{
    struct json_object *object;
    int rc = arguments_json(text, &object, err);

    if (rc < 0)
        return rc;
    if (!json_object_is_type(object, json_type_object)) {
        json_object_put(object);
        return error_set(err, -EINVAL, "arguments must be a JSON object: %s", text);
    }
    json_object_object_foreach(object, key, value)
    {
        if (json_object_object_get_ex(root, key, NULL))
            rc = error_set(err, -EINVAL, "argument '%s' is given twice", key);
        else
            json_object_object_add(root, key, json_object_get(value));
    }
    json_object_put(object);
    return rc;
}

static int arguments_merge_input(struct json_object *root, struct error *err)
{
    AUTO_FREE char *text = memory_array(1, 1);
    size_t used = 0, got;
    char block[4096];

    while ((got = fread(block, 1, sizeof(block), stdin)) > 0) {
        if (used + got > ARGUMENTS_INPUT_MAX)
            return error_set(err, -EINVAL, "more than %u bytes on standard input", ARGUMENTS_INPUT_MAX);
        text = memory_grow(text, used + got + 1, 1);
        memcpy(text + used, block, got);
        used += got;
        text[used] = '\0';
    }
    return arguments_merge(root, text, err);
}

static int arguments_word(struct json_object *root, const char *word, struct error *err)
{
    const char *equals = strchr(word, '=');

    if (*word == '{')
        return arguments_merge(root, word, err);
    if (strcmp(word, "-") == 0)
        return arguments_merge_input(root, err);
    if (!equals || equals == word || (equals == word + 1 && *word == ':'))
        return error_set(err, -EINVAL, "'%s' is not key=value, key:=JSON or {...}%s", word,
                         *word == '-' ? "; options come before the command" : "");

    bool json = equals[-1] == ':';
    AUTO_FREE char *path = memory_format("%.*s", (int)(equals - word - json), word);
    struct json_object *value;
    if (json) {
        int rc = arguments_json(equals + 1, &value, err);
        if (rc < 0)
            return rc;
    } else {
        value = json_object_new_string(equals + 1);
        arguments_set_mark(value);
    }
    return arguments_put(root, path, value, err);
}

/* Any number may be a size: what it is, the daemon knows. */
static struct json_object *arguments_integer(const char *text)
{
    struct option_number number;

    if (option_scalar_number(text, true, &number) < 0 && option_scalar_number(text, false, &number) < 0)
        return NULL;
    if (!number.negative)
        return number.magnitude <= INT64_MAX ? json_object_new_int64((int64_t)number.magnitude)
                                             : json_object_new_uint64(number.magnitude);
    return number.magnitude <= INT64_MAX ? json_object_new_int64(-(int64_t)number.magnitude) : NULL;
}

static struct json_object *arguments_number(const char *text)
{
    char *end;
    double value = strtod(text, &end);

    return *text && *end == '\0' ? json_object_new_double_s(value, text) : NULL;
}

static struct json_object *arguments_boolean(const char *text)
{
    bool value;

    return option_scalar_bool(text, &value) < 0 ? NULL : json_object_new_boolean(value);
}

/* A text as the type wants it; as text where it does not fit. */
static struct json_object *arguments_scalar(const struct schema *schema, struct json_object *type, const char *text)
{
    struct json_object *value = NULL;

    if (schema_alternative(schema, type, "value"))
        value = json_tokener_parse(text);
    if (!value && schema_alternative(schema, type, "boolean"))
        value = arguments_boolean(text);
    if (!value && schema_alternative(schema, type, "int"))
        value = arguments_integer(text);
    if (!value && schema_alternative(schema, type, "number"))
        value = arguments_number(text);
    return value ? value : json_object_new_string(text);
}

static struct json_object *arguments_typed(const struct schema *schema, struct json_object *type,
                                           struct json_object *value, struct error *err);

/* An object whose keys are 0, 1, 2 ... as a list; NULL if they are not. */
static struct json_object *arguments_list(const struct schema *schema, struct json_object *type,
                                          struct json_object *object, struct error *err)
{
    struct json_object *list = json_object_new_array(), *item;
    struct json_object *element = schema_element(schema, type);
    int count = json_object_object_length(object);

    for (int i = 0; i < count; i++) {
        char key[16];
        snprintf(key, sizeof(key), "%d", i);
        if (!json_object_object_get_ex(object, key, &item)) {
            json_object_put(list);
            error_set(err, -EINVAL, "a list of %d needs the indices 0 to %d, and '%s' is missing", count, count - 1,
                      key);
            return NULL;
        }
        item = arguments_typed(schema, element, json_object_get(item), err);
        json_object_array_add(list, item);
    }
    return list;
}

/* Takes value, gives back the one that belongs in its place. Errors only in err. */
static struct json_object *arguments_typed(const struct schema *schema, struct json_object *type,
                                           struct json_object *value, struct error *err)
{
    struct json_object *result = value;

    if (json_object_is_type(value, json_type_string) && arguments_marked(value)) {
        result = arguments_scalar(schema, type, json_object_get_string(value));
    } else if (json_object_is_type(value, json_type_object)) {
        struct json_object *list = schema_alternative(schema, type, "array");
        struct json_object *object = schema_alternative(schema, type, "object");
        if (list && !object && arguments_marked(value)) {
            result = arguments_list(schema, list, value, err);
        } else {
            json_object_object_foreach(value, key, member)
            {
                struct json_object *wanted = schema_member(schema, object, value, key);
                struct json_object *typed = arguments_typed(schema, wanted, json_object_get(member), err);
                /* the key exists: only its value is replaced, which a walk permits */
                json_object_object_add(value, key, typed);
            }
        }
    }
    if (result != value)
        json_object_put(value);
    return result;
}

int arguments_parse(const struct schema *schema, const char *command, char *const *words, unsigned count,
                    struct json_object **ret, struct error *err)
{
    AUTO_ERROR struct error local = {0};
    struct json_object *root = json_object_new_object();
    int rc = 0;

    for (unsigned i = 0; i < count && rc == 0; i++)
        rc = arguments_word(root, words[i], &local);
    if (rc == 0) {
        root = arguments_typed(schema, schema_arguments(schema, command), root, &local);
        rc = local.code;
    }
    if (rc < 0) {
        json_object_put(root);
        error_move(err, &local);
        return rc;
    }
    *ret = root;
    return 0;
}

struct json_object *arguments_guess(char *const *words, unsigned count)
{
    struct json_object *root = json_object_new_object();

    for (unsigned i = 0; i < count; i++)
        if (strcmp(words[i], "-") != 0)
            arguments_word(root, words[i], NULL);
    return root;
}
