/*
 * Write-back in the order that makes crashes harmless, and the end of it all.
 *
 * Refcounts are written under the lock of the tables; then the dirty slices of
 * L2 tables are copied, the lock is let go of, and what follows stops nobody:
 * a flush, the names of new refcount blocks and a flush if there are any, the
 * copies, a flush.
 */
#include "drivers/format/engine/qcow2_internal.h"

#define WRITE_LIMIT (256u << 10) /* bytes of tables in one write */

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

/*
 * Copies of the tables' parts that are dirty. What is linked after they were
 * taken may need data and refcounts that the flush before their writing does
 * not reach, so it must not be written with them.
 */
struct image_tables {
    struct slot **slots;
    unsigned char *slices; /* in the order of slots */
    uint32_t slot_count, slots_done;
    struct l1_sector {
        uint64_t words[64]; /* as on disk */
        uint32_t number, count;
    } * sectors;
    uint32_t sector_count, sectors_done;
    struct reftable_part reftable;
    bool reftable_done;
    uint64_t freed; /* the number that follows what was freed by then */
};

static void tables_release(struct qcow2 *q, struct image_tables *tables)
{
    q->io->release(q->world, tables->slots);
    q->io->release(q->world, tables->slices);
    q->io->release(q->world, tables->sectors);
    q->io->release(q->world, tables->reftable.words);
}

static int tables_allocate(struct qcow2 *q, struct image_tables *tables)
{
    uint32_t sectors = (q->l1->count + 63) / 64;

    for (uint32_t i = 0; i < sectors; i++)
        tables->sector_count += q->l1_dirty[i];
    tables->slot_count = (uint32_t)q->l2.dirty;
    tables->slices = q->io->alloc(q->world, (size_t)tables->slot_count * q->l2.slice_size);
    tables->sectors = q->io->alloc(q->world, tables->sector_count * sizeof(*tables->sectors));
    tables->reftable.words = q->io->alloc(q->world, q->alloc.unnamed.count * 8);
    if (!tables->slices || !tables->sectors || !tables->reftable.words)
        return -ENOMEM;
    return cache_list_dirty(q, &q->l2, &tables->slots);
}

static void tables_copy(struct qcow2 *q, struct image_tables *tables)
{
    uint32_t size = q->l2.slice_size, next = 0;

    for (uint32_t i = 0; i < tables->slot_count; i++) {
        struct slot *slot = tables->slots[i];

        memcpy(tables->slices + (size_t)i * size, (void *)(uintptr_t)slot->words, size);
        slot->dirty = false;
        slot->writing = true;
    }
    atomic_fetch_sub(&q->l2.dirty, tables->slot_count);
    for (uint32_t number = 0; next < tables->sector_count; number++) {
        struct l1_sector *sector = &tables->sectors[next];
        uint32_t left = q->l1->count - number * 64;

        if (!q->l1_dirty[number])
            continue;
        sector->number = number;
        sector->count = left < 64 ? left : 64;
        for (uint32_t i = 0; i < sector->count; i++)
            sector->words[i] = htobe64(q->l1->entries[number * 64 + i].offset);
        q->l1_dirty[number] = 0;
        next++;
    }
    reftable_take(q, &tables->reftable);
    tables->freed = freed_seal(q);
}

/* What was not written is dirty again. */
static void tables_written(struct qcow2 *q, struct image_tables *tables)
{
    for (uint32_t i = 0; i < tables->slot_count; i++) {
        tables->slots[i]->writing = false;
        if (i >= tables->slots_done)
            cache_set_dirty(&q->l2, tables->slots[i]);
    }
    for (uint32_t i = tables->sectors_done; i < tables->sector_count; i++)
        q->l1_dirty[tables->sectors[i].number] = 1;
    if (tables->reftable.blocks.count && !tables->reftable_done)
        reftable_set_dirty(q, tables->reftable.blocks);
}

/* Slices that lie side by side in the file go together. */
static int tables_write_slices(struct qcow2 *q, struct image_tables *tables)
{
    uint32_t size = q->l2.slice_size, first = tables->slots_done, run = 1;

    while (first + run < tables->slot_count && (run + 1) * size <= WRITE_LIMIT &&
           tables->slots[first + run]->key == tables->slots[first]->key + (uint64_t)run * size)
        run++;
    image_step(q, FORMAT_L2_UPDATE);
    int result = image_write(q, tables->slots[first]->key, tables->slices + (size_t)first * size, (size_t)run * size);

    if (result == 0)
        tables->slots_done += run;
    return result;
}

/* Without the lock of the tables. */
static int tables_write(struct qcow2 *q, struct image_tables *tables)
{
    int result = 0;

    while (result == 0 && tables->slots_done < tables->slot_count)
        result = q->corrupted ? -EIO : tables_write_slices(q, tables);
    while (result == 0 && tables->sectors_done < tables->sector_count) {
        const struct l1_sector *sector = &tables->sectors[tables->sectors_done];

        image_step(q, FORMAT_L1_UPDATE);
        result = image_write(q, q->header.l1_offset + (uint64_t)sector->number * 512, sector->words,
                             sector->count * sizeof(sector->words[0]));
        tables->sectors_done += result == 0;
    }
    return result;
}

/* New refcount blocks are durable; the table names them, before anything refers to the clusters that they count. */
static int tables_write_reftable(struct qcow2 *q, struct image_tables *tables)
{
    if (!tables->reftable.blocks.count)
        return 0;
    tables_lock(q);
    int result = reftable_write(q, &tables->reftable);

    tables_unlock(q);
    if (result == 0)
        result = image_flush(q);
    tables->reftable_done = result == 0;
    return result;
}

static int tables_write_in_order(struct qcow2 *q, bool durable, uint64_t *freed)
{
    struct image_tables tables = {0};
    int result = tables_allocate(q, &tables);

    if (result < 0) {
        tables_release(q, &tables);
        return result;
    }
    tables_copy(q, &tables);
    *freed = tables.freed;
    tables_unlock(q);
    if (tables.slot_count || tables.sector_count || tables.reftable.blocks.count) {
        result = files_flush(q);
        if (result == 0)
            result = tables_write_reftable(q, &tables);
        if (result == 0)
            result = tables_write(q, &tables);
    }
    if (result == 0 && durable)
        result = files_flush(q);
    tables_lock(q);
    tables_written(q, &tables);
    tables_release(q, &tables);
    return result;
}

int tables_write_back(struct qcow2 *q, bool durable)
{
    uint64_t number = 0, freed = 0;
    int result = q->corrupted ? -EIO : 0;

    if (durable)
        number = atomic_fetch_add(&q->flushes_begun, 1) + 1;
    if (result == 0 && q->lazy && (q->l2.dirty || l1_is_dirty(q)))
        result = header_mark_dirty(q);
    /* With the dirty bit set refcounts may be wrong: they are written at the end, or when the cache is full of them. */
    if (result == 0 && (!q->lazy || q->refcounts.dirty > q->refcounts.count / 2))
        result = cache_write_back(q, &q->refcounts);
    if (result == 0)
        result = tables_write_in_order(q, durable, &freed);
    q->l2.stuck = result < 0;
    if (result < 0 || !durable)
        return result;
    freed_durable(q, freed);
    if (!q->l2.dirty && !l1_is_dirty(q) && !reftable_is_dirty(q) && q->freed.durable == q->freed.count)
        atomic_store(&q->needs_flush, false);
    freed_reap(q);
    q->flush_ended = number;
    return 0;
}

int tables_write_back_waiting(struct qcow2 *q, bool durable)
{
    tables_unlock(q);
    flush_lock(q);
    tables_lock(q);
    int result = tables_write_back(q, durable);

    flush_unlock(q);
    return result;
}

int qcow2_flush(struct qcow2 *q)
{
    uint64_t begun = atomic_load(&q->flushes_begun);
    int result = 0;

    flush_lock(q);
    /* One that began after this call, and has ended well, did it all. */
    if (q->flush_ended <= begun) {
        tables_lock(q);
        result = tables_write_back(q, true);
        tables_unlock(q);
    }
    flush_unlock(q);
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
    flush_lock(q);
    tables_lock(q);
    result = finish(q);
    tables_unlock(q);
    flush_unlock(q);
    return result;
}
