/*
 * qcow2: what qom-get shows of a node. Main loop.
 */
#include "core/memory.h"
#include "drivers/format/qcow2.h"

static struct disk *disk_of(const struct object *object)
{
    return container_of(object, struct node, object)->state;
}

static int stat_hits(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct disk *disk = disk_of(object);

    (void)err;
    *ret = (struct object_value){.kind = OBJECT_SIZE};
    for (unsigned i = 0; i < LOOP_MAX; i++)
        ret->size += __atomic_load_n(&disk->loops[i].hits, __ATOMIC_RELAXED);
    return 0;
}

static int stat_cluster_size(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = disk_of(object)->cluster_size};
    return 0;
}

#define DISK_STAT(member)                                                                              \
    static int stat_##member(const struct object *object, struct object_value *ret, struct error *err) \
    {                                                                                                  \
        struct qcow2_stats stats = {0};                                                                \
                                                                                                       \
        (void)err;                                                                                     \
        /* There is none while the node is being opened anew. */                                       \
        if (disk_of(object)->engine)                                                                   \
            qcow2_get_stats(disk_of(object)->engine, &stats);                                          \
        *ret = (struct object_value){.kind = OBJECT_SIZE, .size = stats.member};                       \
        return 0;                                                                                      \
    }

DISK_STAT(l2_slots)
DISK_STAT(l2_used)
DISK_STAT(l2_dirty)
DISK_STAT(l2_misses)
DISK_STAT(l2_evictions)
DISK_STAT(refcount_slots)
DISK_STAT(refcount_dirty)
DISK_STAT(refcount_misses)
DISK_STAT(quarantine)
DISK_STAT(metadata_writes)
DISK_STAT(flushes)

const struct object_property disk_properties[] = {
    {"cluster-size", "uint64", stat_cluster_size, NULL},
    {"l2-hits", "uint64", stat_hits, NULL},
    {"l2-misses", "uint64", stat_l2_misses, NULL},
    {"l2-slots", "uint64", stat_l2_slots, NULL},
    {"l2-used", "uint64", stat_l2_used, NULL},
    {"l2-dirty", "uint64", stat_l2_dirty, NULL},
    {"l2-evictions", "uint64", stat_l2_evictions, NULL},
    {"refcount-slots", "uint64", stat_refcount_slots, NULL},
    {"refcount-dirty", "uint64", stat_refcount_dirty, NULL},
    {"refcount-misses", "uint64", stat_refcount_misses, NULL},
    {"quarantine", "uint64", stat_quarantine, NULL},
    {"metadata-writes", "uint64", stat_metadata_writes, NULL},
    {"flushes", "uint64", stat_flushes, NULL},
    {NULL, NULL, NULL, NULL},
};
