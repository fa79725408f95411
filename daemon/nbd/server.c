/*
 * NBD servers: see server.h. The negotiation is a small dialogue, so it runs
 * on libevent's buffered sockets.
 */
#include "daemon/nbd/server.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/log.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/socket.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/handshake.h"
#include "daemon/nbd/proto.h"
#include "generated/options.h"

/* Unread replies of one client above which its options wait. */
#define CLIENT_OUTPUT_MAX (256u * 1024)
#define SOCKET_BUFFER (4 << 20)
#define ACCEPT_RETRY_MS 100

struct nbd_client {
    struct nbd_server *server;
    struct bufferevent *stream;
    struct event *deadline;
    struct nbd_handshake handshake;
    struct list_link in_server;
};

struct list nbd_server_registry = LIST_INIT(nbd_server_registry);

struct nbd_server *nbd_server_find(const char *id)
{
    struct nbd_server *server;

    list_for_each(server, &nbd_server_registry, in_registry) {
        if (strcmp(server->id, id) == 0)
            return server;
    }
    return NULL;
}

struct nbd_export *nbd_server_export(const struct nbd_server *server, const char *name)
{
    struct nbd_export *export;

    list_for_each(export, &server->exports, in_server) {
        if (strcmp(export->name, name) == 0)
            return export;
    }
    return NULL;
}

/* Listening. */

static void server_enable(struct nbd_server *server, bool enable)
{
    for (unsigned i = 0; i < server->listener_count; i++) {
        if (enable)
            event_add(server->listeners[i], NULL);
        else
            event_del(server->listeners[i]);
    }
}

static bool server_is_full(const struct nbd_server *server)
{
    return server->options->max_connections && server->connections >= server->options->max_connections;
}

void nbd_server_left(struct nbd_server *server)
{
    bool was_full = server_is_full(server);

    server->connections--;
    if (was_full)
        server_enable(server, true);
}

/* Clients. */

static void client_free(struct nbd_client *client)
{
    list_remove(&client->in_server);
    if (client->deadline)
        event_free(client->deadline);
    if (client->stream)
        bufferevent_free(client->stream);
    free(client);
}

static void client_drop(struct nbd_client *client)
{
    struct nbd_server *server = client->server;

    client_free(client);
    nbd_server_left(server);
}

/* Negotiated: the socket and what it already received move to an I/O loop. */
static void client_promote(struct nbd_client *client)
{
    struct nbd_handshake *handshake = &client->handshake;
    struct evbuffer *input = bufferevent_get_input(client->stream);
    size_t size = evbuffer_get_length(input);
    int fd = bufferevent_getfd(client->stream);

    if (nbd_connection_start(handshake, fd, evbuffer_pullup(input, -1), size) < 0) {
        client_drop(client);
        return;
    }
    bufferevent_setfd(client->stream, -1);
    client_free(client);
}

/* Takes what came, as long as the client also reads the replies. */
static void client_take(struct nbd_handshake *handshake, struct evbuffer *input, struct evbuffer *output)
{
    const unsigned char *at = evbuffer_pullup(input, -1);
    size_t left = evbuffer_get_length(input), taken;

    do {
        taken = nbd_handshake_input(handshake, at, left);
        at += taken;
        left -= taken;
    } while (taken && evbuffer_get_length(output) < CLIENT_OUTPUT_MAX);
    evbuffer_drain(input, evbuffer_get_length(input) - left);
}

static void client_step(struct nbd_client *client)
{
    struct evbuffer *output = bufferevent_get_output(client->stream);
    struct nbd_handshake *handshake = &client->handshake;

    if (handshake->state < NBD_HANDSHAKE_DONE && evbuffer_get_length(output) < CLIENT_OUTPUT_MAX)
        client_take(handshake, bufferevent_get_input(client->stream), output);
    if (handshake->state < NBD_HANDSHAKE_DONE || evbuffer_get_length(output))
        return;
    if (handshake->state == NBD_HANDSHAKE_DONE)
        client_promote(client);
    else
        client_drop(client);
}

static void client_readable(struct bufferevent *stream, void *arg)
{
    (void)stream;
    client_step(arg);
}

static void client_event(struct bufferevent *stream, short what, void *arg)
{
    (void)stream;
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR))
        client_drop(arg);
}

static void client_late(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    client_drop(arg);
}

static void client_tune_socket(int fd, bool keep_alive)
{
    int on = 1, size = SOCKET_BUFFER;
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    if (getsockname(fd, (struct sockaddr *)&address, &length) == 0 && address.ss_family != AF_UNIX) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (keep_alive)
            setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        return;
    }
    /* Larger than the system's limit only with the privilege for it. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

static bool server_keep_alive(const struct nbd_server *server)
{
    const struct socket_address *address = server->options->addr;

    return address->type == SOCKET_ADDRESS_TYPE_INET && address->u.inet.keep_alive;
}

static void server_take(struct nbd_server *server, int fd)
{
    struct nbd_client *client = memory_new(struct nbd_client);
    uint64_t seconds = server->options->handshake_max_seconds;
    struct timeval limit = {.tv_sec = (time_t)seconds};

    client_tune_socket(fd, server_keep_alive(server));
    client->server = server;
    client->stream = bufferevent_socket_new(loop_main->events, fd, BEV_OPT_CLOSE_ON_FREE);
    list_append(&server->clients, &client->in_server);
    server->connections++;
    if (!client->stream) {
        close(fd);
        client_drop(client);
        return;
    }
    if (seconds) {
        client->deadline = evtimer_new(loop_main->events, client_late, client);
        evtimer_add(client->deadline, &limit);
    }
    bufferevent_setwatermark(client->stream, EV_READ, 0, NBD_HANDSHAKE_INPUT_MAX);
    bufferevent_setcb(client->stream, client_readable, client_readable, client_event, client);
    nbd_handshake_start(&client->handshake, server, bufferevent_get_output(client->stream));
    bufferevent_enable(client->stream, EV_READ | EV_WRITE);
}

static void server_acceptable(evutil_socket_t listener, short what, void *arg)
{
    struct nbd_server *server = arg;
    static const struct timeval retry = {.tv_usec = ACCEPT_RETRY_MS * 1000};

    (void)what;
    while (!server_is_full(server)) {
        int fd = accept4((int)listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            server_take(server, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* The client stays in the queue: to look again at once would only spin. */
            server_enable(server, false);
            evtimer_add(server->retry, &retry);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
    server_enable(server, false);
}

static void server_retry(evutil_socket_t fd, short what, void *arg)
{
    struct nbd_server *server = arg;

    (void)fd;
    (void)what;
    if (!server_is_full(server))
        server_enable(server, true);
}

void nbd_server_forget(struct nbd_server *server, struct nbd_export *export)
{
    struct nbd_client *client, *after;

    export->hidden = true;
    list_for_each_safe(client, after, &server->clients, in_server) {
        if (client->handshake.context == export)
            client->handshake.context = NULL;
        /* It waits for its last reply to be sent; the export would be gone by then. */
        if (client->handshake.export == export)
            client_drop(client);
    }
}

/* The options say what is: a port that the system chose is filled in. */
static void server_learn_port(struct nbd_server *server, int fd)
{
    struct socket_address *address = server->options->addr;
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof(name);

    if (address->type != SOCKET_ADDRESS_TYPE_INET || getsockname(fd, (struct sockaddr *)&name, &length) < 0)
        return;
    uint16_t port = name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&name)->sin6_port
                                               : ((struct sockaddr_in *)(void *)&name)->sin_port;

    free(address->u.inet.port);
    address->u.inet.port = memory_format("%u", ntohs(port));
}

int nbd_server_start(const struct nbd_server_options *options, struct error *err)
{
    const char *id = options->id ? options->id : "";
    int fds[SOCKET_LISTEN_MAX];

    if (nbd_server_find(id) && id[0])
        return error_set(err, -EEXIST, "NBD server '%s' already running", id);
    if (nbd_server_find(id))
        return error_set(err, -EEXIST, "NBD server already running");
    int count = socket_listen(options->addr, fds, err);

    if (count < 0)
        return count;
    struct nbd_server *server = memory_new(struct nbd_server);

    server->id = memory_string(id);
    server->options = option_copy(&nbd_server_options_type, options);
    list_init(&server->exports);
    list_init(&server->clients);
    list_append(&nbd_server_registry, &server->in_registry);
    server->retry = evtimer_new(loop_main->events, server_retry, server);
    server->listeners = memory_array((size_t)count, sizeof(*server->listeners));
    for (int i = 0; i < count; i++)
        server->listeners[server->listener_count++] =
            event_new(loop_main->events, fds[i], EV_READ | EV_PERSIST, server_acceptable, server);
    server_learn_port(server, fds[0]);
    server_enable(server, true);
    return 0;
}

static void server_stop_listening(struct nbd_server *server)
{
    const struct socket_address *address = server->options->addr;
    struct nbd_client *client;

    event_free(server->retry);
    for (unsigned i = 0; i < server->listener_count; i++) {
        int fd = event_get_fd(server->listeners[i]);

        event_free(server->listeners[i]);
        close(fd);
    }
    free(server->listeners);
    server->listener_count = 0;
    if (address->type == SOCKET_ADDRESS_TYPE_UNIX)
        unlink(address->u.unix_.path);
    while ((client = list_first(&server->clients, struct nbd_client, in_server))) {
        client_free(client);
        server->connections--;
    }
}

/* One change for all: a server stops as a whole. */
static int server_remove_exports(struct nbd_server *server, struct error *err)
{
    struct change *change = change_new();
    struct nbd_export *export;

    list_for_each(export, &server->exports, in_server) {
        if (export->export->stopping)
            continue;
        int result = export_remove(change, export->export, true, err);

        if (result < 0) {
            change_abort(change);
            return result;
        }
    }
    return change_apply(change, err);
}

void nbd_server_lost(struct nbd_server *server)
{
    if (server->waiter && list_is_empty(&server->exports))
        coroutine_wake(take_ptr(&server->waiter));
}

int nbd_server_stop(const char *id, struct error *err)
{
    struct nbd_server *server = nbd_server_find(id);

    if (!server || server->stopping)
        return id[0] ? error_set(err, -ENOENT, "NBD server '%s' not running", id)
                     : error_set(err, -ENOENT, "NBD server not running");
    /* No more exports from here on. */
    server->stopping = true;
    int result = server_remove_exports(server, err);

    if (result < 0) {
        server->stopping = false;
        return result;
    }
    server_stop_listening(server);
    /* Nothing of theirs is in flight any more: this does not take long. */
    if (!list_is_empty(&server->exports)) {
        server->waiter = coroutine_self();
        coroutine_yield();
    }
    list_remove(&server->in_registry);
    option_free(&nbd_server_options_type, server->options);
    free(server->id);
    free(server);
    return 0;
}

void nbd_server_stop_all(void)
{
    struct nbd_server *server, *after;

    list_for_each_safe(server, after, &nbd_server_registry, in_registry) {
        AUTO_ERROR struct error err = {0};

        /* Its exports were told to stop before: what is left does not come to rest. */
        if (nbd_server_stop(server->id, &err) < 0) {
            log_error("NBD server '%s' cannot be stopped: %s", server->id, err.text);
            server_stop_listening(server);
        }
    }
}
