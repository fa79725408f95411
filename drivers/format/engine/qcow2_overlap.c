/*
 * Where metadata lies, and what happens when something else is about to lie
 * there. A set of host clusters with open addressing: as many as there are L2
 * tables and refcount blocks, and asked once for each new cluster and for each
 * entry of a slice that comes from disk. Metadata is rare, so there is a filter
 * before it: one bit for all groups of clusters with the same hash.
 */
#include <stdarg.h>
#include <stdio.h>

#include "drivers/format/engine/qcow2_internal.h"

#define SET_MIN 64u
#define NOTED_L1_MAX (UINT64_C(1) << 30)
#define ITEM_BITS 48u
#define ITEM_MASK ((UINT64_C(1) << ITEM_BITS) - 1)
#define GROUP_BITS 6u  /* clusters of a group, log2 */
#define FILTER_ROOM 8u /* bits of the filter for each place of the set */

static size_t set_hash(uint64_t number)
{
    return (size_t)((number * UINT64_C(0x9e3779b97f4a7c15)) >> 20);
}

static uint64_t *filter_word(const struct cluster_set *set, uint64_t group, uint64_t *bit)
{
    size_t at = set_hash(group) & (FILTER_ROOM * (set->mask + 1) - 1);

    *bit = UINT64_C(1) << (at % 64);
    return &set->filter[at / 64];
}

static void filter_add(struct cluster_set *set, uint64_t cluster)
{
    uint64_t bit, *word = filter_word(set, cluster >> GROUP_BITS, &bit);

    *word |= bit;
}

/* False: nothing of the group is in the set. */
static bool filter_may_have(const struct cluster_set *set, uint64_t group)
{
    uint64_t bit;

    return *filter_word(set, group, &bit) & bit;
}

static size_t set_place(const struct cluster_set *set, uint64_t item)
{
    size_t place = set_hash(item) & set->mask;

    while (set->items[place] && (set->items[place] & ITEM_MASK) != item)
        place = (place + 1) & set->mask;
    return place;
}

static void set_destroy(struct qcow2 *q, struct cluster_set *set)
{
    q->io->release(q->world, set->items);
    q->io->release(q->world, set->filter);
}

static int set_grow(struct qcow2 *q, struct cluster_set *set)
{
    struct cluster_set old = *set;
    size_t room = old.items ? 2 * (old.mask + 1) : SET_MIN;

    set->items = q->io->alloc(q->world, room * sizeof(*set->items));
    set->filter = q->io->alloc(q->world, room * FILTER_ROOM / 8);
    if (!set->items || !set->filter) {
        set_destroy(q, set);
        *set = old;
        return -ENOMEM;
    }
    set->mask = room - 1;
    for (size_t i = 0; old.items && i <= old.mask; i++) {
        if (old.items[i]) {
            set->items[set_place(set, old.items[i] & ITEM_MASK)] = old.items[i];
            filter_add(set, (old.items[i] & ITEM_MASK) - 1);
        }
    }
    set_destroy(q, &old);
    return 0;
}

int overlap_add(struct qcow2 *q, enum qcow2_overlap kind, uint64_t offset, uint64_t length)
{
    struct cluster_set *set = &q->metadata;
    uint64_t cluster = offset >> q->geometry.cluster_bits;
    uint64_t end = (offset + length + q->geometry.cluster_size - 1) >> q->geometry.cluster_bits;

    for (; cluster < end; cluster++) {
        if (!set->items || set->count * 2 > set->mask) {
            int result = set_grow(q, set);

            if (result < 0)
                return result;
        }
        size_t place = set_place(set, cluster + 1);

        set->count += !set->items[place];
        set->items[place] = (set->items[place] & ~ITEM_MASK) | (uint64_t)kind << ITEM_BITS | (cluster + 1);
        filter_add(set, cluster);
    }
    return 0;
}

/* Closes the gap, so that a search never ends before what it looks for. The filter keeps its bit until the set grows. */
static void set_remove(struct cluster_set *set, uint64_t item, uint64_t kind)
{
    size_t hole = set_place(set, item);

    if (!set->items[hole])
        return;
    set->items[hole] &= ~(kind << ITEM_BITS);
    if (set->items[hole] & ~ITEM_MASK)
        return;
    set->items[hole] = 0;
    set->count--;
    for (size_t i = (hole + 1) & set->mask; set->items[i]; i = (i + 1) & set->mask) {
        uint64_t moved = set->items[i];

        set->items[i] = 0;
        set->items[set_place(set, moved & ITEM_MASK)] = moved;
    }
}

void overlap_remove(struct qcow2 *q, enum qcow2_overlap kind, uint64_t offset, uint64_t length)
{
    for (uint64_t done = 0; q->metadata.items && done < length; done += q->geometry.cluster_size)
        set_remove(&q->metadata, ((offset + done) >> q->geometry.cluster_bits) + 1, kind);
}

bool overlap_hits(const struct qcow2 *q, uint64_t offset, uint64_t length, uint32_t but)
{
    const struct cluster_set *set = &q->metadata;
    uint64_t cluster = offset >> q->geometry.cluster_bits;
    uint64_t end = (offset + length + q->geometry.cluster_size - 1) >> q->geometry.cluster_bits;
    uint64_t kinds = q->settings.overlap_check & ~but;

    if (!kinds || !set->items)
        return false;
    while (cluster < end) {
        uint64_t group_end = qcow2_min(end, ((cluster >> GROUP_BITS) + 1) << GROUP_BITS);

        if (!filter_may_have(set, cluster >> GROUP_BITS))
            cluster = group_end;
        for (; cluster < group_end; cluster++) {
            if (set->items[set_place(set, cluster + 1)] & kinds << ITEM_BITS)
                return true;
        }
    }
    return false;
}

/* The L2 tables that a snapshot's L1 table names. */
static int note_inactive_l2(struct qcow2 *q, uint64_t offset, uint64_t entries)
{
    const uint64_t *words = (const void *)q->staging;
    int result = 0;

    while (entries && result == 0) {
        uint64_t count = qcow2_min(entries, q->geometry.cluster_size / 8);

        result = q->io->read(q->world, FORMAT_FILE_IMAGE, offset, q->staging, count * 8);
        for (uint64_t i = 0; result == 0 && i < count; i++) {
            uint64_t table = be64toh(words[i]) & QCOW2_OFFSET_MASK;

            if (table && !(table & (q->geometry.cluster_size - 1)) && table < q->alloc.file_size)
                result = overlap_add(q, QCOW2_OVERLAP_INACTIVE_L2, table, q->geometry.cluster_size);
        }
        offset += count * 8;
        entries -= count;
    }
    return result;
}

/* *left: bytes of L1 tables that are still noted. More than that no image has unless it names one again and again. */
static int note_snapshot(struct qcow2 *q, const struct qcow2_snapshot *snapshot, bool inactive_l2, uint64_t *left)
{
    uint64_t offset = snapshot->l1_offset, bytes = (uint64_t)snapshot->l1_entries * 8;
    uint64_t file_size = q->alloc.file_size;

    /* What is not a table is for the check to find, and for who reads the snapshot. */
    if (offset & (q->geometry.cluster_size - 1) || bytes > QCOW2_L1_MAX || offset > file_size ||
        bytes > file_size - offset || !bytes || bytes > *left)
        return 0;
    *left -= bytes;
    int result = overlap_add(q, QCOW2_OVERLAP_INACTIVE_L1, offset, bytes);

    return result < 0 || !inactive_l2 ? result : note_inactive_l2(q, offset, snapshot->l1_entries);
}

int overlap_note_snapshots(struct qcow2 *q, bool inactive_l2)
{
    uint64_t begin = q->header.snapshots_offset, at = begin, left = NOTED_L1_MAX;

    for (uint32_t i = 0; i < q->header.snapshots && at < q->alloc.file_size; i++) {
        struct qcow2_snapshot snapshot;
        int result = snapshot_read(q, &at, &snapshot);

        if (result == 0 && at - begin > QCOW2_SNAPSHOT_TABLE_MAX)
            result = -EINVAL;
        if (result == 0)
            result = note_snapshot(q, &snapshot, inactive_l2, &left);
        if (result < 0)
            return result;
    }
    uint64_t end = qcow2_min(at, qcow2_align_up(q->alloc.file_size, q->geometry.cluster_size));

    return end > begin ? overlap_add(q, QCOW2_OVERLAP_SNAPSHOT_TABLE, begin, end - begin) : 0;
}

void overlap_destroy(struct qcow2 *q)
{
    set_destroy(q, &q->metadata);
    q->metadata = (struct cluster_set){0};
}

int corrupt(struct qcow2 *q, uint64_t offset, uint64_t length, const char *format, ...)
{
    char text[256];
    va_list args;

    if (atomic_exchange(&q->corrupted, true))
        return -EIO;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (!q->settings.read_only && q->header.version >= 3) {
        q->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
        /* The mark is all that can still be done; the caller has an error to report in any case. */
        if (header_write(q) == 0)
            image_flush(q);
    }
    q->io->report(q->world, FORMAT_CORRUPTED, offset, length, text);
    return -EIO;
}
