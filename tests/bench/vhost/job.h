/*
 * The load on one queue: which requests are sent, what becomes of them, and
 * what was measured. A job belongs to its thread; others touch it only while
 * that thread is parked or has ended, but for heard_at.
 */
#ifndef TESTS_BENCH_VHOST_JOB_H
#define TESTS_BENCH_VHOST_JOB_H

#include <stdatomic.h>

#include "core/error.h"
#include "tests/bench/vhost/measure.h"
#include "tests/bench/vhost/options.h"
#include "tests/bench/vhost/request.h"
#include "tests/bench/vhost/verify.h"

/* What the load has to know of the disk. */
struct job_disk {
    uint64_t size;          /* bytes of it that are used */
    uint32_t block_size;
    uint64_t run;           /* tells the stamps of this run from others */
};

struct job_result {
    uint64_t requests, bytes, failed;
    uint64_t verified;          /* blocks that were read and held what they should, or what nobody knows */
    uint64_t ended_at;          /* when the last request that counts came back */
    struct measure_histogram latency;
};

struct job {
    const struct bench_options *options;
    struct front_queue *queue;
    struct bench_request *requests;       /* one for each slot */
    struct front_done *done;
    struct bench_form form;
    struct verify verify;
    unsigned char *scratch;         /* verify: the data of one request */
    uint64_t zone_first, zone_size; /* bytes of the disk that this job uses */
    uint64_t position;              /* sequential: where the next request begins; afterwards, the sweep */
    uint64_t left;                  /* requests still to be sent */
    uint32_t block_size;
    bool sweeping;                  /* verify: everything that was written is read at last */
    uint8_t *mix;                   /* enum bench_op, one for each unit of weight */
    _Atomic uint64_t heard_at;      /* when something came back last */
    struct job_result result;
    struct error failure;           /* the first request that failed */
};

/* What the thread's loop wants of a turn. */
struct job_turn {
    bool counting;      /* what comes back is part of the result */
    bool sending;       /* else only what is in flight is taken */
    bool ending;        /* nothing new but the sweep */
};

/* Job number `index` of options->queues. Takes shared memory for its requests. */
void job_create(struct job *job, const struct bench_options *options, const struct job_disk *disk,
                struct front_queue *queue, struct front_memory *memory, unsigned index);
void job_destroy(struct job *job);

/* Takes what came back and sends as much as the depth allows. Returns how many requests moved; 0: there is nothing to
 * do at the moment. -EPROTO when the ring is nonsense, -EILSEQ when data is not what it should be. */
int job_run(struct job *job, const struct job_turn *turn, struct error *err);

/* Is everything sent that should be, and has come back? */
bool job_is_over(const struct job *job, bool ending);

#endif
