/*
 * Errors of the control path: see error.h.
 */
#include "core/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

static char *error_format(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

static char *error_format(const char *format, va_list args)
{
    char *text;

    if (vasprintf(&text, format, args) < 0)
        abort();
    return text;
}

int error_set(struct error *err, int code, const char *format, ...)
{
    va_list args;

    if (!err)
        return code;
    va_start(args, format);
    char *text = error_format(format, args);
    va_end(args);
    error_clear(err);
    *err = (struct error){.class = ERROR_GENERIC, .code = code, .text = text};
    return code;
}

int error_set_class(struct error *err, enum error_class class, int code, const char *format, ...)
{
    va_list args;

    if (!err)
        return code;
    va_start(args, format);
    char *text = error_format(format, args);
    va_end(args);
    error_clear(err);
    *err = (struct error){.class = class, .code = code, .text = text};
    return code;
}

void error_prefix(struct error *err, const char *format, ...)
{
    va_list args;

    if (!err || !err->text)
        return;
    va_start(args, format);
    AUTO_FREE char *prefix = error_format(format, args);
    va_end(args);
    char *text = memory_format("%s%s", prefix, err->text);
    free(err->text);
    err->text = text;
}

void error_move(struct error *to, struct error *from)
{
    if (to) {
        error_clear(to);
        *to = *from;
        *from = (struct error){0};
    } else {
        error_clear(from);
    }
}

void error_clear(struct error *err)
{
    if (!err)
        return;
    free(err->text);
    *err = (struct error){0};
}

const char *error_class_name(enum error_class class)
{
    static const char *const names[] = {
        [ERROR_GENERIC] = "GenericError",
        [ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
        [ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [ERROR_DEVICE_NOT_FOUND] = "DeviceNotFound",
    };

    return names[class];
}
