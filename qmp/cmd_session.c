/*
 * Commands about the session and the daemon itself: qmp_capabilities,
 * query-version, query-commands, query-qmp-schema, quit.
 */
#include <errno.h>
#include <json-c/json.h>

#include "core/error.h"
#include "generated/commands.h"
#include "generated/introspect.h"
#include "qmp/command.h"
#include "qmp/dispatch.h"
#include "qmp/json_build.h"

int qmp_qmp_capabilities(struct qmp_client *client, const struct qmp_capabilities_args *args, struct json_object **ret,
                         struct error *err)
{
    (void)ret;
    if (args->enable.count)
        return error_set(err, -EINVAL, "Parameter 'enable' does not accept value '%s'", args->enable.items[0]);
    client->negotiated = true;
    return 0;
}

int qmp_query_version(struct qmp_client *client, const struct query_version_args *args, struct json_object **ret,
                      struct error *err)
{
    (void)client;
    (void)args;
    (void)err;
    *ret = qmp_version();
    return 0;
}

int qmp_query_commands(struct qmp_client *client, const struct query_commands_args *args, struct json_object **ret,
                       struct error *err)
{
    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_array();
    for (unsigned i = 0; i < command_count; i++)
        json_add_string(json_append_object(*ret), "name", command_table[i].name);
    return 0;
}

int qmp_query_qmp_schema(struct qmp_client *client, const struct query_qmp_schema_args *args, struct json_object **ret,
                         struct error *err)
{
    /* Some hundred kilobytes of JSON that never change: parsed when first asked for, then shared. */
    static struct json_object *schema;

    (void)client;
    (void)args;
    if (!schema)
        schema = json_tokener_parse(introspect_schema_json);
    if (!schema)
        return error_set(err, -ENOMEM, "Cannot build the schema: not enough memory");
    *ret = json_object_get(schema);
    return 0;
}

int qmp_quit(struct qmp_client *client, const struct quit_args *args, struct json_object **ret, struct error *err)
{
    (void)args;
    (void)ret;
    (void)err;
    client->quit = true;
    return 0;
}
