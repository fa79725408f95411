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

/* copy-on-read: where nothing below can copy, nothing is asked, which would take a longer way. */

static void asks_nobody_to_fill(void)
{
    struct node *null = graph_add("{'driver':'null-co','node-name':'null','size':1048576}");
    struct node *keep = graph_add("{'driver':'copy-on-read','node-name':'keep','file':'null'}");
    struct request req = {.op = REQ_READ, .length = 512};

    ck_assert_int_eq(keep->map(keep, &req), STEP_DOWN);
    ck_assert_ptr_eq(req.edge, keep->filtered);
    ck_assert_uint_eq(req.flags, 0);
    close_node(keep);
    close_node(null);
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

/* preallocate */

static void assert_file(uint64_t size, uint64_t least_blocks, uint64_t most_blocks)
{
    struct stat st;

    ck_assert_int_eq(stat(test_path, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, size);
    ck_assert_uint_ge((uint64_t)st.st_blocks * 512, least_blocks);
    ck_assert_uint_le((uint64_t)st.st_blocks * 512, most_blocks);
}

static void preallocates(void)
{
    make_file(MIB + 512);
    struct node *node = graph_add("{'driver':'preallocate','node-name':'pre','prealloc-align':65536,"
                                  "'prealloc-size':4194304,'file':{'driver':'file','node-name':'file',"
                                  "'filename':'%s'}}");
    struct edge edge = {.child = node};
    AUTO_ERROR struct error err = {0};

    ck_assert_uint_eq(node->size, MIB + 512);
    ck_assert_int_eq(edge_grow(&edge, MIB + 512), 0);
    assert_file(MIB + 512, 0, 65536);
    ck_assert_int_eq(edge_grow(&edge, MIB + 1024), 0);
    ck_assert_uint_eq(node->size, MIB + 1024);
    assert_file(5 * MIB + 65536, 4 * MIB, 5 * MIB);
    ck_assert(graph_holds(node, MIB, 1024, 0));
    ck_assert_int_eq(graph_write(node, MIB + 512, 512, 7, 0), 0);
    /* There is room: nothing more is allocated. */
    ck_assert_int_eq(edge_grow(&edge, 4 * MIB), 0);
    assert_file(5 * MIB + 65536, 4 * MIB, 5 * MIB);
    coroutine_sleep(1000000);
    ck_assert_uint_eq(node->size, 4 * MIB);
    ck_assert_int_eq(edge_grow(&edge, 6 * MIB), 0);
    assert_file(10 * MIB, 8 * MIB, 10 * MIB);
    /* Resized by hand, it is as long as that. */
    ck_assert_msg(node_resize(node, 3 * MIB + 512, &err) == 0, "%s", err.text);
    assert_file(3 * MIB + 512, 0, 3 * MIB);
    ck_assert_int_eq(edge_grow(&edge, 3 * MIB + 1024), 0);
    ck_assert(graph_holds(node, MIB + 512, 512, 7));
    close_node(node);
    assert_file(3 * MIB + 1024, 0, 4 * MIB);
    graph_refuses("{'driver':'preallocate','node-name':'x','prealloc-align':0,'file':{'driver':'null-co'}}",
                  "prealloc-align=0 is not a multiple of 512");
    graph_refuses("{'driver':'preallocate','node-name':'x','prealloc-align':700,'file':{'driver':'null-co'}}",
                  "prealloc-align=700 is not a multiple of 512");
}

/* Without a place to grow into it is said so, and nothing has changed. */
static void preallocates_what_there_is(void)
{
    struct node *node = graph_add("{'driver':'preallocate','node-name':'pre','file':{'driver':'null-co','size':4096}}");
    struct edge edge = {.child = node};

    ck_assert_int_eq(edge_grow(&edge, 8192), -ENOSPC);
    ck_assert_uint_eq(node->size, 4096);
    ck_assert_int_eq(edge_grow(&edge, UINT64_MAX), -EFBIG);
    close_node(node);
}

/* blklogwrites: what is in the log, tests/e2e/test_format_filters.py reads. */

static void logs(void)
{
    struct node *disk = graph_add("{'driver':'null-co','node-name':'disk','size':1048576}");

    make_file(0);
    struct node *node = graph_add("{'driver':'blklogwrites','node-name':'log','file':'disk',"
                                  "'log':{'driver':'file','filename':'%s'},'log-sector-size':4096}");

    ck_assert_int_eq(graph_write(node, 4096, 8192, 7, 0), 0);
    close_node(node);
    /* And the flush when it went. */
    ck_assert_uint_eq(size_on_disk(), 4096 + 4096 + 8192 + 4096);
    graph_refuses("{'driver':'blklogwrites','node-name':'x','file':'disk','log':{'driver':'file','filename':'%s'},"
                  "'log-sector-size':512,'log-append':true}",
                  "log-sector-size=512 is not that of the log, 4096");
    graph_refuses("{'driver':'blklogwrites','node-name':'x','file':'disk','log':{'driver':'file','filename':'%s'},"
                  "'log-sector-size':1000}",
                  "log-sector-size=1000 is not a power of two");
    graph_refuses("{'driver':'blklogwrites','node-name':'x','file':'disk','read-only':true,"
                  "'log':{'driver':'file','filename':'%s'}}",
                  "read-only=on leaves nothing");
    ck_assert_uint_eq(size_on_disk(), 4096 + 4096 + 8192 + 4096);
    /* Continued where it ended. */
    node = graph_add("{'driver':'blklogwrites','node-name':'log','file':'disk',"
                     "'log':{'driver':'file','filename':'%s'},'log-append':true}");
    ck_assert_int_eq(graph_write(node, 0, 4096, 7, REQ_FUA), 0);
    close_node(node);
    ck_assert_uint_eq(size_on_disk(), 4096 + 4096 + 8192 + 4096 + 8192 + 4096);
    close_node(disk);
}

/* Logs that are none, or lie about what they have. */
static void refuses_bad_logs(void)
{
    static const struct {
        uint64_t magic, version, entries;
        uint32_t sector, pad;
        uint64_t sectors;           /* of the first entry */
    } bad[] = {
        {0, 1, 0, 512, 0, 0},
        {0x6a736677736872, 2, 0, 512, 0, 0},
        {0x6a736677736872, 1, 0, 0, 0, 0},
        {0x6a736677736872, 1, 0, 513, 0, 0},
        {0x6a736677736872, 1, 1, 512, 0, 2048},
        {0x6a736677736872, 1, 1, 512, 0, UINT64_MAX},
        {0x6a736677736872, 1, UINT64_MAX, 512, 0, 0},
    };

    for (unsigned i = 0; i < array_size(bad); i++) {
        make_file(8192);
        AUTO_CLOSE int fd = open(test_path, O_RDWR);

        ck_assert_int_eq(pwrite(fd, &bad[i], 28, 0), 28);
        ck_assert_int_eq(pwrite(fd, &bad[i].sectors, 8, 512 + 8), 8);
        graph_refuses("{'driver':'blklogwrites','node-name':'x','file':{'driver':'null-co'},"
                      "'log':{'driver':'file','filename':'%s'},'log-append':true}",
                      "holds no log that could be continued");
    }
    make_file(0);
    graph_refuses("{'driver':'blklogwrites','node-name':'x','file':{'driver':'null-co'},"
                  "'log':{'driver':'file','filename':'%s'},'log-append':true}",
                  "holds no log that could be continued");
}

BOTH_RINGS(preallocates)
BOTH_RINGS(preallocates_what_there_is)
BOTH_RINGS(logs)
BOTH_RINGS(refuses_bad_logs)
BOTH_RINGS(detects_zeroes)
BOTH_RINGS(keeps_fills)
BOTH_RINGS(asks_nobody_to_fill)
BOTH_RINGS(delays)
BOTH_RINGS(delays_in_parallel)

int main(void)
{
    const TTest *const all[] = {
        test_detects_zeroes,     test_keeps_fills,  test_asks_nobody_to_fill,        test_delays,
        test_delays_in_parallel, test_preallocates, test_preallocates_what_there_is, test_logs,
        test_refuses_bad_logs};

    return run_tests("filters", all, array_size(all));
}
