/*
 * Clocks, and histograms of latencies: 32 buckets for each power of two of
 * nanoseconds, so a value is at most 3 % off. A histogram belongs to one thread.
 */
#ifndef TESTS_BENCH_VHOST_MEASURE_H
#define TESTS_BENCH_VHOST_MEASURE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define MEASURE_FINE 5u                                 /* log2 of the buckets per power of two */
#define MEASURE_BUCKETS ((65u - MEASURE_FINE) << MEASURE_FINE)

struct measure_histogram {
    uint64_t counts[MEASURE_BUCKETS];
    uint64_t most;      /* the largest value, in nanoseconds */
};

static inline uint64_t measure_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void measure_add(struct measure_histogram *histogram, uint64_t ns)
{
    unsigned shift = ns >> MEASURE_FINE ? 63u - MEASURE_FINE - (unsigned)__builtin_clzll(ns) : 0;

    histogram->counts[(shift << MEASURE_FINE) + (ns >> shift)]++;
    if (ns > histogram->most)
        histogram->most = ns;
}

/* Adds all of one to another. */
void measure_merge(struct measure_histogram *to, const struct measure_histogram *from);

/* The value, in microseconds, that the given part (0 to 1) of all does not exceed; 0 if there are none. */
double measure_percentile(const struct measure_histogram *histogram, double part);

/* CPU time, in seconds, of a process and all its threads; pid 0 is our own. 0 if there is none. */
double measure_cpu(pid_t pid);

#endif
