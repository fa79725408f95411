/*
 * Requests: bytes from the socket to struct requests. One receive per turn;
 * all whole requests in it are checked and submitted at once. Payloads of
 * small writes stay where they were received, unless the graph turns out to
 * want aligned memory; those of large ones go straight into a buffer of their
 * own.
 *
 * Whatever a client sends is answered, and the stream stays in sync, unless
 * the bytes are no request at all, or announce more payload than it is worth
 * to read away. "Transmission phase" of proto.md.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "core/consumer.h"
#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/status.h"

/* Payloads up to here are used where they were received; larger ones get a buffer of their own. */
#define TRANSMIT_INLINE (64u * 1024)
/* Larger payloads of refused requests are not worth reading away. */
#define TRANSMIT_SKIP_MAX (256u << 20)
/* Reads of one turn: more would push out of the CPU's caches what is to be sent at its end. */
#define TRANSMIT_TURN (256u << 10)

enum parse {
    PARSE_NEXT,         /* go on */
    PARSE_MORE,         /* needs more bytes */
    PARSE_LATER,        /* takes no more in this turn */
    PARSE_BLOCKED,      /* takes nothing for now */
    PARSE_END,          /* the client has said goodbye */
    PARSE_BROKEN        /* no way to go on */
};

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

static uint32_t transmit_left(const struct nbd_chunk *chunk)
{
    return chunk ? chunk->end - chunk->start : 0;
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

static const struct nbd_refusal transmit_beyond = {-EINVAL, "the range goes beyond the end of the export"};
static const struct nbd_refusal transmit_no_space = {-ENOSPC, "the range goes beyond the end of the export"};

/* What each command is, which flags it may have (FUA: all), and how a range that does not fit is refused. */
static const struct {
    uint8_t op;
    bool writes;
    uint16_t flags;
    const struct nbd_refusal *beyond;   /* NULL: has no range */
} transmit_commands[NBD_CMD_COUNT] = {
    [NBD_CMD_READ] = {REQ_READ, false, NBD_CMD_FLAG_DF, &transmit_beyond},
    [NBD_CMD_WRITE] = {REQ_WRITE, true, NBD_CMD_FLAG_PAYLOAD_LEN, &transmit_no_space},
    [NBD_CMD_FLUSH] = {REQ_FLUSH, false, 0, NULL},
    [NBD_CMD_TRIM] = {REQ_DISCARD, true, 0, &transmit_beyond},
    [NBD_CMD_CACHE] = {REQ_PREFETCH, false, 0, &transmit_beyond},
    [NBD_CMD_WRITE_ZEROES] = {REQ_WRITE_ZEROES, true, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              &transmit_no_space},
    [NBD_CMD_BLOCK_STATUS] = {REQ_STATUS, false, NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN, &transmit_beyond},
};

static const struct nbd_refusal transmit_no_memory = {-ENOMEM, "no memory for the request's data"};

/* Flags that what was negotiated does not allow for any command. */
static uint16_t transmit_flags_off(const struct nbd_connection *connection)
{
    return (connection->structured ? 0 : NBD_CMD_FLAG_DF) | (connection->extended ? 0 : NBD_CMD_FLAG_PAYLOAD_LEN);
}

static const struct nbd_refusal *transmit_check_range(const struct nbd_connection *connection,
                                                      const struct nbd_request *request)
{
    static const struct nbd_refusal too_long = {-EINVAL, "more than 32 MiB of data in one request"},
                                    no_context = {-EINVAL, "no metadata context was negotiated"},
                                    no_length = {-EINVAL, "block status of no bytes"};
    uint64_t size = consumer_size(transmit_consumer(connection));

    if (unlikely(request->offset > size || request->length > size - request->offset))
        return transmit_commands[request->type].beyond;
    switch (request->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return unlikely(request->length > NBD_PAYLOAD_MAX) ? &too_long : NULL;
    case NBD_CMD_BLOCK_STATUS:
        if (!connection->context)
            return &no_context;
        return request->length == 0 ? &no_length : NULL;
    default:
        return NULL;
    }
}

/* NULL, or why the request is refused. */
static const struct nbd_refusal *transmit_check(const struct nbd_connection *connection,
                                                const struct nbd_request *request)
{
    static const struct nbd_refusal unknown = {-EINVAL, "unknown command"},
                                    flags = {-EINVAL, "flags that the command does not have"},
                                    read_only = {-EPERM, "the export is read-only"};

    if (unlikely(request->type >= NBD_CMD_COUNT))
        return &unknown;
    uint16_t allowed = transmit_commands[request->type].flags | NBD_CMD_FLAG_FUA;

    if (unlikely(request->flags & ~(allowed & ~transmit_flags_off(connection))))
        return &flags;
    if (unlikely(transmit_commands[request->type].writes && connection->read_only))
        return &read_only;
    return transmit_commands[request->type].beyond ? transmit_check_range(connection, request) : NULL;
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

/* Fills in the request, with room for the data that it returns; data to write is the caller's. -ENOMEM. */
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
        slot->connection->input.turn += request->length;
        result = nbd_slot_buffer(slot, request->length);
        slot->iov = (struct iovec){.iov_base = slot->buffer, .iov_len = request->length};
        req->iov = &slot->iov;
        req->iov_count = 1;
    } else if (req->op == REQ_STATUS) {
        result = nbd_status_prepare(slot);
    }
    return result;
}

static struct nbd_slot *transmit_slot(struct nbd_connection *connection, const struct nbd_request *request)
{
    struct nbd_slot *slot = nbd_slot_get(connection);

    if (likely(slot != NULL)) {
        slot->cookie = request->cookie;
        slot->offset = request->offset;
        slot->length = request->length;
        slot->type = request->type;
        slot->flags = request->flags;
    }
    return slot;
}

static void transmit_refuse(struct nbd_slot *slot, const struct nbd_refusal *refusal)
{
    nbd_reply(slot, refusal ? refusal->result : 0, refusal ? refusal->text : NULL);
}

/* Answers without asking the graph. A payload that follows is thrown away before: a client that still sends does not
 * expect an answer. */
static enum parse transmit_answer(struct nbd_connection *connection, const struct nbd_request *request,
                                  uint64_t payload, const struct nbd_refusal *refusal)
{
    struct nbd_slot *slot = payload <= TRANSMIT_SKIP_MAX ? transmit_slot(connection, request) : NULL;

    if (!slot)
        return PARSE_BROKEN;
    if (payload == 0) {
        transmit_refuse(slot, refusal);
        return PARSE_NEXT;
    }
    connection->input.skip = payload;
    connection->input.refused = slot;
    connection->input.refusal = refusal;
    return PARSE_NEXT;
}

static enum parse transmit_submit(struct nbd_slot *slot)
{
    consumer_submit(transmit_consumer(slot->connection), &slot->request);
    return PARSE_NEXT;
}

/* A write whose header is parsed; of its payload all (small ones) or a part is in the chunk. */
static enum parse transmit_write(struct nbd_connection *connection, struct nbd_slot *slot,
                                 const struct nbd_request *request)
{
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = input->chunk;
    uint32_t there = transmit_left(chunk);

    if (there > request->length)
        there = (uint32_t)request->length;
    slot->iov.iov_len = request->length;
    slot->request.iov = &slot->iov;
    slot->request.iov_count = 1;
    if (request->length <= TRANSMIT_INLINE && !input->copies) {
        slot->iov.iov_base = chunk->data + chunk->start;
        slot->chunk = chunk;
        chunk->refs++;
        chunk->start += there;
        return transmit_submit(slot);
    }
    if (nbd_slot_buffer(slot, request->length) < 0) {
        nbd_slot_put(slot);
        return transmit_answer(connection, request, request->length, &transmit_no_memory);
    }
    slot->iov.iov_base = slot->buffer;
    memcpy(slot->buffer, chunk->data + chunk->start, there);
    chunk->start += there;
    if (there == request->length)
        return transmit_submit(slot);
    input->filling = slot;
    input->filled = there;
    return PARSE_NEXT;
}

/* Bytes that follow the header, whether we want them or not. */
static uint64_t transmit_payload(const struct nbd_connection *connection, const struct nbd_request *request)
{
    if (request->type == NBD_CMD_WRITE || (connection->extended && request->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
        return request->length;
    return 0;
}

/* A request with its header taken, and so much of its payload in the chunk as transmit_needs() says. */
static enum parse transmit_carry_out(struct nbd_connection *connection, struct nbd_request *request)
{
    uint64_t payload = transmit_payload(connection, request);
    const struct nbd_refusal *refusal = NULL;

    if (request->type == NBD_CMD_BLOCK_STATUS && payload) {
        const struct nbd_chunk *chunk = connection->input.chunk;

        refusal = nbd_status_payload(chunk->data + chunk->start, payload, &request->length);
    }
    if (!refusal)
        refusal = transmit_check(connection, request);
    /* To read or write nothing is no work for the graph. */
    bool nothing = request->length == 0 && request->type != NBD_CMD_FLUSH;

    if (unlikely(refusal || nothing))
        return transmit_answer(connection, request, payload, refusal);
    struct nbd_slot *slot = transmit_slot(connection, request);

    if (unlikely(!slot))
        return PARSE_BROKEN;
    if (unlikely(transmit_fill(slot, request) < 0)) {
        nbd_slot_put(slot);
        return transmit_answer(connection, request, payload, &transmit_no_memory);
    }
    if (request->type == NBD_CMD_WRITE)
        return transmit_write(connection, slot, request);
    connection->input.skip = payload;
    return transmit_submit(slot);
}

/* Bytes of payload that must be there before the request can be looked at. */
static uint32_t transmit_needs(const struct nbd_connection *connection, const struct nbd_request *request)
{
    uint64_t payload = transmit_payload(connection, request);

    switch (request->type) {
    case NBD_CMD_WRITE:
        return payload <= TRANSMIT_INLINE ? (uint32_t)payload : 0;
    case NBD_CMD_BLOCK_STATUS:
        return payload == NBD_STATUS_PAYLOAD_SIZE ? NBD_STATUS_PAYLOAD_SIZE : 0;
    default:
        return 0;
    }
}

static bool transmit_has_room(const struct nbd_connection *connection)
{
    return nbd_pool_has_room(&connection->pool) && !consumer_paused(transmit_consumer(connection), connection->loop);
}

static enum parse transmit_request(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    uint32_t header = transmit_header_size(connection), there = transmit_left(input->chunk);
    struct nbd_request request;

    if (there < header)
        return PARSE_MORE;
    if (unlikely(input->turn >= TRANSMIT_TURN))
        return PARSE_LATER;
    if (unlikely(!transmit_has_room(connection)))
        return PARSE_BLOCKED;
    if (unlikely(!transmit_decode(connection, input->chunk->data + input->chunk->start, &request)))
        return PARSE_BROKEN;
    if (unlikely(request.type == NBD_CMD_DISC))
        return PARSE_END;
    uint32_t needs = transmit_needs(connection, &request);

    input->expect_large = request.type == NBD_CMD_WRITE && request.length > TRANSMIT_INLINE;
    if (there - header < needs)
        return PARSE_MORE;
    input->chunk->start += header;
    return transmit_carry_out(connection, &request);
}

static void transmit_skip(struct nbd_input *input)
{
    uint32_t there = transmit_left(input->chunk);
    uint32_t skip = there < input->skip ? there : (uint32_t)input->skip;

    /* A client may think for so long in the middle of a payload that there is no chunk any more. */
    if (skip == 0)
        return;
    input->chunk->start += skip;
    input->skip -= skip;
    if (input->skip == 0 && input->refused)
        transmit_refuse(take_ptr(&input->refused), input->refusal);
}

/* The large write whose payload is complete; not in a pause, after which the graph may be another one. */
static enum parse transmit_submit_filled(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;

    if (consumer_paused(transmit_consumer(connection), connection->loop))
        return PARSE_BLOCKED;
    struct nbd_slot *slot = nbd_slot_fit(input->filling);

    if (!slot)
        return PARSE_BROKEN;
    input->filling = NULL;
    return transmit_submit(slot);
}

/* Takes all that was received and is complete. */
static enum parse transmit_parse(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    enum parse parse = PARSE_NEXT;

    while (parse == PARSE_NEXT) {
        if (unlikely(input->skip))
            transmit_skip(input);
        if (unlikely(input->skip || (input->filling && input->filled < input->filling->length)))
            parse = PARSE_MORE;
        else if (unlikely(input->filling != NULL))
            parse = transmit_submit_filled(connection);
        else
            parse = transmit_request(connection);
    }
    return parse;
}

/* A chunk that has room for at least one header and an inline payload behind what is not parsed yet. */
static struct nbd_chunk *transmit_make_room(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = input->chunk;
    uint32_t left = transmit_left(chunk);

    if (chunk && chunk->refs == 1 && left == 0)
        chunk->start = chunk->end = 0;
    if (likely(chunk && NBD_CHUNK_SIZE - chunk->start >= TRANSMIT_INLINE + NBD_EXTENDED_REQUEST_SIZE &&
               chunk->end < NBD_CHUNK_SIZE))
        return chunk;
    if (chunk && chunk->refs == 1) {
        memmove(chunk->data, chunk->data + chunk->start, left);
        chunk->start = 0;
        chunk->end = left;
        return chunk;
    }
    struct nbd_chunk *fresh = nbd_chunk_get(&connection->pool);

    if (!fresh)
        return NULL;
    if (chunk) {
        memcpy(fresh->data, chunk->data + chunk->start, left);
        fresh->end = left;
        nbd_chunk_put(&connection->pool, chunk);    /* its slots keep it */
    }
    return input->chunk = fresh;
}

/* Behind what is there already. After a large write no more than one header, so that the payload of
 * the next one is received where it belongs. */
static struct iovec transmit_room(const struct nbd_connection *connection, struct nbd_chunk *chunk)
{
    uint32_t room = NBD_CHUNK_SIZE - chunk->end, left = transmit_left(chunk);
    uint32_t header = transmit_header_size(connection);

    if (connection->input.expect_large && !connection->input.skip && left < header)
        room = header - left;
    return (struct iovec){.iov_base = chunk->data + chunk->end, .iov_len = room};
}

/* >0: bytes; 0: the client is gone or broken; -EAGAIN: nothing there. */
static ssize_t transmit_receive(struct nbd_connection *connection)
{
    struct nbd_input *input = &connection->input;
    struct nbd_chunk *chunk = transmit_make_room(connection);
    uint64_t wanted = input->filling ? input->filling->length - input->filled : 0;
    struct iovec iov[2] = {{.iov_len = wanted}};
    ssize_t got;

    if (!chunk)
        return 0;
    iov[1] = transmit_room(connection, chunk);
    if (wanted)
        iov[0].iov_base = (char *)input->filling->buffer + input->filled;
    do {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

        got = wanted ? recvmsg(connection->fd, &message, MSG_DONTWAIT)
                     : recv(connection->fd, iov[1].iov_base, iov[1].iov_len, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? -EAGAIN : 0;
    uint64_t filled = (uint64_t)got < wanted ? (uint64_t)got : wanted;

    input->filled += filled;
    chunk->end += (uint32_t)((uint64_t)got - filled);
    return got;
}

bool nbd_transmit_poll(struct poller *poller)
{
    struct nbd_connection *connection = container_of(poller, struct nbd_connection, poller);

    connection->input.turn = 0;
    /* There may be bytes that came along with the negotiation, or while requests were held back. */
    enum parse parse = transmit_parse(connection);

    if (parse == PARSE_MORE) {
        ssize_t got = transmit_receive(connection);

        if (got == -EAGAIN)
            return false;
        nbd_connection_touch(connection);
        parse = got ? transmit_parse(connection) : PARSE_END;
    }
    if (parse == PARSE_BLOCKED) {
        connection->input.blocked = true;
        poller_rest(poller);
    } else if (parse == PARSE_END) {
        nbd_connection_finish(connection);
    } else if (parse == PARSE_BROKEN) {
        nbd_connection_close(connection);
    }
    return true;
}
