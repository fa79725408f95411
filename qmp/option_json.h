/*
 * Options between JSON and C structs, by the generated tables (see
 * core/options.h). Input may be hostile: every value is checked against its
 * type and range, nesting is bounded, errors name the member by its path
 * ("file.filename", "actions[0].data.id") in the words that clients of
 * QEMU know.
 */
#ifndef QMP_OPTION_JSON_H
#define QMP_OPTION_JSON_H

#include "core/options.h"

struct error;
struct json_object;

/* Structs, arrays and node references inside each other. */
#define OPTION_DEPTH_MAX 64u

enum option_json_mode {
    /* The tree was made from key=value text: scalars are strings, arrays are objects with the keys
     * "0", "1" ..., booleans are on and off, sizes may have suffixes. */
    OPTION_JSON_KEYVAL = 1
};

/*
 * Makes a struct of this type from json (borrowed; NULL is JSON's null): *ret, to be freed by
 * option_free(). path is put before the names in errors; "" for none. mode: enum
 * option_json_mode. -EINVAL with the first fault that is found; *ret is NULL then.
 */
int option_parse_json(const struct option_type *type, struct json_object *json, const char *path, unsigned mode,
                      void **ret, struct error *err);

/* Options as a new JSON object, with everything that has a value except secrets. NULL options
 * give NULL, which is JSON's null. */
struct json_object *option_to_json(const struct option_type *type, const void *options);

/* The same without what only repeats a default. */
struct json_object *option_to_json_brief(const struct option_type *type, const void *options);

#endif
