/*
 * Writes JSON values as text, the way QMP clients are used to: ASCII only, a
 * blank after ':' and ',', nothing inside empty brackets; pretty: one member
 * a line, indented by four.
 */
#ifndef QMP_JSON_WRITE_H
#define QMP_JSON_WRITE_H

#include <stdbool.h>
#include <stddef.h>

struct json_object;

struct json_text {
    char *data; /* owned; no NUL at its end */
    size_t size, room;
    size_t limit; /* most bytes; 0 = no limit */
    bool failed;  /* over the limit, or no memory: data is cut off */
};

/* Appends value, which is at most some hundred levels deep (input never is, see json_stream.h). */
void json_write(struct json_text *text, struct json_object *value, bool pretty);
void json_text_append(struct json_text *text, const char *data, size_t size);
void json_text_clear(struct json_text *text);

#endif
