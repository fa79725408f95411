/*
 * Replies: headers into the slot, and all that are ready into one send at the
 * end of the loop's turn. "Transmission phase" of proto.md.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/status.h"

/* Of one sendmsg(): IOV_MAX. */
#define REPLY_IOVS 1024u

static uint32_t reply_error(int result)
{
    switch (-result) {
    case 0:
        return NBD_OK;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

/* Header of a structured or extended reply whose payload has size bytes; returns where that goes. */
static unsigned char *reply_chunk(struct nbd_slot *slot, uint16_t type, uint64_t size)
{
    unsigned char *at = slot->header;
    bool extended = slot->connection->extended;

    at = nbd_put32(at, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
    at = nbd_put16(at, NBD_REPLY_FLAG_DONE);
    at = nbd_put16(at, type);
    at = nbd_put64(at, slot->cookie);
    if (extended)
        at = nbd_put64(at, slot->offset);
    return extended ? nbd_put64(at, size) : nbd_put32(at, (uint32_t)size);
}

static void reply_end(struct nbd_slot *slot, const unsigned char *at)
{
    slot->header_size = (uint32_t)(at - slot->header);
}

static void reply_simple(struct nbd_slot *slot, uint32_t error)
{
    unsigned char *at = slot->header;

    at = nbd_put32(at, NBD_SIMPLE_REPLY_MAGIC);
    at = nbd_put32(at, error);
    reply_end(slot, nbd_put64(at, slot->cookie));
}

static void reply_structured_error(struct nbd_slot *slot, int result, const char *text)
{
    if (!text)
        text = strerrordesc_np(-result);
    size_t size = text ? strlen(text) : 0;
    unsigned char *at = reply_chunk(slot, NBD_REPLY_ERROR, 6 + size);

    at = nbd_put32(at, reply_error(result));
    reply_end(slot, nbd_put16(at, (uint16_t)size));
    slot->payload = (struct iovec){.iov_base = (void *)(uintptr_t)text, .iov_len = size};
}

static void reply_data(struct nbd_slot *slot)
{
    unsigned char *at = reply_chunk(slot, NBD_REPLY_OFFSET_DATA, 8 + slot->length);

    reply_end(slot, nbd_put64(at, slot->offset));
}

static void reply_status(struct nbd_slot *slot)
{
    uint16_t type = slot->connection->extended ? NBD_REPLY_BLOCK_STATUS_EXT : NBD_REPLY_BLOCK_STATUS;

    nbd_status_encode(slot);
    reply_end(slot, reply_chunk(slot, type, slot->payload.iov_len));
}

/* Where no data goes along a simple reply is shorter, but a client with extended headers does not know it. */
static void reply_success(struct nbd_slot *slot)
{
    const struct nbd_connection *connection = slot->connection;
    bool reads = slot->type == NBD_CMD_READ;

    if (reads && slot->length && connection->structured)
        reply_data(slot);
    else if (slot->type == NBD_CMD_BLOCK_STATUS)
        reply_status(slot);
    else if (connection->extended || (connection->structured && reads))
        reply_end(slot, reply_chunk(slot, NBD_REPLY_NONE, 0));
    else
        reply_simple(slot, NBD_OK);
    if (reads && slot->length)
        slot->payload = slot->iov;
}

static void reply_queue(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    struct nbd_output *output = &connection->output;

    slot->next = NULL;
    *output->last = slot;
    output->last = &slot->next;
    if (!output->waiting)
        loop_hook_queue(connection->loop, &output->hook);
}

void nbd_reply(struct nbd_slot *slot, int result, const char *text)
{
    slot->payload.iov_len = 0;
    if (likely(result >= 0))
        reply_success(slot);
    else if (slot->connection->structured)
        reply_structured_error(slot, result, text);
    else
        reply_simple(slot, reply_error(result));
    reply_queue(slot);
}

void nbd_request_done(struct request *req)
{
    struct nbd_slot *slot = container_of(req, struct nbd_slot, request);
    int result = req->result;

    if (unlikely(req->flags & REQ_BOUNCED))
        slot->connection->input.copies = true;
    /* A driver that says nothing about the range knows nothing. */
    if (unlikely(slot->type == NBD_CMD_BLOCK_STATUS && result == 0 && slot->status.count == 0))
        result = -EIO;
    nbd_reply(slot, result, NULL);
}

static unsigned send_gather(const struct nbd_output *output, struct iovec *iov)
{
    size_t skip = output->sent;
    unsigned count = 0;

    for (const struct nbd_slot *slot = output->first; slot && count + 2 <= REPLY_IOVS; slot = slot->next) {
        const struct iovec parts[2] = {{.iov_base = (void *)(uintptr_t)slot->header, .iov_len = slot->header_size},
                                       slot->payload};

        for (unsigned i = 0; i < 2; i++) {
            size_t from = skip < parts[i].iov_len ? skip : parts[i].iov_len;

            skip -= from;
            if (parts[i].iov_len > from)
                iov[count++] = (struct iovec){(char *)parts[i].iov_base + from, parts[i].iov_len - from};
        }
    }
    return count;
}

static void send_account(struct nbd_output *output, size_t sent)
{
    output->sent += sent;
    while (output->first) {
        struct nbd_slot *slot = output->first;
        size_t size = slot->header_size + slot->payload.iov_len;

        if (output->sent < size)
            return;
        output->sent -= size;
        output->first = slot->next;
        if (!output->first)
            output->last = &output->first;
        nbd_slot_put(slot);
    }
}

void nbd_send(struct nbd_connection *connection)
{
    struct nbd_output *output = &connection->output;
    struct iovec iov[REPLY_IOVS];

    while (output->first && !output->waiting && !connection->closing) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = send_gather(output, iov)};
        ssize_t sent = sendmsg(connection->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent >= 0) {
            send_account(output, (size_t)sent);
        } else if (errno == EAGAIN) {
            struct ring *ring = connection->loop->ring;

            output->waiting = true;
            ring->ops->poll(ring, &output->op, connection->fd, POLLOUT);
        } else if (errno != EINTR) {
            nbd_connection_close(connection);
        }
    }
}

void nbd_send_hook(struct loop_hook *hook)
{
    struct nbd_connection *connection = container_of(hook, struct nbd_connection, output.hook);

    nbd_send(connection);
    nbd_connection_reap(connection);
}

void nbd_send_ready(struct ring_op *op, int result)
{
    struct nbd_connection *connection = container_of(op, struct nbd_connection, output.op);

    (void)result;
    connection->output.waiting = false;
    loop_hook_queue(connection->loop, &connection->output.hook);
}
