/*
 * qcow2: what waits, in coroutines. Requests are split by where the engine
 * says their parts are, and the parts run at the same time.
 *
 * Who changes places of data holds the range lock of whole clusters from the
 * question to the link, across the data I/O. Reads, and writes to places that
 * stay what they are, hold nothing.
 */
#include <errno.h>

#include "core/fan.h"
#include "core/iov.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"
#include "generated/options.h"

/* Parts of one request at a time, and elements of one transfer; both on the coroutine's stack. */
#define RUN_PARTS 16u
#define RUN_IOVS 64u
#define RUN_ZEROES (64u * 1024)

/* Never written to. */
static const unsigned char run_zeroes[RUN_ZEROES] __attribute__((aligned(BUFFER_ALIGN)));

/* Where data comes from or goes to: a range of an iovec. */
struct run_data {
    const struct iovec *iov;
    unsigned count;
    bool from_overlay;          /* for a reader that looks for the owner itself: qcow2_chain.c */
    uint64_t skip;              /* bytes */
};

struct run_part {
    struct fan_task task;
    struct disk *disk;
    struct run_data data;
    uint64_t offset, length;    /* bytes of the guest's disk */
    struct mapping map;
    struct write_plan plan;
};

static int run_transfer(struct edge *edge, bool write, uint64_t offset, struct run_data data, uint64_t length)
{
    int result = 0;

    while (length && result == 0) {
        struct iovec iov[RUN_IOVS];
        size_t size = length;
        unsigned count = iov_window(data.iov, data.count, data.skip, &size, iov, RUN_IOVS);

        result = write ? edge_writev(edge, offset, iov, count, size, 0) : edge_readv(edge, offset, iov, count, size);
        offset += size;
        data.skip += size;
        length -= size;
    }
    return result;
}

int disk_ask(struct disk *disk, uint64_t offset, uint64_t length, struct mapping *map)
{
    int result = qcow2_lookup(disk->engine, offset, length, map);

    return result < 0 ? qcow2_load(disk->engine, offset, length, map) : result;
}

/* Reads */

static int disk_read(struct disk *disk, uint64_t offset, struct run_data data, uint64_t size);

static int read_backing(const struct run_part *part)
{
    struct disk *disk = part->disk;
    struct run_data data = part->data;
    uint64_t inside = disk_backing_part(disk, part->offset, part->length), done = 0;
    int result = 0;

    iov_fill(data.iov, data.count, data.skip + inside, 0, part->length - inside);
    while (done < inside && result == 0) {
        struct edge *edge = disk->backing;
        uint64_t length = inside - done;

        if (!data.from_overlay)
            result = disk_chain_resolve(disk, part->offset + done, &length, &edge);
        if (result == 0)
            result = run_transfer(edge, false, part->offset + done, data, length);
        data.skip += length;
        done += length;
    }
    return result;
}

static int read_compressed(const struct run_part *part)
{
    struct run_data data = part->data;
    uint64_t done = 0;
    int result = 0;

    while (done < part->length && result == 0) {
        struct iovec iov[RUN_IOVS];
        size_t size = part->length - done;
        unsigned count = iov_window(data.iov, data.count, data.skip + done, &size, iov, RUN_IOVS);

        result = disk_unpack(part->disk, part->offset + done, iov, count, size);
        /* Rewritten after the question: ask again. What is read then is no longer compressed. */
        if (result == -EAGAIN)
            result = disk_read(part->disk, part->offset + done, (struct run_data){.iov = iov, .count = count}, size);
        done += size;
    }
    return result;
}

static int read_part(struct fan_task *task)
{
    const struct run_part *part = container_of(task, struct run_part, task);

    switch (part->map.kind) {
    case MAPPING_DATA:
        disk_event(part->disk, BLKDEBUG_EVENT_READ_AIO);
        return run_transfer(part->disk->files[part->map.file], false, part->map.host, part->data, part->length);
    case MAPPING_UNALLOCATED:
        disk_event(part->disk, BLKDEBUG_EVENT_READ_BACKING_AIO);
        return read_backing(part);
    case MAPPING_COMPRESSED:
        disk_event(part->disk, BLKDEBUG_EVENT_READ_COMPRESSED);
        return read_compressed(part);
    default:
        iov_fill(part->data.iov, part->data.count, part->data.skip, 0, part->length);
        return 0;
    }
}

/* As many parts as there is room for, all at once; *done grows by what was read. */
static int read_parts(struct disk *disk, uint64_t offset, struct run_data data, uint64_t size, uint64_t *done)
{
    struct run_part parts[RUN_PARTS];
    struct fan fan = {0};
    uint64_t at = 0;
    int result = 0;

    for (unsigned n = 0; n < RUN_PARTS && at < size && result == 0; n++) {
        struct run_part *part = &parts[n];

        *part = (struct run_part){.task.run = read_part, .disk = disk, .offset = offset + at, .data = data};
        part->data.skip += at;
        result = disk_ask(disk, offset + at, size - at, &part->map);
        if (result < 0)
            break;
        part->length = part->map.length;
        at += part->length;
        /* The last one runs here. */
        if (at == size || n + 1 == RUN_PARTS)
            result = read_part(&part->task);
        else
            fan_start(&fan, &part->task);
    }
    int other = fan_wait(&fan);

    *done += at;
    return result < 0 ? result : other;
}

static int disk_read(struct disk *disk, uint64_t offset, struct run_data data, uint64_t size)
{
    uint64_t done = 0;
    int result = 0;

    while (done < size && result == 0) {
        uint64_t before = done;

        result = read_parts(disk, offset + done, data, size - done, &done);
        data.skip += done - before;
    }
    return result;
}

/* Writes */

/* Consecutive bytes of a file that come from several places: one write, or a few if there are many places. */
struct run_stream {
    struct edge *edge;
    uint64_t offset, size;      /* of what is gathered */
    struct iovec iov[RUN_IOVS];
    unsigned count;
    int result;
};

static void stream_send(struct run_stream *stream)
{
    if (stream->count && stream->result == 0)
        stream->result = edge_writev(stream->edge, stream->offset, stream->iov, stream->count, stream->size, 0);
    stream->offset += stream->size;
    stream->size = 0;
    stream->count = 0;
}

static void stream_put(struct run_stream *stream, const void *buf, uint64_t size)
{
    if (stream->count == RUN_IOVS)
        stream_send(stream);
    stream->iov[stream->count++] = (struct iovec){.iov_base = (void *)(uintptr_t)buf, .iov_len = size};
    stream->size += size;
}

/* buf NULL: zeroes. */
static void stream_put_edge(struct run_stream *stream, const void *buf, uint64_t size)
{
    if (size && buf)
        stream_put(stream, buf, size);
    for (; size && !buf; size -= size < RUN_ZEROES ? size : RUN_ZEROES)
        stream_put(stream, run_zeroes, size < RUN_ZEROES ? size : RUN_ZEROES);
}

static void stream_put_data(struct run_stream *stream, struct run_data data, uint64_t length)
{
    while (length) {
        if (stream->count == RUN_IOVS)
            stream_send(stream);
        size_t size = length;

        stream->count +=
            iov_window(data.iov, data.count, data.skip, &size, stream->iov + stream->count, RUN_IOVS - stream->count);
        stream->size += size;
        data.skip += size;
        length -= size;
    }
}

/* What the guest reads around the new data now. */
struct run_edges {
    void *head_buf, *tail_buf;      /* of a cluster's size, or NULL */
    const char *head, *tail;        /* NULL: zeroes */
};

int disk_read_buffer(struct disk *disk, uint64_t offset, void *buf, uint64_t size)
{
    struct iovec iov = {.iov_base = buf, .iov_len = size};

    disk_event(disk, BLKDEBUG_EVENT_COW_READ);
    return buf ? disk_read(disk, offset, (struct run_data){.iov = &iov, .count = 1}, size) : -ENOMEM;
}

static int edges_read(struct disk *disk, const struct write_plan *plan, struct run_edges *edges)
{
    uint64_t whole = plan->head + plan->length + plan->tail;
    int result = 0;

    if (plan->head && plan->tail && whole <= disk->cluster_size && plan->length <= whole - plan->length) {
        /* One read of all costs less than two. */
        edges->head_buf = disk_buffer_get(disk);
        edges->head = edges->head_buf;
        edges->tail = edges->head + plan->head + plan->length;
        return disk_read_buffer(disk, plan->guest - plan->head, edges->head_buf, whole);
    }
    if (plan->head) {
        edges->head = edges->head_buf = disk_buffer_get(disk);
        result = disk_read_buffer(disk, plan->guest - plan->head, edges->head_buf, plan->head);
    }
    if (plan->tail && result == 0) {
        edges->tail = edges->tail_buf = disk_buffer_get(disk);
        result = disk_read_buffer(disk, plan->guest + plan->length, edges->tail_buf, plan->tail);
    }
    return result;
}

static int write_planned(struct disk *disk, const struct write_plan *plan, struct run_data data)
{
    struct run_stream stream = {.edge = disk->files[plan->file], .offset = plan->host - plan->head};
    struct run_edges edges = {0};

    if (!plan->zero)
        stream.result = edges_read(disk, plan, &edges);
    if (stream.result == 0) {
        if (edges.head_buf || edges.tail_buf)
            disk_event(disk, BLKDEBUG_EVENT_COW_WRITE);
        disk_event(disk, BLKDEBUG_EVENT_WRITE_AIO);
        stream_put_edge(&stream, edges.head, plan->head);
        stream_put_data(&stream, data, plan->length);
        stream_put_edge(&stream, edges.tail, plan->tail);
        stream_send(&stream);
    }
    disk_buffer_put(disk, edges.head_buf);
    disk_buffer_put(disk, edges.tail_buf);
    return stream.result;
}

static int write_part(struct fan_task *task)
{
    const struct run_part *part = container_of(task, struct run_part, task);

    return qcow2_write_end(part->disk->engine, &part->plan, write_planned(part->disk, &part->plan, part->data));
}

/* With the range lock held. fill: only what the image has nothing for, and of one cluster a part after the other. */
static int write_parts(struct disk *disk, uint64_t offset, struct run_data data, uint64_t size, bool fill,
                       uint64_t *done)
{
    struct run_part parts[RUN_PARTS];
    struct fan fan = {0};
    uint64_t at = 0;
    int result = 0;

    for (unsigned n = 0; n < RUN_PARTS && at < size && result == 0; n++) {
        struct run_part *part = &parts[n];
        uint64_t length = size - at;

        *part = (struct run_part){.task.run = write_part, .disk = disk, .data = data};
        if (fill) {
            result = disk_ask(disk, offset + at, length, &part->map);
            length = part->map.length;
            if (result == 0 && part->map.kind != MAPPING_UNALLOCATED) {
                at += length;
                continue;
            }
        }
        if (result == 0)
            result = qcow2_write_begin(disk->engine, offset + at, length, &part->plan);
        if (result < 0)
            break;
        part->data.skip += at;
        at += part->plan.length;
        if (at == size || n + 1 == RUN_PARTS || (offset + at) % disk->cluster_size)
            result = write_part(&part->task);
        else
            fan_start(&fan, &part->task);
    }
    int other = fan_wait(&fan);

    *done += at;
    return result < 0 ? result : other;
}

void disk_hold(struct disk *disk, struct range_hold *hold, uint64_t offset, uint64_t length)
{
    uint64_t mask = disk->cluster_size - 1, start = offset & ~mask;

    range_lock_take(&disk->changing, hold, start, ((offset + length + mask) & ~mask) - start);
}

int disk_write_held(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size,
                    uint32_t flags)
{
    struct run_data data = {.iov = iov, .count = count};
    uint64_t done = 0;
    int result = 0;

    while (done < size && result == 0) {
        data.skip = done;
        result = write_parts(disk, offset + done, data, size - done, flags & REQ_FILL, &done);
    }
    return result;
}

static int disk_write(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size,
                      uint32_t flags)
{
    struct range_hold hold;

    disk_hold(disk, &hold, offset, size);
    int result = disk_write_held(disk, offset, iov, count, size, flags);

    range_lock_release(&disk->changing, &hold);
    return result;
}

/* A write that needs nothing changed came here for its flush, or because its table was not in memory. */
static int disk_write_in_place(struct disk *disk, const struct request *req, const struct mapping *map)
{
    disk_event(disk, BLKDEBUG_EVENT_WRITE_AIO);
    return run_transfer(disk->files[map->file], true, map->host,
                        (struct run_data){.iov = req->iov, .count = req->iov_count}, req->length);
}

static int run_read(struct disk *disk, const struct request *req)
{
    struct run_data data = {.iov = req->iov, .count = req->iov_count, .from_overlay = req->edge->role & ROLE_BACKING};

    return disk_read(disk, req->offset, data, req->length);
}

static int run_write(struct disk *disk, const struct request *req)
{
    struct mapping map;

    if (req->flags & REQ_COMPRESSED)
        return disk_write_compressed(disk, req);
    int result = disk_ask(disk, req->offset, req->length, &map);

    if (result < 0)
        return result;
    if (disk_writes_in_place(disk, &map, req->length) && !(req->flags & REQ_FILL))
        return disk_write_in_place(disk, req, &map);
    return disk_write(disk, req->offset, req->iov, req->iov_count, req->length, req->flags);
}

/* Zeroes and discards */

/* Whether the range reads as zeroes without anybody's help. */
static int zero_is_there(struct disk *disk, uint64_t offset, uint64_t length, bool *ret)
{
    int result = 0;

    *ret = true;
    while (length && *ret && result == 0) {
        struct mapping map;

        result = disk_ask(disk, offset, length, &map);
        if (result < 0)
            return result;
        *ret = map.kind == MAPPING_ZERO ||
               (map.kind == MAPPING_UNALLOCATED && disk_backing_part(disk, offset, map.length) == 0);
        offset += map.length;
        length -= map.length;
    }
    return result;
}

static int zero_write(struct disk *disk, uint64_t offset, uint64_t length)
{
    bool there;
    int result = zero_is_there(disk, offset, length, &there);

    while (length && result == 0 && !there) {
        struct iovec iov[RUN_IOVS];
        uint64_t size = 0;
        unsigned count = 0;

        for (; count < RUN_IOVS && size < length; count++) {
            uint64_t part = length - size < RUN_ZEROES ? length - size : RUN_ZEROES;

            iov[count] = (struct iovec){.iov_base = (void *)(uintptr_t)run_zeroes, .iov_len = part};
            size += part;
        }
        result = disk_write(disk, offset, iov, count, size, 0);
        offset += size;
        length -= size;
    }
    return result;
}

/* The whole granules of [*offset, *end), of which the last may end with the disk; false if there are none. */
static bool run_whole_granules(const struct disk *disk, uint64_t *offset, uint64_t *end)
{
    uint64_t mask = qcow2_granule(disk->engine) - 1;

    *offset = (*offset + mask) & ~mask;
    if (*end != qcow2_size(disk->engine))
        *end &= ~mask;
    return *offset < *end;
}

/* A raw data file is the disk for others as well: what reads as zeroes is zeroes in it. */
static int zero_data_file(struct disk *disk, uint64_t offset, uint64_t length, uint32_t flags)
{
    if (!disk->files[FORMAT_FILE_DATA] || !qcow2_data_file_raw(disk->engine))
        return 0;
    return edge_write_zeroes(disk->files[FORMAT_FILE_DATA], offset, length, flags & REQ_MAY_UNMAP);
}

int disk_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, uint32_t flags)
{
    uint64_t last = offset + length, start = offset, end = last;
    struct range_hold hold;

    if (!run_whole_granules(disk, &start, &end))
        return zero_write(disk, offset, length);
    disk_hold(disk, &hold, start, end - start);
    int result = zero_data_file(disk, start, end - start, flags);

    if (result == 0)
        result = disk_zero_range(disk, start, end, flags & REQ_MAY_UNMAP);
    range_lock_release(&disk->changing, &hold);
    if (result == -ENOTSUP && !(flags & REQ_FAST_ONLY))
        result = zero_write(disk, start, end - start);
    if (result == 0)
        result = zero_write(disk, offset, start - offset);
    return result < 0 ? result : zero_write(disk, end, last - end);
}

static int run_discard(struct disk *disk, const struct request *req)
{
    uint64_t start = req->offset, end = start + req->length;
    struct range_hold hold;

    if (!run_whole_granules(disk, &start, &end))
        return 0;
    disk_hold(disk, &hold, start, end - start);
    int result = zero_data_file(disk, start, end - start, REQ_MAY_UNMAP);

    if (result == 0)
        result = disk_discard_range(disk, start, end);
    range_lock_release(&disk->changing, &hold);
    return result;
}

/* Status */

/*
 * What lies below answers for a prefix of *length, which is cut to what was asked for; *covered is how far the
 * answer reaches.
 */
static int status_backing(struct disk *disk, const struct request *req, uint64_t offset, uint64_t *length,
                          uint64_t *covered)
{
    struct extent_list *list = req->extents;
    uint32_t last = list->count ? list->count - 1 : 0;
    uint64_t before = list->count ? list->extents[last].length : 0;
    uint64_t inside = disk_backing_part(disk, offset, *length);
    struct edge *edge = disk->backing;
    int result = 0;

    *covered = 0;
    if (inside == 0) {
        *covered = extent_add(list, *length, EXTENT_HOLE | EXTENT_ZERO) ? *length : 0;
        return 0;
    }
    *length = inside;
    if (!(req->edge->role & ROLE_BACKING))
        result = disk_chain_resolve(disk, offset, length, &edge);
    if (result == 0)
        result = edge_status(edge, offset, *length, list);
    for (uint32_t i = last; i < list->count; i++)
        *covered += list->extents[i].length;
    *covered -= before;
    return result;
}

static int run_status(struct disk *disk, const struct request *req)
{
    uint64_t offset = req->offset, end = offset + req->length, covered = 0;
    int result = 0;

    while (offset < end && result == 0) {
        struct mapping map;

        result = disk_ask(disk, offset, end - offset, &map);
        if (result < 0)
            break;
        if (map.kind == MAPPING_UNALLOCATED) {
            result = status_backing(disk, req, offset, &map.length, &covered);
        } else {
            uint32_t flags = map.kind == MAPPING_ZERO ? EXTENT_HOLE | EXTENT_ZERO : 0;

            covered = extent_add(req->extents, map.length, flags) ? map.length : 0;
        }
        offset += covered;
        if (covered < map.length)
            break;
    }
    /* A prefix is an answer. */
    return req->extents->count ? 0 : result;
}

/* All that was answered is durable: what the engine knows of by its flush, what was written in place by any flush of
 * its file that begins after this call. */
int disk_flush(struct disk *disk)
{
    uint64_t before[FORMAT_FILE_COUNT];

    for (unsigned i = 0; i < FORMAT_FILE_COUNT; i++)
        before[i] = atomic_load(&disk->flushes[i].begun);
    int result = qcow2_flush(disk->engine);

    for (unsigned i = 0; i < FORMAT_FILE_COUNT && result == 0; i++) {
        if (disk->files[i] && atomic_load(&disk->flushes[i].ended) <= before[i])
            result = disk_flush_file(disk, i);
    }
    return result;
}

static int run_do(struct disk *disk, const struct request *req)
{
    switch (req->op) {
    case REQ_READ:
        return run_read(disk, req);
    case REQ_WRITE:
        return run_write(disk, req);
    case REQ_FLUSH:
        return disk_flush(disk);
    case REQ_DISCARD:
        return run_discard(disk, req);
    case REQ_WRITE_ZEROES:
        return disk_write_zeroes(disk, req->offset, req->length, req->flags);
    case REQ_STATUS:
        return run_status(disk, req);
    default:
        return 0;
    }
}

enum step disk_slow(struct node *node, struct request *req)
{
    struct disk *disk = node->state;
    int result = run_do(disk, req);

    if (result == 0 && req->flags & REQ_FUA && REQ_BITS_WRITING & REQ_BIT(req->op))
        result = disk_flush(disk);
    if (result == 0 && req->flags & REQ_FILL && !(REQ_BITS_WRITING & REQ_BIT(req->op)))
        disk_fill(disk, req);
    return request_up(req, result);
}
