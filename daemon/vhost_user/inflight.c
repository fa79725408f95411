/*
 * In-flight regions: see inflight.h. Here is what happens when a queue begins
 * and ends; the rest is on the I/O path.
 */
#include "daemon/vhost_user/inflight.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"

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
        memset(region, 0, vhost_inflight_size(size, false));
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

void vhost_inflight_end(struct vhost_inflight *inflight, bool packed)
{
    /* What could not even be submitted again stays in flight. */
    if (inflight->region && inflight->again_count == 0 && packed)
        inflight->packed->version = 0;
    else if (inflight->region && inflight->again_count == 0)
        inflight->split->version = 0;
    free(take_ptr(&inflight->again));
    free(take_ptr(&inflight->batch));
    inflight->again_count = inflight->batch_count = 0;
}
