/*
 * Where metadata lies, and what happens when something else is about to lie
 * there. A set of host clusters with open addressing: as many as there are L2
 * tables and refcount blocks, and asked once for each new cluster and for each
 * entry of a slice that comes from disk.
 */
#include <stdarg.h>
#include <stdio.h>

#include "drivers/format/engine/qcow2_internal.h"

#define SET_MIN 64u

static size_t set_place(const struct cluster_set *set, uint64_t item)
{
    size_t place = (size_t)((item * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & set->mask;

    while (set->items[place] && set->items[place] != item)
        place = (place + 1) & set->mask;
    return place;
}

static int set_grow(struct qcow2 *q, struct cluster_set *set)
{
    struct cluster_set old = *set;
    size_t room = old.items ? 2 * (old.mask + 1) : SET_MIN;

    set->items = q->io->alloc(q->world, room * sizeof(*set->items));
    if (!set->items) {
        *set = old;
        return -ENOMEM;
    }
    set->mask = room - 1;
    for (size_t i = 0; old.items && i <= old.mask; i++) {
        if (old.items[i])
            set->items[set_place(set, old.items[i])] = old.items[i];
    }
    q->io->release(q->world, old.items);
    return 0;
}

int overlap_add(struct qcow2 *q, uint64_t offset, uint64_t length)
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
        set->items[place] = cluster + 1;
    }
    return 0;
}

/* Closes the gap, so that a search never ends before what it looks for. */
static void set_remove(struct cluster_set *set, uint64_t item)
{
    size_t hole = set_place(set, item);

    if (!set->items[hole])
        return;
    set->items[hole] = 0;
    set->count--;
    for (size_t i = (hole + 1) & set->mask; set->items[i]; i = (i + 1) & set->mask) {
        uint64_t moved = set->items[i];

        set->items[i] = 0;
        set->items[set_place(set, moved)] = moved;
    }
}

void overlap_remove(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    for (uint64_t done = 0; q->metadata.items && done < length; done += q->geometry.cluster_size)
        set_remove(&q->metadata, ((offset + done) >> q->geometry.cluster_bits) + 1);
}

bool overlap_hits(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t cluster = offset >> q->geometry.cluster_bits;
    uint64_t end = (offset + length + q->geometry.cluster_size - 1) >> q->geometry.cluster_bits;

    if (!q->settings.overlap_check || !q->metadata.items)
        return false;
    for (; cluster < end; cluster++) {
        if (q->metadata.items[set_place(&q->metadata, cluster + 1)])
            return true;
    }
    return false;
}

void overlap_destroy(struct qcow2 *q)
{
    q->io->release(q->world, q->metadata.items);
    q->metadata.items = NULL;
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
