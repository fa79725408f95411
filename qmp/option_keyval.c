/*
 * From key=value text to a tree of JSON objects, which option_json.c then
 * gives its types: see option_keyval.h. Any thread.
 */
#include "qmp/option_keyval.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "qmp/json_stream.h"
#include "qmp/option_json.h"

/* Longest name between two dots. */
#define KEYVAL_NAME_MAX 127

/* Length of the name at the start of text, which may be a number: up to a dot or the end. 0 if it is malformed. */
static size_t keyval_name_length(const char *text, size_t size)
{
    static const char later[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    size_t length = 0;

    while (length < size && text[length] && strchr(later, text[length]))
        length++;
    if (length > KEYVAL_NAME_MAX || (length < size && text[length] != '.') || (length && strchr("-_", text[0])))
        return 0;
    return length;
}

/* The member name of parent, which is made an object if it is not there. */
static int keyval_descend(struct json_object *parent, const char *name, struct json_object **ret)
{
    if (json_object_object_get_ex(parent, name, ret))
        return json_object_is_type(*ret, json_type_object) ? 0 : -EEXIST;
    *ret = json_object_new_object();
    json_object_object_add(parent, name, *ret);
    return 0;
}

/* A name and a number of bytes of it, for errors. */
static int keyval_inconsistent(const char *key, size_t size, struct error *err)
{
    return error_set(err, -EINVAL, "Parameters '%.*s.*' used inconsistently", (int)size, key);
}

static int keyval_store(struct json_object *root, const char *key, size_t size, struct json_object *value,
                        struct error *err)
{
    struct json_object *object = root, *old;
    char name[KEYVAL_NAME_MAX + 1];
    size_t start = 0;

    for (unsigned depth = 0; depth < OPTION_DEPTH_MAX; depth++) {
        size_t length = keyval_name_length(key + start, size - start);

        if (!length || start + length + 1 == size)
            return error_set(err, -EINVAL, "Invalid parameter '%.*s'", (int)size, key);
        memcpy(name, key + start, length);
        name[length] = '\0';
        start += length;
        if (start == size) {
            if (json_object_object_get_ex(object, name, &old) && json_object_is_type(old, json_type_object))
                return keyval_inconsistent(key, size, err);
            json_object_object_add(object, name, json_object_get(value));
            return 0;
        }
        if (keyval_descend(object, name, &object))
            return keyval_inconsistent(key, start, err);
        start++;
    }
    return error_set(err, -EINVAL, "Parameter '%.*s...' is nested too deeply", KEYVAL_NAME_MAX, key);
}

/* The value at *text with ",," made single, and *text put behind the comma that ends it. */
static char *keyval_value(const char **text)
{
    char *value = memory_zero(strlen(*text) + 1), *out = value;
    const char *in = *text;

    for (; *in; in++) {
        if (*in == ',' && *++in != ',')
            break;
        *out++ = *in;
    }
    *text = in;
    return value;
}

/* One key=value at *text; *text is put behind it. */
static int keyval_pair(struct json_object *root, const char **text, const char *implied_key, struct error *err)
{
    size_t size = strcspn(*text, "=,");
    const char *key = *text;

    if (implied_key && key[size] != '=' && size) {
        key = implied_key;
        size = strlen(implied_key);
    } else if (!size) {
        return error_set(err, -EINVAL, "Invalid parameter ''");
    } else if (key[size] != '=') {
        size = size < KEYVAL_NAME_MAX ? size : KEYVAL_NAME_MAX;
        return error_set(err, -EINVAL, "Expected '=' after parameter '%.*s'", (int)size, key);
    } else {
        *text += size + 1;
    }
    AUTO_FREE char *value = keyval_value(text);
    struct json_object *json = json_object_new_string(value);
    int result = keyval_store(root, key, size, json, err);

    json_object_put(json);
    return result;
}

static int keyval_json(const char *text, struct json_object **ret, struct error *err)
{
    struct json_stream *stream = json_stream_new();
    struct json_item item = {0};
    size_t size = strlen(text), used = json_stream_feed(stream, text, size, &item);
    int result = 0;

    if (item.kind == JSON_ITEM_ERROR)
        result = error_set(err, -EINVAL, "%s", item.error);
    else if (item.kind == JSON_ITEM_NONE)
        result = error_set(err, -EINVAL, "JSON parse error, premature EOI");
    else if (strspn(text + used, " \t\r\n") != size - used)
        result = error_set(err, -EINVAL, "Expecting at most one JSON value");
    else
        *ret = take_ptr(&item.value);
    json_item_clear(&item);
    json_stream_free(stream);
    return result;
}

int option_keyval_tree(const char *text, const char *implied_key, struct json_object **ret, struct error *err)
{
    *ret = NULL;
    if (*text == '{')
        return keyval_json(text, ret, err);
    struct json_object *root = json_object_new_object();

    while (*text) {
        int result = keyval_pair(root, &text, implied_key, err);

        if (result) {
            json_object_put(root);
            return result;
        }
        implied_key = NULL;
    }
    *ret = root;
    return 0;
}

int option_parse_keyval(const struct option_type *type, const char *text, const char *implied_key, void **ret,
                        struct error *err)
{
    struct json_object *tree;
    int result = option_keyval_tree(text, implied_key, &tree, err);

    *ret = NULL;
    if (result)
        return result;
    result = option_parse_json(type, tree, "", *text == '{' ? 0 : OPTION_JSON_KEYVAL, ret, err);
    json_object_put(tree);
    return result;
}
