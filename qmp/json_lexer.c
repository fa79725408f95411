/*
 * Splits a stream of bytes into JSON tokens: see json_lexer.h. A state machine
 * over bytes; a token that only ends where the next one starts (numbers,
 * keywords) leaves the byte that ended it for the next call.
 */
#include "qmp/json_lexer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "qmp/utf8.h"

enum lexer_state {
    LEXER_START,
    LEXER_STRING_DOUBLE,
    LEXER_STRING_SINGLE,
    LEXER_ESCAPE_DOUBLE,
    LEXER_ESCAPE_SINGLE,
    LEXER_KEYWORD,
    LEXER_MINUS,
    LEXER_ZERO,
    LEXER_DIGITS,
    LEXER_POINT,
    LEXER_FRACTION,
    LEXER_EXPONENT,
    LEXER_EXPONENT_SIGN,
    LEXER_EXPONENT_DIGITS,
    LEXER_RECOVERY
};

/* What to do with a byte. */
struct lexer_step {
    enum lexer_state next;
    enum json_token token; /* NONE: go on */
    bool keep;             /* the byte belongs to the token */
    bool again;            /* the byte is looked at again in the next state */
};

static bool lexer_is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool lexer_is_letter(unsigned char c)
{
    return c >= 'a' && c <= 'z';
}

static bool lexer_is_structural(unsigned char c)
{
    return c && strchr("{}[],:", c);
}

/* Control characters and bytes that UTF-8 never has: nothing contains them. */
static bool lexer_is_reset(unsigned char c)
{
    return c < ' ' || c >= 0xfe;
}

static const struct lexer_step lexer_stray = {LEXER_RECOVERY, JSON_TOKEN_STRAY, true, false};

static struct lexer_step lexer_go(enum lexer_state next)
{
    return (struct lexer_step){next, JSON_TOKEN_NONE, true, false};
}

static struct lexer_step lexer_end_before(enum json_token token)
{
    return (struct lexer_step){LEXER_START, token, false, true};
}

static struct lexer_step lexer_start(unsigned char c)
{
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r')
        return (struct lexer_step){LEXER_START, JSON_TOKEN_NONE, false, false};
    if (lexer_is_structural(c))
        return (struct lexer_step){LEXER_START, JSON_TOKEN_PUNCTUATION, true, false};
    if (lexer_is_letter(c))
        return lexer_go(LEXER_KEYWORD);
    if (lexer_is_digit(c))
        return lexer_go(c == '0' ? LEXER_ZERO : LEXER_DIGITS);
    switch (c) {
    case '"':
        return lexer_go(LEXER_STRING_DOUBLE);
    case '\'':
        return lexer_go(LEXER_STRING_SINGLE);
    case '-':
        return lexer_go(LEXER_MINUS);
    default:
        return lexer_stray;
    }
}

static struct lexer_step lexer_string(enum lexer_state state, unsigned char c)
{
    bool escaped = state == LEXER_ESCAPE_DOUBLE || state == LEXER_ESCAPE_SINGLE;
    bool single = state == LEXER_STRING_SINGLE || state == LEXER_ESCAPE_SINGLE;

    if (lexer_is_reset(c))
        return lexer_stray;
    if (escaped)
        return lexer_go(single ? LEXER_STRING_SINGLE : LEXER_STRING_DOUBLE);
    if (c == '\\')
        return lexer_go(single ? LEXER_ESCAPE_SINGLE : LEXER_ESCAPE_DOUBLE);
    if (c == (single ? '\'' : '"'))
        return (struct lexer_step){LEXER_START, JSON_TOKEN_STRING, true, false};
    return lexer_go(state);
}

/* After the integer part. */
static struct lexer_step lexer_integer_end(unsigned char c)
{
    if (c == '.')
        return lexer_go(LEXER_POINT);
    if (c == 'e' || c == 'E')
        return lexer_go(LEXER_EXPONENT);
    return lexer_end_before(JSON_TOKEN_INTEGER);
}

static struct lexer_step lexer_number(enum lexer_state state, unsigned char c)
{
    bool digit = lexer_is_digit(c);

    switch (state) {
    case LEXER_MINUS:
        return digit ? lexer_go(c == '0' ? LEXER_ZERO : LEXER_DIGITS) : lexer_stray;
    case LEXER_ZERO:
        return digit ? lexer_stray : lexer_integer_end(c);
    case LEXER_DIGITS:
        return digit ? lexer_go(LEXER_DIGITS) : lexer_integer_end(c);
    case LEXER_POINT:
        return digit ? lexer_go(LEXER_FRACTION) : lexer_stray;
    case LEXER_FRACTION:
        if (c == 'e' || c == 'E')
            return lexer_go(LEXER_EXPONENT);
        return digit ? lexer_go(LEXER_FRACTION) : lexer_end_before(JSON_TOKEN_FLOAT);
    case LEXER_EXPONENT:
        if (c == '+' || c == '-')
            return lexer_go(LEXER_EXPONENT_SIGN);
        /* fall through */
    case LEXER_EXPONENT_SIGN:
        return digit ? lexer_go(LEXER_EXPONENT_DIGITS) : lexer_stray;
    default:
        return digit ? lexer_go(LEXER_EXPONENT_DIGITS) : lexer_end_before(JSON_TOKEN_FLOAT);
    }
}

static struct lexer_step lexer_recovery(unsigned char c)
{
    if (c == '\n' || c == '\r' || lexer_is_structural(c))
        return (struct lexer_step){LEXER_START, JSON_TOKEN_NONE, false, true};
    if (lexer_is_reset(c) && c != '\t')
        return lexer_stray;
    return (struct lexer_step){LEXER_RECOVERY, JSON_TOKEN_NONE, false, false};
}

static struct lexer_step lexer_step(enum lexer_state state, unsigned char c)
{
    switch (state) {
    case LEXER_START:
        return lexer_start(c);
    case LEXER_STRING_DOUBLE:
    case LEXER_STRING_SINGLE:
    case LEXER_ESCAPE_DOUBLE:
    case LEXER_ESCAPE_SINGLE:
        return lexer_string(state, c);
    case LEXER_KEYWORD:
        return lexer_is_letter(c) ? lexer_go(LEXER_KEYWORD) : lexer_end_before(JSON_TOKEN_KEYWORD);
    case LEXER_RECOVERY:
        return lexer_recovery(c);
    default:
        return lexer_number(state, c);
    }
}

/* The text comes from a stranger and may be large: no memory is an answer, not an abort. */
static bool lexer_keep(struct json_lexer *lexer, char c)
{
    if (lexer->size + 1 >= lexer->room) {
        size_t room = lexer->room ? lexer->room * 2 : 256;
        char *text = realloc(lexer->text, room);

        if (!text)
            return false;
        lexer->text = text;
        lexer->room = room;
    }
    lexer->text[lexer->size++] = c;
    lexer->text[lexer->size] = 0;
    return true;
}

enum json_token json_lexer_feed(struct json_lexer *lexer, const char *data, size_t size, size_t *ret_used)
{
    /* LEXER_START has no text of a token under way: what is there belongs to the last one. */
    if (lexer->state == LEXER_START || lexer->state == LEXER_RECOVERY)
        lexer->size = 0;
    for (size_t used = 0; used < size;) {
        struct lexer_step step = lexer_step(lexer->state, (unsigned char)data[used]);

        lexer->state = step.next;
        /* In discard mode one byte is kept: it tells punctuation apart. */
        if (step.keep && (!lexer->discard || !lexer->size) && !lexer_keep(lexer, data[used])) {
            lexer->state = LEXER_RECOVERY;
            *ret_used = used + 1;
            return JSON_TOKEN_NO_MEMORY;
        }
        used += !step.again;
        if (step.token != JSON_TOKEN_NONE) {
            *ret_used = used;
            return step.token;
        }
    }
    *ret_used = size;
    return JSON_TOKEN_NONE;
}

void json_lexer_clear(struct json_lexer *lexer)
{
    free(lexer->text);
    *lexer = (struct json_lexer){0};
}

/* Four hexadecimal digits, or -1. */
static int32_t string_hex4(const char *text, const char *end)
{
    int32_t value = 0;

    if (end - text < 4)
        return -1;
    for (unsigned i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef";
        const char *found = text[i] ? strchr(digits, text[i] >= 'A' && text[i] <= 'F' ? text[i] + 32 : text[i]) : NULL;

        if (!found)
            return -1;
        value = value * 16 + (int32_t)(found - digits);
    }
    return value;
}

/* *text stands behind "\u"; on success behind the digits. */
static bool string_unicode(const char **text, const char *end, char **out, char complaint[64])
{
    const char *start = *text;
    int32_t code = string_hex4(start, end);

    *text += code < 0 ? 0 : 4;
    if (code >= 0xd800 && code <= 0xdbff && end - *text >= 6 && (*text)[0] == '\\' && (*text)[1] == 'u') {
        int32_t low = string_hex4(*text + 2, end);

        if (low >= 0xdc00 && low <= 0xdfff) {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            *text += 6;
        }
    }
    /* A NUL inside of a name would end it early somewhere. */
    if (code <= 0 || !utf8_is_character((uint32_t)code)) {
        int shown = end - start < 4 ? (int)(end - start) : 4;

        snprintf(complaint, 64, "\\u%.*s is not a valid Unicode character", shown, start);
        return false;
    }
    *out += utf8_encode((uint32_t)code, *out);
    return true;
}

static bool string_escape(const char **text, const char *end, char **out, char complaint[64])
{
    static const char from[] = "\"'\\/bfnrt";
    static const char to[] = "\"'\\/\b\f\n\r\t";
    char c = *(*text)++;
    const char *found = strchr(from, c);

    if (c == 'u')
        return string_unicode(text, end, out, complaint);
    if (!found || !c) {
        snprintf(complaint, 64, "invalid escape sequence in string");
        return false;
    }
    *(*out)++ = to[found - from];
    return true;
}

bool json_string_decode(char *text, size_t size, size_t *ret_size, char complaint[64])
{
    const char *at = text + 1, *end = text + size - 1;
    char *out = text;

    /* Nothing decodes to more bytes than it had: \u takes six, UTF-8 at most four. */
    while (at < end) {
        if (*at == '\\') {
            at++;
            if (!string_escape(&at, end, &out, complaint))
                return false;
            continue;
        }
        unsigned length = utf8_check(at, (size_t)(end - at));

        if (!length) {
            snprintf(complaint, 64, "invalid UTF-8 sequence in string");
            return false;
        }
        memmove(out, at, length);
        out += length;
        at += length;
    }
    *out = 0;
    *ret_size = (size_t)(out - text);
    return true;
}
