/*
 * Scalars in key=value text: see option_scalar.h. Pure functions.
 */
#include "qmp/option_scalar.h"

#include <errno.h>
#include <string.h>

#include "core/memory.h"
#include "core/options.h"

int option_scalar_bool(const char *text, bool *ret)
{
    static const struct {
        const char *text;
        bool value;
    } words[] = {
        {"on", true}, {"yes", true}, {"true", true}, {"off", false}, {"no", false}, {"false", false},
    };

    for (unsigned i = 0; i < array_size(words); i++) {
        if (!strcmp(words[i].text, text)) {
            *ret = words[i].value;
            return 0;
        }
    }
    return -EINVAL;
}

static int number_digit(char c, unsigned base)
{
    int digit = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;

    return digit < (int)base ? digit : -1;
}

/* How far a size's suffix shifts; -EINVAL if it is none. */
static int number_suffix(const char *text)
{
    static const char suffixes[] = "BKMGTPE";

    if (!*text)
        return 0;
    const char *found = strchr(suffixes, *text & ~0x20);

    return found && *found && !text[1] ? 10 * (int)(found - suffixes) : -EINVAL;
}

int option_scalar_number(const char *text, bool size, struct option_number *ret)
{
    bool negative = *text == '-' && !size;
    unsigned base = 10;
    uint64_t value = 0;
    int digit;

    text += negative;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        base = 16;
        text += 2;
    }
    if (number_digit(*text, base) < 0)
        return -EINVAL;
    for (; (digit = number_digit(*text, base)) >= 0; text++)
        if (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, (uint64_t)digit, &value))
            return -ERANGE;
    int shift = size && base == 10 ? number_suffix(text) : *text ? -EINVAL : 0;

    if (shift < 0)
        return shift;
    if (value > UINT64_MAX >> shift)
        return -ERANGE;
    *ret = (struct option_number){value << shift, negative && value};
    return 0;
}

bool option_number_fits(const struct option_number *number, const struct option_value_type *type)
{
    if (type->kind == OPTION_UINT)
        return !number->negative && number->magnitude >= (uint64_t)type->minimum && number->magnitude <= type->maximum;
    if (number->negative)
        return number->magnitude <= (uint64_t)INT64_MAX + 1 && (int64_t)-number->magnitude >= type->minimum &&
               (int64_t)-number->magnitude <= (int64_t)type->maximum;
    return number->magnitude <= INT64_MAX && (int64_t)number->magnitude >= type->minimum &&
           (int64_t)number->magnitude <= (int64_t)type->maximum;
}
