/*
 * The command line of cairnd, parsed and not yet obeyed: what concerns the
 * process itself, and the steps of the start in the order in which they were
 * given. Values stay pointers into argv.
 */
#ifndef DAEMON_COMMAND_LINE_H
#define DAEMON_COMMAND_LINE_H

#include <stdbool.h>

#include "core/log.h"
#include "core/loop.h"

struct error;

/* Options that are obeyed one after the other. */
enum command_line_kind {
    COMMAND_LINE_BLOCKDEV,
    COMMAND_LINE_CHARDEV,
    COMMAND_LINE_CONFIG,
    COMMAND_LINE_EXPORT,
    COMMAND_LINE_MONITOR,
    COMMAND_LINE_NBD_SERVER,
    COMMAND_LINE_OBJECT,
    COMMAND_LINE_QMP,
    COMMAND_LINE_KIND_COUNT
};

struct command_line_step {
    enum command_line_kind kind;
    const char *value;
};

struct command_line {
    bool help, version, schema, daemonize;
    bool help_of_step;              /* the last step asks for help: "--blockdev help" */
    const char *pidfile;            /* NULL: none */
    enum log_level log_level;
    enum loop_ring ring;
    struct command_line_step *steps;    /* owned */
    unsigned step_count;
};

/* -EINVAL with "--option ...: text"; *ret is to be cleared in any case. */
int command_line_parse(struct command_line *ret, int argc, char **argv, struct error *err);
void command_line_clear(struct command_line *line);

/* "--blockdev" */
const char *command_line_name(enum command_line_kind kind);

/* What --help prints, on stdout. */
void command_line_help(void);

#endif
