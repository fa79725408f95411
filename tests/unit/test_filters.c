/*
 * Filters, each alone on a file or on null-co, on both rings: what they let
 * through, what they change, what they refuse.
 */
#include "core/driver.h"
#include "core/fan.h"
#include "tests/unit/graph_harness.h"

/* detect-zeroes */

static void detects_zeroes(void)
{
    make_file(MIB);
    struct node *file = graph_add("{'driver':'file','node-name':'file','filename':'%s','discard':'unmap'}");
    struct node *keep = graph_add("{'driver':'detect-zeroes','node-name':'keep','file':'file'}");
    struct node *unmap = graph_add("{'driver':'detect-zeroes','node-name':'unmap','file':'file','mode':'unmap',"
                                   "'discard':'unmap'}");
    struct node *option = graph_add("{'driver':'raw','node-name':'option','file':'file','detect-zeroes':'unmap',"
                                    "'discard':'unmap'}");
    struct node *const unmapping[] = {unmap, option};

    for (unsigned i = 0; i < array_size(unmapping); i++) {
        ck_assert_int_eq(graph_write(keep, 0, MIB, 7, 0), 0);
        ck_assert_str_eq(graph_map(file), "1048576:0");
        ck_assert_int_eq(graph_write(unmapping[i], 65536, 65536, 0, 0), 0);
        ck_assert_str_eq(graph_map(keep), "65536:0 65536:3 917504:0");
        ck_assert(graph_holds(file, 65536, 65536, 0));
        /* One byte in it, and it is data. */
        ck_assert_int_eq(graph_write(unmapping[i], 65537, 1, 1, 0), 0);
        ck_assert(graph_holds(file, 65537, 1, 1));
    }
    ck_assert_int_eq(graph_write(keep, 0, MIB, 0, REQ_FUA), 0);
    ck_assert(graph_holds(file, 0, MIB, 0));
    close_node(option);
    close_node(unmap);
    close_node(keep);
    close_node(file);
}

/* A fill may not become something that overwrites. */
static void keeps_fills(void)
{
    unsigned char zeroes[512] = {0};
    struct iovec iov = {.iov_base = zeroes, .iov_len = sizeof(zeroes)};
    struct request req = {.op = REQ_WRITE, .flags = REQ_FILL, .iov = &iov, .iov_count = 1, .length = 512};

    request_detect_zeroes(&req, true);
    ck_assert_uint_eq(req.op, REQ_WRITE);
    req.flags = REQ_COMPRESSED;
    request_detect_zeroes(&req, true);
    ck_assert_uint_eq(req.op, REQ_WRITE);
    req.flags = REQ_FUA;
    request_detect_zeroes(&req, true);
    ck_assert_uint_eq(req.op, REQ_WRITE_ZEROES);
    ck_assert_uint_eq(req.flags, REQ_FUA | REQ_MAY_UNMAP);
}

/* delay */

static uint64_t elapsed(struct node *node, unsigned op)
{
    struct edge edge = {.child = node};
    unsigned char data[512] = {1};
    uint64_t start = ring_clock();
    int result = -EINVAL;

    if (op == REQ_READ)
        result = edge_read(&edge, 0, data, sizeof(data));
    else if (op == REQ_WRITE)
        result = edge_write(&edge, 0, data, sizeof(data), 0);
    else if (op == REQ_WRITE_ZEROES)
        result = edge_write_zeroes(&edge, 0, sizeof(data), 0);
    else if (op == REQ_FLUSH)
        result = edge_flush(&edge);
    else if (op == REQ_DISCARD)
        result = edge_discard(&edge, 0, sizeof(data));
    ck_assert_int_eq(result, 0);
    return ring_clock() - start;
}

static void delays(void)
{
    static const uint64_t ms[] = {
        [REQ_READ] = 20, [REQ_WRITE] = 40, [REQ_WRITE_ZEROES] = 40, [REQ_DISCARD] = 10, [REQ_FLUSH] = 0};
    struct node *null = graph_add("{'driver':'null-co','node-name':'null','size':1048576}");
    struct node *plain = graph_add("{'driver':'delay','node-name':'plain','file':'null'}");
    struct node *slow = graph_add("{'driver':'delay','node-name':'slow','file':'plain','latency-ns':10000000,"
                                  "'read-ns':20000000,'write-ns':40000000,'flush-ns':0,'discard':'unmap'}");

    for (unsigned op = 0; op < array_size(ms); op++) {
        uint64_t ns = elapsed(slow, op);

        ck_assert_msg(ns >= ms[op] * 1000000, "op %u: %" PRIu64 " ns", op, ns);
        ck_assert_uint_lt(elapsed(plain, op), 1000000000);
    }
    close_node(slow);
    close_node(plain);
    close_node(null);
}

/* Held requests do not hold each other. */

struct delayed {
    struct fan_task task;
    struct node *node;
};

static int delayed_run(struct fan_task *task)
{
    elapsed(container_of(task, struct delayed, task)->node, REQ_READ);
    return 0;
}

static void delays_in_parallel(void)
{
    struct node *slow = graph_add("{'driver':'delay','node-name':'slow','latency-ns':50000000,'jitter-ns':5000000,"
                                  "'file':{'driver':'null-co','size':1048576}}");
    struct delayed tasks[64];
    struct fan fan = {0};
    uint64_t start = ring_clock();

    for (unsigned i = 0; i < array_size(tasks); i++) {
        tasks[i] = (struct delayed){.task.run = delayed_run, .node = slow};
        fan_start(&fan, &tasks[i].task);
    }
    ck_assert_int_eq(fan_wait(&fan), 0);
    ck_assert_uint_lt(ring_clock() - start, 2000000000);
    close_node(slow);
}

BOTH_RINGS(detects_zeroes)
BOTH_RINGS(keeps_fills)
BOTH_RINGS(delays)
BOTH_RINGS(delays_in_parallel)

int main(void)
{
    const TTest *const all[] = {test_detects_zeroes, test_keeps_fills, test_delays, test_delays_in_parallel};

    return run_tests("filters", all, array_size(all));
}
