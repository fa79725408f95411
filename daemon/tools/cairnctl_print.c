/*
 * See cairnctl_print.h.
 */
#include "daemon/tools/cairnctl_print.h"

#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "core/memory.h"

#define PRINT_KEY "\033[34m"
#define PRINT_STRING "\033[32m"
#define PRINT_SCALAR "\033[36m"
#define PRINT_BOLD "\033[1m"
#define PRINT_DIM "\033[2m"
#define PRINT_PLAIN "\033[0m"

static const char *print_color(bool color, const char *code)
{
    return color ? code : "";
}

/* escape: the characters that JSON escapes as well. */
static void print_characters(FILE *out, const char *text, bool escape)
{
    const unsigned char *at = (const unsigned char *)text;

    for (; *at; at++) {
        if (escape && (*at == '"' || *at == '\\'))
            fprintf(out, "\\%c", *at);
        else if (escape && *at == '\n')
            fputs("\\n", out);
        else if (escape && *at == '\t')
            fputs("\\t", out);
        else if (*at < 0x20 || *at == 0x7f)
            fprintf(out, "\\u%04x", *at);
        else if (*at == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0)
            fprintf(out, "\\u%04x", *++at);     /* C1 controls: some terminals obey them */
        else
            fputc(*at, out);
    }
}

void print_text(FILE *out, const char *text)
{
    print_characters(out, text, false);
}

static void print_scalar(FILE *out, struct json_object *value, bool color)
{
    if (json_object_is_type(value, json_type_string)) {
        fputs(print_color(color, PRINT_STRING), out);
        fputc('"', out);
        print_characters(out, json_object_get_string(value), true);
        fputc('"', out);
    } else {
        fputs(print_color(color, PRINT_SCALAR), out);
        fputs(json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN), out);
    }
    fputs(print_color(color, PRINT_PLAIN), out);
}

static bool print_is_scalar(struct json_object *value)
{
    return !json_object_is_type(value, json_type_object) && !json_object_is_type(value, json_type_array);
}

/* On one line: empty, or an array of scalars only. */
static bool print_fits_line(struct json_object *array)
{
    for (size_t i = 0; i < json_object_array_length(array); i++)
        if (!print_is_scalar(json_object_array_get_idx(array, i)))
            return false;
    return true;
}

static void print_nested(FILE *out, struct json_object *value, bool color, int indent);

static void print_array(FILE *out, struct json_object *array, bool color, int indent)
{
    size_t count = json_object_array_length(array);
    bool line = print_fits_line(array);

    fputc('[', out);
    for (size_t i = 0; i < count; i++) {
        if (!line)
            fprintf(out, "\n%*s", indent + 2, "");
        print_nested(out, json_object_array_get_idx(array, i), color, indent + 2);
        if (i + 1 < count)
            fputs(line ? ", " : ",", out);
    }
    if (!line)
        fprintf(out, "\n%*s", indent, "");
    fputc(']', out);
}

static void print_object(FILE *out, struct json_object *object, bool color, int indent)
{
    bool first = true;

    fputc('{', out);
    json_object_object_foreach(object, key, value)
    {
        fprintf(out, "%s\n%*s%s\"", first ? "" : ",", indent + 2, "", print_color(color, PRINT_KEY));
        print_characters(out, key, true);
        fprintf(out, "\"%s: ", print_color(color, PRINT_PLAIN));
        print_nested(out, value, color, indent + 2);
        first = false;
    }
    if (!first)
        fprintf(out, "\n%*s", indent, "");
    fputc('}', out);
}

static void print_nested(FILE *out, struct json_object *value, bool color, int indent)
{
    if (json_object_is_type(value, json_type_object))
        print_object(out, value, color, indent);
    else if (json_object_is_type(value, json_type_array))
        print_array(out, value, color, indent);
    else
        print_scalar(out, value, color);
}

void print_value(FILE *out, struct json_object *value, bool color)
{
    print_nested(out, value, color, 0);
    fputc('\n', out);
}

static void print_time(FILE *out, struct json_object *event)
{
    struct json_object *stamp = NULL, *part = NULL;
    struct tm tm;
    char text[32];

    json_object_object_get_ex(event, "timestamp", &stamp);
    json_object_object_get_ex(stamp, "seconds", &part);
    time_t seconds = (time_t)json_object_get_int64(part);
    part = NULL;
    json_object_object_get_ex(stamp, "microseconds", &part);
    if (localtime_r(&seconds, &tm) && strftime(text, sizeof(text), "%F %T", &tm) > 0)
        fprintf(out, "%s.%06lld", text, (long long)json_object_get_int64(part) % 1000000);
}

/* Members of nested objects get dotted names. */
static void print_members(FILE *out, struct json_object *object, const char *prefix)
{
    json_object_object_foreach(object, key, value)
    {
        AUTO_FREE char *name = memory_format("%s%s", prefix, key);
        if (json_object_is_type(value, json_type_object)) {
            AUTO_FREE char *dotted = memory_format("%s.", name);
            print_members(out, value, dotted);
            continue;
        }
        fputc(' ', out);
        print_text(out, name);
        fputc('=', out);
        if (json_object_is_type(value, json_type_string))
            print_text(out, json_object_get_string(value));
        else
            print_text(out, json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN));
    }
}

void print_event(FILE *out, struct json_object *event, bool color)
{
    struct json_object *name = NULL, *data = NULL;

    json_object_object_get_ex(event, "event", &name);
    json_object_object_get_ex(event, "data", &data);
    fputs(print_color(color, PRINT_DIM), out);
    print_time(out, event);
    fprintf(out, "%s %s", print_color(color, PRINT_PLAIN), print_color(color, PRINT_BOLD));
    print_text(out, name ? json_object_get_string(name) : "?");
    fputs(print_color(color, PRINT_PLAIN), out);
    if (data)
        print_members(out, data, "");
    fputc('\n', out);
}

void print_size(char *ret, size_t room, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;

    while (unit + 1 < array_size(units) && bytes >> (10 * (unit + 1)) != 0)
        unit++;
    uint64_t scale = UINT64_C(1) << (10 * unit);
    if (bytes % scale == 0)
        snprintf(ret, room, "%llu %s", (unsigned long long)(bytes / scale), units[unit]);
    else
        snprintf(ret, room, "%.1f %s", (double)bytes / (double)scale, units[unit]);
}
