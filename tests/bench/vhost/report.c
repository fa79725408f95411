/* bench_report() of bench.h. */
#include <stdio.h>

#include "core/memory.h"
#include "tests/bench/vhost/bench.h"

static const struct {
    const char *name, *key;
    double part;
} report_percentiles[] = {
    {"p50", "p50_us", 0.5}, {"p90", "p90_us", 0.9}, {"p99", "p99_us", 0.99}, {"p99.9", "p999_us", 0.999}};

static void report_sum(const struct bench *bench, struct job_result *sum)
{
    for (unsigned i = 0; i < bench->options.queues; i++) {
        const struct job_result *result = &bench->jobs[i].result;

        sum->requests += result->requests;
        sum->bytes += result->bytes;
        sum->failed += result->failed;
        sum->verified += result->verified;
        measure_merge(&sum->latency, &result->latency);
    }
}

static void report_json(const struct bench *bench, const struct job_result *sum, double seconds, double each)
{
    printf("{\"iops\": %.0f, \"mib_s\": %.1f, \"requests\": %llu, \"seconds\": %.3f, \"failed\": %llu, "
           "\"verified_blocks\": %llu, ",
           (double)sum->requests / seconds, (double)sum->bytes / seconds / 1048576, (unsigned long long)sum->requests,
           bench->seconds, (unsigned long long)sum->failed, (unsigned long long)sum->verified);
    for (unsigned i = 0; i < array_size(report_percentiles); i++)
        printf("\"%s\": %.2f, ", report_percentiles[i].key,
               measure_percentile(&sum->latency, report_percentiles[i].part));
    printf(
        "\"max_us\": %.2f, \"client_cpu_us\": %.4f, \"server_cpu_us\": %.4f, \"reconnects\": %u, "
        "\"restarts\": %u, \"config_changes\": %u, \"capacity\": %llu, \"block_size\": %u, \"features\": \"0x%llx\", "
        "\"protocol_features\": \"0x%llx\"}\n",
        (double)sum->latency.most / 1000, bench->own_cpu * each, bench->server_cpu * each, bench->events.reconnects,
        bench->events.restarts, bench->events.config_changes, bench->front.config.capacity * 512ull,
        bench->disk.block_size, (unsigned long long)bench->front.features, (unsigned long long)bench->front.protocol);
}

static void report_text(const struct bench *bench, const struct job_result *sum, double seconds, double each)
{
    printf("%.0f requests/s, %.1f MiB/s (%llu requests in %.2f s)\n", (double)sum->requests / seconds,
           (double)sum->bytes / seconds / 1048576, (unsigned long long)sum->requests, bench->seconds);
    printf("latency:");
    for (unsigned i = 0; i < array_size(report_percentiles); i++)
        printf(" %s %.1f us,", report_percentiles[i].name,
               measure_percentile(&sum->latency, report_percentiles[i].part));
    printf(" most %.1f us\n", (double)sum->latency.most / 1000);
    printf("CPU for each request: %.3f us here", bench->own_cpu * each);
    if (bench->options.pid)
        printf(", %.3f us in process %d", bench->server_cpu * each, (int)bench->options.pid);
    putchar('\n');
    if (bench->options.verify)
        printf("verified: %llu blocks of %u bytes\n", (unsigned long long)sum->verified, bench->disk.block_size);
    if (bench->events.restarts || bench->events.reconnects || bench->events.config_changes)
        printf("restarts: %u, reconnects: %u, changes of the configuration: %u (now %llu bytes)\n",
               bench->events.restarts, bench->events.reconnects, bench->events.config_changes,
               bench->front.config.capacity * 512ull);
}

void bench_report(const struct bench *bench)
{
    struct job_result *sum = memory_new(struct job_result);
    double seconds = bench->seconds > 0 ? bench->seconds : 1;

    report_sum(bench, sum);
    double each = sum->requests ? 1e6 / (double)sum->requests : 0;
    if (bench->options.json)
        report_json(bench, sum, seconds, each);
    else
        report_text(bench, sum, seconds, each);
    free(sum);
}
