/*
 * Help about the options of the command line, from the tables that parse
 * them: "--blockdev help", "--blockdev null-co,help".
 */
#ifndef DAEMON_HELP_H
#define DAEMON_HELP_H

#include "daemon/command_line.h"

/* Prints to stdout. 0, or -EINVAL with a text if value names nothing that exists. */
int help_show(enum command_line_kind kind, const char *value, struct error *err);

#endif
