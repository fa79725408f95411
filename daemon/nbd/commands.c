/*
 * Commands about NBD servers: nbd-server-start, nbd-server-stop,
 * query-nbd-servers.
 */
#include <json-c/json.h>

#include "daemon/nbd/server.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/json_build.h"
#include "qmp/option_json.h"

int qmp_nbd_server_start(struct qmp_client *client, const struct nbd_server_start_args *args, struct json_object **ret,
                         struct error *err)
{
    /* The command's address is the same with one more level of JSON around it. */
    struct socket_address address = {.type = args->addr->type};
    struct nbd_server_options options = {
        .id = args->id,
        .addr = &address,
        .max_connections = args->max_connections,
        .handshake_max_seconds = args->handshake_max_seconds,
    };

    (void)client;
    (void)ret;
    switch (address.type) {
    case SOCKET_ADDRESS_TYPE_INET:
        address.u.inet = args->addr->u.inet;
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        address.u.unix_ = args->addr->u.unix_;
        break;
    case SOCKET_ADDRESS_TYPE_FD:
        address.u.fd = args->addr->u.fd;
        break;
    }
    return nbd_server_start(&options, err);
}

int qmp_nbd_server_stop(struct qmp_client *client, const struct nbd_server_stop_args *args, struct json_object **ret,
                        struct error *err)
{
    (void)client;
    (void)ret;
    return nbd_server_stop(args->id ? args->id : "", err);
}

int qmp_query_nbd_servers(struct qmp_client *client, const struct query_nbd_servers_args *args,
                          struct json_object **ret, struct error *err)
{
    struct nbd_server *server;

    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_array();
    list_for_each(server, &nbd_server_registry, in_registry) {
        struct json_object *row = json_append_object(*ret);

        json_add_string(row, "id", server->id);
        json_object_object_add(row, "addr", option_to_json(&socket_address_type, server->options->addr));
        json_add_uint(row, "max-connections", server->options->max_connections);
        json_add_uint(row, "handshake-max-seconds", server->options->handshake_max_seconds);
        json_add_uint(row, "connections", server->connections);
    }
    return 0;
}
