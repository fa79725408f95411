/*
 * Requests: bytes from the socket to struct requests. One receive per turn;
 * all whole requests in it are checked and submitted at once. Payloads of
 * small writes stay where they were received; those of large ones go straight
 * into a buffer of their own.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "core/consumer.h"
#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/proto.h"

/* Larger payloads of refused writes are not worth reading away. */
#define NBD_SKIP_MAX (256u << 20)

enum parse { PARSE_MORE, PARSE_NEXT, PARSE_BLOCKED, PARSE_CLOSE };

struct nbd_request {
    uint64_t cookie, offset, length;
    uint16_t flags, type;
};

static struct consumer *transmit_consumer(const struct nbd_connection *connection)
{
    return &connection->export->export->consumer;
}

static uint32_t transmit_header_size(const struct nbd_connection *connection)
{
    return connection->extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}

/* False if these bytes are no request: then all that follows is noise. */
static bool transmit_decode(const struct nbd_connection *connection, const unsigned char *at, struct nbd_request *ret)
{
    uint32_t magic = connection->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC;

    if (nbd_get32(at) != magic)
        return false;
    ret->flags = nbd_get16(at + 4);
    ret->type = nbd_get16(at + 6);
    ret->cookie = nbd_get64(at + 8);
    ret->offset = nbd_get64(at + 16);
    ret->length = connection->extended ? nbd_get64(at + 24) : nbd_get32(at + 24);
    return true;
}

/* What each command is, and which flags it may have. */
static const struct {
    uint8_t op;
    bool writes, ranged;
    uint16_t flags;
    int beyond;             /* error of a range that does not fit */
} transmit_commands[NBD_CMD_COUNT] = {
    [NBD_CMD_READ] = {REQ_READ, false, true, NBD_CMD_FLAG_DF | NBD_CMD_FLAG_FUA, -EINVAL},
    [NBD_CMD_WRITE] = {REQ_WRITE, true, true, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN, -ENOSPC},
    [NBD_CMD_DISC] = {REQ_OP_COUNT, false, false, 0, 0},
    [NBD_CMD_FLUSH] = {REQ_FLUSH, false, false, NBD_CMD_FLAG_FUA, 0},
    [NBD_CMD_TRIM] = {REQ_DISCARD, true, true, NBD_CMD_FLAG_FUA, -EINVAL},
    [NBD_CMD_CACHE] = {REQ_PREFETCH, false, true, NBD_CMD_FLAG_FUA, -EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {REQ_WRITE_ZEROES, true, true,
                              NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, -ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {REQ_STATUS, false, true, NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_FUA, -EINVAL},
};

/* 0, or the error that this request is answered with. */
static int transmit_check(const struct nbd_connection *connection, const struct nbd_request *request)
{
    if (request->type >= NBD_CMD_COUNT)
        return -EINVAL;
    if (request->flags & ~transmit_commands[request->type].flags)
        return -EINVAL;
    if (transmit_commands[request->type].writes && connection->read_only)
        return -EPERM;
    if (!transmit_commands[request->type].ranged)
        return 0;
    uint64_t size = consumer_size(transmit_consumer(connection));

    if (request->offset > size || request->length > size - request->offset)
        return transmit_commands[request->type].beyond;
    if (request->type == NBD_CMD_READ && request->length > NBD_PAYLOAD_MAX)
        return -EINVAL;
    if (request->type == NBD_CMD_BLOCK_STATUS && (request->length == 0 || !connection->context))
        return -EINVAL;
    return 0;
}

static uint32_t transmit_flags(const struct nbd_connection *connection, const struct nbd_request *request)
{
    uint32_t flags = 0;

    if (!transmit_commands[request->type].writes)
        return 0;
    if (request->flags & NBD_CMD_FLAG_FUA || connection->writethrough)
        flags |= REQ_FUA;
    if (request->type == NBD_CMD_WRITE_ZEROES && !(request->flags & NBD_CMD_FLAG_NO_HOLE))
        flags |= REQ_MAY_UNMAP;
    if (request->flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= REQ_FAST_ONLY;
    return flags;
}

static int transmit_prepare_status(struct nbd_slot *slot)
{
    if (!slot->status.extents)
        slot->status.extents = calloc(NBD_EXTENTS_MAX, sizeof(*slot->status.extents));
    slot->status.count = 0;
    slot->status.limit = slot->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_EXTENTS_MAX;
    slot->request.extents = &slot->status;
    return slot->status.extents ? 0 : -ENOMEM;
}

static void transmit_submit(struct nbd_slot *slot)
{
    struct request *req = &slot->request;

    consumer_submit(transmit_consumer(slot->connection), req);
}

/* Fills in the request; data is set for reads here, for writes by the caller. */
static int transmit_fill(struct nbd_slot *slot, const struct nbd_request *request)
{
    struct request *req = &slot->request;
    int result = 0;

    req->op = transmit_commands[request->type].op;
    req->flags = transmit_flags(slot->connection, request);
    req->offset = req->op == REQ_FLUSH ? 0 : request->offset;
    req->length = req->op == REQ_FLUSH ? 0 : request->length;
    req->iov = NULL;
    req->iov_count = 0;
    if (req->op == REQ_READ) {
        result = nbd_slot_buffer(slot, request->length);
        slot->iov = (struct iovec){.iov_base = slot->buffer, .iov_len = request->length};
        req->iov = &slot->iov;
        req->iov_count = 1;
    } else if (req->op == REQ_STATUS) {
        result = transmit_prepare_status(slot);
    }
    return result;
}

static struct nbd_slot *transmit_slot(struct nbd_connection *connection, const struct nbd_request *request)
{
    struct nbd_slot *slot = nbd_slot_get(connection);

    if (slot) {
        slot->cookie = request->cookie;
        slot->offset = request->offset;
        slot->length = request->length;
        slot->type = request->type;
        slot->flags = request->flags;
        slot->is_error = false;
    }
    return slot;
}

/* Bytes that follow the header, whether we want them or not. */
static uint64_t transmit_payload(const struct nbd_connection *connection, const struct nbd_request *request)
{
    if (request->type == NBD_CMD_WRITE || (connection->extended && request->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
        return request->length;
    return 0;
}

/* A write, with its header parsed and all or a part of its payload in the chunk. */
static enum parse transmit_write(struct nbd_connection *connection, struct nbd_slot *slot,
                                 const struct nbd_request *request)
{
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = input->chunk;
    uint32_t there = chunk->end - chunk->start;

    slot->iov.iov_len = request->length;
    slot->request.iov = &slot->iov;
    slot->request.iov_count = 1;
    if (request->length <= NBD_PAYLOAD_INLINE) {
        slot->iov.iov_base = chunk->data + chunk->start;
        slot->chunk = chunk;
        chunk->refs++;
        chunk->start += (uint32_t)request->length;
        transmit_submit(slot);
        return PARSE_NEXT;
    }
    if (nbd_slot_buffer(slot, request->length) < 0) {
        nbd_slot_put(slot);
        return PARSE_CLOSE;
    }
    if (there > request->length)
        there = (uint32_t)request->length;
    slot->iov.iov_base = slot->buffer;
    memcpy(slot->buffer, chunk->data + chunk->start, there);
    chunk->start += there;
    if (there == request->length) {
        transmit_submit(slot);
        return PARSE_NEXT;
    }
    input->filling = slot;
    input->filled = there;
    return PARSE_MORE;
}

/* Answers with an error; a payload that comes along is thrown away. */
static enum parse transmit_refuse(struct nbd_connection *connection, const struct nbd_request *request, int result)
{
    struct nbd_input *input = &connection->input;
    uint64_t payload = transmit_payload(connection, request);
    uint32_t there = input->chunk->end - input->chunk->start;
    struct nbd_slot *slot = payload <= NBD_SKIP_MAX ? transmit_slot(connection, request) : NULL;

    if (!slot)
        return PARSE_CLOSE;
    if (there > payload)
        there = (uint32_t)payload;
    input->chunk->start += there;
    input->skip = payload - there;
    nbd_reply(slot, result);
    return input->skip ? PARSE_MORE : PARSE_NEXT;
}

static bool transmit_has_room(const struct nbd_connection *connection)
{
    return connection->slot_count < NBD_SLOTS_MAX && connection->memory < NBD_MEMORY_MAX &&
           !consumer_paused(transmit_consumer(connection), connection->loop);
}

static enum parse transmit_request(struct nbd_connection *connection)
{
    struct nbd_chunk *chunk = connection->input.chunk;
    uint32_t header = transmit_header_size(connection), there = chunk->end - chunk->start;
    struct nbd_request request;

    if (there < header)
        return PARSE_MORE;
    if (unlikely(!transmit_has_room(connection)))
        return PARSE_BLOCKED;
    if (unlikely(!transmit_decode(connection, chunk->data + chunk->start, &request)))
        return PARSE_CLOSE;
    if (unlikely(request.type == NBD_CMD_DISC))
        return PARSE_CLOSE;
    int result = transmit_check(connection, &request);

    if (result == 0 && request.type == NBD_CMD_WRITE && request.length > NBD_PAYLOAD_MAX)
        result = -EINVAL;
    if (unlikely(result < 0)) {
        chunk->start += header;
        return transmit_refuse(connection, &request, result);
    }
    if (request.type == NBD_CMD_WRITE) {
        connection->input.expect_large = request.length > NBD_PAYLOAD_INLINE;
        if (!connection->input.expect_large && there - header < request.length)
            return PARSE_MORE;
    }
    struct nbd_slot *slot = transmit_slot(connection, &request);

    if (!slot || transmit_fill(slot, &request) < 0) {
        if (slot)
            nbd_slot_put(slot);
        return PARSE_CLOSE;
    }
    chunk->start += header;
    if (request.type == NBD_CMD_WRITE)
        return transmit_write(connection, slot, &request);
    transmit_submit(slot);
    return PARSE_NEXT;
}

/* Room for at least one header and an inline payload behind what is not parsed yet. */
static struct nbd_chunk *transmit_make_room(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = input->chunk;
    uint32_t left = chunk->end - chunk->start;

    if (left == 0 && chunk->refs == 1)
        chunk->start = chunk->end = 0;
    if (NBD_CHUNK_SIZE - chunk->start >= NBD_PAYLOAD_INLINE + NBD_EXTENDED_REQUEST_SIZE &&
        chunk->end < NBD_CHUNK_SIZE)
        return chunk;
    if (chunk->refs == 1) {
        memmove(chunk->data, chunk->data + chunk->start, left);
        chunk->start = 0;
        chunk->end = left;
        return chunk;
    }
    struct nbd_chunk *fresh = take_ptr(&input->spare);

    if (!fresh)
        fresh = malloc(sizeof(*fresh));
    if (!fresh)
        return NULL;
    memcpy(fresh->data, chunk->data + chunk->start, left);
    fresh->refs = 1;
    fresh->start = 0;
    fresh->end = left;
    chunk->refs--;      /* its slots keep it */
    connection->memory += sizeof(*fresh);
    input->chunk = fresh;
    return fresh;
}

/* >0: bytes; 0: the client is gone or broken; -EAGAIN: nothing there. */
static ssize_t transmit_receive(struct nbd_connection *connection, void *buf, size_t size)
{
    ssize_t got;

    do
        got = recv(connection->fd, buf, size, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? -EAGAIN : 0;
    return got;
}

static ssize_t transmit_receive_payload(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    struct nbd_slot *slot = input->filling;
    ssize_t got = transmit_receive(connection, (char *)slot->buffer + input->filled, slot->length - input->filled);

    if (got > 0 && (input->filled += (uint64_t)got) == slot->length) {
        input->filling = NULL;
        transmit_submit(slot);
    }
    return got;
}

static ssize_t transmit_receive_requests(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = transmit_make_room(connection);

    if (!chunk)
        return 0;
    uint32_t room = NBD_CHUNK_SIZE - chunk->end, header = transmit_header_size(connection);

    /* Not more than the header of a large write, so that its payload is received where it belongs. */
    if (input->expect_large && chunk->end - chunk->start < header)
        room = header - (chunk->end - chunk->start);
    ssize_t got = transmit_receive(connection, chunk->data + chunk->end, room);

    if (got <= 0)
        return got;
    if (input->skip) {
        uint64_t skip = (uint64_t)got < input->skip ? (uint64_t)got : input->skip;

        input->skip -= skip;
        chunk->start += (uint32_t)skip;
    }
    chunk->end += (uint32_t)got;
    return got;
}

static enum parse transmit_parse(struct nbd_connection *connection)
{
    enum parse parse = PARSE_NEXT;

    while (parse == PARSE_NEXT)
        parse = transmit_request(connection);
    return parse;
}

bool nbd_transmit_poll(struct poller *poller)
{
    struct nbd_connection *connection = container_of(poller, struct nbd_connection, poller);
    struct nbd_input *input = &connection->input;
    enum parse parse = PARSE_MORE;
    ssize_t got = 1;

    /* Bytes that came along with the negotiation, or while requests were held back. */
    if (!input->filling && !input->skip && input->chunk->start != input->chunk->end)
        parse = transmit_parse(connection);
    if (parse == PARSE_MORE) {
        got = input->filling ? transmit_receive_payload(connection) : transmit_receive_requests(connection);
        if (got == -EAGAIN)
            return false;
        if (got > 0 && !input->filling && !input->skip)
            parse = transmit_parse(connection);
    }
    if (parse == PARSE_BLOCKED) {
        input->blocked = true;
        poller_rest(poller);
        return true;
    }
    if (parse == PARSE_CLOSE || got == 0)
        nbd_connection_close(connection);
    return true;
}
