/* See measure.h. */
#include "tests/bench/vhost/measure.h"

void measure_merge(struct measure_histogram *to, const struct measure_histogram *from)
{
    for (unsigned i = 0; i < MEASURE_BUCKETS; i++)
        to->counts[i] += from->counts[i];
    if (from->most > to->most)
        to->most = from->most;
}

/* The middle of what falls into a bucket, in nanoseconds. */
static double measure_value(unsigned bucket)
{
    unsigned shift = bucket >> MEASURE_FINE;

    if (shift)
        shift--;
    return ((double)(bucket - (shift << MEASURE_FINE)) + (shift ? 0.5 : 0)) * (double)(1ull << shift);
}

double measure_percentile(const struct measure_histogram *histogram, double part)
{
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < MEASURE_BUCKETS; i++)
        total += histogram->counts[i];
    for (unsigned i = 0; i < MEASURE_BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen && (double)seen >= part * (double)total)
            return measure_value(i) / 1000;
    }
    return 0;
}

double measure_cpu(pid_t pid)
{
    struct timespec time;
    clockid_t id;

    if (clock_getcpuclockid(pid, &id) != 0 || clock_gettime(id, &time) != 0)
        return 0;
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}
