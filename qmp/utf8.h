/*
 * UTF-8, strictly (RFC 3629): no overlong forms, surrogates or noncharacters.
 */
#ifndef QMP_UTF8_H
#define QMP_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A Unicode scalar value that stands for a character. */
bool utf8_is_character(uint32_t code);

/* Bytes of the character at text, which has size >= 1 bytes; 0 if it is malformed. */
unsigned utf8_check(const char *text, size_t size);

/* The same, and the character in *ret. */
unsigned utf8_decode(const char *text, size_t size, uint32_t *ret);

/* Writes 1 to 4 bytes, returns how many. */
unsigned utf8_encode(uint32_t code, char *out);

#endif
