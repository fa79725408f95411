/*
 * From option structs to JSON: the second half of option_json.h. Any thread.
 */
#include "qmp/option_json.h"

#include <json-c/json.h>
#include <string.h>

static struct json_object *unparse_struct(const struct option_type *type, const void *options, bool brief);

static struct json_object *unparse_node_ref(const struct node_ref *ref, bool brief)
{
    if (ref->null)
        return NULL;
    if (ref->name)
        return json_object_new_string(ref->name);
    return unparse_struct(&node_options_type, ref->node, brief);
}

static struct json_object *unparse_value(const struct option_value_type *type, const void *slot, bool brief);

static struct json_object *unparse_array(const struct option_value_type *type, const void *slot, bool brief)
{
    struct json_object *json = json_object_new_array();
    struct option_array array;

    memcpy(&array, slot, sizeof(array));
    for (size_t i = 0; i < array.count; i++)
        json_object_array_add(
            json,
            unparse_value(type->element, (const char *)array.items + i * option_value_size(type->element), brief));
    return json;
}

/* The text was written by json-c when the value was parsed. */
static struct json_object *unparse_any(const char *text)
{
    struct json_tokener *tokener = json_tokener_new_ex(2 * OPTION_DEPTH_MAX);
    struct json_object *json = json_tokener_parse_ex(tokener, text, (int)strlen(text) + 1);

    json_tokener_free(tokener);
    return json;
}

static struct json_object *unparse_pointer(const struct option_value_type *type, const void *pointer, bool brief)
{
    if (!pointer)
        return NULL;
    switch (type->kind) {
    case OPTION_STRING:
        return json_object_new_string(pointer);
    case OPTION_ANY:
        return unparse_any(pointer);
    case OPTION_NODE_REF:
        return unparse_node_ref(pointer, brief);
    default:
        return unparse_struct(type->object, pointer, brief);
    }
}

static struct json_object *unparse_value(const struct option_value_type *type, const void *slot, bool brief)
{
    const void *pointer;
    uint64_t number;
    int value;

    switch (type->kind) {
    case OPTION_BOOL:
        return json_object_new_boolean(*(const bool *)slot);
    case OPTION_INT:
        memcpy(&number, slot, sizeof(number));
        return json_object_new_int64((int64_t)number);
    case OPTION_UINT:
        memcpy(&number, slot, sizeof(number));
        return json_object_new_uint64(number);
    case OPTION_ENUM:
        memcpy(&value, slot, sizeof(value));
        return json_object_new_string(type->enumeration->names[value]);
    case OPTION_ARRAY:
        return unparse_array(type, slot, brief);
    default:
        memcpy(&pointer, slot, sizeof(pointer));
        return unparse_pointer(type, pointer, brief);
    }
}

static bool unparse_is_default(const struct option_field *field, const void *slot)
{
    const char *text;
    uint64_t number;
    int value;

    if (!(field->flags & OPTION_ELEMENT_DEFAULT))
        return false;
    switch (field->type.kind) {
    case OPTION_BOOL:
        return *(const bool *)slot == (field->default_integer != 0);
    case OPTION_INT:
    case OPTION_UINT:
        memcpy(&number, slot, sizeof(number));
        return number == (uint64_t)field->default_integer;
    case OPTION_ENUM:
        memcpy(&value, slot, sizeof(value));
        return value == field->default_integer;
    default:
        memcpy(&text, slot, sizeof(text));
        return text && !strcmp(text, field->default_string);
    }
}

static void unparse_fields(const struct option_type *type, const void *options, bool brief, struct json_object *json)
{
    for (unsigned i = 0; i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];
        const char *slot = (const char *)options + field->offset;
        bool wanted = option_field_present(field, options) || (field->flags & OPTION_REQUIRED);

        if (wanted && !(field->flags & OPTION_SECRET) && !(brief && unparse_is_default(field, slot)))
            json_object_object_add(json, field->name, unparse_value(&field->type, slot, brief));
    }
}

static struct json_object *unparse_struct(const struct option_type *type, const void *options, bool brief)
{
    struct json_object *json = json_object_new_object();
    const struct option_type *branch_type;
    const void *branch = option_branch_of(type, options, &branch_type);

    unparse_fields(type, options, brief, json);
    if (type->wrapped)
        json_object_object_add(json, "data",
                               branch ? unparse_struct(branch_type, branch, brief) : json_object_new_object());
    else if (branch)
        unparse_fields(branch_type, branch, brief, json);
    return json;
}

struct json_object *option_to_json(const struct option_type *type, const void *options)
{
    return options ? unparse_struct(type, options, false) : NULL;
}

struct json_object *option_to_json_brief(const struct option_type *type, const void *options)
{
    return options ? unparse_struct(type, options, true) : NULL;
}
