/*
 * cairn-vhost-bench: a vhost-user-blk front end that puts load on a server and
 * checks what it does. Exit status 0: all is well; 1: the server failed, or a
 * request, or data was wrong; 2: wrong usage.
 */
#include <stdio.h>

#include "core/memory.h"
#include "tests/bench/vhost/bench.h"

int main(int argc, char **argv)
{
    struct bench *bench = memory_new(struct bench);
    AUTO_ERROR struct error err = {0};
    bool failed = false;

    bench_options_parse(&bench->options, argc, argv);
    int rc = bench_prepare(bench, &err);
    if (rc == 0) {
        rc = bench_run(bench, &err);
        bench_report(bench);
    }
    for (unsigned i = 0; i < bench->jobs_made; i++) {
        if (bench->jobs[i].failure.text)
            fprintf(stderr, "cairn-vhost-bench: queue %u: %s\n", i, bench->jobs[i].failure.text);
        failed |= bench->jobs[i].failure.text != NULL;
    }
    if (rc < 0)
        fprintf(stderr, "cairn-vhost-bench: %s\n", err.text);
    bench_clear(bench);
    free(bench);
    return rc < 0 || failed;
}
