/*
 * null-co: a disk that keeps nothing. Reads leave the buffer as it is, or
 * give zeroes if asked to. For tests and measurements.
 */
#include <errno.h>

#include "core/coroutine.h"
#include "core/driver.h"
#include "core/iov.h"
#include "generated/options.h"

struct null_disk {
    uint64_t latency_ns;
    bool read_zeroes;
};

static int null_open(struct node *node, const void *opaque, struct error *err)
{
    const struct null_co_options *options = opaque;
    struct null_disk *disk = node->state;

    (void)err;
    disk->latency_ns = options->latency_ns;
    disk->read_zeroes = options->read_zeroes;
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

static enum step null_answer(const struct null_disk *disk, struct request *req)
{
    if (req->op == REQ_READ && disk->read_zeroes)
        iov_fill(req->iov, req->iov_count, 0, 0, req->length);
    else if (req->op == REQ_STATUS)
        extent_add(req->extents, req->length, disk->read_zeroes ? EXTENT_ZERO : 0);
    return request_up(req, 0);
}

static enum step null_map(struct node *node, struct request *req)
{
    const struct null_disk *disk = node->state;

    return disk->latency_ns ? STEP_SLOW : null_answer(disk, req);
}

static enum step null_slow(struct node *node, struct request *req)
{
    const struct null_disk *disk = node->state;

    coroutine_sleep(disk->latency_ns);
    return null_answer(disk, req);
}

const struct driver null_co_driver = {
    .name = "null-co",
    .kind = DRIVER_PROTOCOL,
    .ops = (1u << REQ_OP_COUNT) - 1,
    .request_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY,
    .state_size = sizeof(struct null_disk),
    .open = null_open,
    .resize = null_resize,
    .map = null_map,
    .slow = null_slow,
};
