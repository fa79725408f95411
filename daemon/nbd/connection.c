/*
 * The life of a transmitting client: see connection.h.
 *
 * What may refer to a connection, and is waited for before the main loop frees
 * it: slots (requests in flight, replies), the poller, the poll for POLLOUT,
 * the hook, messages between the loops. The last to go calls
 * nbd_connection_reap().
 */
#include "daemon/nbd/connection.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "core/memory.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/handshake.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"
#include "generated/options.h"

/* Idle memory is given back after one to two of these without requests. */
#define CONNECTION_TRIM_NS 5000000000u

/* Idle memory. */

static void connection_trim(struct timer *timer)
{
    struct nbd_connection *connection = container_of(timer, struct nbd_connection, trimmer);
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = input->chunk;

    if (connection->active) {
        connection->active = false;
        timer_set(timer, connection->loop, connection->loop->now_ns + CONNECTION_TRIM_NS);
        return;
    }
    if (chunk && chunk->start == chunk->end)
        nbd_chunk_put(&connection->pool, take_ptr(&input->chunk));
    nbd_pool_trim(&connection->pool);
}

void nbd_connection_touch(struct nbd_connection *connection)
{
    connection->active = true;
    if (unlikely(connection->trimmer.heap_index == 0))
        timer_set(&connection->trimmer, connection->loop, connection->loop->now_ns + CONNECTION_TRIM_NS);
}

/* The end, on the main loop: once the loop let go, and a stop that was posted has arrived. */

static void connection_free(struct nbd_connection *connection)
{
    if (connection->input.chunk)
        nbd_chunk_put(&connection->pool, connection->input.chunk);
    nbd_pool_trim(&connection->pool);
    close(connection->fd);
    free(connection);
}

static void connection_end(struct nbd_connection *connection)
{
    struct nbd_export *export = connection->export;

    list_remove(&connection->in_export);
    object_detach(&connection->object);
    connection_free(connection);
    nbd_export_left(export);
}

static void connection_gone(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, message);

    connection->gone = true;
    if (!connection->stop_posted)
        connection_end(connection);
}

static void connection_stop_arrived(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, stop_message);

    connection->stop_posted = false;
    if (connection->gone)
        connection_end(connection);
}

static void connection_stop_on_loop(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, stop_message);

    connection->stop_message.run = connection_stop_arrived;
    /* Those who were in time get their answers, if the socket takes them. */
    nbd_send(connection);
    nbd_connection_close(connection);
    loop_post(loop_main, &connection->stop_message);
}

void nbd_connection_stop(struct nbd_connection *connection)
{
    if (connection->stop_posted || connection->gone)
        return;
    connection->stop_posted = true;
    connection->stop_message.run = connection_stop_on_loop;
    loop_post(connection->loop, &connection->stop_message);
}

/* The end, on the loop. */

/* Replies that nobody will read. */
static void connection_drop_replies(struct nbd_connection *connection)
{
    struct nbd_output *output = &connection->output;

    while (output->first) {
        struct nbd_slot *slot = output->first;

        output->first = slot->next;
        nbd_slot_put(slot);
    }
    output->last = &output->first;
}

void nbd_connection_reap(struct nbd_connection *connection)
{
    bool hooked = list_is_linked(&connection->output.hook.link);

    if (likely(!connection->closing && !connection->finishing) || connection->message.run || hooked ||
        connection->output.waiting)
        return;
    if (connection->closing)
        connection_drop_replies(connection);
    if (connection->pool.slots || !connection->poller_gone)
        return;
    if (!connection->closing) {
        nbd_connection_close(connection);
        return;
    }
    timer_cancel(&connection->trimmer);
    list_remove(&connection->in_loop);
    connection->message.run = connection_gone;
    loop_post(loop_main, &connection->message);
}

static void connection_poller_removed(struct poller *poller)
{
    struct nbd_connection *connection = container_of(poller, struct nbd_connection, poller);

    connection->poller_gone = true;
    nbd_connection_reap(connection);
}

void nbd_connection_finish(struct nbd_connection *connection)
{
    struct nbd_slot *filling = take_ptr(&connection->input.filling), *refused = take_ptr(&connection->input.refused);

    if (connection->finishing)
        return;
    connection->finishing = true;
    if (filling)
        nbd_slot_put(filling);
    if (refused)
        nbd_slot_put(refused);
    /* The hook looks once more: what ended in this turn goes with it. */
    loop_hook_queue(connection->loop, &connection->output.hook);
    poller_remove(&connection->poller, connection_poller_removed);
}

void nbd_connection_close(struct nbd_connection *connection)
{
    if (connection->closing)
        return;
    connection->closing = true;
    /* Ends polls that are armed, and tells the client. */
    shutdown(connection->fd, SHUT_RDWR);
    if (connection->finishing)
        loop_hook_queue(connection->loop, &connection->output.hook);
    else
        nbd_connection_finish(connection);
}

/* Holding back. */

void nbd_connection_unblock(struct nbd_connection *connection)
{
    connection->input.blocked = false;
    if (!connection->finishing)
        poller_heat(&connection->poller);
}

void nbd_connection_resumed(struct nbd_connection *connection)
{
    /* The graph may be another one now. */
    connection->input.copies = false;
    nbd_connection_unblock(connection);
}

/* The beginning. */

static void connection_begin(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, message);

    connection->message.run = NULL;
    list_append(&connection->export->by_loop[connection->loop->index], &connection->in_loop);
    poller_add(connection->loop, &connection->poller);
}

/* Objects: what was negotiated. */

static const struct nbd_connection *connection_of(const struct object *object)
{
    return container_of(object, struct nbd_connection, object);
}

static int connection_get_loop(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_string(connection_of(object)->loop->name)};
    return 0;
}

static int connection_get_structured(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_BOOL, .boolean = connection_of(object)->structured};
    return 0;
}

static int connection_get_extended(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_BOOL, .boolean = connection_of(object)->extended};
    return 0;
}

static const struct object_property connection_properties[] = {
    {"iothread", "string", connection_get_loop, NULL},
    {"structured-replies", "bool", connection_get_structured, NULL},
    {"extended-headers", "bool", connection_get_extended, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct object_type connection_object_type = {.name = "nbd-client", .properties = connection_properties};

int nbd_connection_start(const struct nbd_handshake *handshake, int fd, const void *data, size_t size)
{
    struct nbd_connection *connection = calloc(1, sizeof(*connection));
    struct nbd_export *export = handshake->export;
    struct nbd_chunk *chunk = connection && size <= NBD_CHUNK_SIZE ? nbd_chunk_get(&connection->pool) : NULL;

    if (!chunk) {
        free(connection);
        return -ENOMEM;
    }
    if (size)
        memcpy(chunk->data, data, size);
    chunk->end = (uint32_t)size;
    connection->input.chunk = chunk;
    connection->fd = fd;
    connection->structured = handshake->structured;
    connection->extended = handshake->extended;
    connection->context = handshake->structured && handshake->context == export;
    connection->writethrough = export->export->options->writethrough;
    connection->read_only = !export->export->writable;
    connection->export = export;
    connection->loop = export_next_loop(export->export);
    connection->poller.fd = fd;
    connection->poller.poll = nbd_transmit_poll;
    list_link_init(&connection->poller.link);
    list_link_init(&connection->in_loop);
    list_link_init(&connection->output.hook.link);
    connection->output.last = &connection->output.first;
    connection->output.op.complete = nbd_send_ready;
    connection->output.hook.run = nbd_send_hook;
    connection->trimmer.expired = connection_trim;
    connection->message.run = connection_begin;
    list_append(&export->connections, &connection->in_export);
    export->connection_count++;
    connection->number = export->connection_number++;
    AUTO_FREE char *name = memory_format("client%u", connection->number);

    object_attach(&connection->object, &connection_object_type, &export->export->object, name, NULL);
    loop_post(connection->loop, &connection->message);
    return 0;
}
