/*
 * See cairnctl_session.h. Commands of cairnctl's own stand in a table; all
 * others go to the daemon.
 */
#include "daemon/tools/cairnctl_session.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_arguments.h"
#include "daemon/tools/cairnctl_graph.h"
#include "daemon/tools/cairnctl_print.h"
#include "daemon/tools/cairnctl_schema.h"
#include "daemon/tools/cairnctl_shell.h"
#include "daemon/tools/cairnctl_tree.h"

int session_fail(const struct error *err)
{
    fflush(stdout);
    fputs("cairnctl: ", stderr);
    print_text(stderr, err->text ? err->text : "unknown error");
    fputc('\n', stderr);
    if (err->code == CLIENT_REFUSED)
        return SESSION_ERROR;
    return err->code == -EINVAL ? SESSION_USAGE : SESSION_CONNECTION;
}

int session_usage(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fputs("cairnctl: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return SESSION_USAGE;
}

struct schema *session_schema(struct session *session, struct error *err)
{
    if (!session->schema)
        schema_load(&session->schema, &session->client, err);
    return session->schema;
}

struct json_object *session_query(struct session *session, const char *command, struct json_object *arguments,
                                  struct error *err)
{
    struct json_object *value;

    return client_execute(&session->client, command, arguments, &value, err) < 0 ? NULL : value;
}

void session_show_event(void *object, struct json_object *event, const char *line)
{
    struct session *session = object;
    struct json_object *value = NULL;
    bool wanted = session->event_name_count == 0;

    json_object_object_get_ex(event, "event", &value);
    const char *name = value ? json_object_get_string(value) : "";
    session->shutdown_seen |= strcmp(name, "SHUTDOWN") == 0;
    for (unsigned i = 0; i < session->event_name_count && !wanted; i++)
        wanted = strcmp(name, session->event_names[i]) == 0;
    if (!wanted || session->stop_following)
        return;
    if (session->raw)
        puts(line);
    else
        print_event(stdout, event, session->color);
    fflush(stdout);
    if (session->event_limit > 0 && --session->event_limit == 0)
        session->stop_following = true;
}

static int session_events(struct session *session, char *const *words, unsigned count)
{
    AUTO_ERROR struct error err = {0};
    char *end = NULL;
    int rc = 0;

    session->event_limit = 0;
    if (count > 0 && strcmp(words[0], "-n") == 0) {
        unsigned long limit = count > 1 ? strtoul(words[1], &end, 10) : 0;
        if (!end || *end || limit == 0 || limit > 1000000)
            return session_usage("events -n: expected a number of events, 1 to 1000000");
        session->event_limit = (unsigned)limit;
        words += 2;
        count -= 2;
    }
    session->event_names = words;
    session->event_name_count = count;
    session->client.event = session_show_event;
    session->client.object = session;
    session->stop_following = false;
    while (!session->stop_following && rc == 0)
        rc = client_wait_event(&session->client, &err);
    session->event_names = NULL;
    session->event_name_count = 0;
    session->stop_following = false;
    return rc < 0 && !session->shutdown_seen ? session_fail(&err) : SESSION_OK;
}

static int session_node(struct session *session, char *const *words, unsigned count)
{
    AUTO_ERROR struct error err = {0};

    if (count != 2 || strcmp(words[0], "options") != 0)
        return session_usage("usage: node options NODE");
    struct json_object *arguments = json_object_new_object();
    json_object_object_add(arguments, "node-name", json_object_new_string(words[1]));
    struct json_object *list = session_query(session, "query-node-options", arguments, &err);
    json_object_put(arguments);
    if (!list)
        return session_fail(&err);
    struct json_object *options =
        json_object_is_type(list, json_type_array) ? json_object_array_get_idx(list, 0) : list;
    if (session->raw)
        puts(json_object_to_json_string_ext(options, JSON_C_TO_STRING_PLAIN));
    else
        print_value(stdout, options, session->color);
    json_object_put(list);
    return SESSION_OK;
}

static void session_help_value(void *object, const char *name)
{
    const char **separator = object;

    printf("%s%s", *separator, name);
    *separator = "|";
}

static void session_help_member(void *object, const char *name, struct json_object *type, bool optional)
{
    struct schema *schema = object;
    const char *kind = schema_kind(type);
    const char *separator = "";

    printf("  %c%s=", optional ? '[' : ' ', name);
    if (strcmp(kind, "enum") == 0)
        schema_each_value(type, session_help_value, &separator);
    else if (strcmp(kind, "builtin") == 0)
        fputs(schema_json_type(type), stdout);
    else if (strcmp(kind, "alternate") == 0 && schema_alternative(schema, type, "string"))
        fputs("string, or members after a dot", stdout);
    else if (strcmp(kind, "array") == 0)
        fputs("list: members after .0, .1, ...", stdout);
    else
        fputs("members after a dot", stdout);
    puts(optional ? "]" : "");
}

static void session_help_command(void *object, const char *name)
{
    (void)object;
    printf("  %s\n", name);
}

static int session_help(struct session *session, char *const *words, unsigned count)
{
    AUTO_ERROR struct error err = {0};
    struct schema *schema = session_schema(session, &err);

    if (!schema)
        return session_fail(&err);
    if (count == 0) {
        puts("Commands of cairnctl:");
        for (unsigned i = 0; i < session_command_count; i++)
            printf("  %-8s %-18s %s\n", session_commands[i].name, session_commands[i].arguments,
                   session_commands[i].summary);
        puts("Commands of the daemon (help COMMAND shows the arguments):");
        schema_each_command(schema, session_help_command, NULL);
        return SESSION_OK;
    }

    const struct session_command *own = session_find_command(words[0]);
    struct json_object *type = schema_arguments(schema, words[0]);
    if (own) {
        printf("%s %s\n  %s\n", own->name, own->arguments, own->summary);
        return SESSION_OK;
    }
    if (!type)
        return session_usage("there is no command '%s'", words[0]);
    /* further words may select the branch of a union: help blockdev-add driver=file */
    struct json_object *value = arguments_guess(words + 1, count - 1);
    printf("%s\n", words[0]);
    schema_each_member(schema, type, value, session_help_member, schema);
    json_object_put(value);
    return SESSION_OK;
}

static int session_shell(struct session *session, char *const *words, unsigned count)
{
    (void)words;
    return count ? session_usage("usage: shell") : shell_run(session);
}

static int session_tree(struct session *session, char *const *words, unsigned count)
{
    (void)words;
    return count ? session_usage("usage: tree") : tree_show(session);
}

static int session_graph(struct session *session, char *const *words, unsigned count)
{
    (void)words;
    return count ? session_usage("usage: graph") : graph_show(session);
}

const struct session_command session_commands[] = {
    {"events", "[-n COUNT] [NAME]", "shows events as they come", session_events},
    {"graph", "", "writes the graph as Graphviz text: cairnctl graph | dot -Tsvg >graph.svg", session_graph},
    {"help", "[COMMAND]", "lists commands, or the arguments of one", session_help},
    {"node", "options NODE", "the options that would make the node again", session_node},
    {"shell", "", "reads commands; with history and completion on a terminal", session_shell},
    {"tree", "", "draws exports, sources and nodes", session_tree},
};

const unsigned session_command_count = array_size(session_commands);

const struct session_command *session_find_command(const char *name)
{
    for (unsigned i = 0; i < session_command_count; i++)
        if (strcmp(session_commands[i].name, name) == 0)
            return &session_commands[i];
    return NULL;
}

static void session_show_result(const struct session *session, struct json_object *value)
{
    if (session->raw)
        puts(session->client.line);
    else if (!json_object_is_type(value, json_type_object) || json_object_object_length(value) > 0)
        print_value(stdout, value, session->color);
}

static int session_execute(struct session *session, char *const *words, unsigned count, struct error *err)
{
    struct json_object *arguments = NULL, *value;
    int rc = 0;

    if (count > 1) {
        struct schema *schema = session_schema(session, err);
        rc = schema ? arguments_parse(schema, words[0], words + 1, count - 1, &arguments, err) : err->code;
    }
    if (rc == 0)
        rc = client_execute(&session->client, words[0], arguments, &value, err);
    json_object_put(arguments);
    if (rc < 0)
        return rc;
    session_show_result(session, value);
    json_object_put(value);
    return 0;
}

int session_run(struct session *session, char *const *words, unsigned count)
{
    AUTO_ERROR struct error err = {0};
    const struct session_command *own = session_find_command(words[0]);

    if (own)
        return own->run(session, words + 1, count - 1);
    int rc = session_execute(session, words, count, &err);
    if (rc == CLIENT_REFUSED && session->raw)
        puts(session->client.line);
    return rc < 0 ? session_fail(&err) : SESSION_OK;
}
