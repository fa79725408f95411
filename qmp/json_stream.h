/*
 * Turns a stream of bytes into JSON values, one at a time, as they come.
 * Values are built while they arrive, so that memory is bounded by what a
 * message may hold. The first error in a message is reported at once, then
 * the rest of it is skipped up to its last bracket, or to a control character
 * (see json_lexer.h): the stream goes on with the next message.
 */
#ifndef QMP_JSON_STREAM_H
#define QMP_JSON_STREAM_H

#include <stddef.h>

struct json_object;
struct json_stream;

#define JSON_STREAM_SIZE_MAX (64u << 20)    /* bytes of one message */
#define JSON_STREAM_DEPTH_MAX 64u           /* objects and arrays inside each other */
#define JSON_STREAM_TOKENS_MAX (256u << 10) /* of one message: bounds what it costs in memory */

enum json_item_kind { JSON_ITEM_NONE, JSON_ITEM_VALUE, JSON_ITEM_ERROR };

struct json_item {
    enum json_item_kind kind;
    struct json_object *value; /* VALUE: owned by the caller; NULL is JSON's null */
    char *error;               /* ERROR: text for the client, owned by the caller */
    size_t size;               /* bytes of the message, about */
};

struct json_stream *json_stream_new(void);
void json_stream_free(struct json_stream *stream); /* NULL is fine */

/* Takes bytes up to the end of one item and returns how many; all of them if item is NONE. */
size_t json_stream_feed(struct json_stream *stream, const char *data, size_t size, struct json_item *item);

void json_item_clear(struct json_item *item);

#endif
