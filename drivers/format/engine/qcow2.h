/*
 * The qcow2 engine. Versions 2 and 3 by the format's specification
 * (docs/interop/qcow2.rst of QEMU), with extended L2 entries and external
 * data files.
 *
 * Three kinds of call:
 *   questions  qcow2_lookup(), qcow2_is_clean() and the plain getters: any thread, no wait, no lock.
 *   steps      may wait in io functions; take the locks themselves; any number at once.
 *   plans      qcow2_write_begin() ... data I/O by the caller ... qcow2_write_end().
 *
 * What callers promise: between qcow2_write_begin() and the return of
 * qcow2_write_end(), and during qcow2_discard(), qcow2_write_zeroes() and qcow2_write_compressed(), no other
 * of these calls works on the same clusters (a range lock on
 * qcow2_granule() does it). Writes in place, to a mapping with `copied`, need no
 * lock.
 *
 * Order on disk, which makes a crash at any moment harmless: the data and the
 * refcounts are durable before an L2 entry that needs them is written; a
 * refcount goes down only after the entry that let go of it is durable; a
 * cluster that was freed is given out again only after a grace period. So
 * refcounts on disk are never too low.
 */
#ifndef QCOW2_H
#define QCOW2_H

#include "drivers/format/engine/format_io.h"

struct qcow2;

enum qcow2_overlap { /* structures that no write may hit */
                     QCOW2_OVERLAP_MAIN_HEADER = 1,
                     QCOW2_OVERLAP_ACTIVE_L1 = 2,
                     QCOW2_OVERLAP_ACTIVE_L2 = 4,
                     QCOW2_OVERLAP_REFCOUNT_TABLE = 8,
                     QCOW2_OVERLAP_REFCOUNT_BLOCK = 16,
                     QCOW2_OVERLAP_SNAPSHOT_TABLE = 32,
                     QCOW2_OVERLAP_INACTIVE_L1 = 64,
                     QCOW2_OVERLAP_INACTIVE_L2 = 128,
                     QCOW2_OVERLAP_BITMAP_DIRECTORY = 256
};

struct qcow2_settings {
    bool read_only;
    uint64_t l2_cache;                       /* bytes; 0 = what the whole disk needs, at most 32 MiB */
    uint64_t refcount_cache;                 /* bytes; 0 = default */
    bool has_lazy_refcounts, lazy_refcounts; /* overrides the image's feature bit for this opening */
    bool discard_freed;                      /* freed clusters are passed to io->discard: by guest's discards */
    bool discard_snapshot;                   /* ... by the deletion of snapshots */
    bool discard_other;                      /* ... by everything else */
    bool discard_no_unref;                   /* a discarded cluster stays allocated */
    uint32_t overlap_check;                  /* QCOW2_OVERLAP_* */
    bool has_data_file;                      /* the caller can do I/O on FORMAT_FILE_DATA */
};

enum mapping_kind {
    MAPPING_DATA, /* at host in file */
    MAPPING_ZERO,
    MAPPING_UNALLOCATED, /* the backing file's, or zeroes */
    MAPPING_COMPRESSED   /* qcow2_read_compressed(); length ends with the cluster */
};

struct mapping {
    uint64_t length; /* bytes from the offset asked for; 1 or more */
    uint64_t host;   /* MAPPING_DATA: byte offset in file; else 0 */
    enum mapping_kind kind;
    enum format_file file;
    bool copied; /* MAPPING_DATA: may be written in place */
};

/*
 * Reads the image's header and tables. io and world must live until
 * qcow2_close(). On failure *text (at least 256 bytes) says why. -ENOTSUP: a
 * feature that is not honoured, by name; -EINVAL: not a sane image; -EMEDIUMTYPE
 * not qcow2 at all; else errors of io. A writable open clears what autoclear bits are not kept up, and
 * rebuilds refcounts if the image was left dirty.
 */
int qcow2_open(struct qcow2 **ret, const struct format_io *io, void *world, const struct qcow2_settings *settings,
               char text[256]);

/* Writable images: everything is on disk, nothing is leaked, the dirty bit is clear, and what the file grew too much
 * is given back. No other call is under way; all grace periods are over. The engine can go on being used. */
int qcow2_finish(struct qcow2 *q);
/* Frees memory; does no I/O. NULL is fine. */
void qcow2_close(struct qcow2 *q);

/*
 * Other settings for an open image: all but read_only, which stays. No other call is under way from prepare() to
 * commit() or abort(). prepare() writes what waits to be written; commit() cannot fail.
 */
struct qcow2_change;
int qcow2_change_prepare(struct qcow2 *q, const struct qcow2_settings *settings, struct qcow2_change **ret,
                         char text[256]);
void qcow2_change_commit(struct qcow2 *q, struct qcow2_change *change);
void qcow2_change_abort(struct qcow2 *q, struct qcow2_change *change); /* NULL is fine */

/* Getters: constant unless said otherwise. */
uint64_t qcow2_size(const struct qcow2 *q);              /* bytes of the guest's disk; changed by qcow2_resize() */
uint32_t qcow2_cluster_size(const struct qcow2 *q);      /* bytes */
uint32_t qcow2_granule(const struct qcow2 *q);           /* bytes: what zeroing and discarding works in: a subcluster or
                                                         * cluster */
const char *qcow2_backing_name(const struct qcow2 *q);   /* NULL: none */
const char *qcow2_backing_format(const struct qcow2 *q); /* NULL: not said */
const char *qcow2_data_file_name(const struct qcow2 *q); /* NULL: not said */
bool qcow2_wants_data_file(const struct qcow2 *q);
bool qcow2_data_file_raw(const struct qcow2 *q);
/* The caller tells once, before any write, whether reads of unallocated clusters go to a backing file, and how
 * many bytes that has: what lies behind is zero. */
void qcow2_set_backing(struct qcow2 *q, bool backed);

/* What qom-get and query-block-graph show. Any thread; values may be of slightly different moments. */
struct qcow2_stats {
    uint64_t l2_slots, l2_used, l2_dirty, l2_misses, l2_evictions;
    uint64_t refcount_slots, refcount_dirty, refcount_misses;
    uint64_t quarantine; /* bytes freed and not given out yet */
    uint64_t metadata_writes, flushes;
};
void qcow2_get_stats(const struct qcow2 *q, struct qcow2_stats *ret);

/* --- Questions --- */

/*
 * Where [offset, offset + length) is; length >= 1 and inside the disk. The
 * answer covers a prefix. -EAGAIN: the table is not in memory, call
 * qcow2_load() where waiting is allowed, and ask again. Other errors: -EIO, the
 * table is damaged (qcow2_load() reports).
 */
int qcow2_lookup(const struct qcow2 *q, uint64_t offset, uint64_t length, struct mapping *ret);

/* Nothing of what was ever answered waits to be written: a flush needs no step, only the files' flush. */
bool qcow2_is_clean(const struct qcow2 *q);
/* Discarded clusters stay where they are, and their content should go from the file: by the caller. */
bool qcow2_keeps_discarded(const struct qcow2 *q);
bool qcow2_is_corrupted(const struct qcow2 *q);

/* --- Steps --- */

/* Brings the table for offset into memory and asks: qcow2_lookup() that may wait. */
int qcow2_load(struct qcow2 *q, uint64_t offset, uint64_t length, struct mapping *ret);

/* The content of the compressed cluster that holds offset, decompressed into buf (cluster_size bytes). -EIO if it
 * is damaged; -EAGAIN if it is not compressed (any more). */
int qcow2_read_compressed(struct qcow2 *q, uint64_t offset, void *buf);

/* The cluster at offset gets this content (cluster_size bytes; what lies behind the end of the disk is zeroes),
 * compressed. -E2BIG: it does not get smaller, write it as it is; -ENOTSUP: the image has a data file, which cannot
 * hold such clusters. */
int qcow2_write_compressed(struct qcow2 *q, uint64_t offset, const void *data);

/* The range, whole granules (or to the end of the disk), has no content any more: reads give zeroes. */
int qcow2_discard(struct qcow2 *q, uint64_t offset, uint64_t length);
/* The same range reads as zeroes; unmap: its clusters may be freed. -ENOTSUP: write zeroes as data (version 2, parts of
 * a compressed cluster). What data files hold there is the caller's matter, before for raw ones, which must show
 * zeroes themselves. */
int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t length, bool unmap);

/* All that was ended (write_end, discard ...) before this call is durable when it returns. */
int qcow2_flush(struct qcow2 *q);

/* Grows or shrinks the disk. Nothing else is under way. -EFBIG: beyond what the format can hold; -ENOTSUP in the
 * presence of internal snapshots. A multiple of 512. */
int qcow2_resize(struct qcow2 *q, uint64_t size);

/* Gives memory of unused tables back to the system: cache-clean-interval. */
void qcow2_clean_cache(struct qcow2 *q);

/* --- Plans --- */

struct write_plan {
    uint64_t guest, length; /* the prefix of the write that this plan covers */
    uint64_t host;          /* where byte `guest` goes, in file */
    uint32_t head, tail;    /* bytes before and after that must be written together with the data: their content is
                                 * what the guest reads there now, and zeroes behind the end of the disk */
    bool links;             /* qcow2_write_end() must be called */
    bool zero;              /* head and tail read as zeroes: the backing file need not be asked (they are written) */
    enum format_file file;
    uint64_t cluster;      /* engine's: guest offset of the first new cluster */
    uint64_t host_cluster; /* engine's: and where it is */
    uint32_t count;        /* engine's: clusters allocated, 0 = they were there */
};

/* Finds or allocates a place for a prefix of the write [offset, offset + length). -ENOSPC, -EIO. */
int qcow2_write_begin(struct qcow2 *q, uint64_t offset, uint64_t length, struct write_plan *ret);
/* The data, head and tail are written (result 0), or are not (negative): links the clusters, or gives them back.
 * Returns result, or the error of linking. */
int qcow2_write_end(struct qcow2 *q, const struct write_plan *plan, int result);

/* --- Images --- */

struct qcow2_create_options {
    uint64_t size;           /* bytes, a multiple of 512 */
    unsigned version;        /* 2 or 3 */
    unsigned cluster_bits;   /* 9 to 21 */
    unsigned refcount_order; /* 0 to 6 */
    bool extended_l2, lazy_refcounts, zstd;
    const char *backing_name, *backing_format; /* NULL: none */
};

/* Writes an empty image over the (empty) file. -EINVAL with text: what does not go together. */
int qcow2_create(const struct format_io *io, void *world, const struct qcow2_create_options *options, char text[256]);

struct qcow2_check_result {
    uint64_t corruptions, leaks; /* clusters */
    uint64_t image_end;          /* bytes: end of the last cluster in use */
};

/* Compares refcounts with all references; repair: writes what they should be. Nothing else is under way. -EPERM for an
 * image that was opened read-only. */
int qcow2_check(struct qcow2 *q, bool repair, struct qcow2_check_result *ret);

#endif
