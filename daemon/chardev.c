/*
 * See chardev.h. These two options have no schema of their own: keys are
 * taken out of the parsed text one by one, and what remains is a mistake.
 */
#include "daemon/chardev.h"

#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "core/error.h"
#include "core/list.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/options.h"
#include "generated/options.h"
#include "qmp/option_keyval.h"
#include "qmp/server.h"

enum chardev_kind { CHARDEV_ADDRESS, CHARDEV_FD, CHARDEV_STDIO };

struct chardev {
    struct list_link link;
    char *id;
    enum chardev_kind kind;
    bool server;                        /* listens; else connects, or fd is connected */
    bool used;                          /* has its monitor */
    int fd;                             /* CHARDEV_FD; owned until used */
    struct socket_address *address;     /* CHARDEV_ADDRESS; owned */
};

static struct list chardevs = LIST_INIT(chardevs);

/* Removes key from object and returns its text, the caller's; NULL if it is absent. */
static char *chardev_take(struct json_object *object, const char *key)
{
    struct json_object *value;

    if (!json_object_object_get_ex(object, key, &value))
        return NULL;
    char *text = memory_string(json_object_get_string(value));
    json_object_object_del(object, key);
    return text;
}

/* The same for "on" and "off"; fallback if it is absent. */
static int chardev_take_bool(struct json_object *object, const char *key, bool fallback, bool *ret, struct error *err)
{
    AUTO_FREE char *text = chardev_take(object, key);

    *ret = fallback;
    if (!text)
        return 0;
    *ret = strcmp(text, "on") == 0 || strcmp(text, "true") == 0;
    if (!*ret && strcmp(text, "off") != 0 && strcmp(text, "false") != 0)
        return error_set(err, -EINVAL, "Parameter '%s' expects 'on' or 'off'", key);
    return 0;
}

static int chardev_finish(struct json_object *object, struct error *err)
{
    json_object_object_foreach(object, key, value)
    {
        (void)value;
        return error_set(err, -EINVAL, "Parameter '%s' is unexpected", key);
    }
    return 0;
}

static struct chardev *chardev_find(const char *id)
{
    struct chardev *chardev;

    list_for_each(chardev, &chardevs, link)
        if (strcmp(chardev->id, id) == 0)
            return chardev;
    return NULL;
}

static void chardev_free(struct chardev *chardev)
{
    list_remove(&chardev->link);
    if (chardev->fd >= 0)
        close(chardev->fd);
    option_free(&socket_address_type, chardev->address);
    free(chardev->id);
    free(chardev);
}

static int chardev_parse_fd(struct chardev *chardev, const char *text, struct error *err)
{
    char *end;
    int listens = 0;
    socklen_t size = sizeof(listens);
    long fd = strtol(text, &end, 10);

    if (*text == '\0' || *end || fd < 0 || fd > INT_MAX)
        return error_set(err, -EINVAL, "Parameter 'fd' expects the number of a file descriptor");
    if (getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0)
        return error_set(err, -errno, "File descriptor %ld: %s", fd, strerror(errno));
    chardev->kind = CHARDEV_FD;
    chardev->server = listens;
    chardev->fd = (int)fd;
    return 0;
}

static int chardev_parse_socket(struct chardev *chardev, struct json_object *object, struct error *err)
{
    AUTO_FREE char *path = chardev_take(object, "path");
    AUTO_FREE char *host = chardev_take(object, "host");
    AUTO_FREE char *port = chardev_take(object, "port");
    AUTO_FREE char *fd = chardev_take(object, "fd");
    bool wait, delay;
    int rc = chardev_take_bool(object, "server", false, &chardev->server, err);

    rc = rc ? rc : chardev_take_bool(object, "wait", false, &wait, err);
    rc = rc ? rc : chardev_take_bool(object, "nodelay", false, &delay, err);
    if (rc < 0)
        return rc;
    if (wait && chardev->server)
        return error_set(err, -EINVAL, "Parameter 'wait' must be 'off': the start does not wait for clients");
    if (!path + !port + !fd != 2 || (host && !port))
        return error_set(err, -EINVAL, "One of 'path', 'fd', and 'host' with 'port', is needed");
    if (fd)
        return chardev_parse_fd(chardev, fd, err);

    chardev->kind = CHARDEV_ADDRESS;
    chardev->address = memory_new(struct socket_address);
    if (path) {
        chardev->address->type = SOCKET_ADDRESS_TYPE_UNIX;
        chardev->address->u.unix_.path = take_ptr(&path);
    } else {
        chardev->address->type = SOCKET_ADDRESS_TYPE_INET;
        chardev->address->u.inet.host = host ? take_ptr(&host) : memory_string("");
        chardev->address->u.inet.port = take_ptr(&port);
    }
    return 0;
}

static int chardev_parse(struct chardev *chardev, struct json_object *object, struct error *err)
{
    AUTO_FREE char *backend = chardev_take(object, "backend");
    int rc = 0;

    chardev->id = chardev_take(object, "id");
    if (!backend)
        return error_set(err, -EINVAL, "Parameter 'backend' is missing");
    if (!chardev->id)
        return error_set(err, -EINVAL, "Parameter 'id' is missing");
    if (chardev_find(chardev->id))
        return error_set(err, -EEXIST, "Chardev with id '%s' already exists", chardev->id);
    if (strcmp(backend, "stdio") == 0)
        chardev->kind = CHARDEV_STDIO;
    else if (strcmp(backend, "socket") == 0)
        rc = chardev_parse_socket(chardev, object, err);
    else
        rc = error_set(err, -EINVAL, "Parameter 'backend' does not accept value '%s'", backend);
    return rc ? rc : chardev_finish(object, err);
}

int chardev_add(const char *text, struct error *err)
{
    struct json_object *object;
    int rc = option_keyval_tree(text, "backend", &object, err);

    if (rc < 0)
        return rc;
    struct chardev *chardev = memory_new(struct chardev);
    chardev->fd = -1;
    list_link_init(&chardev->link);
    rc = chardev_parse(chardev, object, err);
    json_object_put(object);
    if (rc < 0)
        chardev_free(chardev);
    else
        list_append(&chardevs, &chardev->link);
    return rc;
}

static int chardev_open(struct chardev *chardev, bool pretty, struct error *err)
{
    switch (chardev->kind) {
    case CHARDEV_ADDRESS:
        return (chardev->server ? qmp_listen : qmp_connect)(chardev->address, pretty, err);
    case CHARDEV_FD:
        return (chardev->server ? qmp_listen_fd : qmp_serve_fd)(take_fd(&chardev->fd), pretty, err);
    default:
        return qmp_stdio(pretty, err);
    }
}

static int chardev_monitor_open(struct json_object *object, struct error *err)
{
    AUTO_FREE char *name = chardev_take(object, "chardev");
    AUTO_FREE char *mode = chardev_take(object, "mode");
    bool pretty;
    int rc = chardev_take_bool(object, "pretty", false, &pretty, err);

    /* an id is accepted, and nothing refers to it */
    free(chardev_take(object, "id"));
    if (rc == 0)
        rc = chardev_finish(object, err);
    if (rc < 0)
        return rc;
    if (!name)
        return error_set(err, -EINVAL, "Parameter 'chardev' is missing");
    if (mode && strcmp(mode, "control") != 0)
        return error_set(err, -EINVAL, "Parameter 'mode' does not accept value '%s': only QMP ('control') is spoken",
                         mode);
    struct chardev *chardev = chardev_find(name);
    if (!chardev)
        return error_set(err, -ENOENT, "Chardev '%s' not found", name);
    if (chardev->used)
        return error_set(err, -EBUSY, "Chardev '%s' is in use", name);
    rc = chardev_open(chardev, pretty, err);
    chardev->used = rc == 0;
    return rc;
}

int chardev_monitor_add(const char *text, struct error *err)
{
    struct json_object *object;
    int rc = option_keyval_tree(text, "chardev", &object, err);

    if (rc < 0)
        return rc;
    rc = chardev_monitor_open(object, err);
    json_object_put(object);
    return rc;
}

void chardev_clear(bool warn)
{
    struct chardev *chardev, *after;

    list_for_each_safe(chardev, after, &chardevs, link) {
        if (warn && !chardev->used)
            log_warning("chardev '%s' has no monitor", chardev->id);
        chardev_free(chardev);
    }
}
