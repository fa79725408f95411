/*
 * Counts all references in the image and compares them with the refcounts.
 * Repair raises what is too low first and then lowers what is too high, so
 * that a crash in between leaks at worst. Reads tables straight from the file,
 * which has all changes after a write-back.
 */
#include <stdlib.h>

#include "drivers/format/engine/qcow2_internal.h"

struct check {
    struct qcow2 *q;
    uint32_t *counts; /* [cluster] references */
    uint64_t clusters, used; /* of the file; none from here on has a reference */
    unsigned char *buf;      /* a cluster */
    struct qcow2_check_result *result;
};

static void check_add(struct check *check, uint64_t offset, uint64_t length)
{
    uint32_t bits = check->q->geometry.cluster_bits;

    if (length == 0)
        return;
    if (offset >= check->clusters << bits || length > (check->clusters << bits) - offset) {
        check->result->corruptions++;
        return;
    }
    uint64_t end = ((offset + length - 1) >> bits) + 1;

    for (uint64_t cluster = offset >> bits; cluster < end; cluster++)
        check->counts[cluster]++;
    check->used = end > check->used ? end : check->used;
}

static int check_l2(struct check *check, uint64_t offset)
{
    struct qcow2 *q = check->q;
    uint32_t size = q->geometry.cluster_size, step = q->geometry.entry_size;
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, offset, check->buf, size);

    for (uint32_t at = 0; result == 0 && at < size; at += step) {
        uint64_t word, host, length = size;

        memcpy(&word, check->buf + at, 8);
        word = be64toh(word);
        host = word & QCOW2_OFFSET_MASK;
        if (word & QCOW2_COMPRESSED)
            compressed_range(q, word, &host, &length);
        else if (host & (size - 1))
            check->result->corruptions++;
        if (host && !qcow2_has_data_file(q))
            check_add(check, host, length);
    }
    return result;
}

static int check_l1(struct check *check, uint64_t offset, uint32_t entries)
{
    struct qcow2 *q = check->q;
    uint64_t bytes = (uint64_t)entries * 8, tables = 0;

    if (!entries)
        return 0;
    uint64_t *words = q->io->alloc(q->world, bytes);

    if (!words)
        return -ENOMEM;
    check_add(check, offset, bytes);
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, offset, words, bytes);

    for (uint32_t i = 0; result == 0 && i < entries; i++) {
        uint64_t table = be64toh(words[i]) & QCOW2_OFFSET_MASK;

        if (!table)
            continue;
        check_add(check, table, q->geometry.cluster_size);
        /* No table is named twice by one L1 table: more than there are clusters would only cost time. */
        if (table & (q->geometry.cluster_size - 1) || ++tables > check->clusters)
            check->result->corruptions++;
        else
            result = check_l2(check, table);
    }
    q->io->release(q->world, words);
    return result;
}

static uint64_t check_load(const unsigned char *bytes, unsigned size)
{
    uint64_t value = 0;

    while (size--)
        value = value << 8 | *bytes++;
    return value;
}

/* The specification's "Snapshots": a fixed part of 40 bytes, extra data, id, name, padding. */
int snapshot_read(struct qcow2 *q, uint64_t *at, struct qcow2_snapshot *ret)
{
    unsigned char fixed[40];
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, *at, fixed, sizeof(fixed));

    if (result < 0)
        return result;
    *ret = (struct qcow2_snapshot){.l1_offset = check_load(fixed, 8),
                                   .l1_entries = (uint32_t)check_load(fixed + 8, 4),
                                   .extra_size = (uint32_t)check_load(fixed + 36, 4)};
    if (ret->extra_size > QCOW2_SNAPSHOT_EXTRA_MAX)
        return -EINVAL;
    *at = qcow2_align_up(*at + 40 + ret->extra_size + check_load(fixed + 12, 2) + check_load(fixed + 14, 2), 8);
    return 0;
}

static int check_snapshots(struct check *check)
{
    struct qcow2 *q = check->q;
    uint64_t at = q->header.snapshots_offset;

    for (uint32_t i = 0; i < q->header.snapshots; i++) {
        struct qcow2_snapshot snapshot;
        int result = snapshot_read(q, &at, &snapshot);

        if (result < 0)
            return result;
        if (snapshot.l1_entries > QCOW2_L1_MAX / 8 || snapshot.l1_offset & (q->geometry.cluster_size - 1)) {
            check->result->corruptions++;
            return 0;
        }
        result = check_l1(check, snapshot.l1_offset, snapshot.l1_entries);
        if (result < 0)
            return result;
    }
    if (q->header.snapshots)
        check_add(check, q->header.snapshots_offset, at - q->header.snapshots_offset);
    return 0;
}

static int check_references(struct check *check)
{
    struct qcow2 *q = check->q;

    check_add(check, 0, q->geometry.cluster_size);
    check_add(check, q->header.reftable_offset, q->alloc.table_entries * 8);
    for (uint64_t i = 0; i < q->alloc.table_entries; i++) {
        uint64_t cluster = q->alloc.table[i] >> q->geometry.cluster_bits;

        if (!q->alloc.table[i])
            continue;
        check_add(check, q->alloc.table[i], q->geometry.cluster_size);
        check->result->corruptions += cluster < check->clusters && check->counts[cluster] > 1;
    }
    int result = check_l1(check, q->header.l1_offset, q->header.l1_entries);

    return result < 0 ? result : check_snapshots(check);
}

/* The next from cluster on that has a reference or a refcount; files may be holes of many terabytes. */
static uint64_t check_next(const struct check *check, uint64_t cluster)
{
    const struct qcow2 *q = check->q;
    uint64_t block = cluster >> q->geometry.refcount_bits;

    if (cluster < check->used || (block < q->alloc.table_entries && q->alloc.table[block]))
        return cluster;
    while (block < q->alloc.table_entries && !q->alloc.table[block])
        block++;
    return block < q->alloc.table_entries ? block << q->geometry.refcount_bits : check->clusters;
}

enum check_pass { CHECK_COUNT, CHECK_RAISE, CHECK_LOWER };

static int check_compare(struct check *check, enum check_pass pass)
{
    struct qcow2 *q = check->q;
    uint64_t cluster = 0;
    int result = 0;

    for (; result == 0 && (cluster = check_next(check, cluster)) < check->clusters; cluster++) {
        uint64_t count, wanted = check->counts[cluster];

        result = refcount_get(q, cluster, &count);
        if (result < 0 || count == wanted)
            continue;
        if (pass == CHECK_COUNT) {
            check->result->corruptions += count < wanted;
            check->result->leaks += count > wanted;
        } else if ((pass == CHECK_RAISE) == (count < wanted)) {
            result = wanted > q->geometry.refcount_max ? -ERANGE : refcount_set(q, cluster, wanted);
        }
    }
    return result;
}

static int check_repair(struct check *check)
{
    struct qcow2 *q = check->q;
    int result;

    /* A block that is made lies at the begin of its region: where that is in use there is no way to repair. */
    for (uint64_t block = 0; block << q->geometry.refcount_bits < check->used; block++) {
        uint64_t first = block << q->geometry.refcount_bits;

        if ((block >= q->alloc.table_entries || !q->alloc.table[block]) && check->counts[first])
            return -EIO;
        if (block < q->alloc.table_entries && q->alloc.table[block])
            continue;
        for (uint64_t i = first; i < check->used && i < first + (UINT64_C(1) << q->geometry.refcount_bits); i++) {
            if (!check->counts[i])
                continue;
            result = refcount_block_make(q, block);
            if (result < 0)
                return result;
            check->counts[first] = 1;
            break;
        }
    }
    result = check_compare(check, CHECK_RAISE);
    if (result == 0)
        result = cache_write_back(q, &q->refcounts);
    if (result == 0)
        result = image_flush(q);
    if (result == 0)
        result = check_compare(check, CHECK_LOWER);
    q->alloc.free_hint = 0;
    check->result->corruptions = 0;
    check->result->leaks = 0;
    if (result == 0)
        result = check_compare(check, CHECK_COUNT);
    return result;
}

int qcow2_check(struct qcow2 *q, bool repair, struct qcow2_check_result *ret)
{
    struct check check = {.q = q, .result = ret};
    int result;

    *ret = (struct qcow2_check_result){0};
    if (q->settings.read_only)
        return -EPERM;
    tables_lock(q);
    check.clusters =
        qcow2_align_up(q->io->size(q->world, FORMAT_FILE_IMAGE), q->geometry.cluster_size) >> q->geometry.cluster_bits;
    check.counts = q->io->alloc(q->world, (check.clusters + 1) * sizeof(*check.counts));
    check.buf = q->io->alloc(q->world, q->geometry.cluster_size);
    result = check.counts && check.buf ? 0 : -ENOMEM;
    if (result == 0)
        result = check_references(&check);
    uint64_t damage = ret->corruptions;

    if (result == 0)
        result = check_compare(&check, CHECK_COUNT);
    if (result == 0 && repair && damage == 0 && (ret->corruptions || ret->leaks))
        result = check_repair(&check);
    for (uint64_t i = 0; result == 0 && i < check.used; i++) {
        if (check.counts[i])
            ret->image_end = (i + 1) << q->geometry.cluster_bits;
    }
    q->io->release(q->world, check.counts);
    q->io->release(q->world, check.buf);
    tables_unlock(q);
    return result;
}
