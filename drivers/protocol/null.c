/*
 * null-co: a disk that keeps nothing, for tests and measurements. Writes
 * vanish; reads leave the buffer as it is, or fill it with zeroes. With a
 * latency each request sleeps in a coroutine of its own on its own loop.
 * Nothing here changes after open(), so all loops may use it at once.
 */
#include "core/coroutine.h"
#include "core/driver.h"
#include "core/iov.h"
#include "generated/options.h"

struct null {
    uint64_t latency_ns;
    bool read_zeroes;
};

static int null_open(struct node *node, const void *opaque, struct error *err)
{
    const struct null_co_options *options = opaque;
    struct null *null = node->state;

    (void)err;
    null->latency_ns = options->latency_ns;
    null->read_zeroes = options->read_zeroes;
    node->size = options->size;
    return 0;
}

static int null_resize(struct node *node, uint64_t size, struct error *err)
{
    struct null_co_options *options = node_driver_options(node);

    (void)err;
    node->size = options->size = size;
    return 0;
}

static enum step null_answer(const struct null *null, struct request *req)
{
    if (req->op == REQ_READ && null->read_zeroes)
        iov_fill(req->iov, req->iov_count, 0, 0, req->length);
    else if (req->op == REQ_STATUS)
        extent_add(req->extents, req->length, null->read_zeroes ? EXTENT_ZERO : 0);
    return request_up(req, 0);
}

static enum step null_map(struct node *node, struct request *req)
{
    const struct null *null = node->state;

    return unlikely(null->latency_ns) ? STEP_SLOW : null_answer(null, req);
}

static enum step null_slow(struct node *node, struct request *req)
{
    const struct null *null = node->state;

    coroutine_sleep(null->latency_ns);
    return null_answer(null, req);
}

const struct driver null_co_driver = {
    .name = "null-co",
    .kind = DRIVER_PROTOCOL,
    .ops = (1u << REQ_OP_COUNT) - 1,
    .request_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_UNCHANGED,
    .state_size = sizeof(struct null),
    .open = null_open,
    .resize = null_resize,
    .map = null_map,
    .slow = null_slow,
};
