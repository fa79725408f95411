/*
 * Log lines: see log.h.
 */
#include "core/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/memory.h"

static enum log_level log_limit = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    __atomic_store_n(&log_limit, level, __ATOMIC_RELAXED);
}

/* systemd sets JOURNAL_STREAM when stderr is its journal. */
static bool log_is_journal(void)
{
    static int known = -1;
    int is = __atomic_load_n(&known, __ATOMIC_RELAXED);

    if (is < 0) {
        is = getenv("JOURNAL_STREAM") != NULL;
        __atomic_store_n(&known, is, __ATOMIC_RELAXED);
    }
    return is;
}

void log_write(enum log_level level, const char *format, ...)
{
    va_list args;
    char *text;

    if (level > __atomic_load_n(&log_limit, __ATOMIC_RELAXED))
        return;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0)
        return;
    /* One write, so that lines of several threads do not mix. */
    if (log_is_journal())
        dprintf(STDERR_FILENO, "<%d>%s\n", (int)level, text);
    else
        dprintf(STDERR_FILENO, "cairnd: %s%s\n", level <= LOG_LEVEL_ERROR ? "error: " : "", text);
    free(text);
}
