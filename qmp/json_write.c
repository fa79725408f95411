/*
 * Writes JSON values as text: see json_write.h.
 */
#include "qmp/json_write.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qmp/utf8.h"

#define WRITE_LEVELS_MAX 256u

struct json_writer {
    struct json_text *text;
    bool pretty;
    unsigned level;
};

static void write_value(struct json_writer *writer, struct json_object *value);

void json_text_append(struct json_text *text, const char *data, size_t size)
{
    if (text->failed || size > SIZE_MAX / 4 || (text->limit && size > text->limit - text->size)) {
        text->failed = true;
        return;
    }
    if (text->room - text->size < size) {
        size_t room = (text->size + size) * 2 + 256;
        char *grown = realloc(text->data, room);

        if (!grown) {
            text->failed = true;
            return;
        }
        text->data = grown;
        text->room = room;
    }
    memcpy(text->data + text->size, data, size);
    text->size += size;
}

void json_text_clear(struct json_text *text)
{
    free(text->data);
    *text = (struct json_text){.limit = text->limit};
}

static void write_literal(struct json_writer *writer, const char *literal)
{
    json_text_append(writer->text, literal, strlen(literal));
}

static void write_line(struct json_writer *writer)
{
    write_literal(writer, "\r\n");
    for (unsigned i = 0; i < writer->level; i++)
        write_literal(writer, "    ");
}

/* A character that is not written as it is. */
static void write_escape(struct json_writer *writer, uint32_t code)
{
    static const char named[] = "\"\\\b\f\n\r\t";
    static const char letters[] = "\"\\bfnrt";
    const char *found = code && code < 0x80 ? strchr(named, (int)code) : NULL;
    char out[16];

    if (found)
        snprintf(out, sizeof(out), "\\%c", letters[found - named]);
    else if (code < 0x10000)
        snprintf(out, sizeof(out), "\\u%04X", code);
    else
        snprintf(out, sizeof(out), "\\u%04X\\u%04X", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + (code & 0x3ff));
    write_literal(writer, out);
}

static void write_string(struct json_writer *writer, const char *string, size_t size)
{
    const char *end = string + size;

    write_literal(writer, "\"");
    while (string < end) {
        const char *plain = string;

        while (string < end && *string >= ' ' && *string < 0x7f && *string != '"' && *string != '\\')
            string++;
        json_text_append(writer->text, plain, (size_t)(string - plain));
        if (string == end)
            break;
        /* Messages may quote bytes that are no UTF-8. */
        uint32_t code = 0xfffd;
        unsigned length = utf8_decode(string, (size_t)(end - string), &code);

        write_escape(writer, code);
        string += length ? length : 1;
    }
    write_literal(writer, "\"");
}

/* The shortest text that reads back as the same number. */
static void write_double(struct json_writer *writer, double number)
{
    char out[40];

    if (!isfinite(number)) {
        write_literal(writer, "null");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        /* Adding 0 takes the sign off -0: an integer that is read back has none. */
        snprintf(out, sizeof(out), "%.*g", digits, number + 0.0);
        if (strtod(out, NULL) == number)
            break;
    }
    write_literal(writer, out);
}

static void write_integer(struct json_writer *writer, struct json_object *value)
{
    char out[24];
    int64_t number = json_object_get_int64(value);

    /* json-c clamps what does not fit into int64_t. */
    if (number == INT64_MAX)
        snprintf(out, sizeof(out), "%" PRIu64, json_object_get_uint64(value));
    else
        snprintf(out, sizeof(out), "%" PRId64, number);
    write_literal(writer, out);
}

/* Before each element; first tells whether it is the first one. */
static void write_separator(struct json_writer *writer, bool first)
{
    if (!first)
        write_literal(writer, writer->pretty ? "," : ", ");
    if (writer->pretty)
        write_line(writer);
}

static void write_object(struct json_writer *writer, struct json_object *value)
{
    bool first = true;

    json_object_object_foreach(value, key, member)
    {
        write_separator(writer, first);
        write_string(writer, key, strlen(key));
        write_literal(writer, ": ");
        write_value(writer, member);
        first = false;
    }
}

static void write_array(struct json_writer *writer, struct json_object *value)
{
    size_t count = json_object_array_length(value);

    for (size_t i = 0; i < count; i++) {
        write_separator(writer, i == 0);
        write_value(writer, json_object_array_get_idx(value, i));
    }
}

static void write_container(struct json_writer *writer, struct json_object *value, bool is_object)
{
    if (writer->level == WRITE_LEVELS_MAX) {
        writer->text->failed = true;
        return;
    }
    write_literal(writer, is_object ? "{" : "[");
    writer->level++;
    if (is_object)
        write_object(writer, value);
    else
        write_array(writer, value);
    writer->level--;
    if (writer->pretty)
        write_line(writer);
    write_literal(writer, is_object ? "}" : "]");
}

static void write_value(struct json_writer *writer, struct json_object *value)
{
    switch (json_object_get_type(value)) {
    case json_type_null:
        write_literal(writer, "null");
        break;
    case json_type_boolean:
        write_literal(writer, json_object_get_boolean(value) ? "true" : "false");
        break;
    case json_type_int:
        write_integer(writer, value);
        break;
    case json_type_double:
        write_double(writer, json_object_get_double(value));
        break;
    case json_type_string:
        write_string(writer, json_object_get_string(value), (size_t)json_object_get_string_len(value));
        break;
    case json_type_object:
        write_container(writer, value, true);
        break;
    case json_type_array:
        write_container(writer, value, false);
        break;
    }
}

void json_write(struct json_text *text, struct json_object *value, bool pretty)
{
    struct json_writer writer = {.text = text, .pretty = pretty};

    write_value(&writer, value);
}
