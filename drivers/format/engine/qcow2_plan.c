/*
 * Write plans. qcow2_write_begin() finds a place for a prefix of a write:
 *   in place    the clusters (or subclusters) hold data and are ours alone;
 *   reuse       host clusters are there and ours alone, but the guest sees
 *               zeroes or the backing file there: after the write they are linked;
 *   allocate    new clusters in a row, for guest clusters in a row.
 * Nothing is visible before qcow2_write_end(), which links all at once, slice by
 * slice. If the data was not written, new clusters go back: nobody was told of
 * them.
 */
#include "drivers/format/engine/qcow2_internal.h"

enum place_kind { PLACE_IN_PLACE, PLACE_REUSE, PLACE_ALLOCATE };

static uint32_t plan_cluster_mask(const struct qcow2 *q)
{
    return q->geometry.cluster_size - 1;
}

/* Bits of the subclusters that [from, to) of a cluster touches; all of a cluster without subclusters. */
static uint32_t plan_bits(const struct qcow2 *q, uint64_t from, uint64_t to)
{
    uint32_t first = (uint32_t)(from >> q->geometry.subcluster_bits);
    uint32_t last = (uint32_t)((to - 1) >> q->geometry.subcluster_bits);
    uint64_t bits = (UINT64_C(2) << last) - (UINT64_C(1) << first);

    return (uint32_t)bits;
}

static enum place_kind plan_kind(const struct qcow2 *q, struct l2_entry entry, uint64_t from, uint64_t to)
{
    uint32_t bits = plan_bits(q, from, to);

    if (entry_compressed(entry) || !entry_has_host(q, entry) || !(entry.entry & QCOW2_COPIED))
        return PLACE_ALLOCATE;
    if (q->geometry.subclusters > 1)
        return (entry.bitmap & bits) == bits ? PLACE_IN_PLACE : PLACE_REUSE;
    return entry.entry & QCOW2_ZERO ? PLACE_REUSE : PLACE_IN_PLACE;
}

/* Whether all that is around a write into the cluster reads as zeroes. */
static bool plan_around_zero(const struct qcow2 *q, struct l2_entry entry)
{
    if (entry_compressed(entry))
        return false;
    if (q->geometry.subclusters > 1)
        return (entry.bitmap & UINT32_MAX) == 0 && (!q->backed || entry.bitmap >> 32 == UINT32_MAX);
    return entry.entry & QCOW2_ZERO || (!entry_has_host(q, entry) && !q->backed);
}

/*
 * How far the copy reaches that a write which begins (or ends) at `at` in a cluster needs: the begin (or end) of
 * the subcluster if that is not allocated, of the cluster if the cluster's old place is given up.
 */
static uint64_t plan_edge(const struct qcow2 *q, struct l2_entry entry, enum place_kind kind, uint64_t at, bool end)
{
    const struct geometry *g = &q->geometry;
    uint64_t unit = g->cluster_size;

    if (g->subclusters > 1 && (kind == PLACE_REUSE || (!entry_compressed(entry) && !entry_has_host(q, entry)))) {
        unit = UINT64_C(1) << g->subcluster_bits;
        if (kind == PLACE_REUSE && entry.bitmap >> ((at - end) >> g->subcluster_bits) & 1)
            return at;
    }
    return end ? qcow2_align_up(at, unit) : qcow2_align_down(at, unit);
}

/* The run of clusters from offset on that are of one kind, and in a row unless they are to be allocated. */
static uint32_t plan_run(const struct qcow2 *q, const struct l2_place *place, uint64_t offset, uint64_t length,
                         enum place_kind *kind, struct l2_entry *last)
{
    uint64_t end = offset + length, at = offset, host = 0;
    uint32_t count = 0;

    while (at < end && place->index + count < q->geometry.slice_entries) {
        uint64_t in_cluster = at & plan_cluster_mask(q);
        uint64_t stop = qcow2_min(end, at - in_cluster + q->geometry.cluster_size);
        struct l2_entry entry = l2_entry_get(q, place->slot, place->index + count);
        enum place_kind next = plan_kind(q, entry, in_cluster, in_cluster + (stop - at));

        if (count == 0) {
            *kind = next;
            host = entry_host(entry);
        } else if (next != *kind || (next != PLACE_ALLOCATE && entry_host(entry) != host)) {
            break;
        }
        *last = entry;
        host += q->geometry.cluster_size;
        at = stop;
        count++;
    }
    return count;
}

static void plan_cut(const struct qcow2 *q, struct write_plan *plan, uint32_t count)
{
    uint64_t end = plan->cluster + ((uint64_t)count << q->geometry.cluster_bits);

    plan->length = qcow2_min(plan->length, end - plan->guest);
}

static int plan_allocate(struct qcow2 *q, struct write_plan *plan, uint32_t run, bool *fresh)
{
    uint64_t count = run;

    if (qcow2_has_data_file(q)) {
        /* A data file's offsets are the guest's. */
        plan->host_cluster = plan->cluster;
        *fresh = false;
        plan->count = 0;
        return q->io->grow(q->world, FORMAT_FILE_DATA,
                           qcow2_min(plan->cluster + ((uint64_t)run << q->geometry.cluster_bits), q->size));
    }
    int result = clusters_alloc(q, run, false, &plan->host_cluster, &count, fresh);

    plan->count = result < 0 ? 0 : (uint32_t)count;
    return result;
}

/* A cluster that is there may lie behind the end of its file, where it reads as zeroes. */
static int plan_reach(struct qcow2 *q, const struct write_plan *plan)
{
    uint64_t end = plan->host + plan->length + plan->tail;

    return plan->file == FORMAT_FILE_DATA ? q->io->grow(q->world, FORMAT_FILE_DATA, end) : file_reach(q, end);
}

static int plan_make(struct qcow2 *q, struct l2_place *place, struct write_plan *plan)
{
    uint64_t mask = plan_cluster_mask(q), begin = plan->guest & mask;
    struct l2_entry first = l2_entry_get(q, place->slot, place->index), last = first;
    enum place_kind kind = PLACE_IN_PLACE;
    uint32_t run = plan_run(q, place, plan->guest, plan->length, &kind, &last);
    bool fresh = false;

    plan->host_cluster = entry_host(first);
    if (kind == PLACE_ALLOCATE) {
        int result = plan_allocate(q, plan, run, &fresh);

        if (result < 0)
            return result;
        if (plan->count && plan->count < run) {
            run = plan->count;
            last = l2_entry_get(q, place->slot, place->index + run - 1);
        }
    }
    plan_cut(q, plan, run);
    plan->host = plan->host_cluster + begin;
    plan->links = kind != PLACE_IN_PLACE;
    if (!plan->links)
        return plan_reach(q, plan);
    uint64_t end = ((plan->guest + plan->length - 1) & mask) + 1;

    plan->head = (uint32_t)(begin - plan_edge(q, first, kind, begin, false));
    plan->tail = (uint32_t)(plan_edge(q, last, kind, end, true) - end);
    /* A data file ends with the disk. */
    if (qcow2_has_data_file(q))
        plan->tail = (uint32_t)qcow2_min(plan->tail, q->size - plan->guest - plan->length);
    plan->zero = (!plan->head || plan_around_zero(q, first)) && (!plan->tail || plan_around_zero(q, last));
    if (fresh && plan_around_zero(q, first))
        plan->head = 0;
    if (fresh && plan_around_zero(q, last))
        plan->tail = 0;
    return kind == PLACE_REUSE ? plan_reach(q, plan) : 0;
}

int qcow2_write_begin(struct qcow2 *q, uint64_t offset, uint64_t length, struct write_plan *ret)
{
    struct l2_place place;

    *ret = (struct write_plan){.guest = offset, .length = length, .file = qcow2_data_file(q)};
    ret->cluster = qcow2_align_down(offset, q->geometry.cluster_size);
    tables_lock(q);
    freed_reap(q);
    int result = l2_get_writable(q, offset, &place);

    if (result == 0)
        result = plan_make(q, &place, ret);
    uint64_t end = ret->host_cluster + ((uint64_t)ret->count << q->geometry.cluster_bits);
    uint64_t ahead = result == 0 && ret->count ? file_ahead(q, end) : 0;

    tables_unlock(q);
    if (ahead)
        file_grow_ahead(q, ahead);
    return result;
}

/* Links the clusters whose entries are in one slice; returns how many, or an error. */
static int plan_link(struct qcow2 *q, const struct write_plan *plan, uint64_t guest, uint64_t end)
{
    const struct geometry *g = &q->geometry;
    uint64_t host = plan->host_cluster + (qcow2_align_down(guest, g->cluster_size) - plan->cluster), at = guest;
    struct l2_place place;
    int result = l2_get_writable(q, guest, &place);

    if (result == 0)
        result = freed_reserve(q, g->slice_entries);
    if (result < 0)
        return result;
    slot_begin(place.slot);
    for (; at < end && place.index < g->slice_entries; place.index++, host += g->cluster_size) {
        struct l2_entry old = l2_entry_get(q, place.slot, place.index), new = {.entry = host | QCOW2_COPIED};
        uint64_t stop = qcow2_min(end, qcow2_align_down(at, g->cluster_size) + g->cluster_size);
        bool stays = !entry_compressed(old) && old.entry & QCOW2_COPIED && entry_host(old) == host;

        if (g->subclusters > 1) {
            uint64_t from = at & (g->cluster_size - 1);
            uint32_t bits = plan_bits(q, from, from + (stop - at));

            /* What was shared is copied whole; of the rest only what was neither stays as it was. */
            new.bitmap = (stays || !entry_has_host(q, old) ? old.bitmap : 0) | bits;
            new.bitmap &= ~((uint64_t)bits << 32);
            if (entry_compressed(old))
                new.bitmap = bits;
        }
        if (!stays)
            entry_free(q, old, q->settings.discard_other);
        l2_entry_set(q, place.slot, place.index, new);
        at = stop;
    }
    slot_end(place.slot);
    return 0;
}

int qcow2_write_end(struct qcow2 *q, const struct write_plan *plan, int result)
{
    uint64_t guest = plan->guest - plan->head;

    if (!plan->links)
        return result;
    tables_lock(q);
    /* A plan never leaves its slice: all or nothing. */
    if (result == 0)
        result = plan_link(q, plan, guest, plan->guest + plan->length + plan->tail);
    if (result < 0 && plan->count)
        clusters_give_back(q, plan->host_cluster, plan->count);
    tables_unlock(q);
    return result;
}
