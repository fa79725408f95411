/*
 * What the files of the qcow2 engine share.
 *
 * The lock of the tables guards everything that changes, and is held across the
 * I/O of metadata, but not across that of L2 tables and flushes: write-back
 * (qcow2_flush.c) copies what is to be written and lets go. Write-backs exclude
 * each other by the lock of flushes, which is taken first. Questions are answered without it: they read the L1 array,
 * the slot that holds the slice of the L2 table, and its words, all of them
 * atomic; a slot's version is odd while its content changes and differs
 * afterwards, so that a reader who saw a mixture knows. Slots and L1 arrays
 * stay in memory until no reader can be on the way to them.
 *
 * Refcounts in the cache are what they may be on disk at any time: they go up
 * before an L2 entry is made, and down (qcow2_freed.c) only after the entry that
 * let go is durable. Hence write-back has a simple order: refcounts, flush, L2
 * and L1, flush.
 */
#ifndef QCOW2_INTERNAL_H
#define QCOW2_INTERNAL_H

#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "drivers/format/engine/qcow2.h"

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_HEADER_V2 72u
#define QCOW2_HEADER_V3 104u
#define QCOW2_HEADER_SECTOR 512u

#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO UINT64_C(1)
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define QCOW2_L2_RESERVED UINT64_C(0x3f000000000001fe) /* of a standard entry, besides bit 0 */
#define QCOW2_L1_RESERVED UINT64_C(0x7f000000000001ff)
#define QCOW2_REFTABLE_RESERVED UINT64_C(0x00000000000001ff)
#define QCOW2_HOST_MAX (UINT64_C(1) << 56)

#define QCOW2_L1_MAX (32u << 20)      /* bytes of an L1 table */
#define QCOW2_REFTABLE_MAX (8u << 20) /* bytes of a refcount table */
#define QCOW2_SNAPSHOTS_MAX 65536u
#define QCOW2_SNAPSHOT_EXTRA_MAX 1024u         /* bytes of extra data of a snapshot */
#define QCOW2_SNAPSHOT_TABLE_MAX (64u << 20) /* bytes of the table of snapshots */
#define QCOW2_BITMAPS_MAX (64u << 20) /* bytes of the directory of bitmaps */
#define QCOW2_SLICE_MAX 4096u

enum qcow2_incompatible {
    QCOW2_INCOMPAT_DIRTY = 1,
    QCOW2_INCOMPAT_CORRUPT = 2,
    QCOW2_INCOMPAT_DATA_FILE = 4,
    QCOW2_INCOMPAT_COMPRESSION = 8,
    QCOW2_INCOMPAT_EXTENDED_L2 = 16
};
#define QCOW2_INCOMPAT_KNOWN 31u
#define QCOW2_COMPAT_LAZY_REFCOUNTS 1u
#define QCOW2_AUTOCLEAR_BITMAPS 1u
#define QCOW2_AUTOCLEAR_DATA_RAW 2u

/* Header fields, in the CPU's byte order. */
struct qcow2_header {
    uint32_t version, backing_size, cluster_bits, crypt_method, l1_entries, reftable_clusters, snapshots;
    uint64_t backing_offset, size, l1_offset, reftable_offset, snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint64_t bitmaps_offset, bitmaps_size; /* the directory of bitmaps; 0 if there is none */
    uint32_t refcount_order, length;
    uint8_t compression;
};

/* A slice of a table in memory. Fields without _Atomic are under the lock. */
struct slot {
    _Atomic uint64_t version;   /* odd while words or key change */
    _Atomic uint64_t key;       /* host offset of the slice, 0 = holds nothing */
    _Atomic uint64_t *words;    /* as on disk; set once */
    _Atomic uint32_t used;      /* asked for since the hand came by */
    uint32_t hash_next;         /* slot number + 1 */
    _Atomic uint32_t *backlink; /* where questions find it: holds its number + 1; or NULL */
    bool dirty, loading;
    bool writing; /* a copy is on its way to the file: the slot must not be given away */
};

#define CACHE_CHUNK 64u /* slots that get memory together */

struct cache {
    struct slot *slots;
    uint32_t *hash; /* slot number + 1 */
    unsigned char **chunks;
    uint32_t count, ready; /* slots at most; slots with memory */
    uint32_t hash_mask, hand;
    uint32_t slice_size;
    bool stuck; /* dirty slices could not be written: what is clean serves those who read */
    _Atomic uint64_t dirty, misses, evictions;
};

struct l1_entry {
    _Atomic uint64_t offset;           /* as on disk, in the CPU's byte order */
    _Atomic(_Atomic uint32_t *) slots; /* [slice] slot number + 1; NULL: none was loaded yet */
};

struct l1_table {
    uint32_t count;
    struct l1_table *retired; /* next older one, kept for readers until close */
    struct l1_entry entries[];
};

/* Clusters whose references are gone and whose refcounts are not yet lowered. */
struct freed {
    uint64_t offset, length; /* bytes, whole clusters */
    bool discard;
};

struct freed_list { /* in order of freeing */
    struct freed *items;
    size_t count, room;
    size_t durable; /* of these, the references are gone on disk as well */
    size_t waiting; /* of these, a grace period is under way */
    uint64_t grace;
    uint64_t removed; /* how many have left the list: items have numbers */
    uint64_t sealed;  /* number of the first that may still grow */
    bool reaping;     /* somebody gives clusters back */
};

/* Host clusters that hold metadata: what guest data must never hit. */
struct qcow2_snapshot { /* what matters to us of an entry in the table of snapshots */
    uint64_t l1_offset;
    uint32_t l1_entries, extra_size; /* bytes of extra data */
};

struct cluster_set {
    uint64_t *items;  /* cluster number + 1; enum qcow2_overlap in the bits from 48 on */
    uint64_t *filter; /* which groups of clusters have any */
    size_t count, mask;
};

struct block_range { /* of refcount blocks, by number */
    uint64_t first, count;
};

struct geometry {
    uint32_t cluster_bits, cluster_size, l2_bits, entry_size; /* bytes of an L2 entry: 8 or 16 */
    uint32_t slice_entries, slice_bits, slices;               /* entries in a slice; slices in a table */
    uint32_t subcluster_bits, subclusters;                    /* 1 subcluster unless extended */
    uint32_t refcount_order, refcount_bits; /* log2 of bits; bits of a block's entries: log2 of count */
    uint64_t refcount_max;
    bool data_file; /* here, since the header's bits change while questions are asked */
};

struct qcow2 {
    const struct format_io *io;
    void *world;
    struct qcow2_settings settings;
    struct geometry geometry;
    struct qcow2_header header;
    unsigned char sector[QCOW2_HEADER_SECTOR]; /* the header as on disk */
    char *backing_name, *backing_format, *data_file_name;
    _Atomic uint64_t size;
    _Atomic(struct l1_table *) l1;
    uint8_t *l1_dirty; /* [sector of the L1 table] */
    struct cache l2, refcounts;
    struct refcount_state {
        uint64_t *table; /* CPU's byte order: offsets of blocks */
        uint64_t table_entries;
        struct block_range unnamed; /* blocks that the table on disk may not name, and perhaps some that it does */
        uint64_t free_hint; /* no free cluster lies before it */
        uint64_t packed;    /* bytes: where the next compressed cluster may begin; a cluster's begin: nowhere */
        uint64_t virgin;    /* bytes: from here on the file was never written and reads as zeroes */
        uint64_t file_size; /* bytes the file is known to reach */
        bool grown;         /* further than it was found */
        bool growing;       /* somebody makes it reach further, or has failed to */
    } alloc;
    struct freed_list freed;
    struct cluster_set metadata;
    _Atomic bool needs_flush, corrupted;
    bool backed, lazy;
    unsigned char *staging;         /* a cluster, and at least 64 KiB: under the lock */
    _Atomic uint64_t flushes_begun; /* write-backs that make everything durable, by number */
    uint64_t flush_ended;           /* the last that went well; under the lock of flushes */
    struct qcow2_counters {
        _Atomic uint64_t metadata_writes, flushes, quarantine; /* the last in bytes */
    } counters;
};

static inline uint64_t qcow2_align_down(uint64_t value, uint64_t unit)
{
    return value & ~(unit - 1);
}

static inline uint64_t qcow2_align_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) & ~(unit - 1);
}

static inline uint64_t qcow2_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline bool qcow2_has_data_file(const struct qcow2 *q)
{
    return q->geometry.data_file;
}

static inline bool qcow2_extended(const struct qcow2 *q)
{
    return q->geometry.subclusters > 1;
}

static inline enum format_file qcow2_data_file(const struct qcow2 *q)
{
    return qcow2_has_data_file(q) ? FORMAT_FILE_DATA : FORMAT_FILE_IMAGE;
}

static inline void tables_lock(const struct qcow2 *q)
{
    q->io->lock(q->world, FORMAT_LOCK_TABLES);
}

static inline void tables_unlock(const struct qcow2 *q)
{
    q->io->unlock(q->world, FORMAT_LOCK_TABLES);
}

static inline void flush_lock(const struct qcow2 *q)
{
    q->io->lock(q->world, FORMAT_LOCK_FLUSH);
}

static inline void flush_unlock(const struct qcow2 *q)
{
    q->io->unlock(q->world, FORMAT_LOCK_FLUSH);
}

/* qcow2_header.c */
int header_read(struct qcow2 *q, char text[256]);
int header_write(struct qcow2 *q); /* the fields that change, in one sector; no flush */
/* Sets the dirty bit on disk, durably, before the first change that leaves refcounts behind. */
int header_mark_dirty(struct qcow2 *q);
int text_fail(char text[256], int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* qcow2_open.c */
int caches_make(struct qcow2 *q, const struct qcow2_settings *settings, struct cache *l2, struct cache *refcounts);
int settings_check(const struct qcow2 *q, const struct qcow2_settings *settings, char text[256]);
bool settings_lazy(const struct qcow2 *q);

/* qcow2_cache.c: all under the lock. */
int cache_init(struct qcow2 *q, struct cache *cache, uint64_t bytes, uint32_t slice_size);
void cache_destroy(struct qcow2 *q, struct cache *cache);
/* What from holds goes to `to`, an empty one, as much as there is room for; then from becomes it. Nothing is dirty or
 * loading, and nobody asks meanwhile. */
void cache_move(struct qcow2 *q, struct cache *from, struct cache *to);
struct slot *cache_find(struct cache *cache, uint64_t key);
/* The slice at key, from disk if need be, with the lock held all the time. */
int cache_get(struct qcow2 *q, struct cache *cache, uint64_t key, struct slot **ret);
/* The same, but lets go of the lock while it reads: what the caller knew may have changed when *waited is set. */
int cache_get_waiting(struct qcow2 *q, struct cache *cache, uint64_t key, struct slot **ret, bool *waited);
/* Forgets slices in a range of the file: their content is void. */
void cache_drop(struct cache *cache, uint64_t offset, uint64_t length);
/* A range of the file that is known to be zero and not in the cache: its first slices, as far as there is room. */
void cache_put_zeroes(struct qcow2 *q, struct cache *cache, uint64_t offset, uint64_t length);
void cache_set_dirty(struct cache *cache, struct slot *slot);
void slot_begin(struct slot *slot); /* around changes of words that questions may read */
void slot_end(struct slot *slot);
/* Empties slots that nobody asked for since the last call; whole chunks of them give their memory back. */
void cache_clean(struct qcow2 *q, struct cache *cache);
uint32_t cache_used(const struct cache *cache); /* slots that hold something */
/* Writes all dirty slices, of refcounts; stops at the first error, what is not written stays dirty. */
int cache_write_back(struct qcow2 *q, struct cache *cache);
/* The dirty slots in order of their place in the file; the caller frees the list. Their number is cache->dirty. */
int cache_list_dirty(struct qcow2 *q, struct cache *cache, struct slot ***ret);

/* qcow2_flush.c: under the lock. */
/* Refcounts, flush, tables; durable: and flush. Under both locks; lets go of the tables' meanwhile. */
int tables_write_back(struct qcow2 *q, bool durable);
/* The same under the lock of the tables alone. */
int tables_write_back_waiting(struct qcow2 *q, bool durable);
int image_write(struct qcow2 *q, uint64_t offset, const void *buf, size_t size); /* metadata; counted */
int image_flush(struct qcow2 *q);

/* Tells whoever wants to know (tests) what is about to happen; may wait. */
static inline void image_step(struct qcow2 *q, enum format_step step)
{
    if (q->io->step)
        q->io->step(q->world, step);
}

/* qcow2_refcount.c: under the lock. Cluster numbers. */
int refcount_open(struct qcow2 *q, char text[256]);
int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret);
int refcount_add(struct qcow2 *q, uint64_t first, uint64_t count, int delta);
int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value); /* makes the block if need be: repair */
/* 1 to `wanted` clusters in a row, exactly `wanted` if `all`; their refcounts are 1. *fresh: they read as zeroes. */
int clusters_alloc(struct qcow2 *q, uint64_t wanted, bool all, uint64_t *offset, uint64_t *count, bool *fresh);
/* The file reaches to end, which may be in a cluster that was given out long ago. */
int file_reach(struct qcow2 *q, uint64_t end);
/* How long the file should be soon if clusters up to end were given out, 0 if it is; then the caller makes it so, by the other function without the lock. */
uint64_t file_ahead(struct qcow2 *q, uint64_t end);
void file_grow_ahead(struct qcow2 *q, uint64_t size);
/* Nobody was ever told of them: free at once. */
void clusters_give_back(struct qcow2 *q, uint64_t offset, uint64_t count);
/* qcow2_reftable.c */
/* A block for the region number `block`, at the region's begin; or at offset, a cluster that was allocated for it. */
int refcount_block_make(struct qcow2 *q, uint64_t block);
int refcount_block_make_at(struct qcow2 *q, uint64_t block, uint64_t offset);
/* The table has an entry for the block; a larger one is made if it must. */
int reftable_reach(struct qcow2 *q, uint64_t block);
/* Entries of the table that are to be written after a flush: that makes the blocks which they name durable. */
struct reftable_part {
    struct block_range blocks;
    uint64_t table_offset;
    uint64_t *words; /* as on disk */
};

bool reftable_is_dirty(const struct qcow2 *q);
void reftable_set_dirty(struct qcow2 *q, struct block_range blocks);
/* All that is dirty, which it is no longer, into part->words: room for q->alloc.unnamed. */
void reftable_take(struct qcow2 *q, struct reftable_part *part);
int reftable_write(struct qcow2 *q, const struct reftable_part *part); /* no flush */

/* qcow2_freed.c: under the lock. */
int freed_add(struct qcow2 *q, uint64_t offset, uint64_t length, bool discard);
int freed_reserve(struct qcow2 *q, size_t more);   /* room for so many freed_add() that cannot fail then */
uint64_t freed_seal(struct qcow2 *q);              /* the number of the next that is freed */
void freed_durable(struct qcow2 *q, uint64_t end); /* the references of all with smaller numbers are gone on disk */
void freed_reap(struct qcow2 *q);                  /* lowers what is due; may let go of the lock meanwhile */

/* qcow2_overlap.c */
int overlap_add(struct qcow2 *q, enum qcow2_overlap kind, uint64_t offset, uint64_t length);
void overlap_remove(struct qcow2 *q, enum qcow2_overlap kind, uint64_t offset, uint64_t length);
/* Whether there is metadata of a kind that the settings have checked; `but`: kinds that may be there. */
bool overlap_hits(const struct qcow2 *q, uint64_t offset, uint64_t length, uint32_t but);
/* The entry at *at, which moves to the next; of what it says only the sizes are checked: -EINVAL. */
int snapshot_read(struct qcow2 *q, uint64_t *at, struct qcow2_snapshot *ret);
/* The table of snapshots, their L1 tables, and perhaps the L2 tables of these. Needs q->alloc.file_size. -EINVAL: the
 * table is not sane. */
int overlap_note_snapshots(struct qcow2 *q, bool inactive_l2);
void overlap_destroy(struct qcow2 *q);
/* The image is damaged: see FORMAT_CORRUPTED. Returns -EIO. */
int corrupt(struct qcow2 *q, uint64_t offset, uint64_t length, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* qcow2_l2.c */
struct l2_entry {
    uint64_t entry, bitmap; /* CPU's byte order; bitmap: 0 unless extended */
};
struct l2_place { /* of one cluster's entry */
    struct slot *slot;
    uint32_t index; /* in the slice */
};
/* Under the lock. The slice for the guest offset; waits without the lock while it loads, *slot is NULL if there is no
 * L2 table. */
int l2_get(struct qcow2 *q, uint64_t offset, struct l2_place *ret);
/* The same for writing: makes or copies the L2 table. */
int l2_get_writable(struct qcow2 *q, uint64_t offset, struct l2_place *ret);
struct l2_entry l2_entry_get(const struct qcow2 *q, const struct slot *slot, uint32_t index);
/* Between slot_begin() and slot_end(). */
void l2_entry_set(struct qcow2 *q, struct slot *slot, uint32_t index, struct l2_entry value);
void l1_set(struct qcow2 *q, uint32_t index, uint64_t value);
struct l1_table *l1_alloc(struct qcow2 *q, uint32_t count);
uint64_t l2_bytes(const struct qcow2 *q); /* guest bytes of one L2 table */

/* Kinds of entries. */
static inline bool entry_compressed(struct l2_entry entry)
{
    return entry.entry & QCOW2_COMPRESSED;
}

static inline uint64_t entry_host(struct l2_entry entry)
{
    return entry.entry & QCOW2_OFFSET_MASK;
}

/* Whether the entry has a cluster of the file. In a data file offset 0 is one, told by COPIED. */
static inline bool entry_has_host(const struct qcow2 *q, struct l2_entry entry)
{
    return entry_host(entry) || (qcow2_has_data_file(q) && entry.entry & QCOW2_COPIED);
}

/* The host bytes of a compressed cluster. */
void compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size);

/* qcow2_zero.c. Takes io->lock: clusters behind a new end of the disk lose their entries. */
int zero_forget(struct qcow2 *q, uint64_t offset, uint64_t length);

/* Adds to freed what the entry refers to. Room was reserved. */
void entry_free(struct qcow2 *q, struct l2_entry entry, bool discard);

#endif
