/*
 * qcow2: reads that keep what they read (REQ_FILL, for copy-on-read). What
 * came from the backing node is written here too, whole clusters of it, where
 * under the range lock there is still nothing. So a write that has overtaken
 * the read is never undone. Zeroes become zero clusters. Of a request with a
 * bottom, only clusters count of which a part comes from the layers down to it.
 *
 * That nothing could be kept is no fault of the read.
 */
#include "core/iov.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"

#define FILL_IOVS 64u

struct fill {
    struct disk *disk;
    const struct request *req;
    uint64_t offset, length;        /* bytes: a cluster or more, or a part of one */
};

/* Bytes of the disk in the cluster at offset. */
static uint64_t fill_cluster(const struct disk *disk, uint64_t offset)
{
    uint64_t left = qcow2_size(disk->engine) - offset;

    return left < disk->cluster_size ? left : disk->cluster_size;
}

static int fill_zeroes(const struct fill *fill, uint64_t offset, uint64_t length, bool *done)
{
    struct mapping map;
    int result = disk_ask(fill->disk, offset, length, &map);

    *done = result == 0 && map.kind == MAPPING_UNALLOCATED && map.length == length;
    return *done ? qcow2_write_zeroes(fill->disk->engine, offset, length, true) : result;
}

/* Whole clusters, which the request has. */
static int fill_from_request(struct fill *fill)
{
    struct iovec iov[FILL_IOVS];
    size_t size = fill->length;
    bool done = false;
    int result = 0;
    unsigned count =
        iov_window(fill->req->iov, fill->req->iov_count, fill->offset - fill->req->offset, &size, iov, FILL_IOVS);

    fill->length = size;
    if (size % fill->disk->cluster_size == 0 && iov_is_zero(iov, count))
        result = fill_zeroes(fill, fill->offset, size, &done);
    return done || result < 0 ? result : disk_write_held(fill->disk, fill->offset, iov, count, size, REQ_FILL);
}

/* A cluster of which the request has a part, or nothing because it is no read. */
static int fill_from_disk(const struct fill *fill, uint64_t cluster)
{
    struct disk *disk = fill->disk;
    uint64_t size = fill_cluster(disk, cluster);
    void *buf = disk_buffer_get(disk);
    struct iovec iov = {.iov_base = buf, .iov_len = size};
    bool done = false;
    int result = disk_read_buffer(disk, cluster, buf, size);

    if (result == 0 && buffer_is_zero(buf, size))
        result = fill_zeroes(fill, cluster, size, &done);
    if (result == 0 && !done)
        result = disk_write_held(disk, cluster, &iov, 1, size, REQ_FILL);
    disk_buffer_put(disk, buf);
    return result;
}

/* Whether a layer below has what begins at fill->offset, down to the bottom of the request; cuts fill->length to what is
 * alike. Backing nodes are constant while something is under way. */
static int fill_find(struct fill *fill, bool *ret)
{
    const struct node *bottom = fill->req->bottom, *node = fill->disk->node;
    struct disk *disk = fill->disk;

    *ret = false;
    while (!*ret && node != bottom) {
        uint64_t part = disk_backing_part(disk, fill->offset, fill->length);
        struct mapping map;

        if (part == 0)
            return 0;
        fill->length = part;
        for (node = disk->backing->child; node->filtered;)
            node = node->filtered->child;
        *ret = !bottom || node->driver != fill->disk->node->driver;
        if (*ret)
            return 0;
        disk = node->state;
        int result = disk_ask(disk, fill->offset, fill->length, &map);

        if (result < 0)
            return result;
        fill->length = map.length;
        *ret = map.kind != MAPPING_UNALLOCATED;
    }
    return 0;
}

/* What is not here, of a range that begins at fill->offset: a part of it, fill->length bytes. */
static int fill_part(struct fill *fill)
{
    struct disk *disk = fill->disk;
    uint64_t skip = fill->offset % disk->cluster_size, cluster = fill->offset - skip;
    struct mapping map;
    bool found;
    int result = disk_ask(disk, fill->offset, fill->length, &map);

    if (result < 0)
        return result;
    fill->length = map.length;
    if (map.kind != MAPPING_UNALLOCATED)
        return 0;
    result = fill_find(fill, &found);
    if (result < 0 || !found)
        return result;
    if (skip == 0 && fill->length >= disk->cluster_size && fill->req->iov_count) {
        fill->length -= fill->length % disk->cluster_size;
        return fill_from_request(fill);
    }
    if (fill->length > fill_cluster(disk, cluster) - skip)
        fill->length = fill_cluster(disk, cluster) - skip;
    return fill_from_disk(fill, cluster);
}

void disk_fill(struct disk *disk, const struct request *req)
{
    struct fill fill = {.disk = disk, .req = req, .offset = req->offset};
    uint64_t end = req->offset + req->length;
    struct range_hold hold;
    int result = 0;

    if (!disk->backing || disk->node->flags & (NODE_READ_ONLY | NODE_CORRUPTED))
        return;
    disk_hold(disk, &hold, req->offset, req->length);
    while (fill.offset < end && result == 0) {
        fill.length = end - fill.offset;
        result = fill_part(&fill);
        fill.offset += fill.length;
    }
    range_lock_release(&disk->changing, &hold);
}
