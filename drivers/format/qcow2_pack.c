/*
 * qcow2: writes that are asked to be compressed. Whole clusters are; of a
 * cluster that is written in part the rest is read first, so that it is
 * compressed as well, whatever it was. What does not get smaller is written
 * as it is.
 */
#include <errno.h>
#include <string.h>

#include "core/fan.h"
#include "core/iov.h"
#include "drivers/format/qcow2.h"

/* Clusters of one request that are compressed at the same time. */
#define PACK_PARTS 4u

struct pack_part {
    struct fan_task task;
    struct disk *disk;
    const struct request *req;
    uint64_t cluster;       /* guest offset */
    uint64_t from, to;      /* bytes of the guest's disk that are written to it */
};

/* The cluster as it will be, in buf; behind the end of the disk it is zero. */
static int pack_gather(const struct pack_part *part, unsigned char *buf, uint64_t inside)
{
    const struct request *req = part->req;
    uint64_t size = part->disk->cluster_size;
    int result = 0;

    if (part->to - part->from < inside)
        result = disk_read_buffer(part->disk, part->cluster, buf, inside);
    memset(buf + inside, 0, size - inside);
    iov_to_buffer(req->iov, req->iov_count, part->from - req->offset, buf + (part->from - part->cluster),
                  part->to - part->from);
    return result;
}

static int pack_write(const struct pack_part *part, unsigned char *buf)
{
    struct disk *disk = part->disk;
    uint64_t left = qcow2_size(disk->engine) - part->cluster;
    uint64_t inside = left < disk->cluster_size ? left : disk->cluster_size;
    struct iovec iov = {.iov_base = buf, .iov_len = inside};
    int result = pack_gather(part, buf, inside);

    if (result == 0)
        result = disk_pack(disk, part->cluster, buf);
    return result == -E2BIG ? disk_write_held(disk, part->cluster, &iov, 1, inside, 0) : result;
}

/*
 * Whether the cluster is written as a whole, or nobody can write to the rest of it meanwhile: writes in place hold no
 * lock, and one that comes after the rest was read would be lost.
 */
static int pack_is_alone(const struct pack_part *part, bool *whole)
{
    struct disk *disk = part->disk;
    uint64_t left = qcow2_size(disk->engine) - part->cluster, done = 0;
    uint64_t inside = left < disk->cluster_size ? left : disk->cluster_size;
    int result = 0;

    *whole = true;
    if (part->to - part->from >= inside)
        return 0;
    while (done < inside && result == 0 && *whole) {
        struct mapping map;

        result = disk_ask(disk, part->cluster + done, inside - done, &map);
        *whole = result == 0 && !(map.kind == MAPPING_DATA && map.copied);
        done += map.length;
    }
    return result;
}

/* What is filled in goes where nothing is: if that is not the whole cluster, it is not for us to compress it. */
static int pack_fills(const struct pack_part *part, bool *whole)
{
    struct disk *disk = part->disk;
    uint64_t left = qcow2_size(disk->engine) - part->cluster;
    uint64_t inside = left < disk->cluster_size ? left : disk->cluster_size;
    struct mapping map;
    int result = disk_ask(disk, part->cluster, inside, &map);

    *whole = result == 0 && map.kind == MAPPING_UNALLOCATED && map.length == inside;
    return result;
}

static int pack_plain(const struct pack_part *part)
{
    const struct request *req = part->req;
    uint64_t done = part->from;
    int result = 0;

    while (done < part->to && result == 0) {
        struct iovec iov[16];
        size_t size = part->to - done;
        unsigned count = iov_window(req->iov, req->iov_count, done - req->offset, &size, iov, 16);

        result = disk_write_held(part->disk, done, iov, count, size, req->flags & REQ_FILL);
        done += size;
    }
    return result;
}

static int pack_part(struct fan_task *task)
{
    const struct pack_part *part = container_of(task, struct pack_part, task);
    bool whole = true;
    int result = part->req->flags & REQ_FILL ? pack_fills(part, &whole) : pack_is_alone(part, &whole);

    if (result < 0)
        return result;
    if (!whole)
        return pack_plain(part);
    unsigned char *buf = disk_buffer_get(part->disk);

    result = buf ? pack_write(part, buf) : -ENOMEM;
    disk_buffer_put(part->disk, buf);
    return result;
}

int disk_write_compressed(struct disk *disk, const struct request *req)
{
    uint64_t at = req->offset, end = at + req->length;
    struct range_hold hold;
    int result = 0;

    if (disk->files[FORMAT_FILE_DATA])
        return -ENOTSUP;
    disk_hold(disk, &hold, req->offset, req->length);
    while (at < end && result == 0) {
        struct pack_part parts[PACK_PARTS];
        struct fan fan = {0};

        for (unsigned n = 0; n < PACK_PARTS && at < end; n++) {
            uint64_t cluster = at & ~(uint64_t)(disk->cluster_size - 1), next = cluster + disk->cluster_size;

            parts[n] = (struct pack_part){.task.run = pack_part, .disk = disk, .req = req, .cluster = cluster};
            parts[n].from = at;
            parts[n].to = at = next < end ? next : end;
            fan_start(&fan, &parts[n].task);
        }
        result = fan_wait(&fan);
    }
    range_lock_release(&disk->changing, &hold);
    return result;
}
