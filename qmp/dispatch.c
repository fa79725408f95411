/*
 * From a JSON request to its reply: see dispatch.h. Main loop only.
 */
#include "qmp/dispatch.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "core/error.h"
#include "core/options.h"
#include "generated/commands.h"
#include "qmp/command.h"
#include "qmp/option_json.h"

#define ERROR_TEXT_MAX 4096u

struct json_object *qmp_version(void)
{
    struct json_object *version = json_object_new_object();
    struct json_object *numbers = json_object_new_object();

    json_object_object_add(numbers, "major", json_object_new_int(QMP_COMPATIBLE_MAJOR));
    json_object_object_add(numbers, "minor", json_object_new_int(QMP_COMPATIBLE_MINOR));
    json_object_object_add(numbers, "micro", json_object_new_int(QMP_COMPATIBLE_MICRO));
    json_object_object_add(version, "qemu", numbers);
    json_object_object_add(version, "package", json_object_new_string("cairn " CAIRN_VERSION));
    json_object_object_add(version, "name", json_object_new_string("cairnd"));
    return version;
}

struct json_object *qmp_greeting(void)
{
    struct json_object *greeting = json_object_new_object();
    struct json_object *body = json_object_new_object();

    json_object_object_add(body, "version", qmp_version());
    json_object_object_add(body, "capabilities", json_object_new_array());
    json_object_object_add(greeting, "QMP", body);
    return greeting;
}

/* The members of a request, borrowed from it. */
struct request_members {
    const char *execute;
    struct json_object *arguments; /* an object, or NULL */
};

static int request_member(struct request_members *members, const char *name, struct json_object *value,
                          struct error *err)
{
    if (!strcmp(name, "execute")) {
        if (!json_object_is_type(value, json_type_string))
            return error_set(err, -EINVAL, "QMP input member 'execute' must be a string");
        members->execute = json_object_get_string(value);
    } else if (!strcmp(name, "arguments")) {
        if (!json_object_is_type(value, json_type_object))
            return error_set(err, -EINVAL, "QMP input member 'arguments' must be an object");
        members->arguments = value;
    } else if (strcmp(name, "id")) {
        return error_set(err, -EINVAL, "QMP input member '%s' is unexpected", name);
    }
    return 0;
}

static int request_members_parse(struct json_object *value, struct request_members *ret, struct error *err)
{
    if (!json_object_is_type(value, json_type_object))
        return error_set(err, -EINVAL, "QMP input must be a JSON object");
    json_object_object_foreach(value, name, member)
    {
        int result = request_member(ret, name, member, err);

        if (result)
            return result;
    }
    return ret->execute ? 0 : error_set(err, -EINVAL, "QMP input lacks member 'execute'");
}

static const struct command *command_find(const char *name)
{
    for (unsigned i = 0; i < command_count; i++)
        if (!strcmp(command_table[i].name, name))
            return &command_table[i];
    return NULL;
}

static int request_find_command(const struct qmp_client *client, const char *name, const struct command **ret,
                                struct error *err)
{
    bool negotiates = !strcmp(name, "qmp_capabilities");

    if (!client->negotiated && !negotiates)
        return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT,
                               "Expecting capabilities negotiation with 'qmp_capabilities'");
    if (client->negotiated && negotiates)
        return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT,
                               "Capabilities negotiation is already complete, command ignored");
    *ret = command_find(name);
    if (!*ret)
        return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT, "The command %s has not been found", name);
    return 0;
}

int qmp_request_parse(const struct qmp_client *client, struct json_object *value, struct qmp_request *ret,
                      struct error *err)
{
    struct request_members members = {0};
    int result = request_members_parse(value, &members, err);

    *ret = (struct qmp_request){0};
    if (!result)
        result = request_find_command(client, members.execute, &ret->command, err);
    if (result)
        return result;
    struct json_object *arguments = members.arguments ? json_object_get(members.arguments) : json_object_new_object();

    result = option_parse_json(ret->command->args, arguments, "", 0, &ret->args, err);
    json_object_put(arguments);
    return result;
}

void qmp_request_clear(struct qmp_request *request)
{
    if (request->command)
        option_free(request->command->args, request->args);
    *request = (struct qmp_request){0};
}

/* Messages quote what the client sent, which may be long: cut between characters. */
static struct json_object *error_text(const char *text)
{
    size_t size = strlen(text);

    if (size > ERROR_TEXT_MAX)
        for (size = ERROR_TEXT_MAX; size && (text[size] & 0xc0) == 0x80;)
            size--;
    return json_object_new_string_len(text, (int)size);
}

struct json_object *qmp_error_reply(const struct error *err)
{
    struct json_object *reply = json_object_new_object();
    struct json_object *body = json_object_new_object();

    json_object_object_add(body, "class", json_object_new_string(error_class_name(err->class)));
    json_object_object_add(body, "desc", error_text(err->text ? err->text : strerror(-err->code)));
    json_object_object_add(reply, "error", body);
    return reply;
}

struct json_object *qmp_dispatch(struct qmp_client *client, struct json_object *value)
{
    AUTO_ERROR struct error err = {0};
    struct qmp_request request;
    struct json_object *ret = NULL, *id, *reply;
    int result = qmp_request_parse(client, value, &request, &err);

    if (!result)
        result = request.command->run(client, request.args, &ret, &err);
    qmp_request_clear(&request);
    if (result) {
        json_object_put(ret);
        err.code = result;
        reply = qmp_error_reply(&err);
    } else {
        reply = json_object_new_object();
        json_object_object_add(reply, "return", ret ? ret : json_object_new_object());
    }
    if (json_object_is_type(value, json_type_object) && json_object_object_get_ex(value, "id", &id))
        json_object_object_add(reply, "id", json_object_get(id));
    return reply;
}
