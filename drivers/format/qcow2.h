/*
 * qcow2 as a driver: what qcow2.c (answers at once), qcow2_run.c (what waits),
 * qcow2_io.c (what the engine asks of the world), qcow2_unpack.c and qcow2_pack.c
 * (compressed clusters), qcow2_open.c (open, options, end), qcow2_reopen.c
 * (other options), qcow2_backing.c (the file that an image names) and
 * qcow2_stats.c share. Where data is, the engine says (engine/qcow2.h); data
 * goes between the client's memory and the file, and never through the engine.
 *
 * Members without a lock or _Atomic are set by open() or under a drain, and
 * only read by the loops.
 */
#ifndef DRIVERS_FORMAT_QCOW2_H
#define DRIVERS_FORMAT_QCOW2_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/colock.h"
#include "core/driver.h"
#include "core/loop.h"
#include "drivers/format/engine/qcow2.h"

#define DISK_SPARE_BUFFERS 64u
#define DISK_SPARE_BYTES (4u << 20)         /* that a loop keeps */

struct disk_spare {
    unsigned count;
    void *buffers[DISK_SPARE_BUFFERS];  /* of cluster_size bytes */
};

/* What belongs to one loop. */
struct disk_loop {
    uint64_t hits;                  /* questions answered at once; others read it for statistics */
    struct disk_spare *spare;       /* NULL: none was put back yet */
} __attribute__((aligned(64)));

/* Flushes of one file, by number, so that one who needs one knows whether the engine's was late enough. */
struct disk_flushes {
    _Atomic uint64_t begun, ended;  /* how many; the last that ended well */
};

struct disk_chain;
struct disk_grace;
struct disk_unpacked;

struct disk {
    struct node *node;
    struct qcow2 *engine;
    struct edge *files[FORMAT_FILE_COUNT];  /* FORMAT_FILE_DATA: NULL unless there is a data file */
    struct disk_flushes flushes[FORMAT_FILE_COUNT];
    struct edge *backing;           /* NULL: none */
    _Atomic(struct disk_chain *) chain; /* who answers below; NULL: not asked yet */
    uint32_t cluster_size;          /* bytes */
    struct disk_loop *loops;        /* [LOOP_MAX] */
    struct range_lock changing;     /* clusters whose place is being changed, as the engine asks */
    struct comutex locks[FORMAT_LOCK_COUNT];    /* the engine's */
    bool watched;                   /* a layer below wants to know what is done: see disk_event() */
    bool alone;                     /* nothing of others is under way: open, finish, resize; main loop writes */
    struct disk_grace *grace;
    struct disk_unpacked *unpacked;
    struct disk_cleaning {          /* of the caches, now and then; main loop */
        struct timer timer;
        uint64_t interval_ns;       /* 0: never */
        bool running;
        struct coqueue ended;
    } cleaning;
    struct disk_identity {          /* of the image's file, to find loops in chains; main loop, while opening */
        uint64_t device, inode;     /* inode 0: no file */
        struct disk *overlay;       /* the one that this one was opened for */
    } identity;
};

/* For blkdebug; in a coroutine, may wait. */
static inline void disk_event(const struct disk *disk, unsigned event)
{
    if (disk->watched)
        edge_event(disk->files[FORMAT_FILE_IMAGE], event);
}

/* qcow2.c */
enum step disk_map(struct node *node, struct request *req);
enum step disk_map_watched(struct node *node, struct request *req);     /* the same when nothing may pass unseen */

/* qcow2_run.c: in coroutines; 0 or -errno. */
enum step disk_slow(struct node *node, struct request *req);
/* Where the guest's data is; the table is brought into memory if need be. */
int disk_ask(struct disk *disk, uint64_t offset, uint64_t length, struct mapping *map);

/* For who holds the range of whole clusters: a buffer instead of an iovec; and a write, REQ_FILL is honoured. */
int disk_read_buffer(struct disk *disk, uint64_t offset, void *buf, uint64_t size);
int disk_write_held(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size,
                    uint32_t flags);
void disk_hold(struct disk *disk, struct range_hold *hold, uint64_t offset, uint64_t length);

/* qcow2_pack.c: a write whose clusters are compressed, in a coroutine. */
int disk_write_compressed(struct disk *disk, const struct request *req);

/* qcow2_fill.c: what the range had from the backing node is kept here, if that goes. A read has its data. */
void disk_fill(struct disk *disk, const struct request *req);

/* The range reads as zeroes from now on; flags are those of the request. */
int disk_write_zeroes(struct disk *disk, uint64_t offset, uint64_t length, uint32_t flags);
/* Discards [offset, end), whole granules whose range is held; makes them zero, by qcow2_write_zeroes(). */
int disk_discard_range(struct disk *disk, uint64_t offset, uint64_t end);
int disk_zero_range(struct disk *disk, uint64_t offset, uint64_t end, bool unmap);
int disk_flush(struct disk *disk);

/* qcow2_io.c: the table that the engine calls, with a struct disk as its world. */
extern const struct format_io disk_io;
void disk_io_init(struct disk *disk);
void disk_io_destroy(struct disk *disk);    /* after qcow2_close() */
/* Whatever was written to the file before is durable; file: FORMAT_FILE_*. */
int disk_flush_file(struct disk *disk, enum format_file file);

/* qcow2_unpack.c. Copies [offset, offset + size), a part of one compressed cluster, into iov. -EAGAIN: it is not
 * compressed any more. */
int disk_unpack(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size);
/* The whole cluster gets this content, compressed; the caller holds its range. -E2BIG: it does not get smaller. */
int disk_pack(struct disk *disk, uint64_t cluster, const void *data);
void disk_unpack_init(struct disk *disk);
void disk_unpack_forget(struct disk *disk); /* while alone */
void disk_unpack_destroy(struct disk *disk);

/*
 * qcow2_chain.c. The edge to the layer that answers a range which the image has nothing for, NULL if that is not known;
 * any loop, at once. And the same in a coroutine: for a prefix of *length, which it cuts. The range lies in the
 * backing node.
 */
struct edge *disk_chain_find(const struct disk *disk, uint64_t offset, uint64_t length);
int disk_chain_resolve(struct disk *disk, uint64_t offset, uint64_t *length, struct edge **ret);
void disk_chain_drop(struct disk *disk);    /* while drained */

/* qcow2_backing.c. The name of the file that holds the image, NULL if there is none. And driver->backing. */
const char *disk_image_name(const struct node *node);
int disk_backing(struct node *node, struct node_options **ret, struct error *err);

/* qcow2_open.c: what the node's options say to the engine. */
int disk_settings(const struct node *node, struct qcow2_settings *settings, struct error *err);
/* How often memory of unused tables is given back; 0: never. */
void disk_set_cleaning(struct disk *disk, uint64_t seconds);
/* From now on nothing but the caller uses the engine: the node is drained, or not in use yet. */
void disk_begin_alone(struct disk *disk);
void disk_end_alone(struct disk *disk);

/* qcow2_reopen.c: driver->reopen and ->adopt. */
int disk_reopen(struct node *node, struct node *next, struct change *change, struct error *err);
void disk_adopt(struct node *node, const void *before);

/* qcow2_stats.c */
extern const struct object_property disk_properties[];

/* A buffer of a cluster's size, of the calling loop; NULL when there is no memory. */
void *disk_buffer_get(struct disk *disk);
void disk_buffer_put(struct disk *disk, void *buf);

/* Whether length bytes may be written where they are, at once: not behind the end of the file, since the engine has to
 * know how far that reaches. */
static inline bool disk_writes_in_place(const struct disk *disk, const struct mapping *map, uint64_t length)
{
    return map->kind == MAPPING_DATA && map->copied && map->length >= length &&
           map->host + length <= atomic_load_explicit(&disk->files[map->file]->child->size, memory_order_acquire);
}

/* How far the range [offset, offset + length) lies inside the backing node: bytes from offset on. */
static inline uint64_t disk_backing_part(const struct disk *disk, uint64_t offset, uint64_t length)
{
    uint64_t size = disk->backing ? atomic_load_explicit(&disk->backing->child->size, memory_order_acquire) : 0;

    if (offset >= size)
        return 0;
    return length < size - offset ? length : size - offset;
}

#endif
