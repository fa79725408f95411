/*
 * One row of the generated command table (generated/commands.c): what a
 * command is called, the type of its arguments, and who runs it.
 */
#ifndef QMP_COMMAND_H
#define QMP_COMMAND_H

struct error;
struct json_object;
struct option_type;
struct qmp_client;

struct command {
    const char *name;
    const struct option_type *args;
    /* Main loop coroutine; may wait. args: a struct of the type above, the caller's. *ret is NULL on
     * entry; left so, {} is returned. Negative errno with err set on failure. */
    int (*run)(struct qmp_client *client, const void *args, struct json_object **ret, struct error *err);
};

#endif
