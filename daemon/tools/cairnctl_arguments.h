/*
 * From words to a command's arguments. A word is
 *   key=value        typed by the daemon's schema; dotted keys go into objects and lists
 *   key:=JSON        any JSON value
 *   {...}            a whole object, to which the other words add
 *   -                the same, read from standard input
 * What the schema does not know is sent as text: the daemon is the one judge
 * of names and values.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_ARGUMENTS_H
#define DAEMON_TOOLS_CAIRNCTL_ARGUMENTS_H

struct error;
struct json_object;
struct schema;

/* *ret is the caller's. Errors, all -EINVAL: no "=", bad JSON, a key given twice. */
int arguments_parse(const struct schema *schema, const char *command, char *const *words, unsigned count,
                    struct json_object **ret, struct error *err);

/*
 * The same without typing and without complaint, for completion: what the
 * words say so far, as text. The caller's.
 */
struct json_object *arguments_guess(char *const *words, unsigned count);

/*
 * Splits a line as a shell does (spaces, '...', "...", backslash), except that
 * JSON, at the start of a word or after ":=", is taken as it stands.
 * *ret is freed by words_free(). -EINVAL: a quote or a bracket is not closed;
 * then *ret holds the words so far, the open one last.
 */
int words_split(const char *line, char ***ret, unsigned *ret_count, struct error *err);
void words_free(char **words, unsigned count);

#endif
