/*
 * In-flight regions: see inflight.h. Here is what happens when a queue begins
 * and ends; the rest is on the I/O path.
 */
#include "daemon/vhost_user/inflight.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/vhost_user/queue.h"

#define INFLIGHT_VERSION 1u

struct inflight_found {
    uint64_t counter;
    uint16_t entry;
};

size_t vhost_inflight_size(unsigned queue_size, bool packed)
{
    size_t size = packed
                      ? sizeof(struct vhost_inflight_packed) + queue_size * sizeof(struct vhost_inflight_packed_entry)
                      : sizeof(struct vhost_inflight_split) + queue_size * sizeof(struct vhost_inflight_split_entry);

    return (size + VHOST_INFLIGHT_ALIGN - 1) & ~(size_t)(VHOST_INFLIGHT_ALIGN - 1);
}

/* All but `features`, which both kinds begin with. */
static void inflight_clear(void *region, size_t size)
{
    memset((unsigned char *)region + sizeof(uint64_t), 0, size - sizeof(uint64_t));
}

static int inflight_compare(const void *a, const void *b)
{
    const struct inflight_found *x = a, *y = b;

    return x->counter < y->counter ? -1 : x->counter > y->counter;
}

/* found: what was in flight, in any order. */
static void inflight_again(struct vhost_inflight *inflight, struct inflight_found *found, unsigned count)
{
    qsort(found, count, sizeof(*found), inflight_compare);
    for (unsigned i = 0; i < count; i++)
        inflight->again[i] = found[i].entry;
    inflight->again_count = count;
    inflight->counter = count ? found[count - 1].counter + 1 : 0;
}

static int inflight_check(uint16_t version, uint16_t desc_num, unsigned size, struct error *err)
{
    if (version != INFLIGHT_VERSION)
        return error_set(err, -EINVAL, "the in-flight region has version %u", version);
    if (desc_num != size)
        return error_set(err, -EINVAL, "the in-flight region is for a queue of %u entries, not of %u", desc_num, size);
    return 0;
}

/* The last batch may have been shown to the driver without having been noted here. */
static int inflight_split_settle(struct vhost_inflight_split *region, unsigned size, uint16_t used_idx,
                                 struct error *err)
{
    uint16_t shown = (uint16_t)(used_idx - region->used_idx), head = region->last_batch_head;

    if (shown > size)
        return error_set(err, -EINVAL, "the in-flight region was left at used index %u, and the ring is at %u",
                         region->used_idx, used_idx);
    for (unsigned i = 0; i < shown; i++) {
        if (head >= size)
            return error_set(err, -EINVAL, "the in-flight region's last batch contains descriptor %u of %u", head,
                             size);
        region->desc[head].inflight = 0;
        head = region->desc[head].next;
    }
    region->used_idx = used_idx;
    return 0;
}

int vhost_inflight_split_begin(struct vhost_inflight *inflight, unsigned size, uint16_t used_idx, struct error *err)
{
    struct vhost_inflight_split *region = inflight->split;
    AUTO_FREE struct inflight_found *found = memory_array(size, sizeof(*found));
    unsigned count = 0;

    inflight->again = memory_array(size, sizeof(*inflight->again));
    inflight->batch = memory_array(size, sizeof(*inflight->batch));
    if (region->version == 0) {
        inflight_clear(region, vhost_inflight_size(size, false));
        region->desc_num = (uint16_t)size;
        region->used_idx = used_idx;
        vhost_inflight_order();
        region->version = INFLIGHT_VERSION;
        return 0;
    }
    int result = inflight_check(region->version, region->desc_num, size, err);

    if (result == 0)
        result = inflight_split_settle(region, size, used_idx, err);
    if (result < 0)
        return result;
    for (unsigned i = 0; i < size; i++) {
        if (region->desc[i].inflight)
            found[count++] = (struct inflight_found){.counter = region->desc[i].counter, .entry = (uint16_t)i};
    }
    inflight_again(inflight, found, count);
    return 1;
}

/* Packed rings. */

/* Follows count links of the region from entry on, into inflight->next; seen: each entry is met once. */
static int inflight_packed_follow(struct vhost_inflight *inflight, unsigned size, uint16_t entry, unsigned count,
                                  bool *seen, uint16_t *after, struct error *err)
{
    for (unsigned i = 0; i < count; i++) {
        if (entry >= size || seen[entry])
            return error_set(err, -EINVAL, "the in-flight region's entry %u is %s", entry,
                             entry >= size ? "outside of it" : "linked twice");
        uint16_t next = inflight->packed->desc[entry].next;

        seen[entry] = true;
        inflight->next[entry] = next;
        entry = next;
    }
    *after = entry;
    return 0;
}

/* Used entries of a batch that was not shown must not be taken for those of a later one. */
static void inflight_packed_hide(struct vring_packed_desc *ring, unsigned size, unsigned place, bool wrap,
                                 unsigned count)
{
    for (; count; count--) {
        uint16_t flags = le16toh(__atomic_load_n(&ring[place].flags, __ATOMIC_RELAXED));

        if ((flags & vhost_packed_flags(true, true)) == vhost_packed_flags(wrap, wrap))
            __atomic_store_n(&ring[place].flags, htole16(vhost_packed_flags(wrap, !wrap)), __ATOMIC_RELAXED);
        if (++place == size) {
            place = 0;
            wrap = !wrap;
        }
    }
}

/* Whether the last batch was shown to the driver is to be seen at its first entry; if not, all is as before. */
static int inflight_packed_settle(struct vhost_inflight_packed *region, struct vring_packed_desc *ring, unsigned size,
                                  struct error *err)
{
    unsigned place = region->old_used_idx, end = region->used_idx;
    bool wrap = region->old_used_wrap_counter, end_wrap = region->used_wrap_counter;

    if (place >= size || end >= size)
        return error_set(err, -EINVAL, "the in-flight region was left at used index %u of %u", end, size);
    unsigned count = place == end && wrap != end_wrap ? size : (end + size - place) % size;
    uint16_t flags = le16toh(__atomic_load_n(&ring[place].flags, __ATOMIC_ACQUIRE));
    bool shown = (flags & vhost_packed_flags(true, true)) != vhost_packed_flags(wrap, !wrap);

    /* Half committed: the wrap counter already, the index not yet. */
    bool committed = wrap == end_wrap && end < place;

    if (count && (shown || committed)) {
        region->old_free_head = region->free_head;
        region->old_used_wrap_counter = end_wrap;
        region->old_used_idx = (uint16_t)end;
    } else {
        inflight_packed_hide(ring, size, place, wrap, count);
        region->free_head = region->old_free_head;
        region->used_wrap_counter = wrap;
        region->used_idx = (uint16_t)place;
    }
    return 0;
}

/* Finds what is in flight, and what is free. */
static int inflight_packed_read(struct vhost_inflight *inflight, unsigned size, unsigned *avail_ahead,
                                struct error *err)
{
    struct vhost_inflight_packed *region = inflight->packed;
    AUTO_FREE struct inflight_found *found = memory_array(size, sizeof(*found));
    AUTO_FREE bool *seen = memory_array(size, sizeof(*seen)), *idle = memory_array(size, sizeof(*idle));
    unsigned count = 0, entries = 0;
    uint16_t entry = region->free_head;

    for (unsigned i = 0; i < size && entry < size && !idle[entry]; i++) {
        idle[entry] = true;
        region->desc[entry].inflight = 0;
        entry = region->desc[entry].next;
    }
    for (unsigned i = 0; i < size; i++) {
        uint16_t num = region->desc[i].num;

        if (idle[i] || !region->desc[i].inflight)
            continue;
        if (num == 0 || num > size - entries)
            return error_set(err, -EINVAL, "the in-flight region's entry %u has %u descriptors", i, num);
        int result = inflight_packed_follow(inflight, size, (uint16_t)i, num, seen, &entry, err);

        if (result < 0)
            return result;
        found[count++] = (struct inflight_found){.counter = region->desc[i].counter, .entry = (uint16_t)i};
        entries += num;
    }
    inflight->free_head = region->free_head;
    *avail_ahead = entries;
    inflight_again(inflight, found, count);
    return inflight_packed_follow(inflight, size, region->free_head, size - entries, seen, &entry, err);
}

int vhost_inflight_packed_begin(struct vhost_inflight *inflight, struct vring_packed_desc *ring, unsigned size,
                                struct vhost_inflight_place *used, unsigned *avail_ahead, struct error *err)
{
    struct vhost_inflight_packed *region = inflight->packed;

    inflight->again = memory_array(size, sizeof(*inflight->again));
    inflight->next = memory_array(size, sizeof(*inflight->next));
    if (region->version == 0) {
        inflight_clear(region, vhost_inflight_size(size, true));
        for (unsigned i = 0; i < size; i++)
            region->desc[i].next = inflight->next[i] = (uint16_t)(i + 1);
        inflight->free_head = 0;
        region->desc_num = (uint16_t)size;
        region->used_idx = region->old_used_idx = used->index;
        region->used_wrap_counter = region->old_used_wrap_counter = used->wrap;
        vhost_inflight_order();
        region->version = INFLIGHT_VERSION;
        return 0;
    }
    int result = inflight_check(region->version, region->desc_num, size, err);

    if (result < 0)
        return result;
    result = inflight_packed_settle(region, ring, size, err);
    if (result < 0)
        return result;
    *used = (struct vhost_inflight_place){.index = region->used_idx, .wrap = region->used_wrap_counter};
    if (used->index >= size)
        return error_set(err, -EINVAL, "the in-flight region was left at used index %u of %u", used->index, size);
    result = inflight_packed_read(inflight, size, avail_ahead, err);
    return result < 0 ? result : 1;
}

void vhost_inflight_end(struct vhost_inflight *inflight, bool packed)
{
    /* What could not even be submitted again stays in flight. */
    if (inflight->region && inflight->again_count == 0 && packed)
        inflight->packed->version = 0;
    else if (inflight->region && inflight->again_count == 0)
        inflight->split->version = 0;
    free(take_ptr(&inflight->again));
    free(take_ptr(&inflight->batch));
    free(take_ptr(&inflight->next));
    inflight->again_count = inflight->batch_count = 0;
}
