/*
 * blkdebug: lets requests fail or wait where a test wants it, and shows a
 * disk with other limits to who is above: see blkdebug.h. What is not armed
 * costs one look.
 */
#include "drivers/filter/blkdebug.h"

#include <errno.h>
#include <inttypes.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/iov.h"
#include "core/memory.h"

#define BLKDEBUG_IOVS 64u
#define BLKDEBUG_ZEROES (64u * 1024)

static const unsigned char blkdebug_zeroes[BLKDEBUG_ZEROES] __attribute__((aligned(BUFFER_ALIGN)));

/* What kinds of requests are called, and which events they are. */
static const struct blkdebug_op {
    enum blkdebug_io_type type;
    enum blkdebug_event event;
    enum blkdebug_event client_event;   /* besides, where no format is above that tells it */
} blkdebug_ops[REQ_OP_COUNT] = {
    [REQ_READ] = {BLKDEBUG_IO_TYPE_READ, BLKDEBUG_EVENT_READ, BLKDEBUG_EVENT_READ_AIO},
    [REQ_WRITE] = {BLKDEBUG_IO_TYPE_WRITE, BLKDEBUG_EVENT_PWRITEV, BLKDEBUG_EVENT_WRITE_AIO},
    [REQ_FLUSH] = {BLKDEBUG_IO_TYPE_FLUSH, BLKDEBUG_EVENT_FLUSH_TO_DISK, BLKDEBUG_EVENT_NONE},
    [REQ_DISCARD] = {BLKDEBUG_IO_TYPE_DISCARD, BLKDEBUG_EVENT_DISCARD, BLKDEBUG_EVENT_NONE},
    [REQ_WRITE_ZEROES] = {BLKDEBUG_IO_TYPE_WRITE_ZEROES, BLKDEBUG_EVENT_PWRITEV_ZERO, BLKDEBUG_EVENT_NONE},
    [REQ_STATUS] = {BLKDEBUG_IO_TYPE_BLOCK_STATUS, BLKDEBUG_EVENT_NONE, BLKDEBUG_EVENT_NONE},
};

/* A part of a request, on its way down. */
struct blkdebug_piece {
    struct node *node;
    const struct request *req;
    uint64_t offset, length;            /* bytes; data: from offset - req->offset on in the request's iov */
};

static int piece_check(const struct blkdebug_piece *piece, enum blkdebug_io_type type)
{
    bool immediately = true;
    int result = blkdebug_error(piece->node->state, type, piece->offset, piece->length, &immediately);

    if (!immediately)
        coroutine_sleep(0);
    return result;
}

/* Data */

static int data_send(const struct blkdebug_piece *piece)
{
    const struct request *req = piece->req;
    struct edge *edge = piece->node->filtered;
    int result = piece_check(piece, blkdebug_ops[req->op].type);

    for (uint64_t done = 0; done < piece->length && result == 0;) {
        struct iovec iov[BLKDEBUG_IOVS];
        uint64_t offset = piece->offset + done;
        size_t size = piece->length - done;
        unsigned count = iov_window(req->iov, req->iov_count, offset - req->offset, &size, iov, BLKDEBUG_IOVS);

        result = req->op == REQ_READ ? edge_readv(edge, offset, iov, count, size)
                                     : edge_writev(edge, offset, iov, count, size, req->flags);
        done += size;
    }
    return result;
}

/* A part of one block: the whole of it is read, and written if that was asked. */
static int data_send_part(const struct blkdebug_piece *piece, uint64_t align)
{
    const struct request *req = piece->req;
    struct edge *edge = piece->node->filtered;
    uint64_t block = piece->offset / align * align, skip = piece->offset - block, rest = piece->node->size - block;
    struct blkdebug_piece whole = *piece;
    AUTO_FREE unsigned char *buf = buffer_alloc(align);
    int result = buf ? 0 : -ENOMEM;

    whole.offset = block;
    whole.length = align < rest ? align : rest;
    if (result == 0)
        result = piece_check(&whole, BLKDEBUG_IO_TYPE_READ);
    if (result == 0)
        result = edge_read(edge, block, buf, whole.length);
    if (result < 0)
        return result;
    if (req->op == REQ_READ) {
        iov_from_buffer(req->iov, req->iov_count, piece->offset - req->offset, buf + skip, piece->length);
        return 0;
    }
    iov_to_buffer(req->iov, req->iov_count, piece->offset - req->offset, buf + skip, piece->length);
    result = piece_check(&whole, BLKDEBUG_IO_TYPE_WRITE);
    return result < 0 ? result : edge_write(edge, block, buf, whole.length, req->flags);
}

static int blkdebug_transfer(struct node *node, const struct request *req)
{
    struct blkdebug *debug = node->state;
    uint64_t align = debug->options->align ? debug->options->align : 1, most = debug->options->max_transfer;
    uint64_t end = req->offset + req->length, limit = most ? most : UINT64_MAX;
    struct blkdebug_piece piece = {.node = node, .req = req, .offset = req->offset};
    struct range_hold hold;
    int result = 0;

    range_lock_take(&debug->blocks, &hold, req->offset / align * align,
                    (end + align - 1) / align * align - req->offset / align * align);
    for (; piece.offset < end && result == 0; piece.offset += piece.length) {
        uint64_t skip = piece.offset % align, left = end - piece.offset;

        if (skip || left < align) {
            piece.length = left < align - skip ? left : align - skip;
            result = data_send_part(&piece, align);
        } else {
            piece.length = left / align * align < limit ? left / align * align : limit;
            result = data_send(&piece);
        }
    }
    range_lock_release(&debug->blocks, &hold);
    return result;
}

/* Zeroes and discards */

/* What is no whole block of zeroes is data. */
static int zeroes_as_data(struct node *node, const struct request *req, uint64_t offset, uint64_t length)
{
    int result = req->flags & REQ_FAST_ONLY ? -ENOTSUP : 0;

    while (length && result == 0) {
        size_t size = length < BLKDEBUG_ZEROES ? length : BLKDEBUG_ZEROES;
        struct iovec iov = {.iov_base = (void *)(uintptr_t)blkdebug_zeroes, .iov_len = size};
        struct request write = {.op = REQ_WRITE,
                                .flags = req->flags & REQ_FUA,
                                .offset = offset,
                                .length = size,
                                .iov = &iov,
                                .iov_count = 1};

        result = blkdebug_transfer(node, &write);
        offset += size;
        length -= size;
    }
    return result;
}

static int middle_send(struct node *node, const struct request *req, uint64_t offset, uint64_t length, uint64_t most)
{
    int result = 0;

    while (length && result == 0) {
        struct blkdebug_piece piece = {
            .node = node, .req = req, .offset = offset, .length = most && most < length ? most : length};

        result = piece_check(&piece, blkdebug_ops[req->op].type);
        if (result == 0 && req->op == REQ_WRITE_ZEROES)
            result = edge_write_zeroes(node->filtered, offset, piece.length, req->flags);
        else if (result == 0)
            result = edge_discard(node->filtered, offset, piece.length);
        offset += piece.length;
        length -= piece.length;
    }
    return result;
}

static int blkdebug_split(struct node *node, const struct request *req)
{
    const struct blkdebug_options *options = ((struct blkdebug *)node->state)->options;
    bool zeroes = req->op == REQ_WRITE_ZEROES;
    uint64_t opt = zeroes ? options->opt_write_zero : options->opt_discard;
    uint64_t most = zeroes ? options->max_write_zero : options->max_discard;
    uint64_t align = opt ? opt : options->align ? options->align : 1, end = req->offset + req->length;
    uint64_t first = (req->offset + align - 1) / align * align, last = end / align * align;
    int result = 0;

    if (first >= last)
        return zeroes ? zeroes_as_data(node, req, req->offset, req->length) : 0;
    if (zeroes)
        result = zeroes_as_data(node, req, req->offset, first - req->offset);
    if (result == 0)
        result = middle_send(node, req, first, last - first, most);
    if (result == 0 && zeroes)
        result = zeroes_as_data(node, req, last, end - last);
    if (result == 0 && !zeroes && req->flags & REQ_FUA)
        result = edge_flush(node->filtered);
    return result;
}

/* The walk */

static enum step blkdebug_slow(struct node *node, struct request *req)
{
    const struct blkdebug *debug = node->state;
    const struct blkdebug_op *op = &blkdebug_ops[req->op];
    struct blkdebug_piece whole = {.node = node, .req = req, .offset = req->offset, .length = req->length};

    if (req->op == REQ_PREFETCH)
        return request_down(req, node->filtered);
    if (op->event != BLKDEBUG_EVENT_NONE)
        blkdebug_event(node, op->event);
    if (op->client_event != BLKDEBUG_EVENT_NONE && !(req->edge->role & ROLE_METADATA))
        blkdebug_event(node, op->client_event);
    if (debug->limited && (req->op == REQ_READ || req->op == REQ_WRITE))
        return request_up(req, blkdebug_transfer(node, req));
    if (debug->limited && (req->op == REQ_WRITE_ZEROES || req->op == REQ_DISCARD))
        return request_up(req, blkdebug_split(node, req));
    int result = piece_check(&whole, op->type);

    return result < 0 ? request_up(req, result) : request_down(req, node->filtered);
}

static enum step blkdebug_map(struct node *node, struct request *req)
{
    const struct blkdebug *debug = node->state;

    if (unlikely(atomic_load_explicit(&debug->armed, memory_order_relaxed)))
        return STEP_SLOW;
    return request_down(req, node->filtered);
}

/* Control */

static int blkdebug_check(const struct blkdebug_options *options, struct error *err)
{
    uint64_t align = options->align ? options->align : 1;
    uint64_t zero = options->opt_write_zero ? options->opt_write_zero : align;
    uint64_t discard = options->opt_discard ? options->opt_discard : align;
    const struct {
        const char *name, *of;
        uint64_t value, unit;
    } multiples[] = {
        {"max-transfer", "align", options->max_transfer, align},
        {"opt-write-zero", "align", options->opt_write_zero, align},
        {"max-write-zero", options->opt_write_zero ? "opt-write-zero" : "align", options->max_write_zero, zero},
        {"opt-discard", "align", options->opt_discard, align},
        {"max-discard", options->opt_discard ? "opt-discard" : "align", options->max_discard, discard},
    };

    if (align & (align - 1))
        return error_set(err, -EINVAL, "align=%" PRIu64 " is not a power of two", align);
    for (unsigned i = 0; i < array_size(multiples); i++) {
        if (multiples[i].value % multiples[i].unit)
            return error_set(err, -EINVAL, "%s=%" PRIu64 " is not a multiple of %s=%" PRIu64, multiples[i].name,
                             multiples[i].value, multiples[i].of, multiples[i].unit);
    }
    return 0;
}

static int blkdebug_open(struct node *node, const void *opaque, struct error *err)
{
    const struct blkdebug_options *options = opaque;
    struct blkdebug *debug = node->state;
    int result = blkdebug_check(options, err);

    if (result < 0)
        return result;
    debug->options = option_copy(&blkdebug_options_type, options);
    debug->limited = options->align > 1 || options->max_transfer || options->opt_write_zero ||
                     options->max_write_zero || options->opt_discard || options->max_discard;
    result = options->config ? blkdebug_config_read(options->config, debug->options, err) : 0;
    if (result == 0)
        result = blkdebug_rules_init(node, err);
    if (result == 0)
        range_lock_init(&debug->blocks);
    else
        option_free(&blkdebug_options_type, debug->options);
    return result;
}

static void blkdebug_close(struct node *node)
{
    struct blkdebug *debug = node->state;

    blkdebug_rules_destroy(debug);
    range_lock_destroy(&debug->blocks);
    option_free(&blkdebug_options_type, debug->options);
}

static uint32_t blkdebug_permission_bits(const enum block_permission *items, size_t count)
{
    uint32_t bits = 0;

    for (size_t i = 0; i < count; i++)
        bits |= 1u << items[i];
    return bits;
}

static void blkdebug_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    const struct blkdebug_options *options = node_driver_options(node);

    (void)edge;
    if (options->align > 1)
        io->taken |= io->taken & PERM_WRITE ? PERM_READ : 0;
    io->taken |= blkdebug_permission_bits(options->take_child_perms.items, options->take_child_perms.count);
    io->shared &= ~blkdebug_permission_bits(options->unshare_child_perms.items, options->unshare_child_perms.count);
}

const struct driver blkdebug_driver = {
    .name = "blkdebug",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct blkdebug),
    .open = blkdebug_open,
    .close = blkdebug_close,
    .adopt = blkdebug_adopt,
    .permissions = blkdebug_permissions,
    .quiesce = blkdebug_quiesce,
    .event = blkdebug_event,
    .map = blkdebug_map,
    .slow = blkdebug_slow,
    .properties = blkdebug_properties,
};
