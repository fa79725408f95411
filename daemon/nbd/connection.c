/*
 * The life of a transmitting client, its slots and its buffers: see
 * connection.h.
 */
#include "daemon/nbd/connection.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "core/memory.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"
#include "generated/options.h"

static unsigned buffer_class(size_t size)
{
    unsigned class = 0;

    while ((size_t)BUFFER_ALIGN << class < size)
        class++;
    return class;
}

int nbd_slot_buffer(struct nbd_slot *slot, size_t size)
{
    struct nbd_connection *connection = slot->connection;
    unsigned class = buffer_class(size);
    struct nbd_buffer *buffer = connection->free_buffers[class];

    if (buffer)
        connection->free_buffers[class] = buffer->next;
    else
        buffer = buffer_alloc((size_t)BUFFER_ALIGN << class);
    if (!buffer)
        return -ENOMEM;
    slot->buffer = buffer;
    slot->buffer_class = (uint8_t)class;
    connection->memory += (size_t)BUFFER_ALIGN << class;
    return 0;
}

static void slot_buffer_put(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    struct nbd_buffer *buffer = take_ptr(&slot->buffer);

    if (!buffer)
        return;
    connection->memory -= (size_t)BUFFER_ALIGN << slot->buffer_class;
    if (slot->buffer_class > NBD_BUFFER_KEEP_CLASS) {
        free(buffer);
        return;
    }
    buffer->next = connection->free_buffers[slot->buffer_class];
    connection->free_buffers[slot->buffer_class] = buffer;
}

static void chunk_put(struct nbd_connection *connection, struct nbd_chunk *chunk)
{
    if (--chunk->refs)
        return;
    connection->memory -= sizeof(*chunk);
    if (connection->input.spare) {
        free(chunk);
        return;
    }
    connection->input.spare = chunk;
}

struct nbd_slot *nbd_slot_get(struct nbd_connection *connection)
{
    struct nbd_slot *slot = connection->free_slots;
    unsigned scratch = atomic_load_explicit(&connection->export->scratch, memory_order_relaxed);

    if (likely(slot && slot->request.scratch_size >= scratch)) {
        connection->free_slots = slot->next;
    } else {
        /* A graph that grew needs larger slots: the small ones go one by one. */
        if (slot) {
            connection->free_slots = slot->next;
            free(slot->status.extents);
            free(slot);
        }
        slot = aligned_alloc(64, (sizeof(*slot) + scratch + 63) & ~(size_t)63);
        if (!slot)
            return NULL;
        memset(slot, 0, sizeof(*slot));
        slot->connection = connection;
        slot->request.scratch_size = (uint16_t)scratch;
        slot->request.buffer_index = UINT32_MAX;
        slot->request.done = nbd_request_done;
    }
    connection->slot_count++;
    return slot;
}

void nbd_slot_put(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    struct nbd_chunk *chunk = take_ptr(&slot->chunk);

    slot_buffer_put(slot);
    if (chunk)
        chunk_put(connection, chunk);
    slot->next = connection->free_slots;
    connection->free_slots = slot;
    connection->slot_count--;
    if (unlikely(connection->input.blocked)) {
        connection->input.blocked = false;
        poller_heat(&connection->poller);
    }
}

static void connection_free(struct nbd_connection *connection)
{
    while (connection->free_slots) {
        struct nbd_slot *slot = connection->free_slots;

        connection->free_slots = slot->next;
        free(slot->status.extents);
        free(slot);
    }
    for (unsigned class = 0; class < NBD_BUFFER_CLASSES; class++) {
        while (connection->free_buffers[class]) {
            struct nbd_buffer *buffer = connection->free_buffers[class];

            connection->free_buffers[class] = buffer->next;
            free(buffer);
        }
    }
    free(connection->input.chunk);
    free(connection->input.spare);
    close(connection->fd);
    free(connection);
}

/* The end, on the main loop: once the loop let go, and a stop that was posted has arrived. */
static void connection_end(struct nbd_connection *connection)
{
    struct nbd_export *export = connection->export;
    struct nbd_server *server = export->server;

    list_remove(&connection->in_export);
    connection_free(connection);
    export->connection_count--;
    nbd_server_left(server);
    if (export->export->stopping && export->connection_count == 0)
        export_stopped(export->export);
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

/* Replies that nobody will read. */
static void connection_drop_replies(struct nbd_connection *connection)
{
    struct nbd_output *output = &connection->output;

    if (output->waiting)
        return;
    while (output->first) {
        struct nbd_slot *slot = output->first;

        output->first = slot->next;
        nbd_slot_put(slot);
    }
    output->last = &output->first;
}

void nbd_connection_reap(struct nbd_connection *connection)
{
    if (!connection->closing || connection->message.run)
        return;
    connection_drop_replies(connection);
    if (connection->slot_count || !connection->poller_gone || connection->output.waiting ||
        list_is_linked(&connection->output.hook.link))
        return;
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

void nbd_connection_close(struct nbd_connection *connection)
{
    struct nbd_slot *filling = take_ptr(&connection->input.filling);

    if (connection->closing)
        return;
    connection->closing = true;
    /* Ends polls that are armed, and tells the client. */
    shutdown(connection->fd, SHUT_RDWR);
    if (filling)
        nbd_slot_put(filling);
    /* The hook looks once more: what finished in this turn goes with it. */
    loop_hook_queue(connection->loop, &connection->output.hook);
    poller_remove(&connection->poller, connection_poller_removed);
}

void nbd_connection_resumed(struct nbd_connection *connection)
{
    connection->input.blocked = false;
    if (!connection->closing)
        poller_heat(&connection->poller);
}

static void connection_begin(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, message);

    connection->message.run = NULL;
    list_append(&connection->export->by_loop[connection->loop->index], &connection->in_loop);
    poller_add(connection->loop, &connection->poller);
}

int nbd_connection_start(struct nbd_export *export, int fd, bool structured, bool extended, bool context,
                         const void *data, size_t size)
{
    struct nbd_connection *connection = calloc(1, sizeof(*connection));
    struct nbd_chunk *chunk = malloc(sizeof(*chunk));

    if (!connection || !chunk || size > NBD_CHUNK_SIZE) {
        free(connection);
        free(chunk);
        return -ENOMEM;
    }
    chunk->refs = 1;
    chunk->start = 0;
    chunk->end = (uint32_t)size;
    if (size)
        memcpy(chunk->data, data, size);
    connection->fd = fd;
    connection->structured = structured;
    connection->extended = extended;
    connection->context = context;
    connection->writethrough = export->export->options->writethrough;
    connection->read_only = !export->export->writable;
    connection->export = export;
    connection->loop = export_next_loop(export->export);
    connection->poller.fd = fd;
    connection->poller.poll = nbd_transmit_poll;
    list_link_init(&connection->poller.link);
    list_link_init(&connection->in_loop);
    list_link_init(&connection->output.hook.link);
    connection->memory = sizeof(*chunk);
    connection->input.chunk = chunk;
    connection->output.last = &connection->output.first;
    connection->output.op.complete = nbd_send_ready;
    connection->output.hook.run = nbd_send_hook;
    list_append(&export->connections, &connection->in_export);
    export->connection_count++;
    connection->message.run = connection_begin;
    loop_post(connection->loop, &connection->message);
    return 0;
}
