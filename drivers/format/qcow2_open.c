/*
 * qcow2: open, options, resizing, the end. Main loop.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"
#include "generated/options.h"

/* Caches: the peers' limits. */
#define OPEN_CACHE_ENTRY 4096u
#define OPEN_CACHE_ENTRIES_MAX INT32_MAX
#define OPEN_REFCOUNT_CACHE (256u * 1024) /* bytes, of what cache-size allows for both */
#define OPEN_CACHE_ENTRY_MIN 512u

/* Options */

/* Sets the sizes in settings, 0 where nothing is said. */
static int open_cache_sizes(const struct qcow2_options *options, struct qcow2_settings *settings, struct error *err)
{
    uint64_t both = options->cache_size;

    if (options->has_cache_size) {
        if (options->has_l2_cache_size && options->has_refcount_cache_size)
            return error_set(err, -EINVAL,
                             "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
        if (options->has_l2_cache_size && options->l2_cache_size > both)
            return error_set(err, -EINVAL, "l2-cache-size may not exceed cache-size: %" PRIu64 " > %" PRIu64,
                             options->l2_cache_size, both);
        if (options->has_refcount_cache_size && options->refcount_cache_size > both)
            return error_set(err, -EINVAL, "refcount-cache-size may not exceed cache-size: %" PRIu64 " > %" PRIu64,
                             options->refcount_cache_size, both);
    }
    settings->l2_cache = options->l2_cache_size;
    settings->refcount_cache = options->refcount_cache_size;
    if (options->has_cache_size && options->has_l2_cache_size)
        settings->refcount_cache = both - options->l2_cache_size;
    else if (options->has_cache_size && !options->has_refcount_cache_size)
        settings->refcount_cache = both / 4 < OPEN_REFCOUNT_CACHE ? both / 4 : OPEN_REFCOUNT_CACHE;
    if (options->has_cache_size && !options->has_l2_cache_size)
        settings->l2_cache = both - settings->refcount_cache;
    /* What is said to be nothing is as little as there can be. */
    if ((options->has_cache_size || options->has_l2_cache_size) && settings->l2_cache == 0)
        settings->l2_cache = 1;
    if ((options->has_cache_size || options->has_refcount_cache_size) && settings->refcount_cache == 0)
        settings->refcount_cache = 1;
    if (settings->l2_cache / OPEN_CACHE_ENTRY > OPEN_CACHE_ENTRIES_MAX)
        return error_set(err, -EINVAL, "L2 cache size too big: %" PRIu64 " bytes", settings->l2_cache);
    if (settings->refcount_cache / OPEN_CACHE_ENTRY > OPEN_CACHE_ENTRIES_MAX)
        return error_set(err, -EINVAL, "Refcount cache size too big: %" PRIu64 " bytes", settings->refcount_cache);
    return 0;
}

static uint32_t open_overlap_check(const struct qcow2_overlap_check *options)
{
    enum {
        CONSTANT = QCOW2_OVERLAP_MAIN_HEADER | QCOW2_OVERLAP_REFCOUNT_TABLE | QCOW2_OVERLAP_SNAPSHOT_TABLE |
                   QCOW2_OVERLAP_ACTIVE_L1 | QCOW2_OVERLAP_BITMAP_DIRECTORY,
        CACHED = CONSTANT | QCOW2_OVERLAP_ACTIVE_L2 | QCOW2_OVERLAP_REFCOUNT_BLOCK | QCOW2_OVERLAP_INACTIVE_L1,
        ALL = CACHED | QCOW2_OVERLAP_INACTIVE_L2
    };
    static const uint32_t templates[] = {
        [QCOW2_OVERLAP_MODE_NONE] = 0,
        [QCOW2_OVERLAP_MODE_CONSTANT] = CONSTANT,
        [QCOW2_OVERLAP_MODE_CACHED] = CACHED,
        [QCOW2_OVERLAP_MODE_ALL] = ALL,
    };

    if (!options)
        return CACHED;
    const struct {
        bool has, value;
        uint32_t bit;
    } flags[] = {
        {options->has_main_header, options->main_header, QCOW2_OVERLAP_MAIN_HEADER},
        {options->has_active_l1, options->active_l1, QCOW2_OVERLAP_ACTIVE_L1},
        {options->has_active_l2, options->active_l2, QCOW2_OVERLAP_ACTIVE_L2},
        {options->has_refcount_table, options->refcount_table, QCOW2_OVERLAP_REFCOUNT_TABLE},
        {options->has_refcount_block, options->refcount_block, QCOW2_OVERLAP_REFCOUNT_BLOCK},
        {options->has_snapshot_table, options->snapshot_table, QCOW2_OVERLAP_SNAPSHOT_TABLE},
        {options->has_inactive_l1, options->inactive_l1, QCOW2_OVERLAP_INACTIVE_L1},
        {options->has_inactive_l2, options->inactive_l2, QCOW2_OVERLAP_INACTIVE_L2},
        {options->has_bitmap_directory, options->bitmap_directory, QCOW2_OVERLAP_BITMAP_DIRECTORY},
    };
    uint32_t result = templates[options->template];

    for (unsigned i = 0; i < array_size(flags); i++) {
        if (flags[i].has)
            result = flags[i].value ? result | flags[i].bit : result & ~flags[i].bit;
    }
    return result;
}

int disk_settings(const struct node *node, struct qcow2_settings *settings, struct error *err)
{
    const struct node_options *common = node->options;
    const struct qcow2_options *options = node_driver_options(node);

    *settings = (struct qcow2_settings){
        .read_only = common->read_only,
        .has_lazy_refcounts = options->has_lazy_refcounts,
        .lazy_refcounts = options->lazy_refcounts,
        .discard_freed =
            options->has_pass_discard_request ? options->pass_discard_request : common->discard == NODE_DISCARD_UNMAP,
        .discard_snapshot = options->pass_discard_snapshot,
        .discard_other = options->pass_discard_other,
        .discard_no_unref = options->discard_no_unref,
        .overlap_check = open_overlap_check(options->overlap_check),
        .has_data_file = node_child_by_name(node, "data-file") != NULL,
    };
    return open_cache_sizes(options, settings, err);
}

/* After the engine has told the cluster's size. */
static int open_check_entry_size(const struct disk *disk, const struct qcow2_options *options, struct error *err)
{
    uint64_t size = options->l2_cache_entry_size;
    uint32_t used = disk->cluster_size < OPEN_CACHE_ENTRY ? disk->cluster_size : OPEN_CACHE_ENTRY;

    if (!options->has_l2_cache_entry_size)
        return 0;
    if (size < OPEN_CACHE_ENTRY_MIN || size > disk->cluster_size || size & (size - 1))
        return error_set(err, -EINVAL,
                         "L2 cache entry size must be a power of two between %u and the cluster size (%" PRIu32
                         "), not l2-cache-entry-size=%" PRIu64,
                         OPEN_CACHE_ENTRY_MIN, disk->cluster_size, size);
    if (size != used)
        return error_set(err, -ENOTSUP, "l2-cache-entry-size=%" PRIu64 " is not supported: it is %" PRIu32 " here",
                         size, used);
    return 0;
}

static int open_check_data_file(const struct disk *disk, struct error *err)
{
    bool wanted = qcow2_wants_data_file(disk->engine), given = disk->files[FORMAT_FILE_DATA] != NULL;
    const char *name = qcow2_data_file_name(disk->engine);

    if (given && !wanted)
        return error_set(err, -EINVAL, "'data-file' can only be set for images with an external data file");
    if (wanted && !given)
        return error_set(err, -EINVAL, "'data-file' is required for this image%s%s%s", name ? " (it names '" : "",
                         name ? name : "", name ? "')" : "");
    return 0;
}

/* Cleaning of the caches */

static void clean_entry(void *arg)
{
    struct disk *disk = arg;

    qcow2_clean_cache(disk->engine);
    disk->cleaning.running = false;
    coqueue_wake_all(&disk->cleaning.ended);
}

static void clean_expired(struct timer *timer);

void disk_set_cleaning(struct disk *disk, uint64_t seconds)
{
    const struct ring *ring = loop_main->ring;

    timer_cancel(&disk->cleaning.timer);
    disk->cleaning.timer.expired = clean_expired;
    disk->cleaning.interval_ns = seconds * UINT64_C(1000000000);
    if (disk->cleaning.interval_ns)
        timer_set(&disk->cleaning.timer, loop_main, ring->ops->now(loop_main->ring) + disk->cleaning.interval_ns);
}

static void clean_expired(struct timer *timer)
{
    struct disk *disk = container_of(timer, struct disk, cleaning.timer);

    disk_set_cleaning(disk, disk->cleaning.interval_ns / UINT64_C(1000000000));
    if (disk->alone || disk->cleaning.running)
        return;
    disk->cleaning.running = true;
    coroutine_start(loop_main, clean_entry, disk);
}

void disk_begin_alone(struct disk *disk)
{
    disk->alone = true;
    while (disk->cleaning.running)
        coqueue_wait(&disk->cleaning.ended, NULL);
}

void disk_end_alone(struct disk *disk)
{
    disk->alone = false;
}

/* Opening and closing */

static void disk_children_changed(struct node *node)
{
    struct disk *disk = node->state;
    struct edge *backing = node_child_by_role(node, ROLE_BACKING);

    disk->backing = backing && backing->child ? backing : NULL;
    disk->files[FORMAT_FILE_IMAGE] = node_child_by_name(node, "file");
    disk->files[FORMAT_FILE_DATA] = node_child_by_name(node, "data-file");
    disk_chain_drop(disk);
    disk->watched = edge_is_watched(disk->files[FORMAT_FILE_IMAGE]);
    node->map = disk->watched ? disk_map_watched : disk_map;
    if (!disk->engine)
        return;
    qcow2_set_backing(disk->engine, disk->backing != NULL);
    if (disk->backing && disk->backing->child->driver == node->driver && disk->backing->child->flags & NODE_IMPLICIT)
        ((struct disk *)disk->backing->child->state)->identity.overlay = disk;
}

static void disk_release(struct disk *disk)
{
    qcow2_close(disk->engine);
    disk_chain_drop(disk);
    disk_unpack_destroy(disk);
    coqueue_destroy(&disk->cleaning.ended);
    disk_io_destroy(disk);
}

static int disk_open_engine(struct disk *disk, const struct qcow2_options *options, struct error *err)
{
    struct qcow2_settings settings;
    char text[256] = "";
    int result = disk_settings(disk->node, &settings, err);

    if (result < 0)
        return result;
    result = qcow2_open(&disk->engine, &disk_io, disk, &settings, text);
    if (result < 0)
        return error_set(err, result, "%s", *text ? text : strerror(-result));
    disk->cluster_size = qcow2_cluster_size(disk->engine);
    result = open_check_entry_size(disk, options, err);
    return result < 0 ? result : open_check_data_file(disk, err);
}

static int disk_open(struct node *node, const void *opaque, struct error *err)
{
    const struct qcow2_options *options = opaque;
    struct disk *disk = node->state;

    disk->node = node;
    disk->files[FORMAT_FILE_IMAGE] = node_child_by_name(node, "file");
    disk->files[FORMAT_FILE_DATA] = node_child_by_name(node, "data-file");
    if (!disk->files[FORMAT_FILE_IMAGE])
        return error_set(err, -EINVAL, "Parameter 'file' must be a node");
    disk_io_init(disk);
    disk_unpack_init(disk);
    coqueue_init(&disk->cleaning.ended);
    disk_begin_alone(disk);
    int result = disk_open_engine(disk, options, err);

    disk_end_alone(disk);
    if (result < 0) {
        disk_release(disk);
        return result;
    }
    disk_children_changed(node);
    node->size = qcow2_size(disk->engine);
    disk_set_cleaning(disk, options->cache_clean_interval);
    return 0;
}

static void disk_close(struct node *node)
{
    struct disk *disk = node->state;

    timer_cancel(&disk->cleaning.timer);
    disk_begin_alone(disk);
    disk_release(disk);
}

static int disk_finish(struct node *node)
{
    struct disk *disk = node->state;

    disk_begin_alone(disk);
    int result = qcow2_finish(disk->engine);

    disk_end_alone(disk);
    return result;
}

/* A raw data file is as long as the disk; what cannot be made shorter stays as it is. */
static void resize_data_file(struct disk *disk, uint64_t size)
{
    AUTO_ERROR struct error err = {0};
    struct edge *data = disk->files[FORMAT_FILE_DATA];

    if (data && qcow2_data_file_raw(disk->engine) && edge_resize(data, size, &err) == 0)
        node_size_changed(data->child, size);
}

/*
 * What is new reads as zeroes, whatever is there: a longer backing file, the rest of the cluster in which the disk
 * ended (the disk may have been longer before), or what a raw data file holds.
 */
static int resize_clear(struct disk *disk, uint64_t before, uint64_t size)
{
    uint64_t shown = disk_backing_part(disk, before, size - before);
    uint64_t rest = -before & (disk->cluster_size - 1);

    if (disk->files[FORMAT_FILE_DATA] && qcow2_data_file_raw(disk->engine))
        shown = size - before;
    if (shown < rest)
        shown = rest < size - before ? rest : size - before;
    int result = shown ? disk_write_zeroes(disk, before, shown, REQ_MAY_UNMAP) : 0;

    return result < 0 || !shown ? result : disk_flush(disk);
}

static int disk_resize_alone(struct disk *disk, uint64_t size)
{
    uint64_t before = qcow2_size(disk->engine);
    struct edge *data = disk->files[FORMAT_FILE_DATA];
    int result = data && qcow2_data_file_raw(disk->engine) ? edge_grow(data, size) : 0;

    if (result == 0)
        result = qcow2_resize(disk->engine, size);
    if (result == 0 && size > before) {
        result = resize_clear(disk, before, size);
        /* If this fails too, the disk is larger than it was told to be. */
        if (result < 0)
            qcow2_resize(disk->engine, before);
    } else if (result == 0) {
        resize_data_file(disk, size);
    }
    return result;
}

static int disk_resize(struct node *node, uint64_t size, struct error *err)
{
    struct disk *disk = node->state;

    if (size % 512)
        return error_set(err, -EINVAL, "The new size must be a multiple of 512");
    disk_begin_alone(disk);
    disk_unpack_forget(disk);
    disk_chain_drop(disk);
    int result = disk_resize_alone(disk, size);

    disk_end_alone(disk);
    node->size = qcow2_size(disk->engine);
    if (result == -ENOTSUP)
        return error_set(err, result,
                         "Can't resize an image which has snapshots that do not tell their size: node '%s'",
                         node->name);
    if (result < 0)
        return error_set(err, result, "Could not resize node '%s' to %" PRIu64 " bytes: %s", node->name, size,
                         strerror(-result));
    return 0;
}

/* A data file is as much the image as its tables are. */
static void disk_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    if (strcmp(edge->name, "data-file") == 0) {
        *io = (struct permission){.taken = PERM_READ, .shared = PERM_READ | PERM_WRITE_UNCHANGED};
        if (!(node->flags & NODE_READ_ONLY))
            io->taken |= PERM_WRITE | PERM_RESIZE;
    }
}

const struct driver qcow2_driver = {
    .name = "qcow2",
    .kind = DRIVER_FORMAT,
    .ops = (1u << REQ_OP_COUNT) - 1,
    .request_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_UNCHANGED | REQ_COMPRESSED | REQ_FILL,
    .state_size = sizeof(struct disk),
    .open = disk_open,
    .close = disk_close,
    .resize = disk_resize,
    .reopen = disk_reopen,
    .adopt = disk_adopt,
    .finish = disk_finish,
    .backing = disk_backing,
    .children_changed = disk_children_changed,
    .permissions = disk_permissions,
    .map = disk_map,
    .slow = disk_slow,
    .properties = disk_properties,
};
