/*
 * Errors of the control path: a class that clients dispatch on, an errno and
 * a text for people. A struct error lives on the caller's stack, is zero
 * until something fails, and is freed by its owner (AUTO_ERROR). The I/O path
 * does not use it: requests carry a negative errno and nothing else.
 */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include <stdarg.h>

enum error_class { ERROR_GENERIC, ERROR_COMMAND_NOT_FOUND, ERROR_DEVICE_NOT_ACTIVE, ERROR_DEVICE_NOT_FOUND };

struct error {
    enum error_class class;
    int code;       /* negative errno, 0 = no error */
    char *text;     /* owned; NULL = no error */
};

/*
 * Sets class GenericError and the text, and returns code (a negative errno),
 * so that a caller fails in one expression: return error_set(err, -EINVAL,
 * "..."). err may be NULL; an error that is already set is replaced.
 */
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same with another class. */
int error_set_class(struct error *err, enum error_class class, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts formatted text before what err says; does nothing when err is not set. */
void error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Moves *from into *to (which may be NULL: then from is only cleared). */
void error_move(struct error *to, struct error *from);

/* Frees the text and leaves *err clean for the next use. */
void error_clear(struct error *err);

/* The name that goes over the wire: "GenericError", "CommandNotFound" ... */
const char *error_class_name(enum error_class class);

#define AUTO_ERROR __attribute__((cleanup(error_clear)))

#endif
