/*
 * Write-back in the order that makes crashes harmless, and the end of it all.
 */
#include "drivers/format/engine/qcow2_internal.h"

int image_write(struct qcow2 *q, uint64_t offset, const void *buf, size_t size)
{
    atomic_fetch_add(&q->counters.metadata_writes, 1);
    return q->io->write(q->world, FORMAT_FILE_IMAGE, offset, buf, size);
}

int image_flush(struct qcow2 *q)
{
    atomic_fetch_add(&q->counters.flushes, 1);
    return q->io->flush(q->world, FORMAT_FILE_IMAGE);
}

static int files_flush(struct qcow2 *q)
{
    int result = qcow2_has_data_file(q) ? q->io->flush(q->world, FORMAT_FILE_DATA) : 0;

    return result < 0 ? result : image_flush(q);
}

static bool l1_is_dirty(const struct qcow2 *q)
{
    return memchr(q->l1_dirty, 1, (q->l1->count + 63) / 64) != NULL;
}

int tables_write_back(struct qcow2 *q, bool durable)
{
    bool tables = q->l2.dirty || l1_is_dirty(q);
    int result = 0;

    if (q->corrupted)
        return -EIO;
    if (q->lazy && tables)
        result = header_mark_dirty(q);
    /* With the dirty bit set refcounts may be wrong: they are written at the end, or when the cache is full of them. */
    if (result == 0 && (!q->lazy || q->refcounts.dirty > q->refcounts.count / 2))
        result = cache_write_back(q, &q->refcounts);
    if (result == 0 && tables) {
        result = files_flush(q);
        if (result == 0)
            result = cache_write_back(q, &q->l2);
        if (result == 0)
            result = l1_write_back(q);
    }
    if (result < 0 || !durable)
        return result;
    result = files_flush(q);
    if (result < 0)
        return result;
    atomic_store(&q->needs_flush, false);
    freed_durable(q);
    freed_reap(q);
    return 0;
}

int qcow2_flush(struct qcow2 *q)
{
    uint64_t arrived = atomic_load(&q->flush_started);
    int result = 0;

    q->io->lock(q->world);
    /* One that began after this call, and has ended, did it all. */
    if (atomic_load(&q->flush_started) == arrived) {
        result = tables_write_back(q, true);
        if (result == 0)
            atomic_store(&q->flush_started, arrived + 1);
    }
    q->io->unlock(q->world);
    return result;
}

bool qcow2_is_clean(const struct qcow2 *q)
{
    return !atomic_load(&q->needs_flush);
}

/* The end of the last cluster in use. */
static int image_end(struct qcow2 *q, uint64_t *ret)
{
    uint64_t cluster = q->alloc.virgin >> q->geometry.cluster_bits, count = 0;
    int result = 0;

    while (result == 0 && cluster > 0 && count == 0) {
        uint64_t block = --cluster >> q->geometry.refcount_bits;

        if (block >= q->alloc.table_entries || !q->alloc.table[block])
            cluster = block << q->geometry.refcount_bits;
        else
            result = refcount_get(q, cluster, &count);
    }
    *ret = (cluster + 1) << q->geometry.cluster_bits;
    return result;
}

static int finish(struct qcow2 *q)
{
    uint64_t end = 0;
    int result = q->corrupted ? -EIO : 0;

    while (result == 0 && (q->freed.count || !qcow2_is_clean(q))) {
        result = tables_write_back(q, true);
        if (result == 0)
            freed_reap(q);
    }
    if (result == 0)
        result = cache_write_back(q, &q->refcounts);
    if (result == 0)
        result = files_flush(q);
    if (result == 0 && q->header.incompatible & QCOW2_INCOMPAT_DIRTY) {
        q->header.incompatible &= ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
        result = header_write(q);
        if (result == 0)
            result = image_flush(q);
    }
    if (result == 0 && q->alloc.grown && image_end(q, &end) == 0 &&
        q->io->truncate(q->world, FORMAT_FILE_IMAGE, end) == 0) {
        q->alloc.file_size = q->alloc.virgin = end;
        q->alloc.grown = false;
    }
    return result;
}

int qcow2_finish(struct qcow2 *q)
{
    int result = 0;

    if (q->settings.read_only)
        return 0;
    q->io->lock(q->world);
    result = finish(q);
    q->io->unlock(q->world);
    return result;
}
