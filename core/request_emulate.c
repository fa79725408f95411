/*
 * Emulation of the ops and flags that a driver does not have.
 *
 *   write-zeroes   writes of zeroes, in pieces
 *   FUA            the op without it, then a flush
 *   status         all is data
 *   discard, prefetch, flush   nothing to do
 *   fast-only write-zeroes, compressed writes, fill   -ENOTSUP: the caller has another way
 */
#include <errno.h>

#include "core/driver.h"
#include "core/memory.h"
#include "core/request_side.h"

/* One piece of a write of zeroes. The buffer is never written to. */
#define EMULATE_ZEROES (64u * 1024)
#define EMULATE_IOVS 64u

static const unsigned char emulate_zeroes[EMULATE_ZEROES] __attribute__((aligned(4096)));

static enum step emulate_write_zeroes(struct node *node, struct request *req)
{
    struct edge *edge = req->edge;
    struct iovec iov[EMULATE_IOVS];
    uint64_t offset = req->offset, left = req->length;
    int result = 0;

    (void)node;
    while (left && result == 0) {
        uint64_t size = 0;
        unsigned count = 0;

        while (count < EMULATE_IOVS && size < left) {
            uint64_t part = left - size < EMULATE_ZEROES ? left - size : EMULATE_ZEROES;

            iov[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)emulate_zeroes, .iov_len = part};
            size += part;
        }
        result = edge_writev(edge, offset, iov, count, size, req->flags & REQ_FUA);
        offset += size;
        left -= size;
    }
    return request_up(req, result);
}

static enum step emulate_fua(struct node *node, struct request *req)
{
    struct edge *edge = req->edge;
    uint32_t flags = req->flags & ~(uint32_t)REQ_FUA;
    int result = -EIO;

    (void)node;
    if (req->op == REQ_WRITE)
        result = edge_writev(edge, req->offset, req->iov, req->iov_count, req->length, flags);
    else if (req->op == REQ_WRITE_ZEROES)
        result = edge_write_zeroes(edge, req->offset, req->length, flags);
    else if (req->op == REQ_DISCARD)
        result = edge_discard(edge, req->offset, req->length);
    if (result == 0)
        result = edge_flush(edge);
    return request_up(req, result);
}

static enum step emulate_slowly(struct request *req, enum step (*slow)(struct node *, struct request *))
{
    req->slow = slow;
    return STEP_SLOW;
}

static enum step emulate_op(struct request *req)
{
    switch (req->op) {
    case REQ_WRITE_ZEROES:
        if (req->flags & REQ_FAST_ONLY)
            return request_up(req, -ENOTSUP);
        return emulate_slowly(req, emulate_write_zeroes);
    case REQ_STATUS:
        extent_add(req->extents, req->length, 0);
        return request_up(req, 0);
    case REQ_DISCARD:
    case REQ_PREFETCH:
    case REQ_FLUSH:
        return request_up(req, 0);
    default:
        return request_up(req, -ENOTSUP);
    }
}

enum step request_emulate(struct request *req, struct node *node)
{
    const struct driver *driver = node->driver;
    bool passes = driver->kind == DRIVER_FILTER && driver->ops == 0;
    uint32_t lacking = passes ? 0 : req->flags & (~driver->request_flags | node->lacks_flags);

    if (!passes && !(driver->ops & ~node->lacks_ops & REQ_BIT(req->op)))
        return emulate_op(req);
    if (req->op == REQ_WRITE && lacking & (REQ_COMPRESSED | REQ_FILL))
        return request_up(req, -ENOTSUP);
    if (req->op == REQ_WRITE_ZEROES && lacking & REQ_FAST_ONLY)
        return request_up(req, -ENOTSUP);
    if (lacking & REQ_FUA && REQ_BITS_WRITING & REQ_BIT(req->op))
        return emulate_slowly(req, emulate_fua);
    return node->map(node, req);
}
