/* The command line of cairn-vhost-bench. */
#ifndef TESTS_BENCH_VHOST_OPTIONS_H
#define TESTS_BENCH_VHOST_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/bench/vhost/queue.h"

#define BENCH_QUEUES_MAX 64u
#define BENCH_WEIGHTS_MAX 1000u

enum bench_op { BENCH_READ, BENCH_WRITE, BENCH_FLUSH, BENCH_DISCARD, BENCH_ZEROES, BENCH_ID, BENCH_OPS };

extern const char *const bench_op_names[BENCH_OPS];

struct bench_options {
    const char *path;
    struct front_queue_shape shape;     /* slots and pieces are still to be set */
    unsigned queues, depth, threads, segments, regions;
    uint32_t size_min, size_max;        /* bytes of a request */
    unsigned weights[BENCH_OPS], weight_total;
    bool sequential, cut, poll, verify, json;
    double seconds, warmup;
    uint64_t count;                     /* requests; 0: as many as there is time for */
    uint64_t seed, span;                /* span: bytes of the disk that are used; 0: all */
    unsigned reconnect;                 /* seconds to try; 0: not at all */
    unsigned restarts, timeout;         /* timeout: seconds that the server may take to answer anything */
    pid_t pid;                          /* of the server; 0: not given */
};

/* Fills options; ends the process after --help and --version, and with status 2 when something is wrong. */
void bench_options_parse(struct bench_options *options, int argc, char **argv);

#endif
