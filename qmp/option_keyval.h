/*
 * Options as text on a command line: key=value,dotted.key=value, or a JSON
 * object.
 */
#ifndef QMP_OPTION_KEYVAL_H
#define QMP_OPTION_KEYVAL_H

#include "core/options.h"

struct error;
struct json_object;

/*
 * Makes a struct of this type from text: *ret, to be freed by option_free(). In text, ",," stands
 * for a comma inside a value; a first part without '=' is the value of implied_key (NULL: none);
 * "list.0=" names an element of an array; of two values for one key the last one counts. If text
 * starts with '{' it is JSON. -EINVAL with the first fault that is found; *ret is NULL then.
 */
int option_parse_keyval(const struct option_type *type, const char *text, const char *implied_key, void **ret,
                        struct error *err);

/* Only the first step, for callers without a type: text as a tree of objects and strings, the
 * caller's; what starts with '{' is parsed as JSON. */
int option_keyval_tree(const char *text, const char *implied_key, struct json_object **ret, struct error *err);

#endif
