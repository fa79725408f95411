/*
 * What cairnctl shows to people: JSON with indentation, events on one line,
 * sizes with units. Colour only where the caller says so. Text that came over
 * the wire never reaches the terminal with control characters in it.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_PRINT_H
#define DAEMON_TOOLS_CAIRNCTL_PRINT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json_object;

/* The value over several lines, with a newline at its end. */
void print_value(FILE *out, struct json_object *value, bool color);

/* "2026-11-20 22:53:42.123456 NAME key=value ...", local time. */
void print_event(FILE *out, struct json_object *event, bool color);

/* text with control characters as \uXXXX; no quotes around it. */
void print_text(FILE *out, const char *text);

/* Bytes as "512 B", "1.5 GiB"; exact multiples have no fraction. At most 32 bytes with the NUL. */
void print_size(char *ret, size_t room, uint64_t bytes);

#endif
