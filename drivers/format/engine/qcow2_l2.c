/*
 * L1 and L2 tables: the lookup that never waits, and the ways to a slice for
 * steps. Extended entries divide a cluster into 32 subclusters, each of them
 * allocated, zero, or neither; else a cluster is its only subcluster.
 */
#include "drivers/format/engine/qcow2_internal.h"

uint64_t l2_bytes(const struct qcow2 *q)
{
    return UINT64_C(1) << (q->geometry.cluster_bits + q->geometry.l2_bits);
}

struct l1_table *l1_alloc(struct qcow2 *q, uint32_t count)
{
    struct l1_table *l1 = q->io->alloc(q->world, sizeof(*l1) + count * sizeof(l1->entries[0]));

    if (l1)
        l1->count = count;
    return l1;
}

void l1_set(struct qcow2 *q, uint32_t index, uint64_t value)
{
    atomic_store_explicit(&q->l1->entries[index].offset, value, memory_order_release);
    q->l1_dirty[index / 64] = 1;
    atomic_store(&q->needs_flush, true);
}

struct l2_entry l2_entry_get(const struct qcow2 *q, const struct slot *slot, uint32_t index)
{
    uint32_t word = index * (q->geometry.entry_size / 8);
    struct l2_entry ret = {.entry = be64toh(atomic_load_explicit(&slot->words[word], memory_order_acquire))};

    if (q->geometry.subclusters > 1)
        ret.bitmap = be64toh(atomic_load_explicit(&slot->words[word + 1], memory_order_acquire));
    return ret;
}

void l2_entry_set(struct qcow2 *q, struct slot *slot, uint32_t index, struct l2_entry value)
{
    uint32_t word = index * (q->geometry.entry_size / 8);

    atomic_store_explicit(&slot->words[word], htobe64(value.entry), memory_order_release);
    if (q->geometry.subclusters > 1)
        atomic_store_explicit(&slot->words[word + 1], htobe64(value.bitmap), memory_order_release);
    cache_set_dirty(&q->l2, slot);
    atomic_store(&q->needs_flush, true);
}

/* Whether the entry is one that the specification allows, as far as it can be said from itself. */
static bool entry_sane(const struct qcow2 *q, struct l2_entry entry)
{
    if (entry_compressed(entry))
        return !(entry.entry & QCOW2_COPIED) && !qcow2_has_data_file(q) && entry.bitmap == 0;
    if (entry.entry & QCOW2_L2_RESERVED || entry_host(entry) & (q->geometry.cluster_size - 1))
        return false;
    if (q->geometry.subclusters > 1)
        return !(entry.entry & QCOW2_ZERO) && !((entry.bitmap >> 32) & (entry.bitmap & UINT32_MAX)) &&
               (entry_has_host(q, entry) || !(entry.bitmap & UINT32_MAX));
    return q->header.version >= 3 || !(entry.entry & QCOW2_ZERO);
}

static enum mapping_kind entry_kind(const struct qcow2 *q, struct l2_entry entry, uint32_t subcluster)
{
    if (entry_compressed(entry))
        return MAPPING_COMPRESSED;
    if (q->geometry.subclusters > 1) {
        if (entry.bitmap >> (32 + subcluster) & 1)
            return MAPPING_ZERO;
        return entry.bitmap >> subcluster & 1 ? MAPPING_DATA : MAPPING_UNALLOCATED;
    }
    if (entry.entry & QCOW2_ZERO)
        return MAPPING_ZERO;
    return entry_has_host(q, entry) ? MAPPING_DATA : MAPPING_UNALLOCATED;
}

/* How many subclusters of the cluster from `subcluster` on are of one kind. */
static uint32_t entry_run(const struct qcow2 *q, struct l2_entry entry, enum mapping_kind kind, uint32_t subcluster)
{
    uint64_t other;

    if (q->geometry.subclusters == 1 || kind == MAPPING_COMPRESSED)
        return q->geometry.subclusters - subcluster;
    if (kind == MAPPING_ZERO)
        other = ~(entry.bitmap >> 32);
    else if (kind == MAPPING_DATA)
        other = ~entry.bitmap;
    else
        other = entry.bitmap | entry.bitmap >> 32;
    other = (other & UINT32_MAX) >> subcluster | UINT64_C(1) << (32 - subcluster);
    return (uint32_t)__builtin_ctzll(other);
}

/* The answer from one slice: clusters are added while they go on in the same way. */
static int slot_lookup(const struct qcow2 *q, const struct slot *slot, uint64_t offset, uint64_t length,
                       struct mapping *ret)
{
    const struct geometry *g = &q->geometry;
    uint32_t index = (uint32_t)(offset >> g->cluster_bits) & (g->slice_entries - 1);
    uint32_t subcluster = (uint32_t)(offset >> g->subcluster_bits) & (g->subclusters - 1);
    uint64_t in_cluster = offset & (g->cluster_size - 1);
    uint64_t end = offset + length, at = offset, next_host = 0;

    for (; at < end && index < g->slice_entries; index++, subcluster = 0, in_cluster = 0) {
        struct l2_entry entry = l2_entry_get(q, slot, index);
        enum mapping_kind kind = entry_kind(q, entry, subcluster);
        uint64_t host = kind == MAPPING_DATA ? entry_host(entry) + in_cluster : 0;
        bool copied = kind == MAPPING_DATA && entry.entry & QCOW2_COPIED;

        if (!entry_sane(q, entry)) {
            if (at == offset)
                return -EIO;
            break;
        }
        if (at == offset) {
            *ret = (struct mapping){.host = host, .kind = kind, .copied = copied, .file = qcow2_data_file(q)};
        } else if (kind != ret->kind || host != next_host || copied != ret->copied || kind == MAPPING_COMPRESSED) {
            break;
        }
        uint64_t stop = qcow2_align_down(at, g->cluster_size) +
                        ((uint64_t)(subcluster + entry_run(q, entry, kind, subcluster)) << g->subcluster_bits);

        next_host = kind == MAPPING_DATA ? host + (stop - at) : 0;
        at = stop;
        if (at & (g->cluster_size - 1))
            break;
    }
    ret->length = qcow2_min(at, end) - offset;
    return 0;
}

int qcow2_lookup(const struct qcow2 *q, uint64_t offset, uint64_t length, struct mapping *ret)
{
    const struct geometry *g = &q->geometry;
    const struct l1_table *l1 = atomic_load_explicit(&q->l1, memory_order_acquire);
    uint64_t index = offset >> (g->cluster_bits + g->l2_bits);
    uint32_t slice = (uint32_t)(offset >> (g->cluster_bits + g->slice_bits)) & (g->slices - 1);
    uint64_t table = index < l1->count ? atomic_load_explicit(&l1->entries[index].offset, memory_order_acquire) : 0;
    uint64_t key = (table & QCOW2_OFFSET_MASK) + (uint64_t)slice * q->l2.slice_size;

    if (!(table & QCOW2_OFFSET_MASK)) {
        *ret = (struct mapping){.length = qcow2_min(length, l2_bytes(q) - (offset & (l2_bytes(q) - 1))),
                                .kind = MAPPING_UNALLOCATED,
                                .file = qcow2_data_file(q)};
        return 0;
    }
    _Atomic uint32_t *slots = atomic_load_explicit(&l1->entries[index].slots, memory_order_acquire);
    uint32_t number = slots ? atomic_load_explicit(&slots[slice], memory_order_acquire) : 0;

    if (!number)
        return -EAGAIN;
    struct slot *slot = &q->l2.slots[number - 1];
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_acquire);

    if (version & 1 || atomic_load_explicit(&slot->key, memory_order_acquire) != key)
        return -EAGAIN;
    int result = slot_lookup(q, slot, offset, length, ret);

    if (atomic_load_explicit(&slot->version, memory_order_acquire) != version)
        return -EAGAIN;
    if (!atomic_load_explicit(&slot->used, memory_order_relaxed))
        atomic_store_explicit(&slot->used, 1, memory_order_relaxed);
    if (result == 0 && atomic_load_explicit(&q->corrupted, memory_order_relaxed))
        ret->copied = false;
    return result;
}

/* Guest data in a row. The first cluster of it that is metadata's is named. */
static bool run_is_sane(struct qcow2 *q, uint64_t host, uint64_t length)
{
    uint64_t cluster = q->geometry.cluster_size, first = host;

    if (qcow2_has_data_file(q) || !overlap_hits(q, host, length, 0))
        return true;
    while (!overlap_hits(q, first, 1, 0))
        first = qcow2_align_down(first, cluster) + cluster;
    corrupt(q, first, cluster, "Cluster of guest data at offset 0x%llx overlaps with metadata",
            (unsigned long long)first);
    return false;
}

/* The bits of an entry that is sane whatever they are: 0 if there is no such entry. */
static uint64_t entry_plain_bits(const struct qcow2 *q)
{
    uint64_t offset = QCOW2_OFFSET_MASK & ~(uint64_t)(q->geometry.cluster_size - 1);

    return qcow2_extended(q) ? 0 : offset | QCOW2_COPIED;
}

static void slice_examine_entries(struct qcow2 *q, const struct slot *slot)
{
    uint64_t plain = entry_plain_bits(q), run = 0, run_end = 0; /* bytes */

    for (uint32_t i = 0; i < q->geometry.slice_entries; i++) {
        struct l2_entry entry = l2_entry_get(q, slot, i);
        uint64_t host = entry_host(entry), length = q->geometry.cluster_size;

        if ((entry.entry | entry.bitmap) & ~plain) {
            if (!entry_sane(q, entry)) {
                corrupt(q, host, length, "Invalid L2 entry 0x%llx", (unsigned long long)entry.entry);
                return;
            }
            if (entry_compressed(entry))
                compressed_range(q, entry.entry, &host, &length);
        }
        if (!host)
            continue;
        if (host != run_end) {
            if (!run_is_sane(q, run, run_end - run))
                return;
            run = host;
        }
        run_end = host + length;
    }
    run_is_sane(q, run, run_end - run);
}

/* What comes from disk is looked at once. Damage stops all writing; reads of what is sane go on. */
static void slice_examine(struct qcow2 *q, const struct slot *slot, uint64_t table)
{
    uint64_t place = table & QCOW2_OFFSET_MASK;

    /* One that may be written where it is. */
    if (table & QCOW2_COPIED && overlap_hits(q, place, q->geometry.cluster_size, QCOW2_OVERLAP_ACTIVE_L2))
        corrupt(q, place, q->geometry.cluster_size, "L2 table at offset 0x%llx overlaps with other metadata",
                (unsigned long long)place);
    else
        slice_examine_entries(q, slot);
}

static _Atomic uint32_t *l1_slots(struct qcow2 *q, struct l1_entry *entry)
{
    _Atomic uint32_t *slots = atomic_load_explicit(&entry->slots, memory_order_relaxed);

    if (!slots) {
        slots = q->io->alloc(q->world, q->geometry.slices * sizeof(*slots));
        atomic_store_explicit(&entry->slots, slots, memory_order_release);
    }
    return slots;
}

/* Aligned, and inside the file: elsewhere it would read as empty. */
static bool l2_table_is_sane(const struct qcow2 *q, uint64_t table)
{
    uint64_t host = table & QCOW2_OFFSET_MASK;

    return !(table & QCOW2_L1_RESERVED) && !(host & (q->geometry.cluster_size - 1)) && host < q->alloc.file_size;
}

static int l2_table_corrupt(struct qcow2 *q, uint64_t host, uint64_t index)
{
    return corrupt(q, host, q->geometry.cluster_size, "L2 table offset 0x%llx %s (L1 index: 0x%llx)",
                   (unsigned long long)host, host < q->alloc.file_size ? "unaligned" : "outside the file",
                   (unsigned long long)index);
}

int l2_get(struct qcow2 *q, uint64_t offset, struct l2_place *ret)
{
    const struct geometry *g = &q->geometry;
    uint64_t index = offset >> (g->cluster_bits + g->l2_bits);
    uint32_t slice = (uint32_t)(offset >> (g->cluster_bits + g->slice_bits)) & (g->slices - 1);

    *ret = (struct l2_place){.index = (uint32_t)(offset >> g->cluster_bits) & (g->slice_entries - 1)};
    for (;;) {
        bool waited = false;
        struct l1_entry *entry = index < q->l1->count ? &q->l1->entries[index] : NULL;
        uint64_t table = entry ? entry->offset : 0, host = table & QCOW2_OFFSET_MASK;

        if (!host)
            return 0;
        if (!l2_table_is_sane(q, table))
            return l2_table_corrupt(q, host, index);
        _Atomic uint32_t *slots = l1_slots(q, entry);

        if (!slots)
            return -ENOMEM;
        int result = cache_get_waiting(q, &q->l2, host + (uint64_t)slice * q->l2.slice_size, &ret->slot, &waited);

        if (result < 0)
            return result;
        if (waited && (q->l1->count <= index || q->l1->entries[index].offset != table))
            continue;
        if (ret->slot->backlink == NULL)
            slice_examine(q, ret->slot, table);
        ret->slot->backlink = &slots[slice];
        atomic_store_explicit(&slots[slice], (uint32_t)(ret->slot - q->l2.slots) + 1, memory_order_release);
        return 0;
    }
}

/* A new L2 table: empty, or with the content of one that is shared. */
static int l2_table_make(struct qcow2 *q, uint32_t index, uint64_t old)
{
    uint32_t size = q->geometry.cluster_size;
    uint64_t offset, count;
    bool fresh;
    int result = freed_reserve(q, 1);

    if (result == 0)
        result = clusters_alloc(q, 1, true, &offset, &count, &fresh);
    if (result < 0)
        return result;
    if (old)
        result = q->io->read(q->world, FORMAT_FILE_IMAGE, old, q->staging, size);
    else
        memset(q->staging, 0, size);
    /* Its place, unwritten, may be named by the L1 table as soon as the next flush is over. */
    if (result == 0 && (old || !fresh)) {
        image_step(q, FORMAT_L2_ALLOC_WRITE);
        result = image_write(q, offset, q->staging, size);
    }
    if (result == 0)
        result = overlap_add(q, QCOW2_OVERLAP_ACTIVE_L2, offset, size);
    if (result < 0) {
        clusters_give_back(q, offset, 1);
        return result;
    }
    cache_drop(&q->l2, offset, size);
    if (old) {
        overlap_remove(q, QCOW2_OVERLAP_ACTIVE_L2, old, size);
        freed_add(q, old, size, q->settings.discard_other);
    } else {
        cache_put_zeroes(q, &q->l2, offset, size);
    }
    l1_set(q, index, offset | QCOW2_COPIED);
    return 0;
}

/* Else one slot is left for those who read while dirty ones cannot be written. */
static bool l2_cache_holds_all(const struct qcow2 *q)
{
    return (uint64_t)q->l2.count << (q->geometry.slice_bits + q->geometry.cluster_bits) >= q->size;
}

int l2_get_writable(struct qcow2 *q, uint64_t offset, struct l2_place *ret)
{
    uint64_t index = offset >> (q->geometry.cluster_bits + q->geometry.l2_bits);

    for (;;) {
        if (q->corrupted)
            return -EIO;
        if (index >= q->l1->count)
            return -EFBIG;
        uint64_t table = q->l1->entries[index].offset, host = table & QCOW2_OFFSET_MASK;

        if (host && !l2_table_is_sane(q, table))
            return l2_table_corrupt(q, host, index);
        if (!host || !(table & QCOW2_COPIED)) {
            int result = l2_table_make(q, (uint32_t)index, host);

            if (result < 0)
                return result;
        }
        table = q->l1->entries[index].offset;
        int result = l2_get(q, offset, ret);

        if (result < 0)
            return result;
        if (q->corrupted)
            return -EIO;
        if (q->l1->entries[index].offset != table || !ret->slot)
            continue;
        if (ret->slot->dirty || q->l2.dirty + 1 < q->l2.count || l2_cache_holds_all(q))
            return 0;
        result = tables_write_back_waiting(q, false);
        if (result < 0)
            return result;
    }
}

int qcow2_load(struct qcow2 *q, uint64_t offset, uint64_t length, struct mapping *ret)
{
    struct l2_place place;
    int result;

    tables_lock(q);
    do {
        result = l2_get(q, offset, &place);
        if (result == 0)
            result = qcow2_lookup(q, offset, length, ret);
    } while (result == -EAGAIN);
    tables_unlock(q);
    return result;
}

void entry_free(struct qcow2 *q, struct l2_entry entry, bool discard)
{
    uint64_t host = entry_host(entry), size = q->geometry.cluster_size;

    /* A data file's clusters are not counted. */
    if (qcow2_has_data_file(q))
        return;
    if (entry_compressed(entry)) {
        compressed_range(q, entry.entry, &host, &size);
        size = qcow2_align_up(host + size, q->geometry.cluster_size) - qcow2_align_down(host, q->geometry.cluster_size);
        host = qcow2_align_down(host, q->geometry.cluster_size);
    }
    if (host)
        freed_add(q, host, size, discard);
}
