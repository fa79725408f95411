/*
 * See cairnctl_complete.h. Arguments come from the schema of the command that
 * stands at the line's start; what was typed before selects the branches of
 * unions. Names of things come from the daemon's queries.
 */
#include "daemon/tools/cairnctl_complete.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "daemon/tools/cairnctl_arguments.h"
#include "daemon/tools/cairnctl_schema.h"
#include "daemon/tools/cairnctl_session.h"

struct complete_state {
    struct session *session;
    struct schema *schema;
    struct completion *completion;
    const char *begun;      /* the whole word */
    char *prefix;           /* of every item: the path, or the path and "=" */
    struct json_object *given;      /* the object in which the member stands, as far as it was typed */
};

/* Where names of things come from. No command: any of which nothing else is said. */
static const struct complete_source {
    const char *command, *argument, *query, *member;
} complete_sources[] = {
    {"blockdev-add", "node-name", NULL, NULL},
    {"block-export-add", "id", NULL, NULL},
    {"block-export-add", "iothread", "query-iothreads", "id"},
    {"block-export-add", "node-name", "query-named-block-nodes", "node-name"},
    {"block-export-add", "node-name", "query-sources", "id"},
    {"block-export-del", "id", "query-block-exports", "id"},
    {"object-del", "id", "query-iothreads", "id"},
    {"nbd-server-stop", "id", "query-nbd-servers", "id"},
    {"source-del", "id", "query-sources", "id"},
    {"x-blockdev-change", "parent", "query-named-block-nodes", "node-name"},
    {"x-blockdev-change", "parent", "query-sources", "id"},
    {"x-blockdev-change", "parent", "query-block-exports", "id"},
    {NULL, "node-name", "query-named-block-nodes", "node-name"},
    {NULL, "node", "query-named-block-nodes", "node-name"},
    {NULL, "device", "query-named-block-nodes", "node-name"},
    {NULL, "overlay", "query-named-block-nodes", "node-name"},
    {NULL, "parent", "query-named-block-nodes", "node-name"},
    {NULL, "source", "query-sources", "id"},
};

static void complete_add(struct complete_state *state, const char *text, const char *suffix)
{
    AUTO_FREE char *item = memory_format("%s%s%s", state->prefix, text, suffix);
    struct completion *completion = state->completion;

    if (strncmp(item, state->begun, strlen(state->begun)) != 0)
        return;
    completion->items = memory_grow(completion->items, completion->count + 1, sizeof(*completion->items));
    completion->items[completion->count++] = take_ptr(&item);
}

static void complete_plain(void *object, const char *name)
{
    complete_add(object, name, "");
}

static void complete_query(struct complete_state *state, const char *query, const char *member)
{
    struct json_object *list = session_query(state->session, query, NULL, NULL), *name;

    for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++)
        if (json_object_object_get_ex(json_object_array_get_idx(list, i), member, &name) && name)
            complete_add(state, json_object_get_string(name), "");
    json_object_put(list);
}

static void complete_member(void *object, const char *name, struct json_object *type, bool optional)
{
    struct complete_state *state = object;
    bool list = schema_alternative(state->schema, type, "array") != NULL;
    bool nested = list || schema_alternative(state->schema, type, "object");
    bool scalar = strcmp(schema_kind(type), "alternate") == 0 || !nested;

    (void)optional;
    if (json_object_object_get_ex(state->given, name, NULL))
        return;
    if (scalar)
        complete_add(state, name, "=");
    if (nested)
        complete_add(state, name, list ? ".0" : ".");
}

/* Goes down one part of a dotted path; NULL if the schema has nothing there. */
static struct json_object *complete_step(struct complete_state *state, struct json_object *type, const char *part)
{
    struct json_object *list = schema_alternative(state->schema, type, "array");
    struct json_object *object = schema_alternative(state->schema, type, "object"), *next = NULL;

    type = list ? schema_element(state->schema, list) : schema_member(state->schema, object, state->given, part);
    json_object_object_get_ex(state->given, part, &next);
    state->given = next;
    return type;
}

static void complete_value(struct complete_state *state, const char *command, const char *argument,
                           struct json_object *type)
{
    struct json_object *enumeration = schema_alternative(state->schema, type, "enum");
    bool found = false;

    if (enumeration)
        schema_each_value(enumeration, complete_plain, state);
    if (schema_alternative(state->schema, type, "boolean")) {
        complete_add(state, "on", "");
        complete_add(state, "off", "");
    }
    for (unsigned i = 0; i < array_size(complete_sources); i++) {
        const struct complete_source *source = &complete_sources[i];
        if (strcmp(argument, source->argument) != 0 ||
            (source->command ? strcmp(command, source->command) != 0 : found))
            continue;
        if (source->query)
            complete_query(state, source->query, source->member);
        found = true;
    }
    if (found)
        return;
    /* a node reference is a name or an object */
    if (schema_alternative(state->schema, type, "string") && schema_alternative(state->schema, type, "object"))
        complete_query(state, "query-named-block-nodes", "node-name");
}

static void complete_argument(struct complete_state *state, char *const *words, unsigned count)
{
    struct json_object *type = schema_arguments(state->schema, words[0]);
    struct json_object *given = arguments_guess(words + 1, count - 1);
    const char *equals = strchr(state->begun, '=');
    AUTO_FREE char *path =
        memory_format("%.*s", (int)(equals ? (size_t)(equals - state->begun) : strlen(state->begun)), state->begun);
    char *part = path, *dot;

    state->given = given;
    for (; type && (dot = strchr(part, '.')); part = dot + 1) {
        *dot = '\0';
        type = complete_step(state, type, part);
    }
    free(state->prefix);
    state->prefix = memory_format("%.*s", (int)(equals ? equals + 1 - state->begun : part - path), state->begun);
    if (equals) {
        type = type ? complete_step(state, type, part) : NULL;
        if (type)
            complete_value(state, words[0], part, type);
    } else if (type) {
        schema_each_member(state->schema, schema_alternative(state->schema, type, "object"), state->given,
                           complete_member, state);
    }
    json_object_put(given);
}

static void complete_command(struct complete_state *state)
{
    for (unsigned i = 0; i < session_command_count; i++)
        complete_add(state, session_commands[i].name, "");
    schema_each_command(state->schema, complete_plain, state);
}

static int complete_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void complete_sort(struct completion *completion)
{
    unsigned kept = 0;

    if (completion->count > 1)
        qsort(completion->items, completion->count, sizeof(*completion->items), complete_compare);
    for (unsigned i = 0; i < completion->count; i++) {
        if (kept > 0 && strcmp(completion->items[i], completion->items[kept - 1]) == 0)
            free(completion->items[i]);
        else
            completion->items[kept++] = completion->items[i];
    }
    completion->count = kept;
}

void complete_word(struct session *session, char *const *words, unsigned count, const char *begun,
                   struct completion *ret)
{
    struct complete_state state = {
        .session = session,
        .schema = session_schema(session, NULL),
        .completion = ret,
        .begun = begun,
        .prefix = memory_string(""),
    };

    *ret = (struct completion){0};
    if (!state.schema)
        ;
    else if (count == 0 || (count == 1 && strcmp(words[0], "help") == 0))
        complete_command(&state);
    else if (strcmp(words[0], "node") == 0 && count == 1)
        complete_add(&state, "options", "");
    else if (strcmp(words[0], "node") == 0)
        complete_query(&state, "query-named-block-nodes", "node-name");
    else if (!session_find_command(words[0]))
        complete_argument(&state, words, count);
    free(state.prefix);
    complete_sort(ret);
}

void complete_clear(struct completion *completion)
{
    for (unsigned i = 0; i < completion->count; i++)
        free(completion->items[i]);
    free(completion->items);
    *completion = (struct completion){0};
}
