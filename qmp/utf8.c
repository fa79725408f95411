/*
 * UTF-8: see utf8.h.
 */
#include "qmp/utf8.h"

bool utf8_is_character(uint32_t code)
{
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    bool noncharacter = (code & 0xfffe) == 0xfffe || (code >= 0xfdd0 && code <= 0xfdef);

    return code <= 0x10ffff && !surrogate && !noncharacter;
}

unsigned utf8_decode(const char *text, size_t size, uint32_t *ret)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)text[0];
    unsigned length = first < 0x80 ? 1 : first < 0xc0 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf8 ? 4 : 0;
    uint32_t code = length <= 1 ? first : first & (0x7fu >> length);

    if (!length || length > size)
        return 0;
    for (unsigned i = 1; i < length; i++) {
        unsigned char next = (unsigned char)text[i];

        if ((next & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (next & 0x3f);
    }
    if (code < smallest[length] || !utf8_is_character(code))
        return 0;
    *ret = code;
    return length;
}

unsigned utf8_check(const char *text, size_t size)
{
    uint32_t code;

    return utf8_decode(text, size, &code);
}

unsigned utf8_encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    unsigned length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;

    for (unsigned i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    out[0] = (char)(0xf00u >> length | code);
    return length;
}
