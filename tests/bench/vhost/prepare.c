/* bench_prepare() and bench_clear() of bench.h: what is asked for meets what the server offers. */
#include <errno.h>
#include <linux/virtio_config.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "tests/bench/vhost/bench.h"

#define PREPARE_VERIFY_SPAN (1ull << 30)        /* by default; 4 bytes of memory for each block */
#define PREPARE_VERIFY_BLOCKS (1ull << 32)

static const struct {
    enum bench_op op;
    unsigned bit;
} prepare_needs[] = {
    {BENCH_FLUSH, VIRTIO_BLK_F_FLUSH},
    {BENCH_DISCARD, VIRTIO_BLK_F_DISCARD},
    {BENCH_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES},
};

static uint64_t prepare_wanted(const struct bench_options *options)
{
    static const unsigned char bits[] = {VIRTIO_BLK_F_SIZE_MAX,  VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_RO,
                                         VIRTIO_BLK_F_BLK_SIZE,  VIRTIO_BLK_F_FLUSH,   VIRTIO_BLK_F_TOPOLOGY,
                                         VIRTIO_BLK_F_MQ,        VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES,
                                         VIRTIO_BLK_F_CONFIG_WCE};
    uint64_t wanted = 0;

    for (unsigned i = 0; i < sizeof(bits); i++)
        wanted |= FRONT_BIT(bits[i]);
    wanted |= options->shape.packed ? FRONT_BIT(VIRTIO_F_RING_PACKED) : 0;
    wanted |= options->shape.indirect ? FRONT_BIT(VIRTIO_RING_F_INDIRECT_DESC) : 0;
    wanted |= options->shape.event_idx ? FRONT_BIT(VIRTIO_RING_F_EVENT_IDX) : 0;
    wanted |= options->shape.in_order ? FRONT_BIT(VIRTIO_F_IN_ORDER) : 0;
    return wanted;
}

/* Does the server offer what the options need? */
static int prepare_check_features(const struct bench *bench, struct error *err)
{
    const struct bench_options *options = &bench->options;
    const struct front *front = &bench->front;
    const struct {
        bool wanted;
        unsigned bit;
        const char *name;
    } rows[] = {
        {options->shape.packed, VIRTIO_F_RING_PACKED, "packed rings"},
        {options->shape.indirect, VIRTIO_RING_F_INDIRECT_DESC, "indirect descriptors (see --direct)"},
        {options->shape.event_idx, VIRTIO_RING_F_EVENT_IDX, "event indices (see --no-event-idx)"},
        {options->shape.in_order, VIRTIO_F_IN_ORDER, "answers in order"},
        {options->queues > 1, VIRTIO_BLK_F_MQ, "more than one queue"},
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (rows[i].wanted && !(front->features & FRONT_BIT(rows[i].bit)))
            return error_set(err, -ENOTSUP, "the server does not offer %s", rows[i].name);
    for (unsigned i = 0; i < sizeof(prepare_needs) / sizeof(prepare_needs[0]); i++)
        if (options->weights[prepare_needs[i].op] && !(front->features & FRONT_BIT(prepare_needs[i].bit)))
            return error_set(err, -ENOTSUP, "the server does not offer %s", bench_op_names[prepare_needs[i].op]);
    if ((options->weights[BENCH_WRITE] || options->weights[BENCH_DISCARD] || options->weights[BENCH_ZEROES]) &&
        front->features & FRONT_BIT(VIRTIO_BLK_F_RO))
        return error_set(err, -EROFS, "the disk is read-only");
    if (options->reconnect && !front_has(front, FRONT_PROTOCOL_INFLIGHT_SHMFD))
        return error_set(err, -ENOTSUP, "--reconnect: the server does not offer to track requests in flight");
    return 0;
}

static int prepare_check_limits(const struct bench *bench, struct error *err)
{
    const struct bench_options *options = &bench->options;
    const struct virtio_blk_config *config = &bench->front.config;
    uint64_t features = bench->front.features;
    unsigned queues = features & FRONT_BIT(VIRTIO_BLK_F_MQ) ? config->num_queues : 1;

    if (queues > bench->front.queues_max)
        queues = (unsigned)bench->front.queues_max;
    if (options->queues > queues)
        return error_set(err, -EINVAL, "--queues: the server has %u", queues);
    if (features & FRONT_BIT(VIRTIO_BLK_F_SEG_MAX) && options->segments > config->seg_max)
        return error_set(err, -EINVAL, "--segments: the server takes %u", config->seg_max);
    if (features & FRONT_BIT(VIRTIO_BLK_F_SIZE_MAX) && config->size_max &&
        options->size_max / options->segments > config->size_max)
        return error_set(err, -EINVAL, "--size: buffers of the server's may have %u bytes", config->size_max);
    if (options->weights[BENCH_DISCARD] && options->size_max / 512 > config->max_discard_sectors)
        return error_set(err, -EINVAL, "--size: the server discards %u sectors at once", config->max_discard_sectors);
    if (options->weights[BENCH_ZEROES] && options->size_max / 512 > config->max_write_zeroes_sectors)
        return error_set(err, -EINVAL, "--size: the server zeroes %u sectors at once",
                         config->max_write_zeroes_sectors);
    return 0;
}

static int prepare_disk(struct bench *bench, struct error *err)
{
    const struct bench_options *options = &bench->options;
    const struct virtio_blk_config *config = &bench->front.config;
    struct job_disk *disk = &bench->disk;
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    disk->run = (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 20;
    disk->block_size = bench->front.features & FRONT_BIT(VIRTIO_BLK_F_BLK_SIZE) ? config->blk_size : 512;
    if (disk->block_size < 512 || disk->block_size > 65536 || (disk->block_size & (disk->block_size - 1)) != 0)
        return error_set(err, -EPROTO, "the server's blocks have %u bytes", disk->block_size);
    if (config->capacity > INT64_MAX / 512)
        return error_set(err, -EPROTO, "the server's disk has 0x%llx sectors", (unsigned long long)config->capacity);
    disk->size = config->capacity * 512;
    uint64_t span = options->span ? options->span : options->verify ? PREPARE_VERIFY_SPAN : disk->size;
    if (disk->size > span)
        disk->size = span;
    if (options->size_min % disk->block_size || options->size_max % disk->block_size)
        return error_set(err, -EINVAL, "--size: not a multiple of the disk's blocks of %u bytes", disk->block_size);
    if (disk->size / options->queues < 2 * (uint64_t)options->size_max + disk->block_size)
        return error_set(err, -EINVAL, "%llu bytes of disk are too few for %u queues with requests of %u bytes",
                         (unsigned long long)disk->size, options->queues, options->size_max);
    if (options->verify && disk->size / disk->block_size > PREPARE_VERIFY_BLOCKS)
        return error_set(err, -EINVAL, "--span: %llu bytes are too many to be verified",
                         (unsigned long long)disk->size);
    return 0;
}

/* Slots and pieces of the queues. */
static int prepare_shape(struct bench_options *options, struct error *err)
{
    struct front_queue_shape *shape = &options->shape;
    unsigned pieces = bench_request_pieces(options), slots = options->depth;

    if (shape->in_order && !shape->packed)
        slots = shape->size;
    if (slots > shape->size || (!shape->indirect && slots * pieces > shape->size))
        return error_set(err, -EINVAL, "--queue-size: %u requests of %u buffers do not fit into %u descriptors", slots,
                         shape->indirect ? 1 : pieces, shape->size);
    shape->slots = (uint16_t)slots;
    shape->pieces = (uint16_t)pieces;
    return 0;
}

static int prepare_check_process(const struct bench_options *options, struct error *err)
{
    clockid_t id;
    int rc = options->pid ? clock_getcpuclockid((pid_t)options->pid, &id) : 0;

    return rc ? error_set(err, -rc, "--pid: process %u cannot be measured: %s", options->pid, strerror(rc)) : 0;
}

static void prepare_threads(struct bench_options *options)
{
    cpu_set_t cpus;
    unsigned count = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (unsigned)CPU_COUNT(&cpus) : 1;

    if (!options->threads)
        options->threads = count;
    if (options->threads > options->queues)
        options->threads = options->queues;
}

static int prepare_queues(struct bench *bench, struct error *err)
{
    const struct bench_options *options = &bench->options;
    const struct front_queue_shape *shape = &options->shape;
    size_t rings = front_queue_ring_bytes(shape) + 64;
    size_t rest = front_queue_table_bytes(shape) + 64 + (size_t)shape->slots * bench_request_bytes(options);
    void *at[BENCH_QUEUES_MAX];

    int rc = front_memory_create(&bench->memory, rings * options->queues, rest * options->queues + 4096,
                                 options->regions, err);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < options->queues; i++)
        at[i] = front_memory_take(&bench->memory, rings, 64);
    for (unsigned i = 0; i < options->queues && rc == 0; i++) {
        bench->queues_made++;
        rc = front_queue_create(&bench->queues[i], &bench->memory, at[i], shape, err);
    }
    for (unsigned i = 0; i < options->queues && rc == 0; i++) {
        job_create(&bench->jobs[i], options, &bench->disk, &bench->queues[i], &bench->memory, i);
        bench->jobs_made++;
    }
    bench->front.memory = &bench->memory;
    bench->front.queues = bench->queues;
    bench->front.queue_count = options->queues;
    return rc;
}

int bench_prepare(struct bench *bench, struct error *err)
{
    int rc = front_create(&bench->front, bench->options.timeout, err);

    prepare_threads(&bench->options);
    if (rc == 0)
        rc = prepare_check_process(&bench->options, err);
    if (rc == 0)
        rc = prepare_shape(&bench->options, err);
    if (rc == 0)
        rc = front_connect(&bench->front, bench->options.path, err);
    if (rc == 0)
        rc = front_negotiate(&bench->front, prepare_wanted(&bench->options), err);
    if (rc == 0)
        rc = prepare_check_features(bench, err);
    if (rc == 0)
        rc = prepare_check_limits(bench, err);
    if (rc == 0)
        rc = prepare_disk(bench, err);
    if (rc == 0)
        rc = prepare_queues(bench, err);
    if (rc == 0)
        rc = front_start(&bench->front, NULL, err);
    return rc;
}

void bench_clear(struct bench *bench)
{
    for (unsigned i = 0; i < bench->jobs_made; i++)
        job_destroy(&bench->jobs[i]);
    front_destroy(&bench->front);
    for (unsigned i = 0; i < bench->queues_made; i++)
        front_queue_destroy(&bench->queues[i]);
    front_memory_destroy(&bench->memory);
}
