/*
 * See command_line.h. One table says what options there are, how they are
 * parsed and what --help says about them.
 */
#include "daemon/command_line.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"

enum {
    COMMAND_LINE_HELP = 256,
    COMMAND_LINE_VERSION,
    COMMAND_LINE_SCHEMA,
    COMMAND_LINE_DAEMONIZE,
    COMMAND_LINE_PIDFILE,
    COMMAND_LINE_LOG_LEVEL,
    COMMAND_LINE_RING
};

static const struct command_line_option {
    const char *name;
    int id;                 /* enum command_line_kind, or one of the above */
    const char *argument;   /* NULL: takes none */
    const char *help;
} command_line_options[] = {
    {"blockdev", COMMAND_LINE_BLOCKDEV, "OPTIONS", "add a node ('help' lists drivers, 'DRIVER,help' their options)"},
    {"object", COMMAND_LINE_OBJECT, "OPTIONS", "make an object ('help' lists types)"},
    {"nbd-server", COMMAND_LINE_NBD_SERVER, "OPTIONS",
     "start an NBD server: addr.type=unix,addr.path=PATH or\n"
     "addr.type=inet,addr.host=HOST,addr.port=PORT"},
    {"export", COMMAND_LINE_EXPORT, "OPTIONS", "export a node or a source ('help' lists types)"},
    {"qmp", COMMAND_LINE_QMP, "PATH", "serve QMP on a UNIX socket"},
    {"chardev", COMMAND_LINE_CHARDEV, "OPTIONS",
     "describe a connection for --monitor:\n"
     "socket,id=ID,path=PATH,server=on,wait=off; socket,id=ID,fd=N;\n"
     "stdio,id=ID"},
    {"monitor", COMMAND_LINE_MONITOR, "OPTIONS", "serve QMP on a chardev: chardev=ID[,pretty=on]"},
    {"config", COMMAND_LINE_CONFIG, "FILE", "run the QMP commands in FILE"},
    {"daemonize", COMMAND_LINE_DAEMONIZE, NULL, "go to the background once everything is ready"},
    {"pidfile", COMMAND_LINE_PIDFILE, "PATH", "keep the process id in PATH, locked"},
    {"log-level", COMMAND_LINE_LOG_LEVEL, "LEVEL", "error, warning, info (default) or debug"},
    {"ring", COMMAND_LINE_RING, "KIND", "how I/O is done: auto (default), io_uring or threads"},
    {"schema", COMMAND_LINE_SCHEMA, NULL, "print the JSON Schema of all options and commands"},
    {"version", COMMAND_LINE_VERSION, NULL, "print the version"},
    {"help", COMMAND_LINE_HELP, NULL, "print this"},
};

#define COMMAND_LINE_OPTION_COUNT array_size(command_line_options)

static const char *const command_line_log_levels[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARNING] = "warning",
    [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};

static const char *const command_line_rings[] = {
    [LOOP_RING_AUTO] = "auto",
    [LOOP_RING_URING] = "io_uring",
    [LOOP_RING_THREADS] = "threads",
};

/* Index of value among names, or -EINVAL. */
static int command_line_choose(const char *option, const char *value, const char *const *names, unsigned count,
                               struct error *err)
{
    for (unsigned i = 0; i < count; i++)
        if (names[i] && strcmp(value, names[i]) == 0)
            return (int)i;
    return error_set(err, -EINVAL, "--%s %s: there is no such value", option, value);
}

/* "help", "?", or "null-co,help". */
static bool command_line_asks_help(const char *value)
{
    const char *comma = strrchr(value, ',');
    const char *last = comma ? comma + 1 : value;

    return value[0] != '{' && (strcmp(last, "help") == 0 || strcmp(value, "?") == 0);
}

static void command_line_add_step(struct command_line *line, enum command_line_kind kind, const char *value)
{
    line->steps = memory_grow(line->steps, line->step_count + 1, sizeof(*line->steps));
    line->steps[line->step_count++] = (struct command_line_step){kind, value};
    line->help_of_step = kind != COMMAND_LINE_QMP && kind != COMMAND_LINE_CONFIG && command_line_asks_help(value);
}

static int command_line_obey(struct command_line *line, const struct command_line_option *option, const char *value,
                             struct error *err)
{
    int choice = 0;

    switch (option->id) {
    case COMMAND_LINE_HELP:
        line->help = true;
        break;
    case COMMAND_LINE_VERSION:
        line->version = true;
        break;
    case COMMAND_LINE_SCHEMA:
        line->schema = true;
        break;
    case COMMAND_LINE_DAEMONIZE:
        line->daemonize = true;
        break;
    case COMMAND_LINE_PIDFILE:
        line->pidfile = value;
        break;
    case COMMAND_LINE_LOG_LEVEL:
        choice =
            command_line_choose(option->name, value, command_line_log_levels, array_size(command_line_log_levels), err);
        line->log_level = (enum log_level)choice;
        break;
    case COMMAND_LINE_RING:
        choice = command_line_choose(option->name, value, command_line_rings, array_size(command_line_rings), err);
        line->ring = (enum loop_ring)choice;
        break;
    default:
        command_line_add_step(line, (enum command_line_kind)option->id, value);
    }
    return choice < 0 ? choice : 0;
}

static int command_line_error(int found, char **argv, struct error *err)
{
    const char *word = argv[optind - 1];

    if (found == ':')
        return error_set(err, -EINVAL, "%s: an argument is missing", word);
    if (optopt > 0 && optopt < 256)
        return error_set(err, -EINVAL, "-%c: there is no such option", optopt);
    return error_set(err, -EINVAL, optopt ? "%s: this option takes no argument" : "%s: there is no such option", word);
}

int command_line_parse(struct command_line *ret, int argc, char **argv, struct error *err)
{
    struct option options[COMMAND_LINE_OPTION_COUNT + 1] = {0};
    int found, index, rc = 0;

    for (unsigned i = 0; i < COMMAND_LINE_OPTION_COUNT; i++) {
        const struct command_line_option *row = &command_line_options[i];
        /* ids of steps start at 0, which getopt takes for its own */
        options[i] = (struct option){row->name, row->argument ? required_argument : no_argument, NULL, 512 + (int)i};
    }
    *ret = (struct command_line){.log_level = LOG_LEVEL_INFO, .ring = LOOP_RING_AUTO};
    opterr = 0;
    optind = 0;     /* start anew: tests parse more than once */
    while (rc == 0 && !ret->help_of_step && (found = getopt_long(argc, argv, "+:hV", options, &index)) != -1) {
        if (found == 'h')
            ret->help = true;
        else if (found == 'V')
            ret->version = true;
        else if (found >= 512)
            rc = command_line_obey(ret, &command_line_options[found - 512], optarg, err);
        else
            rc = command_line_error(found, argv, err);
    }
    if (rc == 0 && !ret->help_of_step && optind < argc)
        rc = error_set(err, -EINVAL, "%s: unexpected argument", argv[optind]);
    return rc;
}

void command_line_clear(struct command_line *line)
{
    free(line->steps);
    *line = (struct command_line){0};
}

const char *command_line_name(enum command_line_kind kind)
{
    static const char *const names[] = {
        [COMMAND_LINE_BLOCKDEV] = "--blockdev", [COMMAND_LINE_CHARDEV] = "--chardev",
        [COMMAND_LINE_CONFIG] = "--config",     [COMMAND_LINE_EXPORT] = "--export",
        [COMMAND_LINE_MONITOR] = "--monitor",   [COMMAND_LINE_NBD_SERVER] = "--nbd-server",
        [COMMAND_LINE_OBJECT] = "--object",     [COMMAND_LINE_QMP] = "--qmp",
    };

    return names[kind];
}

void command_line_help(void)
{
    puts("usage: cairnd [OPTION ...]\n"
         "\n"
         "Serves disks to clients. Options are obeyed in the order given. OPTIONS are\n"
         "key=value,dotted.key=value (\",,\" stands for a comma in a value) or a JSON object.\n");
    for (unsigned i = 0; i < COMMAND_LINE_OPTION_COUNT; i++) {
        const struct command_line_option *row = &command_line_options[i];
        AUTO_FREE char *head =
            memory_format("--%s%s%s", row->name, row->argument ? " " : "", row->argument ? row->argument : "");
        printf("  %-22s ", head);
        for (const char *at = row->help; *at; at++) {
            putchar(*at);
            if (*at == '\n')
                printf("%25s", "");
        }
        putchar('\n');
    }
    puts("\nSee cairnd(8).");
}
