/*
 * How a connection is made and unmade: its socket in the loop, and libnbd's
 * handshake. All of it runs in the connection's keeper, or in open() in its
 * place; what it waits for wakes it by nbd_wake().
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "core/socket.h"
#include "drivers/protocol/nbd.h"

/* A server that takes the connection and says nothing. */
#define NBD_HANDSHAKE_NS 10000000000u

/* What a server accepts that does not tell: protocol, "Size constraints". */
#define NBD_TRANSFER_MAX (32u << 20)

/* Waits and wakes. */

void nbd_wake(struct nbd_connection *connection)
{
    struct coroutine *keeper = take_ptr(&connection->keeper);

    if (keeper)
        coroutine_wake(keeper);
}

void nbd_wait(struct nbd_connection *connection, uint64_t deadline_ns)
{
    if (deadline_ns != UINT64_MAX)
        timer_set(&connection->clock, connection->loop, deadline_ns);
    connection->keeper = coroutine_self();
    coroutine_yield();
    timer_cancel(&connection->clock);
}

uint64_t nbd_now(const struct nbd_connection *connection)
{
    return connection->loop->ring->ops->now(connection->loop->ring);
}

/* The socket. */

/* libnbd's words belong to the thread's last call: they are kept at once. Without the name of its function. */
static void nbd_note(struct nbd_connection *connection)
{
    const char *text = nbd_get_error(), *colon = text ? strstr(text, ": ") : NULL;

    free(connection->reason);
    connection->reason = memory_string(colon ? colon + 2 : text ? text : "unknown error");
}

/*
 * Libnbd must be told to read only if there is something: it would begin a
 * reply, and send nothing, not even the rest of a request, until it had the
 * whole of it. Only in the middle of a reply it may try.
 */
static bool nbd_can_read(const struct nbd_connection *connection)
{
    unsigned direction = nbd_aio_get_direction(connection->handle);
    char byte;

    if (!(direction & LIBNBD_AIO_DIRECTION_READ))
        return false;
    if (direction == LIBNBD_AIO_DIRECTION_READ && !nbd_aio_is_ready(connection->handle))
        return true;
    return recv(connection->poller.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

static bool nbd_socket_poll(struct poller *poller)
{
    struct nbd_connection *connection = container_of(poller, struct nbd_connection, poller);
    bool more = true;

    /* One call takes one reply, or what there is of it. */
    while (more && nbd_can_read(connection)) {
        if (nbd_aio_notify_read(connection->handle) < 0)
            nbd_note(connection);
        more = nbd_aio_is_ready(connection->handle);
    }
    nbd_watch_writing(connection);
    return nbd_settle(connection);
}

static void nbd_writable(struct ring_op *op, int result)
{
    struct nbd_connection *connection = container_of(op, struct nbd_connection, writable);

    connection->writing = false;
    if (result < 0 || !connection->attached) {
        nbd_wake(connection);
        return;
    }
    if (nbd_aio_get_direction(connection->handle) & LIBNBD_AIO_DIRECTION_WRITE &&
        nbd_aio_notify_write(connection->handle) < 0)
        nbd_note(connection);
    nbd_watch_writing(connection);
    nbd_settle(connection);
}

void nbd_watch_writing(struct nbd_connection *connection)
{
    struct ring *ring = connection->loop->ring;

    if (connection->writing || !connection->attached ||
        !(nbd_aio_get_direction(connection->handle) & LIBNBD_AIO_DIRECTION_WRITE))
        return;
    connection->writing = true;
    connection->writable.complete = nbd_writable;
    ring->ops->poll(ring, &connection->writable, connection->poller.fd, POLLOUT);
}

void nbd_attach(struct nbd_connection *connection)
{
    connection->poller.fd = nbd_aio_get_fd(connection->handle);
    connection->poller.poll = nbd_socket_poll;
    connection->attached = true;
    poller_add(connection->loop, &connection->poller);
    nbd_watch_writing(connection);
}

static void nbd_poller_removed(struct poller *poller)
{
    struct nbd_connection *connection = container_of(poller, struct nbd_connection, poller);

    connection->attached = false;
    nbd_wake(connection);
}

/* The loop has nothing of the socket in its ring any more. */
void nbd_detach(struct nbd_connection *connection)
{
    struct ring *ring = connection->loop->ring;

    if (!connection->attached)
        return;
    if (connection->writing)
        ring->ops->cancel_poll(ring, &connection->writable);
    poller_remove(&connection->poller, nbd_poller_removed);
    while (connection->attached || connection->writing)
        nbd_wait(connection, UINT64_MAX);
}

/* Ends what is in flight with ENOTCONN: libnbd forgets it without a word when a handle is closed. */
static void nbd_kill(struct nbd_connection *connection)
{
    struct nbd_handle *handle = connection->handle;

    shutdown(nbd_aio_get_fd(handle), SHUT_RDWR);
    while (!nbd_aio_is_dead(handle) && !nbd_aio_is_closed(handle)) {
        int result = nbd_aio_get_direction(handle) & LIBNBD_AIO_DIRECTION_READ ? nbd_aio_notify_read(handle)
                                                                               : nbd_aio_notify_write(handle);
        if (result < 0)
            break;
    }
}

void nbd_disconnect(struct nbd_connection *connection)
{
    if (!connection->handle)
        return;
    nbd_detach(connection);
    if (connection->in_flight)
        nbd_kill(connection);
    nbd_settle(connection);
    if (connection->state == NBD_READY) {
        atomic_fetch_sub(&connection->nbd->connected, 1);
        nbd_aio_disconnect(connection->handle, 0);
    }
    connection->state = NBD_BROKEN;
    nbd_close(take_ptr(&connection->handle));
}

/* Connect. */

struct nbd_resolving {
    const struct socket_address *server;
    struct socket_target targets[SOCKET_TARGET_MAX];
    struct error err;
};

static int nbd_resolve_blocking(void *arg)
{
    struct nbd_resolving *resolving = arg;

    return socket_resolve(resolving->server, resolving->targets, &resolving->err);
}

/* A name server may take its time. */
static int nbd_resolve(struct nbd_resolving *resolving)
{
    if (resolving->server->type == SOCKET_ADDRESS_TYPE_INET)
        return coroutine_call(nbd_resolve_blocking, resolving);
    return nbd_resolve_blocking(resolving);
}

static char *nbd_server_name(const struct socket_address *server)
{
    if (server->type == SOCKET_ADDRESS_TYPE_UNIX)
        return memory_string(server->u.unix_.path);
    return memory_format("%s:%s", server->u.inet.host, server->u.inet.port);
}

static void nbd_socket_options(const struct nbd_connection *connection)
{
    const struct socket_address *server = connection->nbd->options->server;
    int on = 1;

    if (server->type == SOCKET_ADDRESS_TYPE_INET && server->u.inet.keep_alive)
        setsockopt(nbd_aio_get_fd(connection->handle), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/* All that needs no wait: a handle that has begun to connect. */
static int nbd_begin(struct nbd_connection *connection, const struct socket_target *target)
{
    struct nbd_handle *handle = nbd_create();

    connection->handle = handle;
    if (!handle)
        return -ENOMEM;
    /* Buffers are zeroed before they are read into: libnbd believes a server that sends less than it was asked for, and
     * what was in the memory before is nobody's. */
    if (nbd_set_export_name(handle, connection->nbd->options->export) < 0 ||
        nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_set_tls(handle, LIBNBD_TLS_DISABLE) < 0 ||
        nbd_aio_connect(handle, (const struct sockaddr *)&target->address, target->size) < 0)
        return -1;
    nbd_socket_options(connection);
    return 0;
}

static int nbd_shake_hands(struct nbd_connection *connection)
{
    uint64_t limit = nbd_now(connection) + NBD_HANDSHAKE_NS;

    connection->state = NBD_CONNECTING;
    nbd_attach(connection);
    while (nbd_aio_is_connecting(connection->handle) && nbd_now(connection) < limit) {
        if (connection->stop || connection->target)
            return -ECANCELED;
        nbd_wait(connection, limit);
    }
    if (nbd_aio_is_ready(connection->handle))
        return 0;
    if (!connection->reason)
        connection->reason = memory_string(nbd_aio_is_connecting(connection->handle) ? "no answer to the handshake"
                                                                                     : "the server hung up");
    return -EIO;
}

static uint32_t nbd_block_size(struct nbd_handle *handle)
{
    int64_t block = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);

    return block > 1 && block <= 65536 && (block & (block - 1)) == 0 ? (uint32_t)block : 1;
}

static uint32_t nbd_transfer_size(struct nbd_handle *handle, uint32_t block)
{
    int64_t transfer = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);

    if (transfer <= 0 || transfer > NBD_TRANSFER_MAX)
        transfer = NBD_TRANSFER_MAX;
    transfer &= ~(int64_t)(block - 1);
    return transfer < block ? block : (uint32_t)transfer;
}

static struct nbd_traits nbd_read_traits(struct nbd_handle *handle)
{
    int64_t size = nbd_get_size(handle);
    struct nbd_traits traits = {
        .size = size < 0 ? UINT64_MAX : (uint64_t)size,
        .block = nbd_block_size(handle),
        .read_only = nbd_is_read_only(handle) != 0,
        .multi = nbd_can_multi_conn(handle) > 0,
        .flush = nbd_can_flush(handle) > 0,
        .fua = nbd_can_fua(handle) > 0,
        .trim = nbd_can_trim(handle) > 0,
        .zero = nbd_can_zero(handle) > 0,
        .fast_zero = nbd_can_fast_zero(handle) > 0,
        .cache = nbd_can_cache(handle) > 0,
        .status = nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
    };

    traits.transfer = nbd_transfer_size(handle, traits.block);
    return traits;
}

/* What the export has not that the node was made from, or NULL. */
static const char *nbd_lacks(const struct nbd_traits *now, const struct nbd_traits *node)
{
    const struct {
        bool has, needs;
        const char *what;
    } abilities[] = {
        {now->block <= node->block, true, "blocks as small"},
        {now->transfer >= node->transfer, true, "requests as large"},
        {!now->read_only, !node->read_only, "writes"},
        {now->multi, node->multi, "several connections"},
        {now->flush, node->flush, "flushes"},
        {now->fua, node->fua, "forced unit access"},
        {now->trim, node->trim, "discards"},
        {now->zero, node->zero, "write-zeroes"},
        {now->fast_zero, node->fast_zero, "fast zeroes"},
        {now->cache, node->cache, "cache hints"},
        {now->status, node->status, "block status"},
    };

    for (unsigned i = 0; i < array_size(abilities); i++) {
        if (abilities[i].needs && !abilities[i].has)
            return abilities[i].what;
    }
    return NULL;
}

/* The node's first connection says what the export is; later ones must find it again. */
static int nbd_examine(struct nbd_connection *connection)
{
    struct nbd *nbd = connection->nbd;
    struct nbd_traits traits = nbd_read_traits(connection->handle);
    const char *lacks;

    if (nbd->traits.block == 0)
        nbd->traits = traits;
    if (traits.size != nbd->traits.size)
        connection->reason =
            memory_format("the export had %" PRIu64 " bytes before, and has %" PRIu64, nbd->traits.size, traits.size);
    else if ((lacks = nbd_lacks(&traits, &nbd->traits)))
        connection->reason = memory_format("the export allowed %s before, and does not now", lacks);
    return connection->reason ? -EIO : 0;
}

static int nbd_connect_to(struct nbd_connection *connection, const struct socket_target *target)
{
    int result = nbd_begin(connection, target);

    free(take_ptr(&connection->reason));
    if (result < 0)
        nbd_note(connection);
    else
        result = nbd_shake_hands(connection);
    if (result == 0) {
        free(take_ptr(&connection->reason));
        result = nbd_examine(connection);
    }
    if (result < 0) {
        nbd_disconnect(connection);
        return -EIO;
    }
    connection->state = NBD_READY;
    connection->used = true;
    atomic_fetch_add(&connection->nbd->connected, 1);
    return 0;
}

static int nbd_connect_failed(const struct nbd_connection *connection, struct error *err)
{
    const struct nbd_options *options = connection->nbd->options;
    AUTO_FREE char *server = nbd_server_name(options->server);

    return error_set(err, -EIO, "Could not open export '%s' of NBD server '%s' (options 'export', 'server'): %s",
                     options->export, server, connection->reason ? connection->reason : "interrupted");
}

int nbd_connect(struct nbd_connection *connection, struct error *err)
{
    struct nbd_resolving *resolving = memory_new(struct nbd_resolving);

    resolving->server = connection->nbd->options->server;
    int count = nbd_resolve(resolving), result = count;

    if (count < 0)
        error_move(err, &resolving->err);
    for (int i = 0; i < count; i++) {
        result = nbd_connect_to(connection, &resolving->targets[i]);
        if (result == 0 || connection->stop || connection->target)
            break;
    }
    if (count >= 0 && result < 0)
        nbd_connect_failed(connection, err);
    free(resolving);
    return result < 0 ? result : 0;
}
