/*
 * blklogwrites: writes down what is written, in the format of the Linux
 * target dm-log-writes, so that its tools can replay the disk up to any point.
 *
 * The log is a sequence of sectors: a superblock that tells how many entries
 * there are, then for each entry a header and, but for discards, as many
 * sectors of data as it says. Numbers are little endian, addresses count in
 * sectors. A write is logged when it has ended, a
 * flush where it began: what ends later comes after it. So an entry is never
 * durable in the log's eyes that may not be on the disk. All that is done to
 * the log is done under its lock.
 *
 * Parts of sectors are logged as the sectors that they are in, as read back.
 */
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/colock.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/memory.h"
#include "generated/options.h"

#define LOG_MAGIC UINT64_C(0x6a736677736872)
#define LOG_VERSION 1u
#define LOG_SECTOR 512u
#define LOG_BATCH (1u << 20)        /* bytes that are read back at a time */

enum { LOG_FLUSH = 1, LOG_FUA = 2, LOG_DISCARD = 4 };

struct log_super {
    uint64_t magic, version, entries;
    uint32_t sector_size;
} __attribute__((packed));

struct log_entry {
    uint64_t sector, sectors, flags;
    uint64_t note;              /* bytes behind the header in its sector, of marks by hand */
} __attribute__((packed));

struct blklogwrites {
    struct edge *log;
    uint64_t sector, interval;      /* bytes; entries */
    struct comutex lock;
    uint64_t end, entries;          /* bytes; where the next entry goes */
};

/* The log, under its lock */

static int log_put(struct blklogwrites *state, uint64_t offset, const void *data, size_t size)
{
    AUTO_FREE unsigned char *sector = buffer_alloc(state->sector);
    int result = sector ? edge_grow(state->log, offset + state->sector) : -ENOMEM;

    if (result < 0)
        return result;
    memcpy(sector, data, size);
    return edge_write(state->log, offset, sector, state->sector, 0);
}

static int log_put_super(struct blklogwrites *state)
{
    struct log_super super = {htole64(LOG_MAGIC), htole64(LOG_VERSION), htole64(state->entries),
                              htole32((uint32_t)state->sector)};

    return log_put(state, 0, &super, sizeof(super));
}

/* What is read back, or zeroes if that was written. */
static int log_put_copy(struct blklogwrites *state, struct edge *file, uint64_t offset, uint64_t to, uint64_t length)
{
    AUTO_FREE void *buf = buffer_alloc(length < LOG_BATCH ? length : LOG_BATCH);
    uint64_t size = file->child->size;
    int result = buf ? 0 : -ENOMEM;

    while (length && result == 0) {
        size_t part = length < LOG_BATCH ? length : LOG_BATCH;
        size_t inside = offset >= size ? 0 : part < size - offset ? part : size - offset;

        memset(buf, 0, part);
        result = inside ? edge_read(file, offset, buf, inside) : 0;
        if (result == 0)
            result = edge_write(state->log, to, buf, part, 0);
        offset += part;
        to += part;
        length -= part;
    }
    return result;
}

static int log_put_data(struct node *node, const struct request *req, uint64_t start, uint64_t length)
{
    struct blklogwrites *state = node->state;
    uint64_t to = state->end + state->sector;
    int result = edge_grow(state->log, to + length);

    if (result < 0)
        return result;
    if (start != req->offset || length != req->length)
        return log_put_copy(state, node->filtered, start, to, length);
    if (req->op == REQ_WRITE_ZEROES)
        return edge_write_zeroes(state->log, to, length, REQ_MAY_UNMAP);
    return edge_writev(state->log, to, req->iov, req->iov_count, length, 0);
}

static int log_put_entry(struct node *node, const struct request *req, uint64_t start, uint64_t end)
{
    struct blklogwrites *state = node->state;
    bool data = REQ_BIT(req->op) & (REQ_BIT(REQ_WRITE) | REQ_BIT(REQ_WRITE_ZEROES));
    uint64_t length = data ? end - start : 0, flags = req->flags & REQ_FUA ? LOG_FUA : 0;

    flags |= req->op == REQ_FLUSH ? LOG_FLUSH : req->op == REQ_DISCARD ? LOG_DISCARD : 0;
    struct log_entry entry = {htole64(start / state->sector), htole64((end - start) / state->sector), htole64(flags),
                              0};
    int result = length ? log_put_data(node, req, start, length) : 0;

    if (result == 0)
        result = log_put(state, state->end, &entry, sizeof(entry));
    if (result < 0)
        return result;
    state->end += state->sector + length;
    state->entries++;
    if (state->entries % state->interval == 0 || flags & (LOG_FLUSH | LOG_FUA))
        result = log_put_super(state);
    return result == 0 && flags & (LOG_FLUSH | LOG_FUA) ? edge_flush(state->log) : result;
}

/* Requests */

static int log_flush(struct node *node, const struct request *req)
{
    struct blklogwrites *state = node->state;

    comutex_lock(&state->lock);
    int result = edge_flush(node->filtered);

    if (result == 0)
        result = log_put_entry(node, req, 0, 0);
    comutex_unlock(&state->lock);
    return result;
}

/* What was written in parts of sectors is more, what was discarded in parts is nothing. */
static int log_write(struct node *node, const struct request *req)
{
    struct blklogwrites *state = node->state;
    uint64_t mask = state->sector - 1, start = req->offset & ~mask, end = (req->offset + req->length + mask) & ~mask;
    int result;

    if (req->op == REQ_DISCARD) {
        start = (req->offset + mask) & ~mask;
        end = (req->offset + req->length) & ~mask;
        result = edge_discard(node->filtered, req->offset, req->length);
        if (result == 0 && req->flags & REQ_FUA)
            result = edge_flush(node->filtered);
    } else if (req->op == REQ_WRITE_ZEROES) {
        result = edge_write_zeroes(node->filtered, req->offset, req->length, req->flags);
    } else {
        result = edge_writev(node->filtered, req->offset, req->iov, req->iov_count, req->length, req->flags);
    }
    if (result < 0 || start >= end)
        return result;
    comutex_lock(&state->lock);
    result = log_put_entry(node, req, start, end);
    comutex_unlock(&state->lock);
    return result;
}

static enum step blklogwrites_map(struct node *node, struct request *req)
{
    if (REQ_BIT(req->op) & (REQ_BITS_WRITING | REQ_BIT(REQ_FLUSH)))
        return STEP_SLOW;
    return request_down(req, node->filtered);
}

static enum step blklogwrites_slow(struct node *node, struct request *req)
{
    return request_up(req, req->op == REQ_FLUSH ? log_flush(node, req) : log_write(node, req));
}

/* Control */

/* The log that is there: its sector size, and where it ends. */
static int log_continue(struct blklogwrites *state, const struct blklogwrites_options *options, struct error *err)
{
    struct log_super super;
    struct log_entry entry;
    uint64_t size = state->log->child->size;
    int result = size < LOG_SECTOR ? -EINVAL : edge_read(state->log, 0, &super, sizeof(super));

    if (result == 0 && (le64toh(super.magic) != LOG_MAGIC || le64toh(super.version) != LOG_VERSION))
        result = -EINVAL;
    if (result == 0 && options->has_log_sector_size && options->log_sector_size != le32toh(super.sector_size))
        return error_set(err, -EINVAL, "log-sector-size=%" PRIu64 " is not that of the log, %u",
                         options->log_sector_size, le32toh(super.sector_size));
    state->sector = result == 0 ? le32toh(super.sector_size) : LOG_SECTOR;
    if (state->sector < LOG_SECTOR || state->sector & (state->sector - 1))
        result = -EINVAL;
    state->end = state->sector;
    state->entries = result == 0 ? le64toh(super.entries) : 0;
    for (uint64_t i = 0; i < state->entries && result == 0; i++) {
        uint64_t left = (size - state->end) / state->sector;

        result = state->end > size || left == 0 ? -EINVAL : edge_read(state->log, state->end, &entry, sizeof(entry));
        uint64_t data = result < 0 || le64toh(entry.flags) & LOG_DISCARD ? 0 : le64toh(entry.sectors);

        if (data > left - 1)
            result = -EINVAL;
        else
            state->end += (1 + data) * state->sector;
    }
    return result < 0 ? error_set(err, result, "log-append=on: node '%s' holds no log that could be continued: %s",
                                  state->log->child->name, strerror(-result))
                      : 0;
}

static int blklogwrites_open(struct node *node, const void *opaque, struct error *err)
{
    const struct blklogwrites_options *options = opaque;
    struct blklogwrites *state = node->state;
    int result = 0;

    if (node->flags & NODE_READ_ONLY)
        return error_set(err, -EINVAL, "read-only=on leaves nothing for node '%s' to log", node->name);
    state->log = node_child_by_name(node, "log");
    state->interval = options->log_super_update_interval;
    state->sector = options->has_log_sector_size ? options->log_sector_size : LOG_SECTOR;
    state->end = state->sector;
    if (state->sector & (state->sector - 1))
        return error_set(err, -EINVAL, "log-sector-size=%" PRIu64 " is not a power of two", state->sector);
    if (options->log_append)
        result = log_continue(state, options, err);
    else if ((result = log_put_super(state)) < 0)
        error_set(err, result, "Could not write the log to node '%s': %s", state->log->child->name, strerror(-result));
    if (result == 0)
        comutex_init(&state->lock);
    return result;
}

static void blklogwrites_close(struct node *node)
{
    struct blklogwrites *state = node->state;

    comutex_destroy(&state->lock);
}

static int blklogwrites_finish(struct node *node)
{
    struct blklogwrites *state = node->state;

    comutex_lock(&state->lock);
    int result = log_put_super(state);

    if (result == 0)
        result = edge_flush(state->log);
    comutex_unlock(&state->lock);
    return result;
}

/* With the same log the state stays; else it begins anew, as the new options say. */
static int blklogwrites_reopen(struct node *node, struct node *next, struct change *change, struct error *err)
{
    const struct blklogwrites_options *before = node_driver_options(node), *after = node_driver_options(next);

    (void)change;
    (void)err;
    bool same = node_child_by_name(node, "log") == node_child_by_name(next, "log") &&
                before->log_append == after->log_append && before->has_log_sector_size == after->has_log_sector_size &&
                before->log_sector_size == after->log_sector_size &&
                before->log_super_update_interval == after->log_super_update_interval;

    return same ? REOPEN_KEPT : REOPEN_AGAIN;
}

const struct driver blklogwrites_driver = {
    .name = "blklogwrites",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct blklogwrites),
    .open = blklogwrites_open,
    .close = blklogwrites_close,
    .finish = blklogwrites_finish,
    .reopen = blklogwrites_reopen,
    .map = blklogwrites_map,
    .slow = blklogwrites_slow,
};
