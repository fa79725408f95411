/*
 * Servers that want whole blocks: requests that begin, end or are cut inside
 * of one go through a bounce buffer. A write that covers a block in part reads
 * it first and writes it back whole; until it has, nobody else may write
 * there, or his bytes would be undone. So all that writes to such a server
 * holds the lock on its blocks. Servers that take any byte, as most do, never
 * come here.
 */
#include <errno.h>
#include <string.h>

#include "core/iov.h"
#include "core/loop_buffer.h"
#include "drivers/protocol/nbd.h"

/* Bytes bounced at once; a multiple of every block. */
#define NBD_BOUNCE (1u << 20)

static uint64_t nbd_round_down(const struct nbd *nbd, uint64_t offset)
{
    return offset & ~(uint64_t)(nbd->traits.block - 1);
}

/* Nodes end below 2^63, so this does not overflow. A last block that is not whole is the server's own matter. */
static uint64_t nbd_round_up(const struct nbd *nbd, uint64_t offset)
{
    uint64_t end = nbd_round_down(nbd, offset + nbd->traits.block - 1);

    return end < nbd->traits.size ? end : nbd->traits.size;
}

static bool nbd_covers_whole(const struct nbd *nbd, const struct request *req)
{
    uint64_t end = req->offset + req->length;

    return req->offset == nbd_round_down(nbd, req->offset) && end == nbd_round_up(nbd, end);
}

static bool nbd_pieces_are_whole(const struct nbd *nbd, const struct request *req)
{
    uint64_t lengths = 0;

    for (unsigned i = 0; i + 1 < req->iov_count; i++)
        lengths |= req->iov[i].iov_len;
    return (lengths & (nbd->traits.block - 1)) == 0;
}

bool nbd_is_aligned(const struct nbd *nbd, const struct request *req)
{
    if (REQ_BITS_WRITING & REQ_BIT(req->op))
        return false;
    return req->op != REQ_READ || (nbd_covers_whole(nbd, req) && nbd_pieces_are_whole(nbd, req));
}

static int nbd_whole(struct nbd *nbd, const struct request *req)
{
    struct nbd_operation operation = {
        .op = req->op,
        .flags = req->flags,
        .offset = req->offset,
        .length = req->length,
        .iov = req->iov,
        .iov_count = req->iov_count,
    };

    return nbd_do(nbd, &operation);
}

static int nbd_transfer(struct nbd *nbd, uint8_t op, uint32_t flags, void *buf, uint64_t start, uint64_t end)
{
    struct iovec iov = {.iov_base = buf, .iov_len = end - start};
    struct nbd_operation operation = {
        .op = op, .flags = flags, .offset = start, .length = end - start, .iov = &iov, .iov_count = 1};

    return nbd_do(nbd, &operation);
}

/* The blocks at both ends of [start, end) that [offset, stop) covers in part. */
static int nbd_read_edges(struct nbd *nbd, char *bounce, uint64_t start, uint64_t end, uint64_t offset, uint64_t stop)
{
    uint64_t last = nbd_round_down(nbd, end - 1);
    int result = 0;

    if (offset != start)
        result = nbd_transfer(nbd, REQ_READ, 0, bounce, start, nbd_round_up(nbd, start + 1));
    if (result == 0 && stop != end && (last != start || offset == start))
        result = nbd_transfer(nbd, REQ_READ, 0, bounce + (last - start), last, end);
    return result;
}

/* Zeroes, unless there is data. */
static void nbd_fill_bounce(char *bounce, const struct request *req, uint64_t done, uint64_t part)
{
    if (req->op == REQ_WRITE)
        iov_to_buffer(req->iov, req->iov_count, done, bounce, part);
    else
        memset(bounce, 0, part);
}

/* [offset, offset + length) of the request, in whole blocks around it. */
static int nbd_bounce(struct nbd *nbd, const struct request *req, char *bounce, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;

    while (offset < end) {
        uint64_t start = nbd_round_down(nbd, offset);
        uint64_t stop = end - start < NBD_BOUNCE ? end : start + NBD_BOUNCE;
        uint64_t up = nbd_round_up(nbd, stop), done = offset - req->offset;
        int result;

        if (req->op == REQ_READ) {
            result = nbd_transfer(nbd, REQ_READ, 0, bounce, start, up);
            if (result == 0)
                iov_from_buffer(req->iov, req->iov_count, done, bounce + (offset - start), stop - offset);
        } else {
            result = nbd_read_edges(nbd, bounce, start, up, offset, stop);
            nbd_fill_bounce(bounce + (offset - start), req, done, stop - offset);
            if (result == 0)
                result = nbd_transfer(nbd, REQ_WRITE, req->flags & REQ_FUA, bounce, start, up);
        }
        if (result < 0)
            return result;
        offset = stop;
    }
    return 0;
}

/* Discard and write-zeroes: whole blocks as such; of the others the content goes, or they stay. */
static int nbd_range(struct nbd *nbd, const struct request *req, char *bounce)
{
    uint64_t end = req->offset + req->length;
    uint64_t first = nbd_round_up(nbd, req->offset),
             last = end == nbd_round_up(nbd, end) ? end : nbd_round_down(nbd, end);
    struct nbd_operation middle = {.op = req->op, .flags = req->flags, .offset = first, .length = last - first};
    int result = 0;

    if (req->op == REQ_DISCARD)
        return first < last ? nbd_do(nbd, &middle) : 0;
    if (first >= last)
        return nbd_bounce(nbd, req, bounce, req->offset, req->length);
    if (req->offset < first)
        result = nbd_bounce(nbd, req, bounce, req->offset, first - req->offset);
    if (result == 0)
        result = nbd_do(nbd, &middle);
    if (result == 0 && last < end)
        result = nbd_bounce(nbd, req, bounce, last, end - last);
    return result;
}

static int nbd_slow_held(struct nbd *nbd, const struct request *req)
{
    if (nbd_covers_whole(nbd, req) && (req->op != REQ_WRITE || nbd_pieces_are_whole(nbd, req)))
        return nbd_whole(nbd, req);
    if (req->op == REQ_WRITE_ZEROES && req->flags & REQ_FAST_ONLY)
        return -ENOTSUP;
    AUTO_LOOP_BUFFER struct loop_buffer bounce = loop_buffer_take(NBD_BOUNCE);

    if (!bounce.data)
        return -ENOMEM;
    if (req->op == REQ_DISCARD || req->op == REQ_WRITE_ZEROES)
        return nbd_range(nbd, req, bounce.data);
    return nbd_bounce(nbd, req, bounce.data, req->offset, req->length);
}

enum step nbd_slow(struct node *node, struct request *req)
{
    struct nbd *nbd = node->state;
    struct range_hold hold;
    uint64_t start = nbd_round_down(nbd, req->offset);

    if (req->length == 0)
        return request_up(req, 0);
    if (req->op == REQ_READ)
        return request_up(req, nbd_slow_held(nbd, req));
    range_lock_take(&nbd->range, &hold, start, nbd_round_up(nbd, req->offset + req->length) - start);
    int result = nbd_slow_held(nbd, req);

    range_lock_release(&nbd->range, &hold);
    return request_up(req, result);
}
