/*
 * qcow2: what is answered at once, on any loop, without a wait or a lock. A
 * read or an overwrite that lies whole in one place is re-aimed there, zeroes
 * are filled in; what is not that simple, or changes tables, goes to
 * qcow2_run.c.
 *
 * Why an overwrite needs no lock although a discard may let go of its cluster
 * meanwhile: a freed cluster is not used again before all units of work that
 * were under way have ended.
 */
#include "drivers/format/qcow2.h"

#include <errno.h>

#include "core/iov.h"
#include "core/memory.h"

static enum step map_zero(struct request *req)
{
    iov_fill(req->iov, req->iov_count, 0, 0, req->length);
    return request_up(req, 0);
}

static enum step map_backing(const struct disk *disk, struct request *req)
{
    uint64_t part = disk_backing_part(disk, req->offset, req->length);
    struct edge *edge = disk->backing;

    if (part != req->length)
        return part ? STEP_SLOW : map_zero(req);
    /* From an overlay it came to the layer that answers, or by way of all. */
    if (!(req->edge->role & ROLE_BACKING))
        edge = disk_chain_find(disk, req->offset, req->length);
    return edge ? request_down(req, edge) : STEP_SLOW;
}

/* Only this loop writes; the store is atomic for statistics, which read from outside. */
static inline void map_count_hit(const struct disk *disk, const struct request *req)
{
    uint64_t *hits = &disk->loops[req->loop->index].hits;

    __atomic_store_n(hits, *hits + 1, __ATOMIC_RELAXED);
}

static enum step map_read(const struct disk *disk, struct request *req)
{
    struct mapping map;

    if (unlikely(qcow2_lookup(disk->engine, req->offset, req->length, &map) < 0) || map.length < req->length)
        return STEP_SLOW;
    map_count_hit(disk, req);
    switch (map.kind) {
    case MAPPING_DATA:
        req->offset = map.host;
        req->flags &= ~(uint32_t)REQ_FILL;
        return request_down(req, disk->files[map.file]);
    case MAPPING_ZERO:
        return map_zero(req);
    case MAPPING_UNALLOCATED:
        if (req->flags & REQ_FILL && disk->backing)
            return STEP_SLOW;
        return map_backing(disk, req);
    default:
        return STEP_SLOW;
    }
}

static enum step map_write(const struct disk *disk, struct request *req)
{
    struct mapping map;

    if (unlikely(qcow2_lookup(disk->engine, req->offset, req->length, &map) < 0) || map.length < req->length)
        return STEP_SLOW;
    if (req->flags & REQ_FILL)
        return map.kind == MAPPING_UNALLOCATED ? STEP_SLOW : request_up(req, 0);
    if (!disk_writes_in_place(disk, &map, req->length) || req->flags & REQ_COMPRESSED)
        return STEP_SLOW;
    /* Asked after the lookup: what made this mapping must be durable with the data. */
    if (req->flags & REQ_FUA && !qcow2_is_clean(disk->engine))
        return STEP_SLOW;
    map_count_hit(disk, req);
    req->offset = map.host;
    return request_down(req, disk->files[map.file]);
}

enum step disk_map(struct node *node, struct request *req)
{
    const struct disk *disk = node->state;

    switch (req->op) {
    case REQ_READ:
    case REQ_PREFETCH:
        return map_read(disk, req);
    case REQ_WRITE:
        return map_write(disk, req);
    case REQ_FLUSH:
        if (disk->files[FORMAT_FILE_DATA] || !qcow2_is_clean(disk->engine))
            return STEP_SLOW;
        return request_down(req, disk->files[FORMAT_FILE_IMAGE]);
    default:
        return STEP_SLOW;
    }
}

enum step disk_map_watched(struct node *node, struct request *req)
{
    (void)node;
    (void)req;
    return STEP_SLOW;
}
