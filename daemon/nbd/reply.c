/*
 * Replies: headers into the slot, and all that are ready into one send at the
 * end of the loop's turn. "Transmission phase" of proto.md.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/proto.h"

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

static void reply_simple(struct nbd_slot *slot, uint32_t error)
{
    unsigned char *at = slot->header;

    at = nbd_put32(at, NBD_SIMPLE_REPLY_MAGIC);
    at = nbd_put32(at, error);
    at = nbd_put64(at, slot->cookie);
    slot->header_size = (uint32_t)(at - slot->header);
}

static void reply_structured_error(struct nbd_slot *slot, uint32_t error)
{
    unsigned char *at = reply_chunk(slot, NBD_REPLY_ERROR, 6);

    at = nbd_put32(at, error);
    at = nbd_put16(at, 0);      /* no text: the number says it all */
    slot->header_size = (uint32_t)(at - slot->header);
}

static void reply_done(struct nbd_slot *slot)
{
    slot->header_size = (uint32_t)(reply_chunk(slot, NBD_REPLY_NONE, 0) - slot->header);
}

static void reply_data(struct nbd_slot *slot)
{
    unsigned char *at = reply_chunk(slot, NBD_REPLY_OFFSET_DATA, 8 + slot->length);

    at = nbd_put64(at, slot->offset);
    slot->header_size = (uint32_t)(at - slot->header);
    slot->payload = slot->iov;
}

/* Descriptors, in a buffer of the slot: 32-bit ones cannot tell lengths of 4 GiB and more at once. */
static int reply_status(struct nbd_slot *slot)
{
    bool extended = slot->connection->extended;
    uint64_t limit = slot->flags & NBD_CMD_FLAG_REQ_ONE || !extended ? slot->length : UINT64_MAX;
    size_t each = extended ? 16 : 8, head = extended ? 8 : 4;
    unsigned count = slot->status.count;

    if (count == 0 || nbd_slot_buffer(slot, head + NBD_EXTENTS_MAX * each) < 0)
        return -EIO;
    unsigned char *at = nbd_put32(slot->buffer, NBD_BASE_ALLOCATION_ID);

    if (extended)
        at = nbd_put32(at, count);
    for (unsigned i = 0; i < count; i++) {
        const struct extent *extent = &slot->status.extents[i];
        uint64_t length = extent->length < limit ? extent->length : limit;

        at = extended ? nbd_put64(at, length) : nbd_put32(at, (uint32_t)length);
        at = extended ? nbd_put64(at, extent->flags) : nbd_put32(at, extent->flags);
    }
    size_t size = (size_t)(at - (unsigned char *)slot->buffer);

    slot->header_size =
        (uint32_t)(reply_chunk(slot, extended ? NBD_REPLY_BLOCK_STATUS_EXT : NBD_REPLY_BLOCK_STATUS, size) -
                   slot->header);
    slot->payload = (struct iovec){.iov_base = slot->buffer, .iov_len = size};
    return 0;
}

static void reply_encode(struct nbd_slot *slot, int result)
{
    const struct nbd_connection *connection = slot->connection;
    bool must_chunk = connection->extended ||
                      (connection->structured && (slot->type == NBD_CMD_READ || slot->type == NBD_CMD_BLOCK_STATUS));

    slot->payload = (struct iovec){0};
    if (result == 0 && slot->type == NBD_CMD_BLOCK_STATUS)
        result = reply_status(slot);
    if (result < 0) {
        if (must_chunk)
            reply_structured_error(slot, reply_error(result));
        else
            reply_simple(slot, reply_error(result));
    } else if (slot->type == NBD_CMD_BLOCK_STATUS) {
        return;
    } else if (!must_chunk) {
        reply_simple(slot, NBD_OK);
        if (slot->type == NBD_CMD_READ)
            slot->payload = slot->iov;
    } else if (slot->type == NBD_CMD_READ && slot->length) {
        reply_data(slot);
    } else {
        reply_done(slot);
    }
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

void nbd_reply(struct nbd_slot *slot, int result)
{
    reply_encode(slot, result);
    reply_queue(slot);
}

void nbd_request_done(struct request *req)
{
    struct nbd_slot *slot = container_of(req, struct nbd_slot, request);

    nbd_reply(slot, req->result);
}

static unsigned send_gather(const struct nbd_output *output, struct iovec *iov)
{
    size_t skip = output->sent;
    unsigned count = 0;

    for (const struct nbd_slot *slot = output->first; slot && count + 2 <= REPLY_IOVS; slot = slot->next) {
        const struct iovec parts[2] = {
            {.iov_base = (void *)(uintptr_t)slot->header, .iov_len = slot->header_size}, slot->payload};

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

void nbd_send_hook(struct loop_hook *hook)
{
    struct nbd_connection *connection = container_of(hook, struct nbd_connection, output.hook);
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
    nbd_connection_reap(connection);
}

void nbd_send_ready(struct ring_op *op, int result)
{
    struct nbd_connection *connection = container_of(op, struct nbd_connection, output.op);

    (void)result;
    connection->output.waiting = false;
    loop_hook_queue(connection->loop, &connection->output.hook);
}
