/* See options.h. Every option is a row of a table: its name, its argument and what it sets. */
#include "tests/bench/vhost/options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

const char *const bench_op_names[BENCH_OPS] = {"read", "write", "flush", "discard", "write-zeroes", "get-id"};

enum options_kind {
    OPTIONS_ON,
    OPTIONS_OFF,
    OPTIONS_UNSIGNED,
    OPTIONS_SHORT,
    OPTIONS_NUMBER,
    OPTIONS_SECONDS,
    OPTIONS_SIZES,
    OPTIONS_MIX
};

struct options_row {
    const char *name, *argument, *help;
    enum options_kind kind;
    size_t at;                          /* in struct bench_options */
    uint64_t least, most;
};

#define AT(member) offsetof(struct bench_options, member)
#define SIZE_MOST (64u << 20)

static const struct options_row options_rows[] = {
    {"queues", "N", "queues (1)", OPTIONS_UNSIGNED, AT(queues), 1, BENCH_QUEUES_MAX},
    {"depth", "N", "requests in flight on each queue (32)", OPTIONS_UNSIGNED, AT(depth), 1, FRONT_QUEUE_SIZE_MAX},
    {"queue-size", "N", "descriptors of each queue (256)", OPTIONS_SHORT, AT(shape.size), 1, FRONT_QUEUE_SIZE_MAX},
    {"threads", "N", "threads (one per queue, at most one per CPU)", OPTIONS_UNSIGNED, AT(threads), 1,
     BENCH_QUEUES_MAX},
    {"size", "BYTES[-BYTES]", "bytes of each request (4K)", OPTIONS_SIZES, 0, 1, SIZE_MOST},
    {"mix", "OP[=N],...", "read, write, flush, discard, write-zeroes, get-id, and their shares (read)", OPTIONS_MIX, 0,
     0, BENCH_WEIGHTS_MAX},
    {"sequential", NULL, "one request behind the other, not at random", OPTIONS_ON, AT(sequential), 0, 0},
    {"span", "BYTES", "use only the first part of the disk", OPTIONS_NUMBER, AT(span), 1, INT64_MAX},
    {"packed", NULL, "packed rings", OPTIONS_ON, AT(shape.packed), 0, 0},
    {"direct", NULL, "chains in the ring, no indirect descriptors", OPTIONS_OFF, AT(shape.indirect), 0, 0},
    {"no-event-idx", NULL, "without VIRTIO_F_EVENT_IDX", OPTIONS_OFF, AT(shape.event_idx), 0, 0},
    {"in-order", NULL, "with VIRTIO_F_IN_ORDER", OPTIONS_ON, AT(shape.in_order), 0, 0},
    {"segments", "N", "buffers that the data of a request is in (1)", OPTIONS_UNSIGNED, AT(segments), 1, 1024},
    {"cut", NULL, "cut headers, data and status anywhere, into at most segments + 2 buffers", OPTIONS_ON, AT(cut), 0,
     0},
    {"regions", "N", "regions that the memory consists of (1)", OPTIONS_UNSIGNED, AT(regions), 1, FRONT_REGIONS_MAX},
    {"poll", NULL, "look at the rings instead of waiting for calls", OPTIONS_ON, AT(poll), 0, 0},
    {"seconds", "S", "how long to measure (5)", OPTIONS_SECONDS, AT(seconds), 0, 1000000},
    {"warmup", "S", "load before that (0.5)", OPTIONS_SECONDS, AT(warmup), 0, 1000000},
    {"count", "N", "end after N requests", OPTIONS_NUMBER, AT(count), 1, INT64_MAX},
    {"seed", "N", "of all that is random (1)", OPTIONS_NUMBER, AT(seed), 0, INT64_MAX},
    {"verify", NULL, "write stamps, check what is read, read everything written at the end", OPTIONS_ON, AT(verify), 0,
     0},
    {"reconnect", "S", "when the server is gone, try for S seconds to go on", OPTIONS_UNSIGNED, AT(reconnect), 1,
     86400},
    {"restarts", "N", "stop, reset and start the device N times under load", OPTIONS_UNSIGNED, AT(restarts), 0,
     1000000},
    {"timeout", "S", "how long the server may take to answer (30)", OPTIONS_UNSIGNED, AT(timeout), 1, 86400},
    {"pid", "PID", "report the CPU time of this process", OPTIONS_UNSIGNED, AT(pid), 1, INT32_MAX},
    {"json", NULL, "print JSON", OPTIONS_ON, AT(json), 0, 0},
};
#define OPTIONS_COUNT array_size(options_rows)

static void options_wrong(const char *name, const char *value)
{
    fprintf(stderr, "cairn-vhost-bench: --%s: not possible: %s\n", name, value);
    exit(2);
}

static void options_help(void)
{
    printf("usage: cairn-vhost-bench [OPTION...] SOCKET\n\n"
           "Puts load on a vhost-user-blk server, and checks it.\n\n");
    for (unsigned i = 0; i < OPTIONS_COUNT; i++) {
        char left[64];

        snprintf(left, sizeof(left), "--%s%s%s", options_rows[i].name, options_rows[i].argument ? " " : "",
                 options_rows[i].argument ? options_rows[i].argument : "");
        printf("  %-24s %s\n", left, options_rows[i].help);
    }
    printf("  %-24s %s\n  %-24s %s\n", "--help", "print this", "--version", "print the version");
}

/* A number with an optional K, M, G or T; stops at *end. */
static uint64_t options_number(const char *name, const char *text, char **end)
{
    static const char units[] = "KMGT";

    errno = 0;
    uint64_t value = strtoull(text, end, 0);
    const char *unit = **end ? strchr(units, toupper((unsigned char)**end)) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (!isdigit((unsigned char)*text) || errno || value > UINT64_MAX >> shift)
        options_wrong(name, text);
    *end += unit != NULL;
    return value << shift;
}

static uint64_t options_bounded(const struct options_row *row, const char *text)
{
    char *end;
    uint64_t value = options_number(row->name, text, &end);

    if (*end || value < row->least || value > row->most)
        options_wrong(row->name, text);
    return value;
}

static void options_sizes(struct bench_options *options, const struct options_row *row, const char *text)
{
    char *end;
    uint64_t least = options_number(row->name, text, &end), most = least;

    if (*end == '-')
        most = options_number(row->name, end + 1, &end);
    if (*end || least < row->least || most > row->most || least > most)
        options_wrong(row->name, text);
    options->size_min = (uint32_t)least;
    options->size_max = (uint32_t)most;
}

static void options_mix(struct bench_options *options, const struct options_row *row, const char *text)
{
    AUTO_FREE char *copy = memory_string(text);

    memset(options->weights, 0, sizeof(options->weights));
    options->weight_total = 0;
    for (char *next = copy, *word; (word = strsep(&next, ",")) != NULL;) {
        char *share = strchr(word, '='), *end = "";
        unsigned op = 0;

        if (share)
            *share++ = '\0';
        while (op < BENCH_OPS && strcmp(bench_op_names[op], word) != 0)
            op++;
        uint64_t weight = share ? options_number(row->name, share, &end) : 1;
        if (op == BENCH_OPS || *end || weight > row->most - options->weight_total)
            options_wrong(row->name, text);
        options->weights[op] += (unsigned)weight;
        options->weight_total += (unsigned)weight;
    }
    if (!options->weight_total)
        options_wrong(row->name, text);
}

static double options_seconds(const struct options_row *row, const char *text)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= (double)row->least && value <= (double)row->most))
        options_wrong(row->name, text);
    return value;
}

static void options_set(struct bench_options *options, const struct options_row *row, const char *text)
{
    void *at = (char *)options + row->at;

    switch (row->kind) {
    case OPTIONS_ON:
        *(bool *)at = true;
        break;
    case OPTIONS_OFF:
        *(bool *)at = false;
        break;
    case OPTIONS_UNSIGNED:
        *(unsigned *)at = (unsigned)options_bounded(row, text);
        break;
    case OPTIONS_SHORT:
        *(uint16_t *)at = (uint16_t)options_bounded(row, text);
        break;
    case OPTIONS_NUMBER:
        *(uint64_t *)at = options_bounded(row, text);
        break;
    case OPTIONS_SECONDS:
        *(double *)at = options_seconds(row, text);
        break;
    case OPTIONS_SIZES:
        options_sizes(options, row, text);
        break;
    case OPTIONS_MIX:
        options_mix(options, row, text);
        break;
    }
}

void bench_options_parse(struct bench_options *options, int argc, char **argv)
{
    struct option longs[OPTIONS_COUNT + 3] = {0};
    int choice, index;

    *options = (struct bench_options){.shape = {.size = 256, .indirect = true, .event_idx = true},
                                      .queues = 1,
                                      .depth = 32,
                                      .segments = 1,
                                      .regions = 1,
                                      .size_min = 4096,
                                      .size_max = 4096,
                                      .weights = {[BENCH_READ] = 1},
                                      .weight_total = 1,
                                      .seconds = 5,
                                      .warmup = 0.5,
                                      .seed = 1,
                                      .timeout = 30};
    for (unsigned i = 0; i < OPTIONS_COUNT; i++)
        longs[i] = (struct option){options_rows[i].name, options_rows[i].argument != NULL, NULL, 'o'};
    longs[OPTIONS_COUNT] = (struct option){"help", 0, NULL, 'h'};
    longs[OPTIONS_COUNT + 1] = (struct option){"version", 0, NULL, 'V'};
    while ((choice = getopt_long(argc, argv, "hV", longs, &index)) >= 0) {
        if (choice == 'o') {
            options_set(options, &options_rows[index], optarg);
        } else if (choice == 'h') {
            options_help();
            exit(0);
        } else if (choice == 'V') {
            puts("cairn-vhost-bench " CAIRN_VERSION);
            exit(0);
        } else {
            exit(2);
        }
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "cairn-vhost-bench: the server's socket is needed; see --help\n");
        exit(2);
    }
    options->path = argv[optind];
}
