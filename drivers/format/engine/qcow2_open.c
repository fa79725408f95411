/*
 * Opening and closing an image, and what can be asked of an open one.
 */
#include "drivers/format/engine/qcow2_internal.h"

#define L2_CACHE_MAX (UINT64_C(32) << 20)
#define REFCOUNT_CACHE (UINT64_C(256) << 10)
#define STAGING_MIN (UINT32_C(64) << 10)

static int l1_read(struct qcow2 *q, char text[256])
{
    uint32_t count = q->header.l1_entries;
    struct l1_table *l1 = l1_alloc(q, count);
    uint64_t *words = q->io->alloc(q->world, (size_t)count * 8 + 8);

    q->l1 = l1;
    q->l1_dirty = q->io->alloc(q->world, count / 64 + 1);
    int result =
        l1 && words && q->l1_dirty ? 0 : text_fail(text, -ENOMEM, "Could not allocate memory for the L1 table");

    if (result == 0 && count) {
        result = q->io->read(q->world, FORMAT_FILE_IMAGE, q->header.l1_offset, words, (size_t)count * 8);
        if (result < 0)
            text_fail(text, result, "Could not read L1 table: %s", strerror(-result));
    }
    for (uint32_t i = 0; result == 0 && i < count; i++)
        atomic_store_explicit(&l1->entries[i].offset, be64toh(words[i]), memory_order_relaxed);
    q->io->release(q->world, words);
    return result;
}

/* Whether the file has [offset, offset + length), or a part of its last cluster. */
static bool table_is_inside(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t end = qcow2_align_up(q->io->size(q->world, FORMAT_FILE_IMAGE), q->geometry.cluster_size);

    return length <= end && offset <= end - length;
}

/* What lies outside would read as zeroes, and come into being when it is written. */
static int tables_check(const struct qcow2 *q, char text[256])
{
    const struct qcow2_header *header = &q->header;

    if (!table_is_inside(q, header->l1_offset, (uint64_t)header->l1_entries * 8))
        return text_fail(text, -EINVAL, "Active L1 table is not inside the file");
    if (!table_is_inside(q, header->reftable_offset, (uint64_t)header->reftable_clusters << header->cluster_bits))
        return text_fail(text, -EINVAL, "Refcount table is not inside the file");
    if (header->snapshots && !table_is_inside(q, header->snapshots_offset, 40))
        return text_fail(text, -EINVAL, "Snapshot table is not inside the file");
    return 0;
}

/* Where the metadata is that guest data must not hit. */
static int metadata_note(struct qcow2 *q)
{
    uint32_t size = q->geometry.cluster_size;
    int result = overlap_add(q, QCOW2_OVERLAP_MAIN_HEADER, 0, size);

    if (result == 0 && q->l1->count)
        result = overlap_add(q, QCOW2_OVERLAP_ACTIVE_L1, q->header.l1_offset, (uint64_t)q->l1->count * 8);
    if (result == 0 && q->header.snapshots)
        result = overlap_note_snapshots(q, q->settings.overlap_check & QCOW2_OVERLAP_INACTIVE_L2);
    if (result == 0 && q->header.bitmaps_size && q->header.bitmaps_size <= QCOW2_BITMAPS_MAX &&
        table_is_inside(q, q->header.bitmaps_offset, q->header.bitmaps_size))
        result = overlap_add(q, QCOW2_OVERLAP_BITMAP_DIRECTORY, q->header.bitmaps_offset, q->header.bitmaps_size);
    for (uint32_t i = 0; result == 0 && i < q->l1->count; i++) {
        uint64_t table = q->l1->entries[i].offset & QCOW2_OFFSET_MASK;

        if (table && !(table & (size - 1)))
            result = overlap_add(q, QCOW2_OVERLAP_ACTIVE_L2, table, size);
    }
    return result;
}

int caches_make(struct qcow2 *q, const struct qcow2_settings *settings, struct cache *l2, struct cache *refcounts)
{
    uint32_t size = q->geometry.cluster_size, slice = size < QCOW2_SLICE_MAX ? size : QCOW2_SLICE_MAX;
    uint64_t clusters = (q->header.size >> q->geometry.cluster_bits) + 1;
    uint64_t all = qcow2_align_up(clusters * q->geometry.entry_size, size);
    uint64_t most = settings->l2_cache ? settings->l2_cache : L2_CACHE_MAX;
    int result = cache_init(q, l2, qcow2_min(most, all), slice);

    if (result == 0)
        result = cache_init(q, refcounts, settings->refcount_cache ? settings->refcount_cache : REFCOUNT_CACHE, slice);
    return result;
}

/* What a writer must put in order before anything else. */
static int open_for_writing(struct qcow2 *q, char text[256])
{
    uint64_t kept = qcow2_has_data_file(q) ? QCOW2_AUTOCLEAR_DATA_RAW : 0;
    int result = 0;

    if (q->header.autoclear & ~kept) {
        q->header.autoclear &= kept;
        result = header_write(q);
        if (result == 0)
            result = image_flush(q);
    }
    if (result == 0 && q->header.incompatible & QCOW2_INCOMPAT_DIRTY) {
        struct qcow2_check_result check;

        result = qcow2_check(q, true, &check);
        if (result == 0 && check.corruptions)
            result = -EIO;
        if (result < 0)
            return text_fail(text, result, "The image was not closed cleanly and its refcounts could not be rebuilt");
        return qcow2_finish(q) < 0 ? text_fail(text, -EIO, "Could not write the rebuilt refcounts") : 0;
    }
    return result < 0 ? text_fail(text, result, "Could not update the qcow2 header: %s", strerror(-result)) : 0;
}

bool settings_lazy(const struct qcow2 *q)
{
    return q->settings.has_lazy_refcounts ? q->settings.lazy_refcounts
                                          : q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
}

int settings_check(const struct qcow2 *q, const struct qcow2_settings *settings, char text[256])
{
    if (settings->has_lazy_refcounts && settings->lazy_refcounts && q->header.version < 3)
        return text_fail(text, -EINVAL,
                         "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
    if (settings->discard_no_unref && q->header.version < 3)
        return text_fail(text, -EINVAL, "discard-no-unref is only supported since qcow2 version 3");
    if (qcow2_has_data_file(q) && !settings->has_data_file)
        return text_fail(text, -EINVAL, "'data-file' is required for this image");
    return 0;
}

static int open_all(struct qcow2 *q, char text[256])
{
    const struct qcow2_settings *settings = &q->settings;
    int result = header_read(q, text);

    if (result == 0)
        result = tables_check(q, text);
    if (result == 0)
        result = settings_check(q, settings, text);
    if (result < 0)
        return result;
    q->lazy = settings_lazy(q);
    q->size = q->header.size;
    q->backed = q->backing_name != NULL;
    q->staging =
        q->io->alloc(q->world, q->geometry.cluster_size < STAGING_MIN ? STAGING_MIN : q->geometry.cluster_size);
    if (!q->staging || caches_make(q, settings, &q->l2, &q->refcounts) < 0)
        return text_fail(text, -ENOMEM, "Could not allocate memory for the caches");
    result = l1_read(q, text);
    if (result == 0)
        result = refcount_open(q, text);
    if (result == 0 && (result = metadata_note(q)) < 0)
        return result == -EINVAL ? text_fail(text, result, "Snapshot table too large, or an entry of it")
                                 : text_fail(text, result, "Could not look for metadata: %s", strerror(-result));
    if (result == 0 && !settings->read_only)
        result = open_for_writing(q, text);
    return result;
}

int qcow2_open(struct qcow2 **ret, const struct format_io *io, void *world, const struct qcow2_settings *settings,
               char text[256])
{
    struct qcow2 *q = io->alloc(world, sizeof(*q));

    if (!q)
        return text_fail(text, -ENOMEM, "Could not allocate memory for the image");
    q->io = io;
    q->world = world;
    q->settings = *settings;
    int result = open_all(q, text);

    if (result < 0) {
        qcow2_close(q);
        return result;
    }
    *ret = q;
    return 0;
}

void qcow2_close(struct qcow2 *q)
{
    if (!q)
        return;
    const struct format_io *io = q->io;
    void *world = q->world;
    struct l1_table *l1 = q->l1;

    /* Slots' arrays were handed on from older L1 tables to the newest. */
    for (uint32_t i = 0; l1 && i < l1->count; i++)
        io->release(world, (void *)(uintptr_t)l1->entries[i].slots);
    while (l1) {
        struct l1_table *retired = l1->retired;

        io->release(world, l1);
        l1 = retired;
    }
    cache_destroy(q, &q->l2);
    cache_destroy(q, &q->refcounts);
    overlap_destroy(q);
    io->release(world, q->l1_dirty);
    io->release(world, q->alloc.table);
    io->release(world, q->freed.items);
    io->release(world, q->staging);
    io->release(world, q->backing_name);
    io->release(world, q->backing_format);
    io->release(world, q->data_file_name);
    io->release(world, q);
}

uint64_t qcow2_size(const struct qcow2 *q)
{
    return atomic_load(&q->size);
}

uint32_t qcow2_cluster_size(const struct qcow2 *q)
{
    return q->geometry.cluster_size;
}

uint32_t qcow2_granule(const struct qcow2 *q)
{
    return UINT32_C(1) << q->geometry.subcluster_bits;
}

const char *qcow2_backing_name(const struct qcow2 *q)
{
    return q->backing_name;
}

const char *qcow2_backing_format(const struct qcow2 *q)
{
    return q->backing_format;
}

const char *qcow2_data_file_name(const struct qcow2 *q)
{
    return q->data_file_name;
}

bool qcow2_wants_data_file(const struct qcow2 *q)
{
    return qcow2_has_data_file(q);
}

bool qcow2_data_file_raw(const struct qcow2 *q)
{
    return q->header.autoclear & QCOW2_AUTOCLEAR_DATA_RAW;
}

void qcow2_set_backing(struct qcow2 *q, bool backed)
{
    q->backed = backed;
}

void qcow2_clean_cache(struct qcow2 *q)
{
    tables_lock(q);
    cache_clean(q, &q->l2);
    cache_clean(q, &q->refcounts);
    tables_unlock(q);
}

bool qcow2_keeps_discarded(const struct qcow2 *q)
{
    return (q->settings.discard_no_unref || qcow2_has_data_file(q)) && q->settings.discard_freed;
}

bool qcow2_is_corrupted(const struct qcow2 *q)
{
    return atomic_load(&q->corrupted);
}

void qcow2_get_stats(const struct qcow2 *q, struct qcow2_stats *ret)
{
    *ret = (struct qcow2_stats){
        .l2_slots = q->l2.count,
        .l2_used = cache_used(&q->l2),
        .l2_dirty = q->l2.dirty,
        .l2_misses = q->l2.misses,
        .l2_evictions = q->l2.evictions,
        .refcount_slots = q->refcounts.count,
        .refcount_dirty = q->refcounts.dirty,
        .refcount_misses = q->refcounts.misses,
        .quarantine = q->counters.quarantine,
        .metadata_writes = q->counters.metadata_writes,
        .flushes = q->counters.flushes,
    };
}
