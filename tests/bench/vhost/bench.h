/*
 * One run of cairn-vhost-bench: the device, the jobs on it, and what happened.
 * Everything here is the control thread's.
 */
#ifndef TESTS_BENCH_VHOST_BENCH_H
#define TESTS_BENCH_VHOST_BENCH_H

#include "core/error.h"
#include "tests/bench/vhost/front.h"
#include "tests/bench/vhost/load.h"
#include "tests/bench/vhost/options.h"

struct bench_events {
    unsigned reconnects, restarts, config_changes;
};

struct bench {
    struct bench_options options;
    struct front front;
    struct front_memory memory;
    struct front_queue queues[BENCH_QUEUES_MAX];
    struct job jobs[BENCH_QUEUES_MAX];
    unsigned jobs_made, queues_made;
    struct load load;
    struct job_disk disk;
    struct bench_events events;
    double seconds, own_cpu, server_cpu;    /* of what was measured */
};

/* Connects, and makes everything up to a device that runs without load. */
int bench_prepare(struct bench *bench, struct error *err);

/* The load, from warm-up to the last request; follows the server over its restarts if that is wanted. */
int bench_run(struct bench *bench, struct error *err);

/* Frees what bench_prepare() made, as far as it came. */
void bench_clear(struct bench *bench);

/* Prints what was measured, and what happened. */
void bench_report(const struct bench *bench);

#endif
