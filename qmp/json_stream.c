/*
 * Turns a stream of bytes into JSON values: see json_stream.h. A pushdown
 * parser over the lexer's tokens, so nothing recurses on the input.
 */
#include "qmp/json_stream.h"

#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/memory.h"
#include "qmp/json_lexer.h"

/* What may come next inside a container. */
enum stream_want { WANT_FIRST, WANT_NEXT, WANT_COLON, WANT_VALUE, WANT_SEPARATOR };

struct stream_level {
    struct json_object *container; /* owned */
    bool is_object;
    enum stream_want want;
    char *key; /* owned: of the value to come */
};

struct json_stream {
    struct json_lexer lexer;
    struct stream_level levels[JSON_STREAM_DEPTH_MAX];
    unsigned depth;
    uint64_t skip_depth; /* brackets still open in a message that failed; lexer.discard says so */
    size_t size, tokens; /* of the message so far */
};

struct json_stream *json_stream_new(void)
{
    return memory_new(struct json_stream);
}

/* A long text must not stay for the life of a client. */
#define STREAM_TEXT_KEPT 65536u

/* Forgets the message under way. */
static void stream_reset(struct json_stream *stream)
{
    while (stream->depth) {
        struct stream_level *level = &stream->levels[--stream->depth];

        json_object_put(level->container);
        free(level->key);
    }
    stream->size = stream->tokens = 0;
    stream->skip_depth = 0;
    stream->lexer.discard = false;
    if (stream->lexer.room > STREAM_TEXT_KEPT) {
        free(take_ptr(&stream->lexer.text));
        stream->lexer.size = stream->lexer.room = 0;
    }
}

void json_stream_free(struct json_stream *stream)
{
    if (!stream)
        return;
    stream_reset(stream);
    json_lexer_clear(&stream->lexer);
    free(stream);
}

void json_item_clear(struct json_item *item)
{
    if (item->kind == JSON_ITEM_VALUE)
        json_object_put(item->value);
    free(item->error);
    *item = (struct json_item){0};
}

/* From here on the message is skipped, which ends when open brackets are closed, or, with in_token
 * and without brackets, with the token under way. */
static void stream_skip(struct json_stream *stream, uint64_t open, bool in_token)
{
    stream_reset(stream);
    stream->skip_depth = open;
    stream->lexer.discard = open > 0 || in_token;
}

static void item_set_error(struct json_item *item, char *text)
{
    *item = (struct json_item){.kind = JSON_ITEM_ERROR, .error = text};
}

static void item_set_syntax(struct json_item *item, const char *complaint)
{
    item_set_error(item, memory_format("JSON parse error, %s", complaint));
}

/* Values. */

static bool value_from_string(struct json_lexer *lexer, struct json_object **ret, struct json_item *item)
{
    char complaint[64];
    size_t size;

    if (!json_string_decode(lexer->text, lexer->size, &size, complaint)) {
        item_set_syntax(item, complaint);
        return false;
    }
    *ret = json_object_new_string_len(lexer->text, (int)size);
    if (!*ret)
        item_set_syntax(item, "not enough memory for a string");
    return *ret;
}

static bool value_from_number(const char *text, bool integer, struct json_object **ret, struct json_item *item)
{
    if (integer) {
        errno = 0;
        int64_t number = strtoll(text, NULL, 10);

        if (!errno) {
            *ret = json_object_new_int64(number);
            return true;
        }
        errno = 0;
        uint64_t positive = strtoull(text, NULL, 10);

        if (!errno && text[0] != '-') {
            *ret = json_object_new_uint64(positive);
            return true;
        }
    }
    double number = strtod(text, NULL);

    if (!isfinite(number)) {
        item_set_error(item, memory_format("JSON parse error, number '%.40s' is out of range", text));
        return false;
    }
    *ret = json_object_new_double(number);
    return true;
}

static bool value_from_keyword(const char *text, struct json_object **ret, struct json_item *item)
{
    if (!strcmp(text, "true") || !strcmp(text, "false")) {
        *ret = json_object_new_boolean(text[0] == 't');
    } else if (!strcmp(text, "null")) {
        *ret = NULL;
    } else {
        item_set_error(item, memory_format("JSON parse error, invalid keyword '%.40s'", text));
        return false;
    }
    return true;
}

static bool stream_scalar(struct json_stream *stream, enum json_token token, struct json_object **ret,
                          struct json_item *item)
{
    switch (token) {
    case JSON_TOKEN_STRING:
        return value_from_string(&stream->lexer, ret, item);
    case JSON_TOKEN_INTEGER:
    case JSON_TOKEN_FLOAT:
        return value_from_number(stream->lexer.text, token == JSON_TOKEN_INTEGER, ret, item);
    default:
        return value_from_keyword(stream->lexer.text, ret, item);
    }
}

/* A value is complete: into its container, or out. Takes it. */
static void stream_value(struct json_stream *stream, struct json_object *value, struct json_item *item)
{
    if (!stream->depth) {
        stream_reset(stream);
        *item = (struct json_item){.kind = JSON_ITEM_VALUE, .value = value};
        return;
    }
    struct stream_level *level = &stream->levels[stream->depth - 1];

    level->want = WANT_SEPARATOR;
    if (level->is_object) {
        AUTO_FREE char *key = take_ptr(&level->key);

        json_object_object_add(level->container, key, value);
    } else {
        json_object_array_add(level->container, value);
    }
}

static void stream_open(struct json_stream *stream, bool is_object, struct json_item *item)
{
    if (stream->depth == JSON_STREAM_DEPTH_MAX) {
        item_set_error(item,
                       memory_format("JSON nesting depth limit exceeded (at most %u levels)", JSON_STREAM_DEPTH_MAX));
        return;
    }
    stream->levels[stream->depth++] = (struct stream_level){
        .container = is_object ? json_object_new_object() : json_object_new_array(),
        .is_object = is_object,
        .want = WANT_FIRST,
    };
}

static void stream_close(struct json_stream *stream, struct json_item *item)
{
    struct stream_level *level = &stream->levels[--stream->depth];

    stream_value(stream, take_ptr(&level->container), item);
}

static void stream_key(struct json_stream *stream, enum json_token token, struct json_item *item)
{
    struct stream_level *level = &stream->levels[stream->depth - 1];
    struct json_object *key = NULL;

    if (token == JSON_TOKEN_PUNCTUATION && !strchr("{[", stream->lexer.text[0])) {
        item_set_syntax(item, "expecting value");
    } else if (token == JSON_TOKEN_PUNCTUATION) {
        item_set_syntax(item, "key is not a string in object");
    } else if (stream_scalar(stream, token, &key, item)) {
        if (token != JSON_TOKEN_STRING)
            item_set_syntax(item, "key is not a string in object");
        else if (json_object_object_get_ex(level->container, json_object_get_string(key), NULL))
            item_set_syntax(item, "duplicate key");
        else
            level->key = memory_string(json_object_get_string(key));
        level->want = WANT_COLON;
    }
    json_object_put(key);
}

/* Where a value belongs. */
static void stream_begin_value(struct json_stream *stream, enum json_token token, struct json_item *item)
{
    struct json_object *value;

    if (token == JSON_TOKEN_PUNCTUATION) {
        char c = stream->lexer.text[0];

        if (c == '{' || c == '[')
            stream_open(stream, c == '{', item);
        else
            item_set_syntax(item, "expecting value");
    } else if (stream_scalar(stream, token, &value, item)) {
        stream_value(stream, value, item);
    }
}

/* A token that is no error, in a message that is none so far. */
static void stream_token(struct json_stream *stream, enum json_token token, struct json_item *item)
{
    struct stream_level *level = stream->depth ? &stream->levels[stream->depth - 1] : NULL;
    char c = token == JSON_TOKEN_PUNCTUATION ? stream->lexer.text[0] : 0;

    if (!level || level->want == WANT_VALUE) {
        stream_begin_value(stream, token, item);
    } else if (c == (level->is_object ? '}' : ']') && (level->want == WANT_FIRST || level->want == WANT_SEPARATOR)) {
        stream_close(stream, item);
    } else if (level->want == WANT_SEPARATOR) {
        if (c == ',')
            level->want = WANT_NEXT;
        else
            item_set_syntax(item, level->is_object ? "expected separator in dict" : "expected separator in list");
    } else if (level->want == WANT_COLON) {
        if (c == ':')
            level->want = WANT_VALUE;
        else
            item_set_syntax(item, "missing : in object pair");
    } else if (level->is_object) {
        stream_key(stream, token, item);
    } else {
        stream_begin_value(stream, token, item);
    }
}

/* How the brackets of a failed message are counted, whatever they are. */
static uint64_t stream_depth_after(uint64_t depth, const struct json_lexer *lexer, enum json_token token)
{
    if (token != JSON_TOKEN_PUNCTUATION)
        return depth;
    if (strchr("{[", lexer->text[0]))
        return depth + 1;
    return strchr("}]", lexer->text[0]) && depth ? depth - 1 : depth;
}

static void stream_good_token(struct json_stream *stream, enum json_token token, struct json_item *item)
{
    if (stream->lexer.discard) {
        stream->skip_depth = stream_depth_after(stream->skip_depth, &stream->lexer, token);
        if (!stream->skip_depth)
            stream_reset(stream);
        return;
    }
    uint64_t depth = stream_depth_after(stream->depth, &stream->lexer, token);

    if (++stream->tokens > JSON_STREAM_TOKENS_MAX)
        item_set_error(item, memory_format("JSON token count limit exceeded (at most %u tokens in a message)",
                                           JSON_STREAM_TOKENS_MAX));
    else
        stream_token(stream, token, item);
    if (item->kind == JSON_ITEM_ERROR)
        stream_skip(stream, depth, false);
}

static void stream_too_large(struct json_stream *stream, enum json_token token, struct json_item *item)
{
    uint64_t depth = stream_depth_after(stream->depth, &stream->lexer, token);

    item_set_error(item,
                   memory_format("JSON message size limit exceeded (at most %u MiB)", JSON_STREAM_SIZE_MAX >> 20));
    stream_skip(stream, depth, token == JSON_TOKEN_NONE);
}

size_t json_stream_feed(struct json_stream *stream, const char *data, size_t size, struct json_item *item)
{
    size_t total = 0;

    *item = (struct json_item){0};
    while (total < size && item->kind == JSON_ITEM_NONE) {
        size_t used;
        enum json_token token = json_lexer_feed(&stream->lexer, data + total, size - total, &used);

        total += used;
        if (stream->depth || stream->lexer.size)
            stream->size += used;
        size_t message = stream->size;

        if (token == JSON_TOKEN_STRAY || token == JSON_TOKEN_NO_MEMORY) {
            item_set_error(item, token == JSON_TOKEN_STRAY
                                     ? memory_format("JSON parse error, stray '%.80s'", stream->lexer.text)
                                     : memory_string("JSON parse error, not enough memory for a token"));
            stream_reset(stream);
        } else if (!stream->lexer.discard && stream->size > JSON_STREAM_SIZE_MAX) {
            stream_too_large(stream, token, item);
        } else if (token != JSON_TOKEN_NONE) {
            stream_good_token(stream, token, item);
        }
        item->size = message;
    }
    return total;
}
