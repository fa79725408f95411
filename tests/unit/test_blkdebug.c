/*
 * blkdebug: rules, states, breakpoints, and the limits that it puts upon
 * requests, which a node below writes down.
 */
#include "core/driver.h"
#include "core/fan.h"
#include "core/log.h"
#include "drivers/filter/blkdebug.h"
#include "tests/unit/graph_harness.h"

static struct node *disk;

static struct edge edge_to(struct node *node)
{
    return (struct edge){.child = node, .role = ROLE_DATA};
}

static int do_op(unsigned op, uint64_t offset, uint64_t length)
{
    struct edge edge = edge_to(disk);
    static unsigned char data[256 * 1024];
    struct extent extents[8];
    struct extent_list list = {.limit = array_size(extents), .extents = extents};

    switch (op) {
    case REQ_READ:
        return edge_read(&edge, offset, data, length);
    case REQ_WRITE:
        return edge_write(&edge, offset, data, length, 0);
    case REQ_WRITE_ZEROES:
        return edge_write_zeroes(&edge, offset, length, 0);
    case REQ_DISCARD:
        return edge_discard(&edge, offset, length);
    case REQ_STATUS:
        return edge_status(&edge, offset, length, &list);
    default:
        return edge_flush(&edge);
    }
}

static const unsigned all_ops[] = {REQ_READ, REQ_WRITE, REQ_WRITE_ZEROES, REQ_DISCARD, REQ_FLUSH, REQ_STATUS};

/* Which of all ops fail with that error, as a mask. */
static unsigned failing(int error)
{
    unsigned mask = 0;

    for (unsigned i = 0; i < array_size(all_ops); i++) {
        int result = do_op(all_ops[i], 0, 4096);

        ck_assert_msg(result == 0 || result == error, "op %u: %d", all_ops[i], result);
        mask |= result ? REQ_BIT(all_ops[i]) : 0;
    }
    return mask;
}

static void open_disk(const char *options)
{
    char text[2048];

    snprintf(text, sizeof(text),
             "{'driver':'blkdebug','node-name':'disk','discard':'unmap','image':{'driver':'null-co','node-name':'null',"
             "'size':1048576,'discard':'unmap'}%s%s}",
             options[0] ? "," : "", options);
    disk = graph_add(text);
}

#define ALL_BUT_STATUS (REQ_BIT(REQ_READ) | REQ_BITS_WRITING | REQ_BIT(REQ_FLUSH))

static void injects_errors(void)
{
    static const struct {
        const char *rules;
        int error;
        unsigned first, second;     /* ops that fail in one round and in the next */
    } cases[] = {
        {"", 0, 0, 0},
        {"'inject-error':[{'event':'none'}]", -EIO, ALL_BUT_STATUS, ALL_BUT_STATUS},
        {"'inject-error':[{'event':'none','once':true,'errno':28}]", -ENOSPC, REQ_BIT(REQ_READ), 0},
        {"'inject-error':[{'event':'none','iotype':'write','immediately':true}]", -EIO, REQ_BIT(REQ_WRITE),
         REQ_BIT(REQ_WRITE)},
        {"'inject-error':[{'event':'none','iotype':'block-status'},{'event':'none','iotype':'flush'}]", -EIO,
         REQ_BIT(REQ_STATUS) | REQ_BIT(REQ_FLUSH), REQ_BIT(REQ_STATUS) | REQ_BIT(REQ_FLUSH)},
        /* From its event on. */
        {"'inject-error':[{'event':'pwritev_zero'}]", -EIO,
         REQ_BIT(REQ_WRITE_ZEROES) | REQ_BIT(REQ_DISCARD) | REQ_BIT(REQ_FLUSH), ALL_BUT_STATUS},
        {"'inject-error':[{'event':'read_aio','iotype':'discard'}]", -EIO, REQ_BIT(REQ_DISCARD), REQ_BIT(REQ_DISCARD)},
        /* Only in its state. */
        {"'inject-error':[{'event':'none','state':2}],'set-state':[{'event':'discard','state':1,'new_state':2},"
         "{'event':'flush_to_disk','state':2,'new_state':3}]",
         -EIO, REQ_BIT(REQ_DISCARD), 0},
        {"'inject-error':[{'event':'write_aio','state':2,'once':true}],"
         "'set-state':[{'event':'flush_to_disk','new_state':2}]",
         -EIO, 0, REQ_BIT(REQ_WRITE)},
    };

    for (unsigned i = 0; i < array_size(cases); i++) {
        open_disk(cases[i].rules);
        ck_assert_msg(failing(cases[i].error) == cases[i].first, "%s", cases[i].rules);
        ck_assert_msg(failing(cases[i].error) == cases[i].second, "%s", cases[i].rules);
        close_node(disk);
    }
}

static void injects_by_sector(void)
{
    open_disk("'inject-error':[{'event':'none','sector':16,'iotype':'read'},{'event':'none','sector':17}]");
    ck_assert_int_eq(do_op(REQ_READ, 0, 8192), 0);
    ck_assert_int_eq(do_op(REQ_READ, 8704, 4096), -EIO);
    ck_assert_int_eq(do_op(REQ_READ, 9216, 4096), 0);
    ck_assert_int_eq(do_op(REQ_READ, 8703, 1), -EIO);
    ck_assert_int_eq(do_op(REQ_WRITE, 8192, 512), 0);
    ck_assert_int_eq(do_op(REQ_WRITE, 0, 65536), -EIO);
    ck_assert_int_eq(do_op(REQ_FLUSH, 0, 0), 0);
    close_node(disk);
}

static void has_a_state(void)
{
    struct object_value value = {.kind = OBJECT_SIZE, .size = 7}, now;
    AUTO_ERROR struct error err = {0};

    open_disk("'inject-error':[{'event':'none','state':7}],'set-state':[{'event':'discard','new_state':4294967295}]");
    ck_assert_uint_eq(failing(0), 0);
    ck_assert_int_eq(object_get(&disk->object, "state", &now, NULL), 0);
    ck_assert_uint_eq(now.size, UINT32_MAX);
    ck_assert_int_eq(object_set(&disk->object, "state", &value, NULL), 0);
    ck_assert_int_eq(do_op(REQ_READ, 0, 512), -EIO);
    value.size = 0;
    ck_assert_int_lt(object_set(&disk->object, "state", &value, &err), 0);
    close_node(disk);
}

/* Breakpoints */

struct walker {
    struct fan_task task;
    unsigned op;
    bool ended;
};

static int walker_run(struct fan_task *task)
{
    struct walker *walker = container_of(task, struct walker, task);
    int result = do_op(walker->op, 0, 4096);

    walker->ended = true;
    return result;
}

static struct walker walker_of(unsigned op)
{
    return (struct walker){.task.run = walker_run, .op = op};
}

static void breaks(void)
{
    struct walker first = walker_of(REQ_WRITE), second = walker_of(REQ_WRITE), reader = walker_of(REQ_READ);
    AUTO_ERROR struct error err = {0};
    struct fan fan = {0};

    open_disk("");
    struct blkdebug *debug = blkdebug_find("disk", NULL);

    ck_assert_int_eq(blkdebug_break(debug, BLKDEBUG_EVENT_WRITE_AIO, "a", &err), 0);
    ck_assert_int_eq(blkdebug_break(debug, BLKDEBUG_EVENT_READ, "a", &err), -EEXIST);
    fan_start(&fan, &first.task);
    fan_start(&fan, &second.task);
    fan_start(&fan, &reader.task);
    coroutine_sleep(5000000);
    ck_assert(!first.ended && second.ended && reader.ended);
    ck_assert_int_eq(blkdebug_resume(debug, "b", NULL), -ENOENT);
    ck_assert_int_eq(blkdebug_resume(debug, "a", &err), 0);
    ck_assert_int_eq(fan_wait(&fan), 0);
    ck_assert(!debug->armed);
    ck_assert_int_eq(blkdebug_break(debug, BLKDEBUG_EVENT_NONE, "n", NULL), -EINVAL);
    ck_assert_ptr_null(blkdebug_find("null", NULL));
    close_node(disk);
}

/* What a drain does, on the loop of the test. */
static void breaks_end_in_drains(void)
{
    struct walker first = walker_of(REQ_FLUSH), second = walker_of(REQ_FLUSH);
    struct fan fan = {0};

    open_disk("");
    struct blkdebug *debug = blkdebug_find("disk", NULL);

    ck_assert_int_eq(blkdebug_break(debug, BLKDEBUG_EVENT_FLUSH_TO_DISK, "a", NULL), 0);
    ck_assert_int_eq(blkdebug_break(debug, BLKDEBUG_EVENT_FLUSH_TO_DISK, "b", NULL), 0);
    fan_start(&fan, &first.task);
    coroutine_sleep(5000000);
    ck_assert(!first.ended);
    disk->driver->quiesce(disk, true);
    fan_start(&fan, &second.task);
    ck_assert_int_eq(fan_wait(&fan), 0);
    disk->driver->quiesce(disk, false);
    /* The one that nobody had reached is still there. */
    ck_assert_int_eq(blkdebug_resume(debug, "a", NULL), -ENOENT);
    ck_assert_int_eq(blkdebug_resume(debug, "b", NULL), 0);
    close_node(disk);
}

/* Limits */

static struct record {
    unsigned count;
    struct {
        unsigned op;
        uint64_t offset, length;
    } requests[512];
} record;

static enum step (*real_map)(struct node *node, struct request *req);

static enum step recording_map(struct node *node, struct request *req)
{
    ck_assert_uint_lt(record.count, array_size(record.requests));
    record.requests[record.count].op = req->op;
    record.requests[record.count].offset = req->offset;
    record.requests[record.count++].length = req->length;
    return real_map(node, req);
}

static void record_below(void)
{
    struct node *below = disk->filtered->child;

    real_map = below->map;
    below->map = recording_map;
    record.count = 0;
}

static const char *recorded(void)
{
    static const char letters[] = {[REQ_READ] = 'r',    [REQ_WRITE] = 'w',        [REQ_FLUSH] = 'f',
                                   [REQ_DISCARD] = 'd', [REQ_WRITE_ZEROES] = 'z', [REQ_STATUS] = 's'};
    static char text[1024];

    text[0] = 0;
    for (unsigned i = 0; i < record.count; i++)
        sprintf(text + strlen(text), "%s%c%" PRIu64 "+%" PRIu64, i ? " " : "", letters[record.requests[i].op],
                record.requests[i].offset, record.requests[i].length);
    record.count = 0;
    return text;
}

static void assert_goes_as(unsigned op, uint64_t offset, uint64_t length, const char *wanted)
{
    ck_assert_int_eq(do_op(op, offset, length), 0);
    ck_assert_str_eq(recorded(), wanted);
}

static void limits(void)
{
    open_disk("'align':4096,'max-transfer':8192,'opt-write-zero':8192,'max-write-zero':16384,'opt-discard':4096,"
              "'max-discard':65536");
    record_below();
    assert_goes_as(REQ_READ, 0, 16384, "r0+8192 r8192+8192");
    assert_goes_as(REQ_READ, 100, 10, "r0+4096");
    assert_goes_as(REQ_READ, 4000, 8192, "r0+4096 r4096+4096 r8192+4096");
    assert_goes_as(REQ_WRITE, 4096, 4096, "w4096+4096");
    assert_goes_as(REQ_WRITE, 4095, 2, "r0+4096 w0+4096 r4096+4096 w4096+4096");
    assert_goes_as(REQ_WRITE_ZEROES, 0, 40960, "z0+16384 z16384+16384 z32768+8192");
    assert_goes_as(REQ_WRITE_ZEROES, 4096, 8192, "w4096+8192");
    assert_goes_as(REQ_WRITE_ZEROES, 4096, 16384, "w4096+4096 z8192+8192 w16384+4096");
    assert_goes_as(REQ_DISCARD, 1, 8191, "d4096+4096");
    assert_goes_as(REQ_DISCARD, 1, 4096, "");
    assert_goes_as(REQ_DISCARD, 0, 131072, "d0+65536 d65536+65536");
    assert_goes_as(REQ_FLUSH, 0, 0, "f0+0");
    assert_goes_as(REQ_STATUS, 1, 5, "s1+5");
    close_node(disk);
    open_disk("'max-transfer':512");
    record_below();
    assert_goes_as(REQ_READ, 7, 1000, "r7+512 r519+488");
    close_node(disk);
    open_disk("");
    record_below();
    assert_goes_as(REQ_WRITE, 7, 1000, "w7+1000");
    close_node(disk);
}

/* Each piece is asked about, the reads around a write too. */
static void limits_with_rules(void)
{
    open_disk("'align':4096,'inject-error':[{'event':'none','sector':9,'iotype':'read'}]");
    ck_assert_int_eq(do_op(REQ_WRITE, 4096, 4096), 0);
    ck_assert_int_eq(do_op(REQ_WRITE, 0, 4097), -EIO);
    ck_assert_int_eq(do_op(REQ_READ, 4096, 1), -EIO);
    close_node(disk);
}

#define MODEL_SIZE (64u * 1024 + 700)

static void keeps_data(void)
{
    static unsigned char model[MODEL_SIZE], data[MODEL_SIZE];
    unsigned ops = getenv("CAIRN_OPS") ? (unsigned)atoi(getenv("CAIRN_OPS")) : 2000;

    make_file(MODEL_SIZE);
    disk = graph_add("{'driver':'blkdebug','node-name':'disk','align':4096,'max-transfer':8192,'opt-write-zero':8192,"
                     "'max-write-zero':16384,'image':{'driver':'file','filename':'%s'}}");
    memset(model, 0, sizeof(model));
    srandom(1);
    for (unsigned i = 0; i < ops; i++) {
        uint64_t offset = (uint64_t)random() % MODEL_SIZE, length = (uint64_t)random() % (MODEL_SIZE - offset + 1);
        int byte = random() % 3 ? (int)(random() % 256) : 0;
        struct edge edge = edge_to(disk);

        length = random() % 2 ? length : length % 5000;
        if (random() % 3 == 0) {
            ck_assert_int_eq(edge_write_zeroes(&edge, offset, length, 0), 0);
            byte = 0;
        } else {
            ck_assert_int_eq(graph_write(disk, offset, length, byte, i % 7 ? 0 : REQ_FUA), 0);
        }
        memset(model + offset, byte, length);
        offset = (uint64_t)random() % MODEL_SIZE;
        length = MODEL_SIZE - offset;
        ck_assert_int_eq(edge_read(&edge, offset, data, length), 0);
        ck_assert(memcmp(data, model + offset, length) == 0);
    }
    close_node(disk);
}

/* Options */

static void takes_permissions(void)
{
    AUTO_ERROR struct error err = {0};

    open_disk("'unshare-child-perms':['write'],'take-child-perms':['resize']");
    struct node *null = node_find("null");

    ck_assert_uint_eq(null->total.taken, PERM_RESIZE);
    ck_assert_uint_eq(null->total.shared, PERM_ALL & ~PERM_WRITE);
    ck_assert_ptr_null(
        graph_try("{'driver':'blkdebug','node-name':'x','image':'null','take-child-perms':['write']}", &err));
    ck_assert_msg(strstr(err.text, "does not allow 'write' on node 'null'"), "%s", err.text);
    close_node(disk);
}

#define REFUSES(options, words)                                                                                    \
    graph_refuses("{'driver':'blkdebug','node-name':'x','image':{'driver':'null-co','size':1048576}," options "}", \
                  words)

static void refuses(void)
{
    REFUSES("'align':511", "align=511 is not a power of two");
    REFUSES("'align':4096,'max-transfer':512", "max-transfer=512 is not a multiple of align=4096");
    REFUSES("'opt-write-zero':4096,'max-write-zero':6144",
            "max-write-zero=6144 is not a multiple of opt-write-zero=4096");
    REFUSES("'align':512,'max-discard':100", "max-discard=100 is not a multiple of align=512");
    REFUSES("'align':2097152", "align");
    REFUSES("'inject-error':[{'event':'l1_grow_alloc_table'}]", "l1_grow_alloc_table");
    REFUSES("'inject-error':[{}]", "event");
    REFUSES("'inject-error':[{'event':'none','errno':0}]", "errno");
    REFUSES("'set-state':[{'event':'none','new_state':2}]", "set-state[0].event=none never happens");
    REFUSES("'set-state':[{'event':'read'}]", "new_state");
    REFUSES("'config':'x'", "config");
}

BOTH_RINGS(injects_errors)
BOTH_RINGS(injects_by_sector)
BOTH_RINGS(has_a_state)
BOTH_RINGS(breaks)
BOTH_RINGS(breaks_end_in_drains)
BOTH_RINGS(limits)
BOTH_RINGS(limits_with_rules)
BOTH_RINGS(keeps_data)
BOTH_RINGS(takes_permissions)
BOTH_RINGS(refuses)

int main(void)
{
    const TTest *const all[] = {
        test_injects_errors,       test_injects_by_sector,
        test_has_a_state,          test_breaks,
        test_breaks_end_in_drains, test_limits,
        test_limits_with_rules,    test_keeps_data,
        test_takes_permissions,    test_refuses,
    };

    /* That flushes fail is no news. */
    log_set_level(LOG_LEVEL_ERROR);
    return run_tests("blkdebug", all, array_size(all));
}
