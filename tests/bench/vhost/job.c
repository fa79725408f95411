/* See job.h. */
#include "tests/bench/vhost/job.h"

#include <errno.h>
#include <stdlib.h>

#include "core/memory.h"

#define JOB_TRIES 16    /* to find a place where no request is in flight */

static void job_zone(struct job *job, const struct job_disk *disk, unsigned index)
{
    const struct bench_options *options = job->options;
    uint64_t blocks = disk->size / disk->block_size, queues = options->queues;
    uint64_t first = blocks * index / queues, end = blocks * (index + 1) / queues;

    job->block_size = disk->block_size;
    job->zone_size = blocks * disk->block_size;
    /* Stamps are kept by the queue that writes them; sequential load begins at different places. */
    if (options->verify || options->sequential) {
        job->zone_first = first * disk->block_size;
        job->zone_size = (end - first) * disk->block_size;
    }
    if (options->verify) {
        verify_create(&job->verify, first, end - first, disk->block_size, disk->run);
        job->scratch = memory_aligned(options->size_max, 8);
    }
}

void job_create(struct job *job, const struct bench_options *options, const struct job_disk *disk,
                struct front_queue *queue, struct front_memory *memory, unsigned index)
{
    unsigned slots = queue->shape.slots, at = 0;
    uint64_t share = options->count * (index + 1) / options->queues - options->count * index / options->queues;

    *job = (struct job){.options = options, .queue = queue, .left = options->count ? share : UINT64_MAX};
    job->form = (struct bench_form){.queue = queue,
                                    .base = memory->base,
                                    .segments = options->segments,
                                    .cut = options->cut,
                                    .random = options->seed * 1000003 + index};
    job->requests = memory_array(slots, sizeof(*job->requests));
    job->done = memory_array(slots, sizeof(*job->done));
    job->mix = memory_array(options->weight_total, 1);
    for (unsigned op = 0; op < BENCH_OPS; op++)
        for (unsigned i = 0; i < options->weights[op]; i++)
            job->mix[at++] = (uint8_t)op;
    for (unsigned i = 0; i < slots; i++)
        bench_request_create(&job->requests[i], (uint16_t)i, memory, options);
    job_zone(job, disk, index);
}

void job_destroy(struct job *job)
{
    for (unsigned i = 0; i < job->queue->shape.slots; i++)
        bench_request_destroy(&job->requests[i]);
    verify_destroy(&job->verify);
    free(job->requests);
    free(job->done);
    free(job->mix);
    free(job->scratch);
    error_clear(&job->failure);
}

static uint32_t job_size(struct job *job)
{
    const struct bench_options *options = job->options;
    uint32_t steps = (options->size_max - options->size_min) / job->block_size + 1;

    return options->size_min + (steps > 1 ? (uint32_t)random_below(&job->form.random, steps) * job->block_size : 0);
}

static uint64_t job_place(struct job *job, uint32_t size)
{
    const struct bench_options *options = job->options;
    uint64_t place;

    if (options->sequential) {
        if (job->position + size > job->zone_size)
            job->position = 0;
        place = job->position;
        job->position += size;
    } else if (options->size_min == options->size_max) {
        place = random_below(&job->form.random, job->zone_size / size) * size;
    } else {
        place = random_below(&job->form.random, (job->zone_size - size) / job->block_size + 1) * job->block_size;
    }
    return job->zone_first + place;
}

static bool job_touches_blocks(enum bench_op op)
{
    return op != BENCH_FLUSH && op != BENCH_ID;
}

/* Something to send; false if there is no place free for it now. */
static bool job_choose(struct job *job, struct bench_request *request)
{
    const struct bench_options *options = job->options;

    request->op =
        options->weight_total == 1 ? job->mix[0] : job->mix[random_below(&job->form.random, options->weight_total)];
    request->size = 0;
    if (!job_touches_blocks(request->op))
        return true;
    for (unsigned i = 0; i < JOB_TRIES; i++) {
        request->size = job_size(job);
        request->at = job_place(job, request->size);
        if (!options->verify ||
            verify_claim(&job->verify, request->at / job->block_size, request->size / job->block_size))
            return true;
    }
    return false;
}

/* Reads what is known of the disk; false when all of it was read. */
static bool job_choose_sweep(struct job *job, struct bench_request *request)
{
    uint64_t block = job->position / job->block_size;
    uint64_t most = job->options->size_max / job->block_size;

    uint64_t count = verify_known(&job->verify, &block, most);
    job->position = (block + count) * job->block_size;
    if (!count)
        return false;
    request->op = BENCH_READ;
    request->at = block * job->block_size;
    request->size = (uint32_t)(count * job->block_size);
    return verify_claim(&job->verify, block, count);
}

static bool job_next(struct job *job, struct bench_request *request, bool ending)
{
    if (job->left && !ending) {
        if (!job_choose(job, request))
            return false;
        job->left--;
        return true;
    }
    if (!job->options->verify)
        return false;
    if (!job->sweeping) {
        /* What is still in flight would change what the sweep should find. */
        if (job->queue->flying_count)
            return false;
        job->sweeping = true;
        job->position = job->zone_first;
    }
    return job_choose_sweep(job, request);
}

bool job_is_over(const struct job *job, bool ending)
{
    if (job->queue->flying_count || (job->left && !ending))
        return false;
    return !job->options->verify ||
           (job->sweeping && job->position >= job->zone_first + job->verify.count * job->block_size);
}

static void job_stamp(struct job *job, struct bench_request *request)
{
    if (request->op != BENCH_WRITE)
        return;
    request->write = verify_next(&job->verify);
    verify_fill(&job->verify, request->at / job->block_size, request->size / job->block_size, request->write,
                job->scratch);
    bench_request_put_data(request, &job->form, job->scratch);
}

static int job_send(struct job *job, const struct job_turn *turn)
{
    struct front_queue *queue = job->queue;
    int sent = 0, slot;
    bool kick = false;
    uint64_t now = 0;

    while (queue->flying_count < job->options->depth && (slot = front_queue_take(queue)) >= 0) {
        struct bench_request *request = &job->requests[slot];

        if (!job_next(job, request, turn->ending)) {
            front_queue_give(queue, (uint16_t)slot);
            break;
        }
        bench_request_lay_out(request, &job->form);
        if (job->options->verify)
            job_stamp(job, request);
        if (!sent++)
            now = measure_now();
        request->sent_at = now;
        front_queue_push(queue, (uint16_t)slot);
        /* One by one, and a kick for all, as Linux does it. */
        kick |= front_queue_publish(queue);
    }
    if (kick)
        front_queue_kick(queue);
    return sent;
}

/* A request failed: what its blocks hold is no longer known if it should have changed them. */
static void job_failed(struct job *job, const struct bench_request *request)
{
    job->result.failed++;
    if (!job->failure.text)
        error_set(&job->failure, -EIO, "%s of %u bytes at byte %llu ended with status %u", bench_op_names[request->op],
                  request->size, (unsigned long long)request->at, *request->status);
    if (job->options->verify && job_touches_blocks(request->op)) {
        uint64_t block = request->at / job->block_size, count = request->size / job->block_size;

        if (request->op == BENCH_READ)
            verify_release(&job->verify, block, count);
        else
            verify_release_as(&job->verify, block, count, VERIFY_UNKNOWN);
    }
}

static int job_verify(struct job *job, const struct bench_request *request, uint32_t written, struct error *err)
{
    static const uint32_t states[BENCH_OPS] = {[BENCH_DISCARD] = VERIFY_UNKNOWN, [BENCH_ZEROES] = VERIFY_ZERO};
    uint64_t block = request->at / job->block_size, count = request->size / job->block_size;
    int rc = 0;

    if (written != FRONT_WRITTEN_UNKNOWN && written > bench_request_writable(request))
        return error_set(err, -EPROTO, "the server says it wrote %u bytes where it may write %u", written,
                         bench_request_writable(request));
    if (!bench_request_gaps_intact(request, &job->form))
        return error_set(err, -EILSEQ, "a %s of %u bytes at byte %llu changed memory beside its buffers",
                         bench_op_names[request->op], request->size, (unsigned long long)request->at);
    if (!job_touches_blocks(request->op))
        return 0;
    if (request->op == BENCH_READ) {
        bench_request_get_data(request, &job->form, job->scratch);
        rc = verify_check(&job->verify, block, count, job->scratch, err);
        job->result.verified += rc == 0 ? count : 0;
        verify_release(&job->verify, block, count);
    } else {
        verify_release_as(&job->verify, block, count,
                          request->op == BENCH_WRITE ? request->write : states[request->op]);
    }
    return rc;
}

static int job_finish(struct job *job, const struct front_done *done, uint64_t now, bool counting, struct error *err)
{
    struct bench_request *request = &job->requests[done->slot];
    int rc = 0;

    if (unlikely(*request->status != VIRTIO_BLK_S_OK))
        job_failed(job, request);
    else if (job->options->verify)
        rc = job_verify(job, request, done->written, err);
    if (counting) {
        job->result.ended_at = now;
        job->result.requests++;
        job->result.bytes += request->size;
        measure_add(&job->result.latency, now - request->sent_at);
    }
    front_queue_give(job->queue, done->slot);
    return rc;
}

int job_run(struct job *job, const struct job_turn *turn, struct error *err)
{
    int count = front_queue_reap(job->queue, job->done);

    if (count < 0)
        return error_set(err, count, "the server returned a request that is not in flight");
    uint64_t now = count ? measure_now() : 0;
    if (count)
        atomic_store_explicit(&job->heard_at, now, memory_order_relaxed);
    for (int i = 0; i < count; i++) {
        int rc = job_finish(job, &job->done[i], now, turn->counting && !job->sweeping, err);
        if (rc < 0)
            return rc;
    }
    return turn->sending ? count + job_send(job, turn) : count;
}
