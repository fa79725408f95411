/*
 * The refcount table: reading it, the blocks that it lacks, and a larger one
 * when it is full. A block is durable before the table names it, and a table
 * before the header does, so that no crash finds a published one without
 * content or without refcounts of its own. A new block is named when tables
 * are written back, which is early enough: before that nothing on disk refers
 * to the clusters that it counts. (To flush for it at once would stop all
 * allocations until everything in the page cache is on disk.) A larger table
 * is rare, and written at once, with all names.
 */
#include "drivers/format/engine/qcow2_internal.h"

int refcount_open(struct qcow2 *q, char text[256])
{
    const struct qcow2_header *header = &q->header;
    uint64_t bytes = (uint64_t)header->reftable_clusters << header->cluster_bits;

    if (bytes > QCOW2_REFTABLE_MAX)
        return text_fail(text, -EINVAL, "Image does not contain a reference count table of a sane size: %llu bytes",
                         (unsigned long long)bytes);
    if (header->reftable_offset & (q->geometry.cluster_size - 1) || header->reftable_offset > QCOW2_HOST_MAX)
        return text_fail(text, -EINVAL, "Invalid reference count table offset");
    q->alloc.file_size = q->io->size(q->world, FORMAT_FILE_IMAGE);
    q->alloc.virgin = qcow2_align_up(q->alloc.file_size, q->geometry.cluster_size);
    if (q->settings.read_only)
        return 0;
    if (!bytes || !header->reftable_offset)
        return text_fail(text, -EINVAL, "Image does not contain a reference count table");
    q->alloc.table = q->io->alloc(q->world, bytes);
    if (!q->alloc.table)
        return text_fail(text, -ENOMEM, "Could not allocate %llu bytes for the reference count table",
                         (unsigned long long)bytes);
    q->alloc.table_entries = bytes / 8;
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, header->reftable_offset, q->alloc.table, bytes);

    if (result < 0)
        return text_fail(text, result, "Could not read the reference count table");
    if (overlap_add(q, QCOW2_OVERLAP_REFCOUNT_TABLE, header->reftable_offset, bytes) < 0)
        return text_fail(text, -ENOMEM, "Could not allocate memory for metadata checks");
    for (uint64_t i = 0; i < q->alloc.table_entries; i++) {
        uint64_t offset = be64toh(q->alloc.table[i]) & ~QCOW2_REFTABLE_RESERVED;

        q->alloc.table[i] = offset;
        if (offset && offset < QCOW2_HOST_MAX &&
            overlap_add(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, offset, q->geometry.cluster_size) < 0)
            return text_fail(text, -ENOMEM, "Could not allocate memory for metadata checks");
    }
    return 0;
}

bool reftable_is_dirty(const struct qcow2 *q)
{
    return q->alloc.unnamed.count != 0;
}

void reftable_set_dirty(struct qcow2 *q, struct block_range blocks)
{
    struct block_range *unnamed = &q->alloc.unnamed;
    uint64_t end = blocks.first + blocks.count;

    if (unnamed->count) {
        blocks.first = qcow2_min(blocks.first, unnamed->first);
        end = end > unnamed->first + unnamed->count ? end : unnamed->first + unnamed->count;
    }
    *unnamed = (struct block_range){blocks.first, end - blocks.first};
    atomic_store(&q->needs_flush, true);
}

void reftable_take(struct qcow2 *q, struct reftable_part *part)
{
    const struct refcount_state *alloc = &q->alloc;

    part->blocks = alloc->unnamed;
    part->table_offset = q->header.reftable_offset;
    for (uint64_t i = 0; i < part->blocks.count; i++)
        part->words[i] = htobe64(alloc->table[part->blocks.first + i]);
    q->alloc.unnamed = (struct block_range){0};
}

int reftable_write(struct qcow2 *q, const struct reftable_part *part)
{
    /* A larger table has been made meanwhile, and has all names. */
    if (q->header.reftable_offset != part->table_offset)
        return 0;
    if (q->corrupted)
        return -EIO;
    image_step(q, FORMAT_REFTABLE_UPDATE);
    return image_write(q, part->table_offset + 8 * part->blocks.first, part->words, part->blocks.count * 8);
}

/* A block with refcount 1 for its first `ones` clusters. */
static int block_write(struct qcow2 *q, uint64_t offset, uint64_t ones)
{
    uint32_t order = q->geometry.refcount_order;

    image_step(q, FORMAT_REFBLOCK_ALLOC_WRITE);
    memset(q->staging, 0, q->geometry.cluster_size);
    for (uint64_t i = 0; i < ones; i++) {
        if (order < 3)
            q->staging[(i << order) / 8] |= (unsigned char)(1u << ((i << order) % 8));
        else
            q->staging[((i + 1) << (order - 3)) - 1] = 1;
    }
    cache_drop(&q->refcounts, offset, q->geometry.cluster_size);
    return image_write(q, offset, q->staging, q->geometry.cluster_size);
}

static int reftable_file_grow(struct qcow2 *q, uint64_t end)
{
    int result = end > QCOW2_HOST_MAX ? -EFBIG : 0;

    if (result == 0 && end > q->alloc.file_size) {
        result = q->io->grow(q->world, FORMAT_FILE_IMAGE, end);
        if (result == 0) {
            q->alloc.file_size = end;
            q->alloc.grown = true;
        }
    }
    if (result == 0 && end > q->alloc.virgin)
        q->alloc.virgin = end;
    return result;
}

/* Makes the new table the image's: durable before the header names it, and *named is set. */
static int reftable_publish(struct qcow2 *q, uint64_t *table, uint64_t entries, uint64_t offset, bool *named)
{
    uint64_t bytes = entries * 8;
    int result = 0;

    for (uint64_t done = 0; result == 0 && done < bytes; done += q->geometry.cluster_size) {
        uint64_t *words = (uint64_t *)(void *)q->staging;

        image_step(q, FORMAT_REFTABLE_UPDATE);
        for (uint64_t i = 0; i < q->geometry.cluster_size / 8; i++)
            words[i] = htobe64(table[done / 8 + i]);
        result = image_write(q, offset + done, q->staging, q->geometry.cluster_size);
    }
    if (result == 0)
        result = image_flush(q);
    if (result < 0)
        return result;
    q->header.reftable_offset = offset;
    q->header.reftable_clusters = (uint32_t)(bytes >> q->geometry.cluster_bits);
    *named = true;
    result = header_write(q);
    return result < 0 ? result : image_flush(q);
}

/* The header names the old table again, which goes on being kept up. The region of the new one has no block in the
 * old: it is not given out before a new table is made in its place. A flush that succeeds makes this durable together
 * with whatever is written meanwhile. */
static void reftable_revert(struct qcow2 *q, uint64_t offset, uint64_t entries)
{
    q->header.reftable_offset = offset;
    q->header.reftable_clusters = (uint32_t)(entries * 8 >> q->geometry.cluster_bits);
    if (header_write(q) < 0)
        corrupt(q, offset, entries * 8, "Could not go back to the old reference count table");
}

/*
 * A larger table. It lies at the beginning of the first region that the old
 * one cannot describe, behind the blocks that count it and themselves:
 *     [block ... block][table .......]
 */
static int reftable_grow(struct qcow2 *q, uint64_t block)
{
    uint64_t per_block = UINT64_C(1) << q->geometry.refcount_bits, bytes = q->geometry.cluster_size;
    uint64_t old_entries = q->alloc.table_entries, old_offset = q->header.reftable_offset;
    uint64_t first = old_entries << q->geometry.refcount_bits; /* cluster where the new region begins */
    uint64_t entries, blocks = 1, clusters;
    bool named = false;

    for (;;) {
        entries = (block >= old_entries + blocks ? block + 1 : old_entries + blocks);
        entries = qcow2_align_up(entries + entries / 2, bytes / 8);
        if (entries * 8 > QCOW2_REFTABLE_MAX)
            entries = QCOW2_REFTABLE_MAX / 8;
        if (entries <= old_entries + blocks || block >= entries)
            return -EFBIG;
        clusters = blocks + entries * 8 / bytes;
        if (clusters <= blocks * per_block)
            break;
        blocks = (clusters + per_block - 1) / per_block;
    }
    uint64_t offset = first << q->geometry.cluster_bits;
    int result = reftable_file_grow(q, offset + clusters * bytes);
    uint64_t *table = result == 0 ? q->io->alloc(q->world, entries * 8) : NULL;

    if (result < 0 || !table)
        return result < 0 ? result : -ENOMEM;
    memcpy(table, q->alloc.table, old_entries * 8);
    result = overlap_add(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, offset, blocks * bytes);
    if (result == 0)
        result = overlap_add(q, QCOW2_OVERLAP_REFCOUNT_TABLE, offset + blocks * bytes, entries * 8);
    for (uint64_t i = 0; result == 0 && i < blocks; i++) {
        table[old_entries + i] = offset + i * bytes;
        result = block_write(q, table[old_entries + i], qcow2_min(clusters - i * per_block, per_block));
    }
    if (result == 0)
        result = reftable_publish(q, table, entries, offset + blocks * bytes, &named);
    if (result < 0) {
        if (named)
            reftable_revert(q, old_offset, old_entries);
        overlap_remove(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, offset, blocks * bytes);
        overlap_remove(q, QCOW2_OVERLAP_REFCOUNT_TABLE, offset + blocks * bytes, entries * 8);
        q->io->release(q->world, table);
        return result;
    }
    q->io->release(q->world, q->alloc.table);
    q->alloc.table = table;
    q->alloc.table_entries = entries;
    q->alloc.unnamed = (struct block_range){0};
    overlap_remove(q, QCOW2_OVERLAP_REFCOUNT_TABLE, old_offset, old_entries * 8);
    refcount_add(q, old_offset >> q->geometry.cluster_bits, old_entries * 8 / bytes, -1);
    return 0;
}

/* A block at offset, whose first `ones` clusters are in use. */
static int block_add(struct qcow2 *q, uint64_t block, uint64_t offset, uint64_t ones)
{
    int result = overlap_add(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, offset, q->geometry.cluster_size);

    if (result == 0)
        result = block_write(q, offset, ones);
    if (result < 0) {
        overlap_remove(q, QCOW2_OVERLAP_REFCOUNT_BLOCK, offset, q->geometry.cluster_size);
        return result;
    }
    q->alloc.table[block] = offset;
    reftable_set_dirty(q, (struct block_range){block, 1});
    return 0;
}

int reftable_reach(struct qcow2 *q, uint64_t block)
{
    if (block >= UINT64_C(1) << (56 - q->geometry.cluster_bits - q->geometry.refcount_bits))
        return -EFBIG;
    return block < q->alloc.table_entries ? 0 : reftable_grow(q, block);
}

int refcount_block_make(struct qcow2 *q, uint64_t block)
{
    uint64_t offset = block << (q->geometry.refcount_bits + q->geometry.cluster_bits);
    int result = reftable_reach(q, block);

    /* The new table's own blocks may be what was asked for. */
    if (result < 0 || q->alloc.table[block])
        return result;
    if (offset == 0 || overlap_hits(q, offset, q->geometry.cluster_size, 0))
        return corrupt(q, offset, q->geometry.cluster_size, "Preventing invalid allocation of refcount block at 0x%llx",
                       (unsigned long long)offset);
    result = reftable_file_grow(q, offset + q->geometry.cluster_size);
    return result < 0 ? result : block_add(q, block, offset, 1);
}

int refcount_block_make_at(struct qcow2 *q, uint64_t block, uint64_t offset)
{
    return block_add(q, block, offset, 0);
}
