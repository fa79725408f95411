/*
 * The quarantine of freed clusters. A cluster's refcount goes down when
 *   1. the L2 entry (or table) that let go of it is durable: a crash must not
 *      find an entry that points at a free cluster;
 *   2. a grace period has passed since: a request that looked the entry up
 *      before may still be on its way to the cluster, and a hole that is
 *      punched for the old content must not hit the new.
 * A list in order of freeing; its head waits for grace, then comes what is
 * durable, then the rest.
 */
#include "drivers/format/engine/qcow2_internal.h"

int freed_reserve(struct qcow2 *q, size_t more)
{
    struct freed_list *list = &q->freed;

    if (list->room - list->count >= more)
        return 0;
    size_t room = list->room ? 2 * list->room : 64;

    while (room - list->count < more)
        room *= 2;
    struct freed *items = q->io->alloc(q->world, room * sizeof(*items));

    if (!items)
        return -ENOMEM;
    if (list->count)
        memcpy(items, list->items, list->count * sizeof(*items));
    q->io->release(q->world, list->items);
    list->items = items;
    list->room = room;
    return 0;
}

int freed_add(struct qcow2 *q, uint64_t offset, uint64_t length, bool discard)
{
    struct freed_list *list = &q->freed;
    struct freed *last = list->removed + list->count > list->sealed ? &list->items[list->count - 1] : NULL;

    atomic_fetch_add(&q->counters.quarantine, length);
    if (last && last->offset + last->length == offset && last->discard == discard) {
        last->length += length;
        return 0;
    }
    int result = freed_reserve(q, 1);

    if (result == 0)
        list->items[list->count++] = (struct freed){.offset = offset, .length = length, .discard = discard};
    return result;
}

uint64_t freed_seal(struct qcow2 *q)
{
    q->freed.sealed = q->freed.removed + q->freed.count;
    return q->freed.sealed;
}

void freed_durable(struct qcow2 *q, uint64_t end)
{
    struct freed_list *list = &q->freed;

    if (end > list->removed + list->durable)
        list->durable = (size_t)(end - list->removed);
}

/* Lowers one; what fails stays allocated, which is a leak and no more. */
static void freed_lower(struct qcow2 *q, const struct freed *freed)
{
    uint32_t bits = q->geometry.cluster_bits;
    uint64_t cluster = freed->offset >> bits, end = (freed->offset + freed->length) >> bits;

    image_step(q, FORMAT_CLUSTER_FREE);
    atomic_fetch_sub(&q->counters.quarantine, freed->length);
    while (cluster < end) {
        uint64_t last = cluster, count = 0;

        while (last < end && freed->discard && refcount_get(q, last, &count) == 0 && count == 1)
            last++;
        /* While they still count nobody gets these clusters: the hole cannot come too late. */
        if (last > cluster) {
            uint64_t packed = q->alloc.packed >> bits;

            /* Nor must compressed data find room there. */
            if (packed >= cluster && packed < last)
                q->alloc.packed = 0;
            tables_unlock(q);
            q->io->discard(q->world, FORMAT_FILE_IMAGE, cluster << bits, (last - cluster) << bits);
            tables_lock(q);
        } else {
            last++;
        }
        if (refcount_add(q, cluster, last - cluster, -1) < 0)
            return;
        cluster = last;
    }
}

/* Lowers what waited and takes it off the list. One at a time does so, since it lets go of the lock: the list may grow
 * meanwhile, and lie elsewhere. */
static void freed_take(struct qcow2 *q)
{
    struct freed_list *list = &q->freed;
    size_t count = list->waiting;

    list->reaping = true;
    for (size_t i = 0; i < count; i++) {
        struct freed freed = list->items[i];

        freed_lower(q, &freed);
    }
    list->reaping = false;
    list->count -= count;
    list->removed += count;
    list->durable -= count;
    list->waiting = 0;
    memmove(list->items, list->items + count, list->count * sizeof(*list->items));
}

void freed_reap(struct qcow2 *q)
{
    struct freed_list *list = &q->freed;

    if (list->waiting && !list->reaping && q->io->grace_over(q->world, list->grace))
        freed_take(q);
    if (!list->waiting && list->durable) {
        list->waiting = list->durable;
        list->grace = q->io->grace_begin(q->world);
    }
}
