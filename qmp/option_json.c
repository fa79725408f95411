/*
 * From JSON to option structs: see option_json.h. Any thread.
 *
 * A struct under construction is always one that option_free() understands:
 * it starts zeroed and each member is stored as soon as it is whole, so that
 * a fault anywhere frees everything by one call at the top.
 */
#include "qmp/option_json.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "core/edge.h"
#include "core/error.h"
#include "core/memory.h"
#include "qmp/option_scalar.h"

/* Where in the input we are: a chain on the stack, made into text only for an error. */
struct path {
    const struct path *parent;
    const char *name;           /* NULL: an array's element */
    size_t index;
};

struct parse {
    const char *prefix;
    unsigned mode, depth;
    unsigned open;              /* at this depth children may be missing; 0: nowhere */
    struct error *err;
};

/* Longest piece of the input that an error repeats. */
#define PARSE_ECHO_MAX 96

/* text for an error: cut, never inside a UTF-8 sequence. */
static char *parse_echo(const char *text)
{
    size_t length = strnlen(text, PARSE_ECHO_MAX + 1);

    if (length <= PARSE_ECHO_MAX)
        return memory_string(text);
    length = PARSE_ECHO_MAX;
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
        length--;
    return memory_format("%.*s...", (int)length, text);
}

static void path_print(const struct parse *parse, const struct path *path, FILE *out)
{
    if (!path)
        return;
    path_print(parse, path->parent, out);
    if (path->name) {
        AUTO_FREE char *name = parse_echo(path->name);

        fprintf(out, "%s%s", ftell(out) > 0 ? "." : "", name);
    } else {
        fprintf(out, parse->mode & OPTION_JSON_KEYVAL ? ".%zu" : "[%zu]", path->index);
    }
}

static char *path_text(const struct parse *parse, const struct path *path)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    if (!out)
        abort();
    fputs(parse->prefix, out);
    fflush(out);
    path_print(parse, path, out);
    fclose(out);
    return text;
}

/* "Parameter 'PATH' WHAT" */
static int parse_fault(struct parse *parse, const struct path *path, const char *what)
{
    AUTO_FREE char *text = path_text(parse, path);

    return error_set(parse->err, -EINVAL, "Parameter '%s' %s", text, what);
}

static int parse_wrong_type(struct parse *parse, const struct path *path, const char *expected)
{
    AUTO_FREE char *text = path_text(parse, path);

    return error_set(parse->err, -EINVAL, "Invalid parameter type for '%s', expected: %s", text, expected);
}

static int parse_object(struct parse *parse, const struct option_type *type, struct json_object *json,
                        const struct path *path, void *slot);
static int parse_value(struct parse *parse, const struct option_field *field, const struct option_value_type *type,
                       struct json_object *json, const struct path *path, void *slot);

/* Scalars */

static int parse_bool(struct parse *parse, struct json_object *json, const struct path *path, void *slot)
{
    if (parse->mode & OPTION_JSON_KEYVAL) {
        if (!json_object_is_type(json, json_type_string))
            return parse_wrong_type(parse, path, "boolean");
        return option_scalar_bool(json_object_get_string(json), slot)
                   ? parse_fault(parse, path, "expects 'on' or 'off'")
                   : 0;
    }
    if (!json_object_is_type(json, json_type_boolean))
        return parse_wrong_type(parse, path, "boolean");
    *(bool *)slot = json_object_get_boolean(json);
    return 0;
}

static int parse_out_of_range(struct parse *parse, const struct option_value_type *type, const struct path *path)
{
    char text[96];

    if (type->kind == OPTION_INT)
        snprintf(text, sizeof(text), "expects a value in range [%" PRId64 ", %" PRId64 "]", type->minimum,
                 (int64_t)type->maximum);
    else if (!type->minimum && type->maximum == UINT32_MAX)
        snprintf(text, sizeof(text), "expects uint32_t");
    else
        snprintf(text, sizeof(text), "expects a value in range [%" PRId64 ", %" PRIu64 "]", type->minimum,
                 type->maximum);
    return parse_fault(parse, path, text);
}

/* The number as its magnitude and sign, since json-c and key=value text both go beyond int64_t. */
static int parse_number(struct parse *parse, const struct option_field *field, struct json_object *json,
                        const struct path *path, struct option_number *ret)
{
    bool size = field && (field->flags & OPTION_IS_SIZE);

    if (parse->mode & OPTION_JSON_KEYVAL) {
        if (!json_object_is_type(json, json_type_string))
            return parse_wrong_type(parse, path, "integer");
        return option_scalar_number(json_object_get_string(json), size, ret)
                   ? parse_fault(parse, path, size ? "expects a size, such as 512, 64K or 1G" : "expects integer")
                   : 0;
    }
    if (!json_object_is_type(json, json_type_int))
        return parse_wrong_type(parse, path, "integer");
    int64_t value = json_object_get_int64(json);

    ret->negative = value < 0;
    ret->magnitude = value < 0 ? -(uint64_t)value : json_object_get_uint64(json);
    return 0;
}

static int parse_integer(struct parse *parse, const struct option_field *field, const struct option_value_type *type,
                         struct json_object *json, const struct path *path, void *slot)
{
    struct option_number number;
    int result = parse_number(parse, field, json, path, &number);

    if (result)
        return result;
    if (!option_number_fits(&number, type))
        return parse_out_of_range(parse, type, path);
    uint64_t bits = number.negative ? -number.magnitude : number.magnitude;

    memcpy(slot, &bits, sizeof(bits));
    return 0;
}

/* The text of a JSON string; NULL with err set if it cannot be a C string. Borrowed. */
static const char *parse_text(struct parse *parse, struct json_object *json, const struct path *path)
{
    if (!json_object_is_type(json, json_type_string)) {
        parse_wrong_type(parse, path, "string");
        return NULL;
    }
    const char *text = json_object_get_string(json);

    if (strlen(text) != (size_t)json_object_get_string_len(json)) {
        parse_fault(parse, path, "contains a NUL character");
        return NULL;
    }
    return text;
}

static int parse_string(struct parse *parse, const struct option_field *field, const struct option_value_type *type,
                        struct json_object *json, const struct path *path, char **slot)
{
    if (field && (field->flags & OPTION_ACCEPT_INTEGER) && json_object_is_type(json, json_type_int)) {
        *slot = memory_string(json_object_get_string(json));
        return 0;
    }
    const char *text = parse_text(parse, json, path);

    if (!text)
        return -EINVAL;
    if (type->maximum && strlen(text) > type->maximum) {
        AUTO_FREE char *what = memory_format("is longer than %" PRIu64 " bytes", type->maximum);

        return parse_fault(parse, path, what);
    }
    *slot = memory_string(text);
    return 0;
}

static int parse_enum(struct parse *parse, const struct option_enum *enumeration, struct json_object *json,
                      const struct path *path, void *slot)
{
    const char *text = parse_text(parse, json, path);

    if (!text)
        return -EINVAL;
    for (unsigned i = 0; i < enumeration->count; i++) {
        if (!strcmp(enumeration->names[i], text)) {
            memcpy(slot, &(int){(int)i}, sizeof(int));
            return 0;
        }
    }
    AUTO_FREE char *echo = parse_echo(text);
    AUTO_FREE char *what = memory_format("does not accept value '%s'", echo);

    return parse_fault(parse, path, what);
}

/* Compound values */

static int parse_node_ref(struct parse *parse, const struct option_field *field, struct json_object *json,
                          const struct path *path, void *slot)
{
    bool nullable = field && (field->flags & OPTION_ALLOW_NULL);
    enum json_type kind = json_object_get_type(json);

    if (kind != json_type_string && kind != json_type_object && !(kind == json_type_null && nullable))
        return parse_wrong_type(parse, path, nullable ? "BlockdevRefOrNull" : "BlockdevRef");
    struct node_ref *ref = memory_new(struct node_ref);

    memcpy(slot, &ref, sizeof(ref));
    ref->null = kind == json_type_null;
    if (kind == json_type_object)
        return parse_object(parse, &node_options_type, json, path, &ref->node);
    const char *text = kind == json_type_string ? parse_text(parse, json, path) : NULL;

    /* Text has no null. */
    if (nullable && text && !*text && parse->mode & OPTION_JSON_KEYVAL) {
        ref->null = true;
        return 0;
    }
    ref->name = memory_string(text);
    return kind == json_type_string && !text ? -EINVAL : 0;
}

/* The i-th element; false if there is none. Key=value text gives an object with numbers as keys. */
static bool parse_element(struct json_object *json, size_t i, struct json_object **ret)
{
    char key[24];

    if (json_object_is_type(json, json_type_array)) {
        *ret = json_object_array_get_idx(json, i);
        return i < json_object_array_length(json);
    }
    snprintf(key, sizeof(key), "%zu", i);
    return json_object_object_get_ex(json, key, ret);
}

static int parse_array_count(struct parse *parse, const struct option_value_type *type, struct json_object *json,
                             const struct path *path, size_t *ret)
{
    bool object = json_object_is_type(json, json_type_object) && (parse->mode & OPTION_JSON_KEYVAL);

    if (!object && !json_object_is_type(json, json_type_array))
        return parse_wrong_type(parse, path, "array");
    *ret = object ? (size_t)json_object_object_length(json) : json_object_array_length(json);
    if (type->array_maximum && *ret > type->array_maximum) {
        AUTO_FREE char *what = memory_format("has more than %" PRIu64 " elements", type->array_maximum);

        return parse_fault(parse, path, what);
    }
    return 0;
}

static int parse_array(struct parse *parse, const struct option_field *field, const struct option_value_type *type,
                       struct json_object *json, const struct path *path, void *slot)
{
    /* Whether references may be null the field tells for its elements too. */
    const struct option_field *inner = type->element->kind == OPTION_NODE_REF ? field : NULL;
    size_t count = 0, size = option_value_size(type->element);
    int result = parse_array_count(parse, type, json, path, &count);

    if (result || !count)
        return result;
    struct option_array array = {count, memory_array(count, size)};

    memcpy(slot, &array, sizeof(array));
    for (size_t i = 0; i < count && !result; i++) {
        struct path here = {path, NULL, i};
        struct json_object *element;

        if (!parse_element(json, i, &element))
            return parse_fault(parse, &here, "is missing");
        result = parse_value(parse, inner, type->element, element, &here, (char *)array.items + i * size);
    }
    return result;
}

static int parse_any(struct json_object *json, char **slot)
{
    *slot = memory_string(json_object_to_json_string_ext(json, JSON_C_TO_STRING_PLAIN));
    return 0;
}

/* field is NULL for an array's element. */
static int parse_value(struct parse *parse, const struct option_field *field, const struct option_value_type *type,
                       struct json_object *json, const struct path *path, void *slot)
{
    switch (type->kind) {
    case OPTION_BOOL:
        return parse_bool(parse, json, path, slot);
    case OPTION_INT:
    case OPTION_UINT:
        return parse_integer(parse, field, type, json, path, slot);
    case OPTION_STRING:
        return parse_string(parse, field, type, json, path, slot);
    case OPTION_ENUM:
        return parse_enum(parse, type->enumeration, json, path, slot);
    case OPTION_ARRAY:
        return parse_array(parse, field, type, json, path, slot);
    case OPTION_NODE_REF:
        return parse_node_ref(parse, field, json, path, slot);
    case OPTION_ANY:
        return parse_any(json, slot);
    default:
        if (field && field->flags & OPTION_OPEN)
            parse->open = parse->depth + 1;
        return parse_object(parse, type->object, json, path, slot);
    }
}

/* Structs */

static void parse_default(const struct option_field *field, void *slot)
{
    char *text;

    if (!(field->flags & OPTION_ELEMENT_DEFAULT))
        return;
    switch (field->type.kind) {
    case OPTION_BOOL:
        *(bool *)slot = field->default_integer != 0;
        break;
    case OPTION_ENUM:
        memcpy(slot, &(int){(int)field->default_integer}, sizeof(int));
        break;
    case OPTION_STRING:
        text = memory_string(field->default_string);
        memcpy(slot, &text, sizeof(text));
        break;
    default:
        memcpy(slot, &field->default_integer, sizeof(field->default_integer));
        break;
    }
}

static int parse_fields(struct parse *parse, const struct option_type *type, struct json_object *json,
                        const struct path *path, void *options)
{
    for (unsigned i = 0; i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];
        char *slot = (char *)options + field->offset;
        struct path here = {path, field->name, 0};
        struct json_object *value;

        if (json_object_object_get_ex(json, field->name, &value)) {
            int result = parse_value(parse, field, &field->type, value, &here, slot);

            if (result)
                return result;
            if (field->has_offset)
                *(bool *)((char *)options + field->has_offset) = true;
        } else if (field->flags & OPTION_REQUIRED && !(field->child_role && parse->open == parse->depth)) {
            return parse_fault(parse, &here, "is missing");
        } else {
            parse_default(field, slot);
        }
    }
    return 0;
}

static bool parse_has_field(const struct option_type *type, const char *name)
{
    for (unsigned i = 0; type && i < type->field_count; i++)
        if (!strcmp(type->fields[i].name, name))
            return true;
    return false;
}

/* Everything in json must be a field of type, or of the branch on the same level, or "data". */
static int parse_check_names(struct parse *parse, const struct option_type *type, const struct option_type *branch,
                             struct json_object *json, const struct path *path)
{
    struct json_object_iterator i = json_object_iter_begin(json), end = json_object_iter_end(json);

    for (; !json_object_iter_equal(&i, &end); json_object_iter_next(&i)) {
        const char *name = json_object_iter_peek_name(&i);
        struct path here = {path, name, 0};
        bool data = type && type->wrapped && !strcmp(name, "data");

        if (!data && !parse_has_field(type, name) && !parse_has_field(branch, name))
            return parse_fault(parse, &here, "is unexpected");
    }
    return 0;
}

static int parse_struct(struct parse *parse, const struct option_type *type, struct json_object *json,
                        const struct path *path, void *options);

static int parse_wrapped(struct parse *parse, const struct option_type *branch_type, struct json_object *json,
                         const struct path *path, void *branch)
{
    struct path here = {path, "data", 0};
    struct json_object *data;

    if (!json_object_object_get_ex(json, "data", &data))
        return parse_fault(parse, &here, "is missing");
    if (branch_type)
        return parse_struct(parse, branch_type, data, &here, branch);
    return json_object_is_type(data, json_type_object) ? parse_check_names(parse, NULL, NULL, data, &here)
                                                       : parse_wrong_type(parse, &here, "object");
}

/* Fills a zeroed struct. */
static int parse_struct(struct parse *parse, const struct option_type *type, struct json_object *json,
                        const struct path *path, void *options)
{
    const struct option_type *branch_type;

    if (!json_object_is_type(json, json_type_object))
        return parse_wrong_type(parse, path, "object");
    int result = parse_fields(parse, type, json, path, options);

    if (result)
        return result;
    void *branch = option_branch_of(type, options, &branch_type);

    if (type->wrapped)
        result = parse_wrapped(parse, branch_type, json, path, branch);
    else if (branch)
        result = parse_fields(parse, branch_type, json, path, branch);
    return result ? result : parse_check_names(parse, type, type->wrapped ? NULL : branch_type, json, path);
}

/* The object that json is or stands for, with a reference of the caller's; NULL if it is neither. */
static struct json_object *parse_shorthand(const struct option_type *type, struct json_object *json)
{
    if (json_object_is_type(json, json_type_object))
        return json_object_get(json);
    if (!type->shorthand || !json_object_is_type(json, json_type_string))
        return NULL;
    struct json_object *whole = json_object_new_object();

    json_object_object_add(whole, type->shorthand, json_object_get(json));
    return whole;
}

/* Puts a new struct into the pointer at slot, also on failure: as far as it came. */
static int parse_object(struct parse *parse, const struct option_type *type, struct json_object *json,
                        const struct path *path, void *slot)
{
    if (parse->depth == OPTION_DEPTH_MAX)
        return parse_fault(parse, path, "is nested too deeply");
    struct json_object *whole = parse_shorthand(type, json);

    if (!whole)
        return parse_wrong_type(parse, path, "object");
    void *options = memory_zero(type->size);

    memcpy(slot, &options, sizeof(options));
    parse->depth++;
    int result = parse_struct(parse, type, whole, path, options);

    parse->depth--;
    json_object_put(whole);
    return result;
}

int option_parse_json(const struct option_type *type, struct json_object *json, const char *path, unsigned mode,
                      void **ret, struct error *err)
{
    struct parse parse = {.prefix = path, .mode = mode, .err = err};
    void *options = NULL;
    int result = parse_object(&parse, type, json, NULL, &options);

    if (result) {
        option_free(type, options);
        options = NULL;
    }
    *ret = options;
    return result;
}
