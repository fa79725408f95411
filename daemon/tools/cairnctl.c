/*
 * cairnctl: drives a Cairn daemon, or any other QMP server, from the command
 * line. Here are the options and the choice of the socket; the commands are
 * in cairnctl_session.c.
 */
#include <getopt.h>
#include <json-c/json.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_schema.h"
#include "daemon/tools/cairnctl_session.h"

#define CAIRNCTL_LOCAL_SOCKET "run/cairn.sock"
#define CAIRNCTL_SYSTEM_SOCKET "/run/cairn/cairn.sock"

enum cairnctl_option { CAIRNCTL_RAW = 256, CAIRNCTL_COLOR };

static const struct option cairnctl_options[] = {
    {"socket", required_argument, NULL, 's'},
    {"raw", no_argument, NULL, CAIRNCTL_RAW},
    {"color", required_argument, NULL, CAIRNCTL_COLOR},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

static const char cairnctl_usage[] =
    "usage: cairnctl [-s SOCKET] [--raw] [--color=auto|always|never] COMMAND [ARGUMENT ...]\n"
    "\n"
    "COMMAND is a command of the daemon, or:\n";

static const char cairnctl_usage_end[] =
    "\n"
    "An argument is key=value, key:=JSON, a JSON object, or - for one on standard input.\n"
    "Dots lead into objects and lists: file.driver=file, iothreads.0=io1.\n"
    "\n"
    "SOCKET is $CAIRN_SOCKET unless told, else " CAIRNCTL_LOCAL_SOCKET " if that exists, else\n" CAIRNCTL_SYSTEM_SOCKET
    ".\n"
    "\n"
    "Exit status: 0 done, 1 the daemon refused, 2 wrong usage, 3 no connection.\n";

static void cairnctl_help(void)
{
    fputs(cairnctl_usage, stdout);
    for (unsigned i = 0; i < session_command_count; i++)
        printf("  %-8s %-18s %s\n", session_commands[i].name, session_commands[i].arguments,
               session_commands[i].summary);
    fputs(cairnctl_usage_end, stdout);
}

static const char *cairnctl_default_socket(void)
{
    const char *given = getenv("CAIRN_SOCKET");

    if (given && *given)
        return given;
    return access(CAIRNCTL_LOCAL_SOCKET, F_OK) == 0 ? CAIRNCTL_LOCAL_SOCKET : CAIRNCTL_SYSTEM_SOCKET;
}

static bool cairnctl_default_color(void)
{
    const char *none = getenv("NO_COLOR"), *terminal = getenv("TERM");

    return isatty(STDOUT_FILENO) && (!none || !*none) && terminal && strcmp(terminal, "dumb") != 0;
}

/* False if mode is no mode. */
static bool cairnctl_set_color(struct session *session, const char *mode)
{
    if (strcmp(mode, "always") == 0)
        session->color = true;
    else if (strcmp(mode, "never") == 0)
        session->color = false;
    else
        return strcmp(mode, "auto") == 0;
    return true;
}

/* Exit status, or -1 to go on. */
static int cairnctl_parse(struct session *session, int argc, char **argv, const char **socket)
{
    int option;

    /* "+": what follows the command is the command's */
    while ((option = getopt_long(argc, argv, "+s:hV", cairnctl_options, NULL)) != -1) {
        switch (option) {
        case 's':
            *socket = optarg;
            break;
        case CAIRNCTL_RAW:
            session->raw = true;
            break;
        case CAIRNCTL_COLOR:
            if (!cairnctl_set_color(session, optarg))
                return session_usage("--color=%s: expected auto, always or never", optarg);
            break;
        case 'h':
            cairnctl_help();
            return SESSION_OK;
        case 'V':
            printf("cairnctl %s\n", CAIRN_VERSION);
            return SESSION_OK;
        default:
            return SESSION_USAGE;
        }
    }
    if (optind == argc)
        return session_usage("no command given (cairnctl --help shows what there is)");
    return -1;
}

int main(int argc, char **argv)
{
    AUTO_ERROR struct error err = {0};
    struct session session = {.color = cairnctl_default_color()};
    const char *socket = cairnctl_default_socket();

    setlocale(LC_ALL, "");
    signal(SIGPIPE, SIG_DFL);
    int status = cairnctl_parse(&session, argc, argv, &socket);
    if (status >= 0)
        return status;

    client_init(&session.client);
    if (client_connect(&session.client, socket, &err) < 0) {
        session_fail(&err);
        status = SESSION_CONNECTION;
    } else {
        status = session_run(&session, argv + optind, (unsigned)(argc - optind));
    }
    schema_free(session.schema);
    client_close(&session.client);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("cairnctl: cannot write to standard output\n", stderr);
        return status ? status : SESSION_ERROR;
    }
    return status;
}
