/*
 * See config.h.
 */
#include "daemon/config.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "qmp/json_stream.h"
#include "qmp/server.h"

/* Largest file, in bytes. */
#define CONFIG_SIZE_MAX (64u << 20)

static int config_read(const char *path, char **ret, size_t *ret_size, struct error *err)
{
    FILE *file = fopen(path, "re");
    AUTO_FREE char *text = NULL;
    size_t size = 0, got = 0;

    if (!file)
        return error_set(err, -errno, "%s", strerror(errno));
    do {
        text = memory_grow(text, size + 65536, 1);
        got = fread(text + size, 1, 65536, file);
        size += got;
    } while (got > 0 && size <= CONFIG_SIZE_MAX);
    int failed = ferror(file) ? errno : 0;
    fclose(file);
    if (failed)
        return error_set(err, -failed, "%s", strerror(failed));
    if (size > CONFIG_SIZE_MAX)
        return error_set(err, -EFBIG, "larger than %u bytes", CONFIG_SIZE_MAX);
    *ret = take_ptr(&text);
    *ret_size = size;
    return 0;
}

static int config_execute(struct json_object *request, struct error *err)
{
    struct json_object *name = NULL;
    int rc = qmp_execute(request, NULL, err);

    json_object_object_get_ex(request, "execute", &name);
    if (rc < 0 && json_object_is_type(name, json_type_string))
        error_prefix(err, "%s: ", json_object_get_string(name));
    return rc;
}

/* A command, or an array of them. */
static int config_value(struct json_object *value, struct error *err)
{
    int rc = 0;

    if (!json_object_is_type(value, json_type_array))
        return config_execute(value, err);
    for (size_t i = 0; rc == 0 && i < json_object_array_length(value); i++) {
        rc = config_execute(json_object_array_get_idx(value, i), err);
        if (rc < 0)
            error_prefix(err, "command %zu: ", i + 1);
    }
    return rc;
}

static unsigned config_line(const char *text, size_t at)
{
    unsigned line = 1;

    for (size_t i = 0; i < at; i++)
        line += text[i] == '\n';
    return line;
}

static int config_item(struct json_item *item, struct error *err)
{
    int rc =
        item->kind == JSON_ITEM_VALUE ? config_value(item->value, err) : error_set(err, -EINVAL, "%s", item->error);
    json_item_clear(item);
    return rc;
}

static int config_text(const char *text, size_t size, struct error *err)
{
    struct json_stream *stream = json_stream_new();
    size_t at = 0, start;
    int rc = 0;

    while (rc == 0 && at < size) {
        struct json_item item = {0};
        at += strspn(text + at, " \t\r\n");
        start = at;
        at += json_stream_feed(stream, text + at, size - at, &item);
        if (item.kind != JSON_ITEM_NONE)
            rc = config_item(&item, err);
        else if (at > start)
            rc = error_set(err, -EINVAL, "the file ends inside a command");
        if (rc < 0)
            error_prefix(err, "line %u: ", config_line(text, start));
    }
    json_stream_free(stream);
    return rc;
}

int config_run(const char *path, struct error *err)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;
    int rc = config_read(path, &text, &size, err);

    if (rc < 0)
        return rc;
    if (memchr(text, '\0', size))
        return error_set(err, -EINVAL, "the file has a NUL byte in it");
    text = memory_grow(text, size + 1, 1);
    text[size] = '\0';
    return config_text(text, size, err);
}
