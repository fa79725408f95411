/*
 * Discard and write-zeroes: slice by slice, the lock held for one slice at a
 * time. Clusters that lose their reference go to the quarantine.
 */
#include "drivers/format/engine/qcow2_internal.h"

enum zero_mode {
    ZERO_DISCARD, /* content goes, and the storage with it */
    ZERO_UNMAP,   /* reads as zeroes from now on, storage may go */
    ZERO_KEEP,    /* reads as zeroes, storage stays */
    ZERO_FORGET   /* behind the new end of the disk: nothing is left */
};

/* Whole cluster: its new entry; *lost: the old one's storage is given up. */
static struct l2_entry zero_cluster(const struct qcow2 *q, struct l2_entry old, enum zero_mode mode, bool *lost)
{
    bool extended = q->geometry.subclusters > 1, mine = old.entry & QCOW2_COPIED && !entry_compressed(old);

    if (mode == ZERO_FORGET) {
        *lost = entry_has_host(q, old) || entry_compressed(old);
        return (struct l2_entry){0};
    }
    /* Without a zero flag there is only "not allocated". */
    if (q->header.version < 3) {
        *lost = !q->backed && (entry_has_host(q, old) || entry_compressed(old));
        return q->backed ? old : (struct l2_entry){0};
    }
    bool hidden = q->backed || mode != ZERO_DISCARD; /* something else would show through */
    bool stays =
        entry_has_host(q, old) && mine &&
        (mode == ZERO_KEEP || q->settings.discard_no_unref || (qcow2_has_data_file(q) && qcow2_data_file_raw(q)));
    struct l2_entry new = {.entry = stays ? entry_host(old) | QCOW2_COPIED : 0};

    *lost = !stays && (entry_has_host(q, old) || entry_compressed(old));
    if (!stays && !hidden)
        return new;
    if (extended)
        new.bitmap = (uint64_t)UINT32_MAX << 32;
    else
        new.entry |= QCOW2_ZERO;
    return new;
}

/* Some subclusters of a cluster. */
static int zero_subclusters(const struct qcow2 *q, struct l2_entry *entry, enum zero_mode mode, uint32_t bits)
{
    if (entry_compressed(*entry))
        return mode == ZERO_DISCARD ? 0 : -ENOTSUP;
    /* A cluster that is shared by reference is shared as a whole; its bitmap is ours alone. */
    entry->bitmap &= ~(uint64_t)bits;
    if (q->backed || mode != ZERO_DISCARD)
        entry->bitmap |= (uint64_t)bits << 32;
    return 0;
}

static int zero_entry(struct qcow2 *q, struct slot *slot, uint32_t index, uint64_t from, uint64_t to,
                      enum zero_mode mode)
{
    const struct geometry *g = &q->geometry;
    struct l2_entry old = l2_entry_get(q, slot, index), new = old;
    bool lost = false;

    /* What reads as zeroes because there is nothing stays as it is. */
    if (!old.entry && !old.bitmap && (!q->backed || q->header.version < 3))
        return 0;
    if (from == 0 && to == g->cluster_size) {
        new = zero_cluster(q, old, mode, &lost);
    } else if (g->subclusters > 1) {
        uint32_t first = (uint32_t)(from >> g->subcluster_bits), last = (uint32_t)(to >> g->subcluster_bits);
        int result = zero_subclusters(q, &new, mode, (uint32_t)((UINT64_C(1) << last) - (UINT64_C(1) << first)));

        if (result < 0)
            return result;
    }
    if (new.entry == old.entry &&new.bitmap == old.bitmap)
        return 0;
    slot_begin(slot);
    l2_entry_set(q, slot, index, new);
    slot_end(slot);
    if (lost)
        entry_free(q, old, mode == ZERO_KEEP ? q->settings.discard_other : q->settings.discard_freed);
    return 0;
}

/* The part of [offset, end) that one slice describes; *next is where the next begins. */
static int zero_slice(struct qcow2 *q, uint64_t offset, uint64_t end, enum zero_mode mode, uint64_t *next)
{
    const struct geometry *g = &q->geometry;
    uint64_t stop = qcow2_min(end, (offset & ~((UINT64_C(1) << (g->cluster_bits + g->slice_bits)) - 1)) +
                                       (UINT64_C(1) << (g->cluster_bits + g->slice_bits)));
    uint64_t table = q->l1->entries[offset >> (g->cluster_bits + g->l2_bits)].offset & QCOW2_OFFSET_MASK;
    struct l2_place place;

    *next = stop;
    if (!table && (!q->backed || q->header.version < 3)) {
        *next = qcow2_min(end, (offset | (l2_bytes(q) - 1)) + 1);
        return 0;
    }
    int result = l2_get_writable(q, offset, &place);

    if (result == 0)
        result = freed_reserve(q, g->slice_entries);
    for (; result == 0 && offset < stop; place.index++) {
        uint64_t base = qcow2_align_down(offset, g->cluster_size), to = qcow2_min(stop - base, g->cluster_size);

        /* The disk may end within a cluster: what is behind it is nobody's. */
        if (base + to == q->size)
            to = g->cluster_size;
        result = zero_entry(q, place.slot, place.index, offset - base, to, mode);
        offset = base + g->cluster_size;
    }
    return result;
}

#define FREED_MANY 4096u /* ranges in quarantine that nobody's flush has made durable */

static int zero_range(struct qcow2 *q, uint64_t offset, uint64_t length, enum zero_mode mode)
{
    uint64_t end = offset + length;
    int result = 0;

    while (result == 0 && offset < end) {
        tables_lock(q);
        result = q->corrupted ? -EIO : zero_slice(q, offset, end, mode, &offset);
        if (result == 0 && q->freed.count - q->freed.durable > FREED_MANY)
            result = tables_write_back_waiting(q, true);
        tables_unlock(q);
    }
    return result;
}

int qcow2_discard(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return zero_range(q, offset, length, ZERO_DISCARD);
}

int zero_forget(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return zero_range(q, offset, length, ZERO_FORGET);
}

int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t length, bool unmap)
{
    if (q->header.version < 3 && (q->backed || !unmap))
        return -ENOTSUP;
    return zero_range(q, offset, length, unmap ? ZERO_UNMAP : ZERO_KEEP);
}
