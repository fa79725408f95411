/*
 * Short names for building replies.
 */
#ifndef QMP_JSON_BUILD_H
#define QMP_JSON_BUILD_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

static inline void json_add_string(struct json_object *object, const char *key, const char *value)
{
    json_object_object_add(object, key, json_object_new_string(value));
}

static inline void json_add_bool(struct json_object *object, const char *key, bool value)
{
    json_object_object_add(object, key, json_object_new_boolean(value));
}

static inline void json_add_int(struct json_object *object, const char *key, int64_t value)
{
    json_object_object_add(object, key, json_object_new_int64(value));
}

static inline void json_add_uint(struct json_object *object, const char *key, uint64_t value)
{
    json_object_object_add(object, key, json_object_new_uint64(value));
}

/* A new empty object or array, owned by object. */
static inline struct json_object *json_add_object(struct json_object *object, const char *key)
{
    struct json_object *value = json_object_new_object();

    json_object_object_add(object, key, value);
    return value;
}

static inline struct json_object *json_add_array(struct json_object *object, const char *key)
{
    struct json_object *value = json_object_new_array();

    json_object_object_add(object, key, value);
    return value;
}

/* A new empty object at the end of array, which owns it. */
static inline struct json_object *json_append_object(struct json_object *array)
{
    struct json_object *value = json_object_new_object();

    json_object_array_add(array, value);
    return value;
}

#endif
