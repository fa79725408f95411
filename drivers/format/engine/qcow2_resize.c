/*
 * Growing and shrinking the disk. The L1 table has room for a while; then a
 * larger one takes its place, durable before the header names it.
 */
#include "drivers/format/engine/qcow2_internal.h"

/* The header names the new table once its content is durable; then the old one is nobody's. *named: it may do so on disk,
 * also after a failure, up to the next flush. */
static int l1_publish(struct qcow2 *q, const struct l1_table *l1, uint64_t offset, uint64_t bytes, bool *named)
{
    uint64_t old_offset = q->header.l1_offset;
    uint32_t old_entries = q->header.l1_entries;
    int result = 0;

    for (uint64_t done = 0; result == 0 && done < bytes; done += q->geometry.cluster_size) {
        uint64_t *words = (uint64_t *)(void *)q->staging;

        for (uint64_t i = 0; i < q->geometry.cluster_size / 8; i++)
            words[i] = done / 8 + i < l1->count ? htobe64(l1->entries[done / 8 + i].offset) : 0;
        result = image_write(q, offset + done, q->staging, q->geometry.cluster_size);
    }
    /* With it, the refcounts of its clusters: also lazy ones, since perhaps nothing has marked the image as dirty. */
    if (result == 0)
        result = cache_write_back(q, &q->refcounts);
    if (result == 0)
        result = tables_write_back(q, true);
    if (result < 0)
        return result;
    q->header.l1_offset = offset;
    q->header.l1_entries = l1->count;
    *named = true;
    result = header_write(q);
    if (result == 0)
        result = image_flush(q);
    if (result < 0) {
        /* Perhaps it is on disk nevertheless: the header names the old table again, or nothing is written any more. */
        q->header.l1_offset = old_offset;
        q->header.l1_entries = old_entries;
        if (header_write(q) < 0)
            corrupt(q, offset, bytes, "Could not go back to the old L1 table");
    }
    return result;
}

static int l1_grow(struct qcow2 *q, uint64_t entries)
{
    uint64_t bytes = qcow2_align_up(entries * 8, q->geometry.cluster_size), offset, count;
    uint64_t old_offset = q->header.l1_offset, old_bytes = (uint64_t)q->l1->count * 8;
    struct l1_table *old = q->l1, *l1;
    bool fresh, named = false;

    if (bytes > QCOW2_L1_MAX)
        return -EFBIG;
    int result = freed_reserve(q, 1);

    if (result == 0)
        result = clusters_alloc(q, bytes >> q->geometry.cluster_bits, true, &offset, &count, &fresh);
    if (result < 0)
        return result;
    l1 = l1_alloc(q, (uint32_t)entries);
    uint8_t *dirty = q->io->alloc(q->world, entries / 64 + 1);

    result = l1 && dirty ? overlap_add(q, QCOW2_OVERLAP_ACTIVE_L1, offset, bytes) : -ENOMEM;
    for (uint32_t i = 0; result == 0 && i < old->count; i++) {
        l1->entries[i].offset = old->entries[i].offset;
        l1->entries[i].slots = old->entries[i].slots;
    }
    if (result == 0)
        result = l1_publish(q, l1, offset, bytes, &named);
    if (result < 0) {
        overlap_remove(q, QCOW2_OVERLAP_ACTIVE_L1, offset, bytes);
        if (named)
            freed_add(q, offset, bytes, false);
        else
            clusters_give_back(q, offset, count);
        q->io->release(q->world, l1);
        q->io->release(q->world, dirty);
        return result;
    }
    l1->retired = old;
    q->io->release(q->world, q->l1_dirty);
    q->l1_dirty = dirty;
    atomic_store_explicit(&q->l1, l1, memory_order_release);
    if (old_offset && old_bytes) {
        overlap_remove(q, QCOW2_OVERLAP_ACTIVE_L1, old_offset, old_bytes);
        freed_add(q, old_offset, qcow2_align_up(old_bytes, q->geometry.cluster_size), false);
    }
    return 0;
}

static int size_write(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->header.size;

    q->header.size = size;
    int result = header_write(q);

    if (result == 0)
        result = image_flush(q);
    if (result < 0) {
        q->header.size = old;
        return result;
    }
    atomic_store(&q->size, size);
    return 0;
}

/* Whether each snapshot says how long the disk was: in the second word of its extra data, always so in version 3. */
static int snapshots_have_size(struct qcow2 *q)
{
    uint64_t at = q->header.snapshots_offset;

    if (q->header.snapshots && q->header.version < 3)
        return -ENOTSUP;
    for (uint32_t i = 0; i < q->header.snapshots; i++) {
        struct qcow2_snapshot snapshot;
        int result = snapshot_read(q, &at, &snapshot);

        if (result < 0)
            return result;
        if (snapshot.extra_size < 16)
            return -ENOTSUP;
    }
    return 0;
}

int qcow2_resize(struct qcow2 *q, uint64_t size)
{
    uint64_t span = l2_bytes(q), old = q->size, from = qcow2_align_up(size, q->geometry.cluster_size);
    uint64_t entries = size / span + (size % span != 0);

    if (size % 512 || size > INT64_MAX)
        return -EINVAL;
    int result = snapshots_have_size(q);

    if (result < 0)
        return result;
    /* What lies behind the new end must not come back when the disk grows again. */
    if (from < old)
        result = zero_forget(q, from, old - from);
    flush_lock(q);
    tables_lock(q);
    if (q->corrupted)
        result = -EIO;
    if (result == 0 && size < old)
        result = tables_write_back(q, true);
    if (result == 0 && entries > q->l1->count)
        result = l1_grow(q, entries);
    if (result == 0)
        result = size_write(q, size);
    tables_unlock(q);
    flush_unlock(q);
    return result;
}
