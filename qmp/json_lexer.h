/*
 * Splits a stream of bytes into JSON tokens (RFC 8259, and single quotes
 * around strings, with the escape \'). Keeps nothing but the token under way,
 * so input may come in pieces of any size.
 *
 * After a byte that no token can contain, everything is skipped up to the
 * next structural character or the end of the line. ASCII control characters
 * and the bytes 0xFE and 0xFF end any token, strings included: a client that
 * has lost track sends one to be in a known state.
 */
#ifndef QMP_JSON_LEXER_H
#define QMP_JSON_LEXER_H

#include <stdbool.h>
#include <stddef.h>

enum json_token {
    JSON_TOKEN_NONE,        /* all input is used, no token is complete yet */
    JSON_TOKEN_PUNCTUATION, /* text[0] is one of {}[],: */
    JSON_TOKEN_STRING,      /* text holds the quotes, and escapes as they came */
    JSON_TOKEN_INTEGER,
    JSON_TOKEN_FLOAT,
    JSON_TOKEN_KEYWORD, /* lower case letters */
    JSON_TOKEN_STRAY,   /* text is what cannot be JSON */
    JSON_TOKEN_NO_MEMORY
};

struct json_lexer {
    unsigned state;
    bool discard; /* set by the user: tokens are told apart, their text is not kept */
    char *text;   /* of the last token, ends with NUL; valid until the next call */
    size_t size, room;
};

/* A zeroed struct is ready for use. */
void json_lexer_clear(struct json_lexer *lexer);

/* Takes bytes up to the end of one token; *ret_used says how many. */
enum json_token json_lexer_feed(struct json_lexer *lexer, const char *data, size_t size, size_t *ret_used);

/* Decodes the text of a STRING token in place to UTF-8 without NULs; *ret_size bytes and a NUL.
 * On failure false and what is wrong in complaint, for "JSON parse error, ...". */
bool json_string_decode(char *text, size_t size, size_t *ret_size, char complaint[64]);

#endif
