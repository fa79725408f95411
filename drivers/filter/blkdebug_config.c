/*
 * blkdebug: rules of a file, the format of which is QEMU's: sections
 * [inject-error] and [set-state], each a rule, with lines of the form
 * key = "value" for the members that the options of the same name have.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"
#include "drivers/filter/blkdebug.h"

#define CONFIG_SIZE_MAX (1u << 20)
#define CONFIG_RULES_MAX 1024u

struct config {
    const char *name;
    unsigned line;
    struct blkdebug_options *options;
    const struct option_type *type;     /* of the section; NULL: none has begun */
    void *rule;                         /* of the section, in options already */
    uint32_t said;                      /* fields of type, by bit */
    struct error *err;
};

static int config_error(const struct config *config, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int config_error(const struct config *config, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return error_set(config->err, -EINVAL, "config=%s: line %u: %s", config->name, config->line, text);
}

/* Sections */

static int section_end(const struct config *config)
{
    const struct blkdebug_set_state_options *change = config->rule;

    for (unsigned i = 0; config->type && i < config->type->field_count; i++) {
        const struct option_field *field = &config->type->fields[i];

        if (field->flags & OPTION_REQUIRED && !(config->said & 1u << i))
            return config_error(config, "the section before lacks '%s'", field->name);
    }
    if (config->type == &blkdebug_set_state_options_type && change->event == BLKDEBUG_EVENT_NONE)
        return config_error(config, "event \"none\" of the section before never happens");
    return 0;
}

static void *section_add(const struct config *config, void *where)
{
    struct option_array *array = where;
    const struct option_type *type = config->type;
    void *rule = memory_zero(type->size);

    for (unsigned i = 0; i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];

        /* No enum among them has one. */
        if (field->flags & OPTION_ELEMENT_DEFAULT)
            memcpy((char *)rule + field->offset, &field->default_integer, option_value_size(&field->type));
    }
    array->items = memory_grow(array->items, array->count + 1, sizeof(void *));
    ((void **)array->items)[array->count++] = rule;
    return rule;
}

static int section_begin(struct config *config, const char *line)
{
    char name[32];
    int end = 0, result = section_end(config);

    if (result < 0)
        return result;
    if (sscanf(line, "[%31[^] \"]%n", name, &end) != 1 || !strchr(line + end, ']'))
        return config_error(config, "'%.64s' is not of the form [section]", line);
    if (config->options->inject_error.count + config->options->set_state.count >= CONFIG_RULES_MAX)
        return config_error(config, "there are more than %u rules", CONFIG_RULES_MAX);
    config->said = 0;
    if (strcmp(name, "inject-error") == 0) {
        config->type = &blkdebug_inject_error_options_type;
        config->rule = section_add(config, &config->options->inject_error);
    } else if (strcmp(name, "set-state") == 0) {
        config->type = &blkdebug_set_state_options_type;
        config->rule = section_add(config, &config->options->set_state);
    } else {
        return config_error(config, "section [%s] is neither [inject-error] nor [set-state]", name);
    }
    return 0;
}

/* Values */

static int value_bool(const struct config *config, const struct option_field *field, const char *text)
{
    bool on = strcmp(text, "on") == 0;

    if (!on && strcmp(text, "off") != 0)
        return config_error(config, "'%s' expects \"on\" or \"off\", not \"%s\"", field->name, text);
    *(bool *)((char *)config->rule + field->offset) = on;
    return 0;
}

static int value_enum(const struct config *config, const struct option_field *field, const char *text)
{
    const struct option_enum *names = field->type.enumeration;

    for (int i = 0; i < (int)names->count; i++) {
        if (strcmp(names->names[i], text) != 0)
            continue;
        memcpy((char *)config->rule + field->offset, &i, sizeof(i));
        return 0;
    }
    return config_error(config, "'%s' does not accept \"%s\"", field->name, text);
}

static int value_number(const struct config *config, const struct option_field *field, const char *text)
{
    char *end;

    errno = 0;
    uint64_t value = strtoull(text, &end, 10);

    if (!isdigit((unsigned char)*text) || *end || errno || value < (uint64_t)field->type.minimum ||
        value > field->type.maximum)
        return config_error(config, "'%s' expects a number from %" PRId64 " to %" PRIu64 ", not \"%s\"", field->name,
                            field->type.minimum, field->type.maximum, text);
    memcpy((char *)config->rule + field->offset, &value, sizeof(value));
    return 0;
}

static int config_value(struct config *config, const char *line)
{
    const struct option_field *field = NULL;
    char key[32], text[64];
    int end = 0;
    unsigned i = 0;

    if (!config->type)
        return config_error(config, "'%.64s' is in no section", line);
    if (sscanf(line, "%31[^= \t] = \"%63[^\"]\"%n", key, text, &end) != 2 || !end || line[end])
        return config_error(config, "'%.64s' is not of the form key = \"value\"", line);
    while (i < config->type->field_count && strcmp(config->type->fields[i].name, key) != 0)
        i++;
    if (i == config->type->field_count)
        return config_error(config, "'%s' is unexpected", key);
    field = &config->type->fields[i];
    config->said |= 1u << i;
    if (field->has_offset)
        *(bool *)((char *)config->rule + field->has_offset) = true;
    switch (field->type.kind) {
    case OPTION_BOOL:
        return value_bool(config, field, text);
    case OPTION_ENUM:
        return value_enum(config, field, text);
    default:
        return value_number(config, field, text);
    }
}

/* The file */

static int config_parse(struct config *config, char *text)
{
    int result = 0;

    for (char *line; result == 0 && (line = strsep(&text, "\n"));) {
        size_t length;

        config->line++;
        while (isspace((unsigned char)*line))
            line++;
        for (length = strlen(line); length && isspace((unsigned char)line[length - 1]);)
            line[--length] = '\0';
        if (*line == '[')
            result = section_begin(config, line);
        else if (*line && *line != '#')
            result = config_value(config, line);
    }
    return result < 0 ? result : section_end(config);
}

/* Never waits for another program: for a pipe, say. */
static int config_load(const char *name, char **ret, struct error *err)
{
    AUTO_CLOSE int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat status;

    if (fd < 0 || fstat(fd, &status) < 0)
        return error_set(err, -errno, "Could not open config=%s: %s", name, strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_size > CONFIG_SIZE_MAX)
        return error_set(err, -EINVAL, "config=%s is not a file of at most %u bytes", name, CONFIG_SIZE_MAX);
    char *text = memory_zero((size_t)status.st_size + 1);
    ssize_t size = pread(fd, text, (size_t)status.st_size, 0);

    *ret = text;
    if (size < 0)
        return error_set(err, -errno, "Could not read config=%s: %s", name, strerror(errno));
    return strlen(text) == (size_t)size ? 0 : error_set(err, -EINVAL, "config=%s is not a text file", name);
}

int blkdebug_config_read(const char *name, struct blkdebug_options *io, struct error *err)
{
    struct config config = {.name = name, .options = io, .err = err};
    AUTO_FREE char *text = NULL;
    int result = config_load(name, &text, err);

    return result < 0 ? result : config_parse(&config, text);
}
