/*
 * qcow2: compressed clusters. The last few clusters that were
 * decompressed are kept, since clients read less than a cluster at a time.
 * Readers of one cluster wait for the one who decompresses it.
 *
 * A kept one is right as long as the engine calls the place compressed: who
 * gives a cluster new content in compressed form forgets the old one, while
 * nobody reads it.
 */
#include <errno.h>

#include "core/iov.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"

#define UNPACKED_SLOTS 8u
#define UNPACKED_NONE UINT64_MAX

struct unpacked_slot {
    uint64_t cluster;       /* guest offset; UNPACKED_NONE: nothing */
    uint64_t used;          /* when, by disk_unpacked.clock */
    unsigned pins;          /* readers that copy from it */
    void *buf;
};

struct disk_unpacked {
    struct range_lock loading;
    pthread_mutex_t guard;  /* of what follows, but not of the buffers of pinned slots */
    uint64_t clock;
    struct unpacked_slot slots[UNPACKED_SLOTS];
};

void disk_unpack_init(struct disk *disk)
{
    struct disk_unpacked *unpacked = memory_new(struct disk_unpacked);

    range_lock_init(&unpacked->loading);
    pthread_mutex_init(&unpacked->guard, NULL);
    for (unsigned i = 0; i < UNPACKED_SLOTS; i++)
        unpacked->slots[i].cluster = UNPACKED_NONE;
    disk->unpacked = unpacked;
}

void disk_unpack_forget(struct disk *disk)
{
    for (unsigned i = 0; i < UNPACKED_SLOTS; i++)
        disk->unpacked->slots[i].cluster = UNPACKED_NONE;
}

void disk_unpack_destroy(struct disk *disk)
{
    struct disk_unpacked *unpacked = take_ptr(&disk->unpacked);

    for (unsigned i = 0; i < UNPACKED_SLOTS; i++)
        free(unpacked->slots[i].buf);
    range_lock_destroy(&unpacked->loading);
    pthread_mutex_destroy(&unpacked->guard);
    free(unpacked);
}

/* The slot that holds cluster, pinned; or one to fill, pinned, with UNPACKED_NONE; NULL if all are in use. */
static struct unpacked_slot *unpacked_pin(struct disk_unpacked *unpacked, uint64_t cluster)
{
    struct unpacked_slot *found = NULL;

    pthread_mutex_lock(&unpacked->guard);
    for (unsigned i = 0; i < UNPACKED_SLOTS; i++) {
        struct unpacked_slot *slot = &unpacked->slots[i];

        if (slot->cluster == cluster) {
            found = slot;
            break;
        }
        if (slot->pins == 0 && (!found || slot->used < found->used))
            found = slot;
    }
    if (found) {
        if (found->cluster != cluster)
            found->cluster = UNPACKED_NONE;
        found->pins++;
        found->used = ++unpacked->clock;
    }
    pthread_mutex_unlock(&unpacked->guard);
    return found;
}

static void unpacked_unpin(struct disk_unpacked *unpacked, struct unpacked_slot *slot, uint64_t cluster)
{
    pthread_mutex_lock(&unpacked->guard);
    slot->pins--;
    slot->cluster = cluster;
    pthread_mutex_unlock(&unpacked->guard);
}

static int unpack_held(struct disk *disk, uint64_t cluster, uint64_t offset, const struct iovec *iov, unsigned count,
                       uint64_t size)
{
    struct disk_unpacked *unpacked = disk->unpacked;
    struct unpacked_slot *slot = unpacked_pin(unpacked, cluster), lone = {.cluster = UNPACKED_NONE};
    struct unpacked_slot *use = slot ? slot : &lone;
    int result = 0;

    if (use->cluster != cluster) {
        if (!use->buf)
            use->buf = buffer_alloc(disk->cluster_size);
        result = use->buf ? qcow2_read_compressed(disk->engine, cluster, use->buf) : -ENOMEM;
    }
    if (result == 0)
        iov_from_buffer(iov, count, 0, (char *)use->buf + (offset - cluster), size);
    if (slot)
        unpacked_unpin(unpacked, slot, result == 0 ? cluster : UNPACKED_NONE);
    free(lone.buf);
    return result;
}

int disk_unpack(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size)
{
    uint64_t cluster = offset & ~(uint64_t)(disk->cluster_size - 1);
    struct range_hold hold;

    range_lock_take(&disk->unpacked->loading, &hold, cluster, disk->cluster_size);
    int result = unpack_held(disk, cluster, offset, iov, count, size);

    range_lock_release(&disk->unpacked->loading, &hold);
    return result;
}

static void unpacked_forget(struct disk_unpacked *unpacked, uint64_t cluster)
{
    pthread_mutex_lock(&unpacked->guard);
    for (unsigned i = 0; i < UNPACKED_SLOTS; i++) {
        if (unpacked->slots[i].cluster == cluster)
            unpacked->slots[i].cluster = UNPACKED_NONE;
    }
    pthread_mutex_unlock(&unpacked->guard);
}

int disk_pack(struct disk *disk, uint64_t cluster, const void *data)
{
    struct range_hold hold;

    range_lock_take(&disk->unpacked->loading, &hold, cluster, disk->cluster_size);
    int result = qcow2_write_compressed(disk->engine, cluster, data);

    unpacked_forget(disk->unpacked, cluster);
    range_lock_release(&disk->unpacked->loading, &hold);
    return result;
}
