/*
 * See cairnctl_client.h. The daemon sends one object per line, so a reply is
 * a line; its size is bounded so that a mad peer cannot take all memory.
 */
#include "daemon/tools/cairnctl_client.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "core/error.h"
#include "core/memory.h"

#define CLIENT_LINE_MAX (256u << 20)
#define CLIENT_READ_SIZE 65536u
#define CLIENT_DEPTH_MAX 256

void client_init(struct client *client)
{
    *client = (struct client){.fd = -1};
}

void client_close(struct client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    free(client->buffer);
    free(client->line);
    client_init(client);
}

/* Receives once. 1: bytes came; 0: none are there and wait is false. */
static int client_receive(struct client *client, bool wait, struct error *err)
{
    if (client->start > 0) {
        memmove(client->buffer, client->buffer + client->start, client->used - client->start);
        client->used -= client->start;
        client->start = 0;
    }
    if (client->used > CLIENT_LINE_MAX)
        return error_set(err, -EPROTO, "the daemon sent a line of more than %u bytes", CLIENT_LINE_MAX);
    if (client->room - client->used < CLIENT_READ_SIZE) {
        client->room = 2 * client->room + CLIENT_READ_SIZE;
        client->buffer = memory_grow(client->buffer, client->room, 1);
    }

    ssize_t got;
    do {
        got = recv(client->fd, client->buffer + client->used, client->room - client->used, wait ? 0 : MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && !wait && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (got < 0)
        return error_set(err, -errno, "connection to the daemon: %s", strerror(errno));
    if (got == 0)
        return error_set(err, -ECONNRESET, "the daemon closed the connection");
    client->used += (size_t)got;
    return 1;
}

/* Moves the next whole line out of the buffer into client->line; false if there is none. */
static bool client_take_line(struct client *client, size_t *scanned)
{
    char *begin = client->buffer + client->start;
    size_t have = client->used - client->start;
    char *end = have > *scanned ? memchr(begin + *scanned, '\n', have - *scanned) : NULL;

    if (!end) {
        *scanned = have;
        return false;
    }
    size_t length = (size_t)(end - begin);
    client->start += length + 1;
    if (length > 0 && begin[length - 1] == '\r')
        length--;
    free(client->line);
    client->line = memory_array(length + 1, 1);
    memcpy(client->line, begin, length);
    *scanned = 0;
    return true;
}

static int client_parse(struct client *client, struct json_object **ret, struct error *err)
{
    struct json_tokener *tokener = json_tokener_new_ex(CLIENT_DEPTH_MAX);

    if (!tokener)
        return error_set(err, -ENOMEM, "out of memory");
    *ret = json_tokener_parse_ex(tokener, client->line, -1);
    enum json_tokener_error result = json_tokener_get_error(tokener);
    json_tokener_free(tokener);
    if (json_object_is_type(*ret, json_type_object))
        return 0;
    json_object_put(*ret);
    *ret = NULL;
    return error_set(err, -EPROTO, "the daemon sent something else than a JSON object%s%s",
                     result == json_tokener_success ? "" : ": ",
                     result == json_tokener_success ? "" : json_tokener_error_desc(result));
}

/* The next object that is no empty line. 1: *ret is set; 0: none is there and wait is false. */
static int client_next(struct client *client, bool wait, struct json_object **ret, struct error *err)
{
    size_t scanned = 0;

    for (;;) {
        while (!client_take_line(client, &scanned)) {
            int rc = client_receive(client, wait, err);
            if (rc <= 0)
                return rc;
        }
        if (client->line[0] == '\0')
            continue;
        int rc = client_parse(client, ret, err);
        return rc < 0 ? rc : 1;
    }
}

static int client_send(struct client *client, const char *text, size_t length, struct error *err)
{
    while (length > 0) {
        ssize_t sent = send(client->fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return error_set(err, -errno, "connection to the daemon: %s", strerror(errno));
        text += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static void client_deliver(struct client *client, struct json_object *event)
{
    if (client->event && json_object_object_get_ex(event, "event", NULL))
        client->event(client->object, event, client->line);
}

static int client_refused(struct json_object *reply, struct error *err)
{
    struct json_object *value = NULL, *class = NULL, *text = NULL;

    json_object_object_get_ex(reply, "error", &value);
    json_object_object_get_ex(value, "class", &class);
    json_object_object_get_ex(value, "desc", &text);
    return error_set(err, CLIENT_REFUSED, "%s: %s", class ? json_object_get_string(class) : "GenericError",
                     text ? json_object_get_string(text) : "(no text)");
}

int client_execute(struct client *client, const char *command, struct json_object *arguments, struct json_object **ret,
                   struct error *err)
{
    struct json_object *message = json_object_new_object();
    json_object_object_add(message, "execute", json_object_new_string(command));
    if (arguments)
        json_object_object_add(message, "arguments", json_object_get(arguments));
    AUTO_FREE char *text = memory_format("%s\n", json_object_to_json_string_ext(message, JSON_C_TO_STRING_PLAIN));
    json_object_put(message);

    int rc = client_send(client, text, strlen(text), err);
    if (rc < 0)
        return rc;
    for (;;) {
        struct json_object *reply, *value;
        rc = client_next(client, true, &reply, err);
        if (rc < 0)
            return rc;
        if (json_object_object_get_ex(reply, "return", &value)) {
            *ret = json_object_get(value);
            json_object_put(reply);
            return 0;
        }
        if (json_object_object_get_ex(reply, "error", NULL)) {
            rc = client_refused(reply, err);
            json_object_put(reply);
            return rc;
        }
        client_deliver(client, reply);
        json_object_put(reply);
    }
}

int client_wait_event(struct client *client, struct error *err)
{
    struct json_object *event;
    int rc = client_next(client, true, &event, err);

    if (rc < 0)
        return rc;
    client_deliver(client, event);
    json_object_put(event);
    return 0;
}

int client_take_events(struct client *client, struct error *err)
{
    for (;;) {
        struct json_object *event;
        int rc = client_next(client, false, &event, err);
        if (rc <= 0)
            return rc;
        client_deliver(client, event);
        json_object_put(event);
    }
}

static int client_open(struct client *client, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(err, -ENAMETOOLONG, "socket path '%s' is longer than %zu bytes", path,
                         sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path));
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
    if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return error_set(err, -errno, "cannot connect to '%s': %s", path, strerror(errno));
    return 0;
}

int client_connect(struct client *client, const char *path, struct error *err)
{
    struct json_object *greeting, *nothing;
    int rc = client_open(client, path, err);

    if (rc < 0)
        return rc;
    rc = client_next(client, true, &greeting, err);
    if (rc < 0)
        return rc;
    bool is_qmp = json_object_object_get_ex(greeting, "QMP", NULL);
    json_object_put(greeting);
    if (!is_qmp)
        return error_set(err, -EPROTO, "'%s' is no QMP socket", path);
    rc = client_execute(client, "qmp_capabilities", NULL, &nothing, err);
    if (rc == 0)
        json_object_put(nothing);
    return rc;
}
