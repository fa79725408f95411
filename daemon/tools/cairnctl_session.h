/*
 * What all parts of cairnctl share: the connection, the schema, how to print,
 * and running one command, given as words, from the command line or the shell.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_SESSION_H
#define DAEMON_TOOLS_CAIRNCTL_SESSION_H

#include <stdbool.h>
#include <stdio.h>

#include "daemon/tools/cairnctl_client.h"

struct error;
struct json_object;
struct schema;

/* Exit statuses of the program, and results of commands. */
enum session_status { SESSION_OK, SESSION_ERROR, SESSION_USAGE, SESSION_CONNECTION };

struct session {
    struct client client;
    struct schema *schema;      /* loaded when first needed: session_schema() */
    bool raw;                   /* replies and events as they came */
    bool color;
    bool stop_following;        /* "events -n" has seen enough */
    bool shutdown_seen;         /* the daemon said that it ends */
    char *const *event_names;   /* those that "events" shows; none: all */
    unsigned event_name_count;
    unsigned event_limit;       /* 0: no limit */
};

/* A command of cairnctl's own. */
struct session_command {
    const char *name, *arguments, *summary;
    int (*run)(struct session *session, char *const *words, unsigned count);    /* words after the name */
};

extern const struct session_command session_commands[];
extern const unsigned session_command_count;

const struct session_command *session_find_command(const char *name);

/* Runs words[0] with the rest as its arguments; prints results to stdout and errors to stderr. enum session_status. */
int session_run(struct session *session, char *const *words, unsigned count);

/* The daemon's schema, asked for once; NULL with err. */
struct schema *session_schema(struct session *session, struct error *err);

/* Runs a query of the program's own; NULL with err. The caller's. */
struct json_object *session_query(struct session *session, const char *command, struct json_object *arguments,
                                  struct error *err);

/* Prints "cairnctl: text" and returns what code means as an exit status. */
int session_fail(const struct error *err);

/* Prints a line about wrong usage; SESSION_USAGE. */
int session_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Prints an event to stdout, as the session wants it. */
void session_show_event(void *session, struct json_object *event, const char *line);

#endif
