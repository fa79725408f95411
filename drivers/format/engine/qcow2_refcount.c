/*
 * Refcounts: reading and changing them, and finding free clusters. Tables and
 * blocks that are missing are made in qcow2_reftable.c.
 */
#include "drivers/format/engine/qcow2_internal.h"

#define GROW_MIN (UINT64_C(1) << 20)
#define GROW_MAX (UINT64_C(64) << 20)

static uint64_t block_load(const struct qcow2 *q, const unsigned char *bytes, uint64_t index)
{
    uint64_t value = 0;

    switch (q->geometry.refcount_order) {
    case 0:
    case 1:
    case 2: {
        uint32_t width = 1u << q->geometry.refcount_order, per_byte = 8 / width;

        return (bytes[index / per_byte] >> (index % per_byte * width)) & ((1u << width) - 1);
    }
    default:
        for (uint32_t width = 1u << (q->geometry.refcount_order - 3), i = 0; i < width; i++)
            value = value << 8 | bytes[index * width + i];
        return value;
    }
}

static void block_store(const struct qcow2 *q, unsigned char *bytes, uint64_t index, uint64_t value)
{
    if (q->geometry.refcount_order < 3) {
        uint32_t width = 1u << q->geometry.refcount_order, per_byte = 8 / width;
        uint32_t shift = (uint32_t)(index % per_byte) * width, mask = ((1u << width) - 1) << shift;

        bytes[index / per_byte] = (unsigned char)((bytes[index / per_byte] & ~mask) | (uint32_t)value << shift);
        return;
    }
    for (uint32_t width = 1u << (q->geometry.refcount_order - 3), i = 0; i < width; i++)
        bytes[index * width + i] = (unsigned char)(value >> (8 * (width - 1 - i)));
}

/* The slice with a cluster's refcount, and its index there; NULL if there is no block. */
static int refcount_slot(struct qcow2 *q, uint64_t cluster, struct slot **ret, uint64_t *index)
{
    uint32_t order = q->geometry.refcount_order, slice_size = q->refcounts.slice_size;
    uint64_t block = cluster >> q->geometry.refcount_bits;
    uint64_t in_block = cluster & ((UINT64_C(1) << q->geometry.refcount_bits) - 1);
    uint64_t per_slice = ((uint64_t)slice_size << 3) >> order;

    *ret = NULL;
    *index = in_block % per_slice;
    if (block >= q->alloc.table_entries || !q->alloc.table[block])
        return 0;
    uint64_t offset = q->alloc.table[block];

    if (offset & (q->geometry.cluster_size - 1))
        return corrupt(q, offset, q->geometry.cluster_size, "Refblock offset 0x%llx unaligned (reftable index: 0x%llx)",
                       (unsigned long long)offset, (unsigned long long)block);
    if (offset >= q->alloc.file_size)
        return corrupt(q, offset, q->geometry.cluster_size,
                       "Refblock offset 0x%llx outside the file (reftable index: 0x%llx)", (unsigned long long)offset,
                       (unsigned long long)block);
    if (overlap_hits(q, offset, q->geometry.cluster_size, QCOW2_OVERLAP_REFCOUNT_BLOCK))
        return corrupt(q, offset, q->geometry.cluster_size,
                       "Refblock offset 0x%llx overlaps with other metadata (reftable index: 0x%llx)",
                       (unsigned long long)offset, (unsigned long long)block);
    return cache_get(q, &q->refcounts, offset + in_block / per_slice * slice_size, ret);
}

int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret)
{
    struct slot *slot;
    uint64_t index;
    int result = refcount_slot(q, cluster, &slot, &index);

    if (result == 0)
        *ret = slot ? block_load(q, (const unsigned char *)(uintptr_t)slot->words, index) : 0;
    return result;
}

static int refcount_change(struct qcow2 *q, uint64_t cluster, int delta)
{
    struct slot *slot;
    uint64_t index, value;
    int result = refcount_slot(q, cluster, &slot, &index);

    if (result < 0)
        return result;
    value = slot ? block_load(q, (const unsigned char *)(uintptr_t)slot->words, index) : 0;
    if (!slot || (delta < 0 && value == 0))
        return corrupt(q, cluster << q->geometry.cluster_bits, q->geometry.cluster_size,
                       "Refcount of cluster 0x%llx is too low", (unsigned long long)cluster);
    if (delta > 0 && value == q->geometry.refcount_max)
        return -ERANGE;
    value = delta > 0 ? value + 1 : value - 1;
    block_store(q, (unsigned char *)(uintptr_t)slot->words, index, value);
    cache_set_dirty(&q->refcounts, slot);
    if (value == 0 && cluster < q->alloc.free_hint)
        q->alloc.free_hint = cluster;
    if (value == 0 && cluster == q->alloc.packed >> q->geometry.cluster_bits)
        q->alloc.packed = 0;
    return 0;
}

/* All or none. */
int refcount_add(struct qcow2 *q, uint64_t first, uint64_t count, int delta)
{
    for (uint64_t i = 0; i < count; i++) {
        int result = refcount_change(q, first + i, delta);

        if (result < 0) {
            while (i-- > 0)
                refcount_change(q, first + i, -delta);
            return result;
        }
    }
    return 0;
}

int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
    struct slot *slot;
    uint64_t index;
    int result = refcount_slot(q, cluster, &slot, &index);

    if (result == 0 && !slot) {
        result = refcount_block_make(q, cluster >> q->geometry.refcount_bits);
        if (result == 0)
            result = refcount_slot(q, cluster, &slot, &index);
    }
    if (result < 0)
        return result;
    block_store(q, (unsigned char *)(uintptr_t)slot->words, index, value);
    cache_set_dirty(&q->refcounts, slot);
    return 0;
}

/* How much the file grows at a time: twice as much again and again, so that small images stay small. */
static uint64_t file_step(const struct qcow2 *q)
{
    uint64_t step = q->alloc.file_size / 2;

    return qcow2_align_up(step < GROW_MIN ? GROW_MIN : qcow2_min(step, GROW_MAX), q->geometry.cluster_size);
}

static void file_has_grown(struct qcow2 *q, uint64_t size)
{
    if (size > q->alloc.file_size)
        q->alloc.file_size = size;
    q->alloc.grown = true;
}

/* The file reaches to end, and some more, so that it need not grow for each cluster. */
static int file_grow(struct qcow2 *q, uint64_t end)
{
    if (end <= q->alloc.file_size)
        return 0;
    if (end > QCOW2_HOST_MAX)
        return -EFBIG;
    uint64_t size = end + file_step(q);
    int result = q->io->grow(q->world, FORMAT_FILE_IMAGE, size);

    if (result < 0) {
        size = end;
        result = q->io->grow(q->world, FORMAT_FILE_IMAGE, size);
    }
    if (result == 0)
        file_has_grown(q, size);
    return result;
}

int file_reach(struct qcow2 *q, uint64_t end)
{
    int result = file_grow(q, end);

    if (result == 0 && end > q->alloc.virgin)
        q->alloc.virgin = qcow2_align_up(end, q->geometry.cluster_size);
    return result;
}

uint64_t file_ahead(struct qcow2 *q, uint64_t end)
{
    uint64_t step = file_step(q);

    if (q->alloc.growing || end + step / 2 <= q->alloc.file_size || q->alloc.file_size + step > QCOW2_HOST_MAX)
        return 0;
    q->alloc.growing = true;
    return q->alloc.file_size + step;
}

void file_grow_ahead(struct qcow2 *q, uint64_t size)
{
    int result = q->io->grow(q->world, FORMAT_FILE_IMAGE, size);

    tables_lock(q);
    /* What could not be is not tried again: who needs the space learns that there is none. */
    q->alloc.growing = result < 0;
    if (result == 0)
        file_has_grown(q, size);
    tables_unlock(q);
}

/* Counts clusters that were found free: the file reaches to their end. */
static int clusters_take(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t end = (first + count) << q->geometry.cluster_bits;
    int result = file_grow(q, end);

    if (result == 0)
        result = refcount_add(q, first, count, 1);
    if (result == 0 && end > q->alloc.virgin)
        q->alloc.virgin = end;
    return result;
}

/* Free clusters in a row from *first on, in regions that have their blocks. */
static int clusters_find(struct qcow2 *q, uint64_t wanted, bool all, uint64_t *first, uint64_t *count)
{
    uint64_t cluster = q->alloc.free_hint, run = 0;
    bool low = true; /* no free cluster was passed by */

    while (run < wanted) {
        struct slot *slot;
        uint64_t index;
        int result = refcount_slot(q, cluster + run, &slot, &index);

        if (result == 0 && !slot) {
            /* The block takes the first of the clusters that it counts. */
            result = refcount_block_make(q, (cluster + run) >> q->geometry.refcount_bits);
            if (result == 0)
                continue;
        }
        if (result < 0)
            return result;
        if (block_load(q, (const unsigned char *)(uintptr_t)slot->words, index) == 0) {
            run++;
            continue;
        }
        if (run && !all)
            break;
        cluster += run + 1;
        low = low && !run;
        if (low)
            q->alloc.free_hint = cluster;
        run = 0;
    }
    *first = cluster;
    *count = run;
    return 0;
}

/* Blocks for the regions of a run, in the regions behind it. */
static int clusters_cover(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint32_t bits = q->geometry.refcount_bits;
    uint64_t last = (first + count - 1) >> bits, hint = q->alloc.free_hint;
    int result = 0;

    q->alloc.free_hint = (last + 1) << bits;
    for (uint64_t block = first >> bits; result == 0 && block <= last; block++) {
        uint64_t place, found;

        if (q->alloc.table[block])
            continue;
        result = clusters_find(q, 1, false, &place, &found);
        if (result == 0)
            result = clusters_take(q, place, 1);
        if (result == 0) {
            result = refcount_block_make_at(q, block, place << q->geometry.cluster_bits);
            if (result < 0)
                refcount_add(q, place, 1, -1);
        }
    }
    q->alloc.free_hint = hint;
    return result;
}

/*
 * A run that is longer than what one block counts: were each block at the
 * begin of its region, it would cut the run. What has no block is free.
 */
static int clusters_find_long(struct qcow2 *q, uint64_t wanted, uint64_t *first)
{
    uint64_t run = 0, cluster = q->alloc.free_hint, end = cluster + wanted;
    int result = 0;

    while (result == 0 && run < wanted) {
        uint64_t count = 0;

        result = refcount_get(q, cluster + run, &count);
        if (result < 0)
            break;
        run++;
        if (count) {
            cluster += run;
            run = 0;
        }
        /* A larger table takes clusters: look again. */
        end = cluster + wanted;
        if (run == wanted && end >> q->geometry.refcount_bits >= q->alloc.table_entries) {
            result = reftable_reach(q, end >> q->geometry.refcount_bits);
            run = 0;
        }
    }
    *first = cluster;
    return result < 0 ? result : clusters_cover(q, cluster, wanted);
}

int clusters_alloc(struct qcow2 *q, uint64_t wanted, bool all, uint64_t *offset, uint64_t *count, bool *fresh)
{
    bool is_long = all && wanted >= (UINT64_C(1) << q->geometry.refcount_bits) / 2;
    uint64_t first, virgin = q->alloc.virgin;

    image_step(q, FORMAT_CLUSTER_ALLOC);
    *count = wanted;
    int result = is_long ? clusters_find_long(q, wanted, &first) : clusters_find(q, wanted, all, &first, count);

    if (result < 0)
        return result;
    uint64_t start = first << q->geometry.cluster_bits, length = *count << q->geometry.cluster_bits;

    if (overlap_hits(q, start, length, 0) || start == 0)
        return corrupt(q, start, length, "Preventing invalid allocation of a cluster at offset 0x%llx",
                       (unsigned long long)start);
    result = clusters_take(q, first, *count);
    if (result < 0)
        return result;
    if (first == q->alloc.free_hint)
        q->alloc.free_hint = first + *count;
    *fresh = start >= virgin;
    *offset = start;
    return 0;
}

void clusters_give_back(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    refcount_add(q, offset >> q->geometry.cluster_bits, count, -1);
}
