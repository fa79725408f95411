/*
 * See startup.h.
 */
#include "daemon/startup.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/options.h"
#include "daemon/chardev.h"
#include "daemon/command_line.h"
#include "daemon/config.h"
#include "daemon/nbd/server.h"
#include "daemon/systemd.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/option_keyval.h"
#include "qmp/server.h"

static int startup_blockdev(const char *text, struct error *err)
{
    struct json_object *nothing = NULL;
    void *options;
    int rc = option_parse_keyval(&node_options_type, text, "driver", &options, err);

    if (rc < 0)
        return rc;
    rc = qmp_blockdev_add(NULL, options, &nothing, err);
    option_free(&node_options_type, options);
    return rc;
}

static int startup_export(const char *text, struct error *err)
{
    struct json_object *nothing = NULL;
    void *options;
    int rc = option_parse_keyval(&export_options_type, text, "type", &options, err);

    if (rc < 0)
        return rc;
    rc = qmp_block_export_add(NULL, options, &nothing, err);
    option_free(&export_options_type, options);
    return rc;
}

static int startup_object(const char *text, struct error *err)
{
    struct json_object *nothing = NULL;
    void *options;
    int rc = option_parse_keyval(&object_options_type, text, "qom-type", &options, err);

    if (rc < 0)
        return rc;
    rc = qmp_object_add(NULL, options, &nothing, err);
    option_free(&object_options_type, options);
    return rc;
}

static int startup_nbd_server(const char *text, struct error *err)
{
    void *options;
    int rc = option_parse_keyval(&nbd_server_options_type, text, NULL, &options, err);

    if (rc < 0)
        return rc;
    rc = nbd_server_start(options, err);
    option_free(&nbd_server_options_type, options);
    return rc;
}

static int startup_qmp(const char *path, struct error *err)
{
    AUTO_FREE char *copy = memory_string(path);
    struct socket_address address = {.type = SOCKET_ADDRESS_TYPE_UNIX, .u.unix_.path = copy};

    return qmp_listen(&address, false, err);
}

/* As the option would be written on the command line, so that defaults come from the schema. */
static int startup_nbd_socket(const char *id, int fd, struct error *err)
{
    AUTO_FREE char *text = memory_format("%s%s%saddr.type=fd,addr.str=%d", *id ? "id=" : "", id, *id ? "," : "", fd);

    return startup_nbd_server(text, err);
}

static int startup_socket(struct systemd_socket *socket, struct error *err)
{
    if (strcmp(socket->name, "qmp") == 0)
        return qmp_listen_fd(take_fd(&socket->fd), false, err);
    if (strcmp(socket->name, "nbd") == 0)
        return startup_nbd_socket("", take_fd(&socket->fd), err);
    if (strncmp(socket->name, "nbd-", 4) == 0 && !strchr(socket->name, ','))
        return startup_nbd_socket(socket->name + 4, take_fd(&socket->fd), err);
    log_warning("socket '%s' from the service manager is not used: its name is not qmp, nbd or nbd-ID", socket->name);
    return 0;
}

int startup_sockets(struct systemd_socket *sockets, unsigned count, struct error *err)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < count; i++) {
        rc = startup_socket(&sockets[i], err);
        if (rc < 0)
            error_prefix(err, "socket '%s' from the service manager: ", sockets[i].name);
    }
    return rc;
}

int startup_run(const struct command_line *line, struct error *err)
{
    static int (*const steps[COMMAND_LINE_KIND_COUNT])(const char *value, struct error *err) = {
        [COMMAND_LINE_BLOCKDEV] = startup_blockdev,   [COMMAND_LINE_CHARDEV] = chardev_add,
        [COMMAND_LINE_CONFIG] = config_run,           [COMMAND_LINE_EXPORT] = startup_export,
        [COMMAND_LINE_MONITOR] = chardev_monitor_add, [COMMAND_LINE_NBD_SERVER] = startup_nbd_server,
        [COMMAND_LINE_OBJECT] = startup_object,       [COMMAND_LINE_QMP] = startup_qmp,
    };
    int rc = 0;

    /* Steps wait for I/O, and a client must not meet half of what the command line describes: QMP comes last. */
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; rc == 0 && i < line->step_count; i++) {
            const struct command_line_step *step = &line->steps[i];
            bool monitors = step->kind == COMMAND_LINE_QMP || step->kind == COMMAND_LINE_MONITOR;

            if (monitors != (pass == 1))
                continue;
            rc = steps[step->kind](step->value, err);
            if (rc < 0)
                error_prefix(err, "%s %s: ", command_line_name(step->kind), step->value);
        }
    }
    chardev_clear(rc == 0);
    return rc;
}
