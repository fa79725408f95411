/*
 * See cairnctl_schema.h. The form is that of QEMU's SchemaInfo: a flat list of
 * entries that refer to each other by name.
 */
#include "daemon/tools/cairnctl_schema.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_client.h"

struct schema {
    struct json_object *list;       /* as it came */
    struct json_object *by_name;    /* name to entry */
};

/* A string member, or "" where there is none. */
static const char *schema_text(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;

    json_object_object_get_ex(object, name, &value);
    return value ? json_object_get_string(value) : "";
}

static struct json_object *schema_find(const struct schema *schema, const char *name)
{
    struct json_object *entry = NULL;

    json_object_object_get_ex(schema->by_name, name, &entry);
    return entry;
}

/* Items of an array member; 0 where there is none. */
static size_t schema_items(struct json_object *object, const char *name, struct json_object **ret)
{
    *ret = NULL;
    json_object_object_get_ex(object, name, ret);
    return json_object_is_type(*ret, json_type_array) ? json_object_array_length(*ret) : 0;
}

int schema_load(struct schema **ret, struct client *client, struct error *err)
{
    struct json_object *list;
    int rc = client_execute(client, "query-qmp-schema", NULL, &list, err);

    if (rc < 0)
        return rc;
    if (!json_object_is_type(list, json_type_array)) {
        json_object_put(list);
        return error_set(err, -EPROTO, "query-qmp-schema returned no list");
    }

    struct schema *schema = memory_new(struct schema);
    schema->list = list;
    schema->by_name = json_object_new_object();
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *entry = json_object_array_get_idx(list, i);
        json_object_object_add(schema->by_name, schema_text(entry, "name"), json_object_get(entry));
    }
    *ret = schema;
    return 0;
}

void schema_free(struct schema *schema)
{
    if (!schema)
        return;
    json_object_put(schema->by_name);
    json_object_put(schema->list);
    free(schema);
}

const char *schema_kind(struct json_object *type)
{
    return type ? schema_text(type, "meta-type") : "";
}

const char *schema_json_type(struct json_object *type)
{
    return type ? schema_text(type, "json-type") : "";
}

struct json_object *schema_arguments(const struct schema *schema, const char *command)
{
    struct json_object *entry = schema_find(schema, command);

    if (strcmp(schema_kind(entry), "command") != 0)
        return NULL;
    return schema_find(schema, schema_text(entry, "arg-type"));
}

void schema_each_command(const struct schema *schema, void (*visit)(void *object, const char *name), void *object)
{
    for (size_t i = 0; i < json_object_array_length(schema->list); i++) {
        struct json_object *entry = json_object_array_get_idx(schema->list, i);
        if (strcmp(schema_kind(entry), "command") == 0)
            visit(object, schema_text(entry, "name"));
    }
}

struct json_object *schema_element(const struct schema *schema, struct json_object *array)
{
    return schema_find(schema, schema_text(array, "element-type"));
}

struct json_object *schema_alternative(const struct schema *schema, struct json_object *type, const char *kind)
{
    struct json_object *members;

    if (strcmp(schema_kind(type), "alternate") != 0)
        return strcmp(schema_kind(type), kind) == 0 || strcmp(schema_json_type(type), kind) == 0 ? type : NULL;
    size_t count = schema_items(type, "members", &members);
    for (size_t i = 0; i < count; i++) {
        struct json_object *member = json_object_array_get_idx(members, i);
        struct json_object *entry = schema_find(schema, schema_text(member, "type"));
        if (strcmp(schema_kind(entry), kind) == 0 || strcmp(schema_json_type(entry), kind) == 0)
            return entry;
    }
    return NULL;
}

/* The type that belongs to the discriminator's value, or NULL. */
static struct json_object *schema_branch(const struct schema *schema, struct json_object *type,
                                         struct json_object *value)
{
    struct json_object *variants;
    size_t count = schema_items(type, "variants", &variants);
    const char *tag = value ? schema_text(value, schema_text(type, "tag")) : "";

    for (size_t i = 0; i < count; i++) {
        struct json_object *variant = json_object_array_get_idx(variants, i);
        if (strcmp(schema_text(variant, "case"), tag) == 0)
            return schema_find(schema, schema_text(variant, "type"));
    }
    return NULL;
}

void schema_each_member(const struct schema *schema, struct json_object *type, struct json_object *value,
                        void (*visit)(void *object, const char *name, struct json_object *type, bool optional),
                        void *object)
{
    for (; type; type = schema_branch(schema, type, value)) {
        struct json_object *members;
        size_t count = schema_items(type, "members", &members);
        for (size_t i = 0; i < count; i++) {
            struct json_object *member = json_object_array_get_idx(members, i);
            visit(object, schema_text(member, "name"), schema_find(schema, schema_text(member, "type")),
                  json_object_object_get_ex(member, "default", NULL));
        }
    }
}

struct schema_search {
    const char *name;
    struct json_object *found;
};

static void schema_match(void *object, const char *name, struct json_object *type, bool optional)
{
    struct schema_search *search = object;

    (void)optional;
    if (!search->found && strcmp(name, search->name) == 0)
        search->found = type;
}

struct json_object *schema_member(const struct schema *schema, struct json_object *type, struct json_object *value,
                                  const char *name)
{
    struct schema_search search = {.name = name};

    schema_each_member(schema, type, value, schema_match, &search);
    return search.found;
}

void schema_each_value(struct json_object *type, void (*visit)(void *object, const char *name), void *object)
{
    struct json_object *values;
    size_t count = schema_items(type, "values", &values);

    for (size_t i = 0; i < count; i++)
        visit(object, json_object_get_string(json_object_array_get_idx(values, i)));
}
