/*
 * qcow2: what the engine asks of the world, by I/O that waits in coroutines;
 * and buffers of a cluster's size, kept by each loop.
 *
 * Grace periods: the engine asks whether one is over. Here is at most one
 * call to core/grace.h under way; who asks meanwhile gets the number of the
 * next. The structure outlives the node if a period does.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdalign.h>
#include <stddef.h>
#include <sys/mman.h>

#include "core/coroutine.h"
#include "core/grace.h"
#include "core/log.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"
#include "generated/options.h"

/* Grace */

struct disk_grace {
    struct grace_call call;
    pthread_mutex_t guard;
    uint64_t running;          /* number of the period under way; 0: none is */
    uint64_t last;             /* number of the newest that was asked for */
    _Atomic uint64_t finished; /* all up to this one are over */
    bool orphan;               /* the node is gone */
};

static void grace_ended(struct grace_call *call);

/* With the guard held. */
static void grace_run_next(struct disk_grace *grace)
{
    grace->running = grace->finished + 1;
    grace->call.run = grace_ended;
    grace_call(&grace->call);
}

static void grace_free(struct disk_grace *grace)
{
    pthread_mutex_destroy(&grace->guard);
    free(grace);
}

static void grace_ended(struct grace_call *call)
{
    struct disk_grace *grace = container_of(call, struct disk_grace, call);

    pthread_mutex_lock(&grace->guard);
    atomic_store(&grace->finished, grace->running);
    grace->running = 0;
    bool orphan = grace->orphan;

    if (!orphan && grace->last > grace->finished)
        grace_run_next(grace);
    pthread_mutex_unlock(&grace->guard);
    if (orphan)
        grace_free(grace);
}

static uint64_t io_grace_begin(void *world)
{
    struct disk *disk = world;
    struct disk_grace *grace = disk->grace;

    if (disk->alone)
        return 0;
    pthread_mutex_lock(&grace->guard);
    /* The period under way may have begun before the caller's work. */
    grace->last = (grace->running ? grace->running : grace->finished) + 1;
    if (!grace->running)
        grace_run_next(grace);
    uint64_t number = grace->last;

    pthread_mutex_unlock(&grace->guard);
    return number;
}

static bool io_grace_over(void *world, uint64_t number)
{
    const struct disk *disk = world;

    return disk->alone || atomic_load(&disk->grace->finished) >= number;
}

/* I/O */

static int io_read(void *world, enum format_file file, uint64_t offset, void *buf, size_t size)
{
    struct disk *disk = world;
    int result = edge_read(disk->files[file], offset, buf, size);

    /* From the engine this means something else. */
    return result == -EAGAIN ? -EIO : result;
}

static int io_write(void *world, enum format_file file, uint64_t offset, const void *buf, size_t size)
{
    struct disk *disk = world;

    return edge_write(disk->files[file], offset, buf, size, 0);
}

int disk_flush_file(struct disk *disk, enum format_file file)
{
    struct disk_flushes *flushes = &disk->flushes[file];
    uint64_t number = atomic_fetch_add(&flushes->begun, 1) + 1, last = atomic_load(&flushes->ended);
    int result = edge_flush(disk->files[file]);

    while (result == 0 && last < number && !atomic_compare_exchange_weak(&flushes->ended, &last, number))
        ;
    return result;
}

static int io_flush(void *world, enum format_file file)
{
    return disk_flush_file(world, file);
}

static int io_grow(void *world, enum format_file file, uint64_t size)
{
    struct disk *disk = world;

    return edge_grow(disk->files[file], size);
}

static int io_truncate(void *world, enum format_file file, uint64_t size)
{
    struct disk *disk = world;
    struct edge *edge = disk->files[file];
    AUTO_ERROR struct error err = {0};
    int result = edge_resize(edge, size, &err);

    if (result == 0)
        node_size_changed(edge->child, size);
    return result;
}

static void io_discard(void *world, enum format_file file, uint64_t offset, uint64_t length)
{
    struct disk *disk = world;

    edge_discard(disk->files[file], offset, length);
}

static uint64_t io_size(void *world, enum format_file file)
{
    const struct disk *disk = world;

    return atomic_load(&disk->files[file]->child->size);
}

/*
 * Memory: zeroed without touching it, since tables of large disks are rarely used whole; aligned for O_DIRECT, but for
 * what is too small to be worth it: an engine may have a million such pieces.
 */

static void *io_alloc(void *world, size_t size)
{
    size_t align = size < BUFFER_ALIGN ? alignof(max_align_t) : BUFFER_ALIGN;

    (void)world;
    if (size > SIZE_MAX - align - sizeof(void *))
        return NULL;
    void *whole = calloc(1, size + align + sizeof(void *));

    if (!whole)
        return NULL;
    uintptr_t start = ((uintptr_t)whole + sizeof(void *) + align - 1) & ~(uintptr_t)(align - 1);
    void **memory = (void **)start; /* NOLINT(performance-no-int-to-ptr) */

    memory[-1] = whole;
    return memory;
}

static void io_release(void *world, void *memory)
{
    (void)world;
    if (memory)
        free(((void **)memory)[-1]);
}

/* Whole pages. */
static void io_idle(void *world, void *memory, size_t size)
{
    (void)world;
    madvise(memory, size & ~(size_t)(BUFFER_ALIGN - 1), MADV_DONTNEED);
}

static void io_lock(void *world, enum format_lock which)
{
    struct disk *disk = world;

    comutex_lock(&disk->locks[which]);
}

static void io_unlock(void *world, enum format_lock which)
{
    struct disk *disk = world;

    comutex_unlock(&disk->locks[which]);
}

/* Decompression of a large cluster takes milliseconds: not on a loop. */
static int io_compute(void *world, int (*fn)(void *arg), void *arg)
{
    (void)world;
    return coroutine_call(fn, arg);
}

static void io_step(void *world, enum format_step step)
{
    static const enum blkdebug_event events[FORMAT_STEP_COUNT] = {
        [FORMAT_L1_UPDATE] = BLKDEBUG_EVENT_L1_UPDATE,
        [FORMAT_L2_LOAD] = BLKDEBUG_EVENT_L2_LOAD,
        [FORMAT_L2_UPDATE] = BLKDEBUG_EVENT_L2_UPDATE,
        [FORMAT_L2_ALLOC_WRITE] = BLKDEBUG_EVENT_L2_ALLOC_WRITE,
        [FORMAT_REFTABLE_UPDATE] = BLKDEBUG_EVENT_REFTABLE_UPDATE,
        [FORMAT_REFBLOCK_LOAD] = BLKDEBUG_EVENT_REFBLOCK_LOAD,
        [FORMAT_REFBLOCK_UPDATE] = BLKDEBUG_EVENT_REFBLOCK_UPDATE,
        [FORMAT_REFBLOCK_ALLOC_WRITE] = BLKDEBUG_EVENT_REFBLOCK_ALLOC_WRITE,
        [FORMAT_CLUSTER_ALLOC] = BLKDEBUG_EVENT_CLUSTER_ALLOC,
        [FORMAT_CLUSTER_FREE] = BLKDEBUG_EVENT_CLUSTER_FREE,
    };

    disk_event(world, events[step]);
}

static void io_report(void *world, enum format_event event, uint64_t offset, uint64_t length, const char *text)
{
    struct disk *disk = world;

    if (event == FORMAT_CORRUPTED)
        node_corrupted(disk->node, text, offset, length);
    else
        log_warning("Node '%s': %s", disk->node->name, text);
}

const struct format_io disk_io = {
    .read = io_read,
    .write = io_write,
    .flush = io_flush,
    .grow = io_grow,
    .truncate = io_truncate,
    .discard = io_discard,
    .size = io_size,
    .alloc = io_alloc,
    .release = io_release,
    .idle = io_idle,
    .lock = io_lock,
    .unlock = io_unlock,
    .grace_begin = io_grace_begin,
    .grace_over = io_grace_over,
    .compute = io_compute,
    .step = io_step,
    .report = io_report,
};

/* Life */

void disk_io_init(struct disk *disk)
{
    disk->loops = memory_aligned(LOOP_MAX * sizeof(*disk->loops), 64);
    range_lock_init(&disk->changing);
    for (unsigned i = 0; i < FORMAT_LOCK_COUNT; i++)
        comutex_init(&disk->locks[i]);
    disk->grace = memory_new(struct disk_grace);
    pthread_mutex_init(&disk->grace->guard, NULL);
}

void disk_io_destroy(struct disk *disk)
{
    struct disk_grace *grace = take_ptr(&disk->grace);

    for (unsigned l = 0; l < LOOP_MAX; l++) {
        struct disk_spare *spare = disk->loops[l].spare;

        for (unsigned i = 0; spare && i < spare->count; i++)
            free(spare->buffers[i]);
        free(spare);
    }
    free(disk->loops);
    range_lock_destroy(&disk->changing);
    for (unsigned i = 0; i < FORMAT_LOCK_COUNT; i++)
        comutex_destroy(&disk->locks[i]);
    pthread_mutex_lock(&grace->guard);
    bool running = grace->running != 0;

    grace->orphan = true;
    pthread_mutex_unlock(&grace->guard);
    if (!running)
        grace_free(grace);
}

/* Buffers: the last that was put back is the next to be taken, since the caches still know it. */

void *disk_buffer_get(struct disk *disk)
{
    struct disk_spare *spare = disk->loops[loop_current()->index].spare;
    void *buf;

    if (spare && spare->count)
        return spare->buffers[--spare->count];
    return posix_memalign(&buf, BUFFER_ALIGN, disk->cluster_size) ? NULL : buf;
}

void disk_buffer_put(struct disk *disk, void *buf)
{
    struct disk_loop *local = &disk->loops[loop_current()->index];
    unsigned limit = DISK_SPARE_BYTES / disk->cluster_size;

    if (limit > DISK_SPARE_BUFFERS)
        limit = DISK_SPARE_BUFFERS;
    if (buf && !local->spare)
        local->spare = memory_new(struct disk_spare);
    if (buf && local->spare->count < limit)
        local->spare->buffers[local->spare->count++] = buf;
    else
        free(buf);
}
