/*
 * Scalars in key=value text: switches, numbers and sizes.
 */
#ifndef QMP_OPTION_SCALAR_H
#define QMP_OPTION_SCALAR_H

#include <stdbool.h>
#include <stdint.h>

struct option_value_type;

struct option_number {
    uint64_t magnitude;
    bool negative;
};

/* on, off, yes, no, true, false. -EINVAL for anything else. */
int option_scalar_bool(const char *text, bool *ret);

/*
 * Decimal digits, or hexadecimal ones after 0x, with a '-' before them if it is no size; for a
 * size, one of the suffixes B, K, M, G, T, P, E in either case (powers of 1024). -EINVAL for
 * anything else, -ERANGE for what 64 bits do not hold.
 */
int option_scalar_number(const char *text, bool size, struct option_number *ret);

/* Whether the number is in the type's range. INT and UINT only. */
bool option_number_fits(const struct option_number *number, const struct option_value_type *type);

#endif
