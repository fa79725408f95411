/*
 * The daemon's own description of its commands (query-qmp-schema), by which
 * cairnctl types what people write and completes what they began. Entries are
 * the daemon's JSON, borrowed from the schema; types go by name.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_SCHEMA_H
#define DAEMON_TOOLS_CAIRNCTL_SCHEMA_H

#include <stdbool.h>

struct client;
struct error;
struct json_object;
struct schema;

int schema_load(struct schema **ret, struct client *client, struct error *err);
void schema_free(struct schema *schema);        /* NULL is fine */

/* The type of a command's arguments; NULL for a command that the daemon does not have. */
struct json_object *schema_arguments(const struct schema *schema, const char *command);

/* Calls visit for each command, in the daemon's order. */
void schema_each_command(const struct schema *schema, void (*visit)(void *object, const char *name), void *object);

/* "object", "alternate", "array", "enum", "builtin"; "" for NULL. */
const char *schema_kind(struct json_object *type);

/* A builtin's JSON type: "string", "int", "number", "boolean", "null", "value"; "" for others. */
const char *schema_json_type(struct json_object *type);

/* An array's element type. */
struct json_object *schema_element(const struct schema *schema, struct json_object *array);

/* The alternative with that kind (schema_kind() or schema_json_type()), or type itself if it has it; else NULL. */
struct json_object *schema_alternative(const struct schema *schema, struct json_object *type, const char *kind);

/*
 * Calls visit for each member of an object type: the common ones, and those of the
 * branch that the discriminator in value (may be NULL) selects.
 */
void schema_each_member(const struct schema *schema, struct json_object *type, struct json_object *value,
                        void (*visit)(void *object, const char *name, struct json_object *type, bool optional),
                        void *object);

/* The type of one of those members; NULL if there is none of that name. */
struct json_object *schema_member(const struct schema *schema, struct json_object *type, struct json_object *value,
                                  const char *name);

/* Calls visit for each value of an enum type. */
void schema_each_value(struct json_object *type, void (*visit)(void *object, const char *name), void *object);

#endif
