/*
 * Lines of the shell to words; see cairnctl_arguments.h.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_arguments.h"

/* Length of the JSON object or list that text starts with; 0 if it does not end. */
static size_t words_json(const char *text)
{
    unsigned depth = 0;
    bool quoted = false;

    for (const char *at = text; *at; at++) {
        if (quoted) {
            if (*at == '\\' && at[1])
                at++;
            else if (*at == '"')
                quoted = false;
        } else if (*at == '"') {
            quoted = true;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if ((*at == '}' || *at == ']') && --depth == 0) {
            return (size_t)(at - text) + 1;
        }
    }
    return 0;
}

/* word has room for all of the line. Returns what follows the word, or NULL if it is open. */
static const char *words_next(const char *at, char *word)
{
    size_t used = 0;
    char quote = '\0';

    for (; *at && (quote || !strchr(" \t\n", *at)); at++) {
        bool value = used == 0 || (used >= 2 && memcmp(word + used - 2, ":=", 2) == 0);
        if (!quote && value && (*at == '{' || *at == '[')) {
            size_t length = words_json(at);
            if (length == 0) {
                strcpy(word + used, at);
                return NULL;
            }
            memcpy(word + used, at, length);
            used += length;
            at += length - 1;
        } else if (quote && *at == quote) {
            quote = '\0';
        } else if (!quote && (*at == '"' || *at == '\'')) {
            quote = *at;
        } else if (*at == '\\' && at[1] && quote != '\'') {
            word[used++] = *++at;
        } else {
            word[used++] = *at;
        }
    }
    word[used] = '\0';
    return quote ? NULL : at;
}

int words_split(const char *line, char ***ret, unsigned *ret_count, struct error *err)
{
    char **words = NULL;
    unsigned count = 0;

    while (line) {
        line += strspn(line, " \t\n");
        if (*line == '\0')
            break;
        char *word = memory_array(strlen(line) + 1, 1);
        line = words_next(line, word);
        words = memory_grow(words, count + 1, sizeof(*words));
        words[count++] = word;
    }
    *ret = words;
    *ret_count = count;
    return line ? 0 : error_set(err, -EINVAL, "a quote or bracket is not closed");
}

void words_free(char **words, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        free(words[i]);
    free(words);
}
