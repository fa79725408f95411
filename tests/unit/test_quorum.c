/*
 * quorum and blkverify: children are files, which the tests look at and
 * damage behind their back.
 */
#include "core/driver.h"
#include "core/event.h"
#include "core/fan.h"
#include "core/log.h"
#include "tests/unit/graph_harness.h"

#define CHILDREN 3u

static struct node *quorum;
static char child_paths[CHILDREN][300];

/* Events, as text. */

static char events[4096];

static void sink(const char *name, const struct option_type *type, const void *data)
{
    char *end = events + strlen(events);

    (void)type;
    if (strcmp(name, "QUORUM_FAILURE") == 0) {
        const struct quorum_failure_event *failure = data;

        sprintf(end, "failure %s %" PRIu64 "+%" PRIu64 "; ", failure->reference, failure->sector_num,
                failure->sectors_count);
    } else if (strcmp(name, "QUORUM_REPORT_BAD") == 0) {
        const struct quorum_report_bad_event *bad = data;

        sprintf(end, "%s %s %" PRIu64 "+%" PRIu64 "%s; ", quorum_report_bad_type_enum.names[bad->type], bad->node_name,
                bad->sector_num, bad->sectors_count, bad->error ? " error" : "");
    }
}

static void assert_events(const char *wanted)
{
    ck_assert_str_eq(events, wanted);
    events[0] = 0;
}

/* Of each subject there are not more than ten a second. */
static void rest(void)
{
    coroutine_sleep(110000000);
}

/* Behind the back of all nodes. */
static void damage(unsigned child, uint64_t offset, size_t size, int byte)
{
    AUTO_CLOSE int fd = open(child_paths[child], O_WRONLY);
    AUTO_FREE unsigned char *data = memory_zero(size);

    memset(data, byte, size);
    ck_assert_int_eq(pwrite(fd, data, size, (off_t)offset), (ssize_t)size);
}

static void assert_children(uint64_t offset, size_t size, int a, int b, int c)
{
    const int bytes[] = {a, b, c};

    for (unsigned i = 0; i < CHILDREN; i++) {
        AUTO_CLOSE int fd = open(child_paths[i], O_RDONLY);
        AUTO_FREE unsigned char *data = memory_zero(size);

        ck_assert_int_eq(pread(fd, data, size, (off_t)offset), (ssize_t)size);
        for (size_t n = 0; n < size; n++)
            ck_assert_msg(data[n] == bytes[i], "child %u has %u at %zu", i, data[n], (size_t)offset + n);
    }
}

/* The quorum, with rules for each child (after 'image') and options. */
static void open_quorum(const char *const rules[CHILDREN], const char *options)
{
    char text[2048];

    for (unsigned i = 0; i < CHILDREN; i++) {
        snprintf(child_paths[i], sizeof(child_paths[i]), "%s.%u", test_path, i);
        AUTO_CLOSE int fd = open(child_paths[i], O_RDWR | O_CREAT | O_TRUNC, 0600);

        ck_assert_int_eq(ftruncate(fd, MIB), 0);
        snprintf(text, sizeof(text),
                 "{'driver':'blkdebug','node-name':'c%u','discard':'unmap','image':{'driver':'file','discard':'unmap',"
                 "'filename':'%s'}%s}",
                 i, child_paths[i], rules ? rules[i] : "");
        graph_add(text);
    }
    snprintf(text, sizeof(text), "{'driver':'quorum','node-name':'q','discard':'unmap','children':['c0','c1','c2'],%s}",
             options);
    quorum = graph_add(text);
    events[0] = 0;
    event_set_sink(sink);
}

static void close_quorum(void)
{
    event_set_sink(NULL);
    close_node(quorum);
    for (unsigned i = 0; i < CHILDREN; i++) {
        char name[4] = {'c', (char)('0' + i), 0};

        close_node(node_find(name));
        unlink(child_paths[i]);
    }
}

static int read_result(struct node *node, uint64_t offset, size_t size)
{
    struct edge edge = {.child = node};
    AUTO_FREE unsigned char *data = memory_zero(size);

    return edge_read(&edge, offset, data, size);
}

/* Writes */

static void writes_to_all(void)
{
    struct edge edge = {.child = NULL};

    open_quorum(NULL, "'vote-threshold':2");
    edge.child = quorum;
    ck_assert_uint_eq(quorum->size, MIB);
    ck_assert_int_eq(graph_write(quorum, 512, 65536, 7, REQ_FUA), 0);
    assert_children(512, 65536, 7, 7, 7);
    ck_assert_int_eq(edge_write_zeroes(&edge, 4096, 4096, 0), 0);
    assert_children(4096, 4096, 0, 0, 0);
    ck_assert_int_eq(edge_discard(&edge, 8192, 4096), 0);
    assert_children(8192, 4096, 0, 0, 0);
    ck_assert_int_eq(edge_flush(&edge), 0);
    ck_assert(graph_holds(quorum, 512, 3584, 7));
    /* Some would have done it and others not. */
    ck_assert_int_eq(edge_write_zeroes(&edge, 0, 512, REQ_FAST_ONLY), -ENOTSUP);
    ck_assert(graph_holds(quorum, 512, 3584, 7));
    assert_events("");
    close_quorum();
}

static void counts_failures(void)
{
    static const char broken[] = ",'inject-error':[{'event':'none','iotype':'write','errno':28},"
                                 "{'event':'none','iotype':'flush'}]";
    static const char *const one[] = {broken, "", ""};
    static const char *const two[] = {",'inject-error':[{'event':'none','iotype':'write','errno':28}]", "",
                                      ",'inject-error':[{'event':'none','iotype':'write'}]"};
    struct edge edge = {.child = NULL};

    open_quorum(one, "'vote-threshold':2");
    edge.child = quorum;
    ck_assert_int_eq(graph_write(quorum, 1024, 512, 7, 0), 0);
    assert_events("write c0 2+1 error; ");
    /* Too soon for another one. */
    ck_assert_int_eq(graph_write(quorum, 1024, 512, 8, 0), 0);
    assert_events("");
    rest();
    ck_assert_int_eq(edge_flush(&edge), 0);
    assert_events("flush c0 0+0 error; ");
    assert_children(1024, 512, 0, 8, 8);
    ck_assert(graph_holds(quorum, 1024, 512, 8));
    close_quorum();
    open_quorum(two, "'vote-threshold':2");
    ck_assert_int_eq(graph_write(quorum, 0, 700, 7, 0), -ENOSPC);
    assert_events("write c0 0+2 error; write c2 0+2 error; failure q 0+2; ");
    close_quorum();
}

/* Reads */

static void reads_by_vote(void)
{
    open_quorum(NULL, "'vote-threshold':2");
    ck_assert_int_eq(graph_write(quorum, 0, MIB, 7, 0), 0);
    damage(0, 4096, 512, 1);
    ck_assert(graph_holds(quorum, 0, MIB, 7));
    assert_events("read c0 0+2048; ");
    /* Nothing has been written. */
    assert_children(4096, 512, 1, 7, 7);
    /* All different. */
    damage(1, 4096, 512, 2);
    rest();
    ck_assert_int_eq(read_result(quorum, 4096, 512), -EIO);
    assert_events("read c1 8+1; read c2 8+1; failure q 8+1; ");
    ck_assert(graph_holds(quorum, 4608, 4096, 7));
    close_quorum();
}

static void reads_from_those_who_can(void)
{
    static const char *const one[] = {"", "", ",'inject-error':[{'event':'none','iotype':'read'}]"};
    static const char *const two[] = {",'inject-error':[{'event':'none','iotype':'read','errno':61}]", "",
                                      ",'inject-error':[{'event':'none','iotype':'read'}]"};

    open_quorum(one, "'vote-threshold':2");
    ck_assert_int_eq(graph_write(quorum, 0, 65536, 7, 0), 0);
    ck_assert(graph_holds(quorum, 0, 65536, 7));
    assert_events("read c2 0+128 error; ");
    /* One of the two that are left is wrong. */
    damage(0, 512, 512, 1);
    ck_assert_int_eq(read_result(quorum, 0, 4096), -EIO);
    close_quorum();
    open_quorum(two, "'vote-threshold':2");
    ck_assert_int_eq(read_result(quorum, 0, 4096), -ENODATA);
    close_quorum();
    /* With a threshold of one the first that can is believed. */
    open_quorum(two, "'vote-threshold':1");
    ck_assert_int_eq(read_result(quorum, 0, 4096), 0);
    close_quorum();
}

static void rewrites(void)
{
    static const char *const bad[] = {"", ",'inject-error':[{'event':'none','iotype':'read','once':true,'sector':8}]",
                                      ""};

    open_quorum(NULL, "'vote-threshold':2,'rewrite-corrupted':true");
    ck_assert_int_eq(graph_write(quorum, 0, MIB, 7, 0), 0);
    damage(2, 4096, 512, 1);
    ck_assert(graph_holds(quorum, 4096, 4096, 7));
    assert_children(4096, 4096, 7, 7, 7);
    rest();
    assert_events("read c2 8+8; ");
    ck_assert(graph_holds(quorum, 0, MIB, 7));
    assert_events("");
    close_quorum();
    /* What cannot be read is written anew. */
    open_quorum(bad, "'vote-threshold':2,'rewrite-corrupted':true");
    damage(0, 4096, 512, 3);
    damage(2, 4096, 512, 3);
    ck_assert(graph_holds(quorum, 4096, 512, 3));
    assert_children(4096, 512, 3, 3, 3);
    close_quorum();
}

static void reads_in_order(void)
{
    static const char *const first[] = {",'inject-error':[{'event':'none','iotype':'read','sector':8}]",
                                        ",'inject-error':[{'event':'none','iotype':'read','sector':9}]",
                                        ",'inject-error':[{'event':'none','iotype':'read','errno':61}]"};

    open_quorum(first, "'vote-threshold':1,'read-pattern':'fifo'");
    for (unsigned i = 0; i < CHILDREN; i++)
        damage(i, 0, MIB, (int)i + 1);
    ck_assert(graph_holds(quorum, 0, 4096, 1));
    assert_events("");
    ck_assert(graph_holds(quorum, 4096, 512, 2));
    assert_events("read c0 8+1 error; ");
    rest();
    ck_assert_int_eq(read_result(quorum, 4096, 1024), -ENODATA);
    assert_events("read c0 8+2 error; read c1 8+2 error; read c2 8+2 error; ");
    close_quorum();
}

/* From what is kept of earlier ones. */

static unsigned allocations;

int posix_memalign(void **ret, size_t align, size_t size)
{
    allocations++;
    *ret = aligned_alloc(align, (size + align - 1) / align * align);
    return *ret ? 0 : ENOMEM;
}

static void reads_without_allocating(void)
{
    open_quorum(NULL, "'vote-threshold':2");
    ck_assert_int_eq(graph_write(quorum, 0, MIB, 7, 0), 0);
    for (unsigned round = 0; round < 3; round++) {
        allocations = 0;
        ck_assert(graph_holds(quorum, 512, 4096, 7));
        ck_assert(graph_holds(quorum, 512, MIB / 2, 7));
        ck_assert_str_eq(graph_map(quorum), "1048576:0");
        ck_assert_uint_le(allocations, round ? 0 : 3);
    }
    close_quorum();
}

/* Children that have missed something */

static void reopen_quorum(void)
{
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();
    struct node_options *same = node_describe(quorum);

    same->detect_zeroes = NODE_DETECT_ZEROES_ON;
    ck_assert_msg(node_reopen(change, quorum, same, &err) == 0, "%s", err.text);
    ck_assert_msg(change_apply(change, &err) == 0, "%s", err.text);
    option_free(&node_options_type, same);
}

/* Where one child is enough, those are not believed that failed to write what another one wrote. */
static void does_not_show_what_was(void)
{
    static const char once[] = ",'inject-error':[{'event':'none','iotype':'write','sector':8,'once':true}]";
    static const char *const rules[] = {once, once, ",'inject-error':[{'event':'none','iotype':'write','sector':16}]"};
    static const char *const lenient[] = {"'vote-threshold':1,'read-pattern':'fifo'", "'vote-threshold':1"};
    static const char *const maps[] = {"4096:3 4096:0 1040384:3", "1048576:0"};

    for (unsigned i = 0; i < array_size(lenient); i++) {
        open_quorum(rules, lenient[i]);
        ck_assert_int_eq(graph_write(quorum, 4096, 4096, 2, 0), 0);
        assert_children(4096, 4096, 0, 0, 2);
        ck_assert(graph_holds(quorum, 4096, 4096, 2));
        ck_assert_str_eq(graph_map(quorum), maps[i]);
        /* The one that has all must have this too. */
        ck_assert_int_eq(graph_write(quorum, 8192, 4096, 4, 0), -EIO);
        reopen_quorum();
        ck_assert(graph_holds(quorum, 4096, 4096, 2));
        close_quorum();
    }
}

/* The third child is part of a file, which it cannot make longer, or all of it. */
static void add_children(const char *second, const char *third)
{
    const char *const size[] = {"", second, third};
    char text[1024];

    for (unsigned i = 0; i < CHILDREN; i++) {
        snprintf(text, sizeof(text), "{'driver':'raw','node-name':'c%u'%s,'file':{'driver':'file','filename':'%s'}}", i,
                 size[i], child_paths[i]);
        graph_add(text);
    }
}

static void remove_all(void)
{
    close_node(quorum);
    for (unsigned i = 0; i < CHILDREN; i++) {
        char name[4] = {'c', (char)('0' + i), 0};

        close_node(node_find(name));
    }
}

static uint64_t child_on_disk(unsigned child)
{
    struct stat st;

    ck_assert_int_eq(stat(child_paths[child], &st), 0);
    return (uint64_t)st.st_size;
}

#define PLAIN "{'driver':'quorum','node-name':'q','children':['c0','c1','c2'],'vote-threshold':2}"
#define REPAIRING                                                                        \
    "{'driver':'quorum','node-name':'q','children':['c0','c1','c2'],'vote-threshold':2," \
    "'rewrite-corrupted':true}"

static void grows_by_vote(void)
{
    struct edge edge = {.child = NULL};

    open_quorum(NULL, "'vote-threshold':2");
    remove_all();
    add_children("", ",'size':1048576");
    edge.child = quorum = graph_add(PLAIN);
    ck_assert_int_eq(graph_write(quorum, 0, MIB, 7, 0), 0);
    ck_assert_int_eq(edge_grow(&edge, 2 * MIB), 0);
    assert_events("write c2 2048+2048 error; ");
    ck_assert_uint_eq(quorum->size, 2 * MIB);
    ck_assert_int_eq(graph_write(quorum, MIB - 512, 65536, 8, 0), 0);
    rest();
    ck_assert(graph_holds(quorum, MIB - 512, 65536, 8));
    assert_events("read c2 2047+128 error; ");
    ck_assert_str_eq(graph_map(quorum), "1114112:0 983040:3");
    ck_assert_uint_eq(quorum->size, 2 * MIB);
    ck_assert_uint_eq(child_on_disk(1), 2 * MIB);
    ck_assert_uint_eq(child_on_disk(2), MIB);
    remove_all();
    /* It is not what the others are, and only reads would repair it. */
    add_children("", "");
    graph_refuses(PLAIN, "children.2 (node 'c2') has 1048576 bytes, but children.0 (node 'c0') has 2097152: with "
                         "rewrite-corrupted=on the shorter one is repaired");
    quorum = graph_add(REPAIRING);
    ck_assert_uint_eq(quorum->size, 2 * MIB);
    ck_assert(graph_holds(quorum, MIB - 512, 65536, 8));
    assert_children(MIB - 512, 65536, 8, 8, 8);
    ck_assert_uint_eq(child_on_disk(2), 2 * MIB);
    remove_all();
    add_children("", "");
    quorum = graph_add(PLAIN);
    close_quorum();
}

static void grows_for_too_few(void)
{
    struct edge edge = {.child = NULL};

    open_quorum(NULL, "'vote-threshold':2");
    remove_all();
    add_children(",'size':1048576", ",'size':1048576");
    edge.child = quorum = graph_add(PLAIN);
    ck_assert_int_eq(edge_grow(&edge, 2 * MIB), -ENOSPC);
    assert_events("write c1 2048+2048 error; write c2 2048+2048 error; failure q 2048+2048; ");
    coroutine_sleep(1000000);
    ck_assert_uint_eq(quorum->size, MIB);
    ck_assert_uint_eq(child_on_disk(0), 2 * MIB);
    remove_all();
    add_children("", "");
    graph_refuses(PLAIN, "rewrite-corrupted=on");
    edge.child = quorum = graph_add(REPAIRING);
    ck_assert_uint_eq(quorum->size, MIB);
    ck_assert_int_eq(edge_grow(&edge, 3 * MIB), 0);
    assert_events("");
    remove_all();
    add_children("", "");
    quorum = graph_add(PLAIN);
    ck_assert_uint_eq(quorum->size, 3 * MIB);
    close_quorum();
}

/* A read that meets a write sees children that differ, and that is no fault. */

struct racer {
    struct fan_task task;
    bool writes;
};

static int racer_run(struct fan_task *task)
{
    const struct racer *racer = container_of(task, struct racer, task);
    unsigned rounds = 100;

    for (unsigned i = 0; i < rounds; i++) {
        int result = racer->writes ? graph_write(quorum, 0, 16384, (int)(i + 1), 0) : read_result(quorum, 4096, 4096);

        if (result < 0)
            return result;
    }
    return 0;
}

static void reads_beside_writes(void)
{
    struct racer racers[8];
    struct fan fan = {0};

    open_quorum(NULL, "'vote-threshold':3,'rewrite-corrupted':true");
    for (unsigned i = 0; i < array_size(racers); i++) {
        racers[i] = (struct racer){.task.run = racer_run, .writes = i % 2};
        fan_start(&fan, &racers[i].task);
    }
    ck_assert_int_eq(fan_wait(&fan), 0);
    assert_events("");
    ck_assert(graph_holds(quorum, 0, 16384, 100));
    assert_children(0, 16384, 100, 100, 100);
    close_quorum();
}

/* Status */

static void tells_status(void)
{
    open_quorum(NULL, "'vote-threshold':2");
    ck_assert_str_eq(graph_map(quorum), "1048576:3");
    damage(0, 65536, 65536, 1);
    ck_assert_str_eq(graph_map(quorum), "1048576:3");
    damage(1, 131072 - 4096, 65536, 1);
    ck_assert_str_eq(graph_map(quorum), "126976:3 4096:0 917504:3");
    ck_assert_int_eq(graph_write(quorum, 0, 65536, 1, 0), 0);
    ck_assert_str_eq(graph_map(quorum), "65536:0 61440:3 4096:0 917504:3");
    close_quorum();
}

/* What reads return is not said to be zero, however few need to agree. */
static void tells_status_of_what_is_read(void)
{
    open_quorum(NULL, "'vote-threshold':1");
    damage(0, 65536, 65536, 1);
    damage(1, 65536, 65536, 1);
    ck_assert(graph_holds(quorum, 65536, 65536, 1));
    ck_assert_str_eq(graph_map(quorum), "65536:3 65536:0 917504:3");
    close_quorum();
    open_quorum(NULL, "'vote-threshold':1,'read-pattern':'fifo'");
    damage(0, 65536, 65536, 1);
    ck_assert(graph_holds(quorum, 65536, 65536, 1));
    ck_assert_str_eq(graph_map(quorum), "65536:3 65536:0 917504:3");
    close_quorum();
}

/* The whole */

static void compares(void)
{
    open_quorum(NULL, "'vote-threshold':1");
    struct node *both = graph_add("{'driver':'blkverify','node-name':'v','test':{'driver':'raw','offset':4096,"
                                  "'size':8192,'file':{'driver':'null-co','size':1048576,'read-zeroes':true}},"
                                  "'raw':{'driver':'null-co','size':8192,'read-zeroes':true}}");

    ck_assert_int_eq(read_result(both, 0, 8192), 0);
    close_node(both);
    close_quorum();
    make_file(2 * MIB);
    struct node *file = graph_add("{'driver':'file','node-name':'file','filename':'%s'}");
    both = graph_add("{'driver':'blkverify','node-name':'v','test':{'driver':'raw','size':1048576,'file':'file'},"
                     "'raw':{'driver':'raw','offset':1048576,'file':'file'}}");
    ck_assert_int_eq(graph_write(both, 0, 65536, 5, 0), 0);
    ck_assert(graph_holds(both, 0, MIB / 2, 5) == false && graph_holds(both, 0, 65536, 5));
    ck_assert_int_eq(graph_write(file, 512, 1, 4, 0), 0);
    ck_assert_int_eq(read_result(both, 0, 512), 0);
    ck_assert_int_eq(read_result(both, 0, 1024), -EIO);
    close_node(both);
    close_node(file);
}

static void resizes(void)
{
    AUTO_ERROR struct error err = {0};

    make_file(MIB);
    struct node *file = graph_add("{'driver':'file','node-name':'file','filename':'%s'}");
    quorum = graph_add("{'driver':'quorum','node-name':'q','vote-threshold':1,'children':['file',null,"
                       "{'driver':'null-co','node-name':'n','size':1048576}]}");
    ck_assert_str_eq(quorum->children[1]->name, "children.2");
    ck_assert_msg(node_resize(quorum, 2 * MIB, &err) == 0, "%s", err.text);
    ck_assert_uint_eq(quorum->size, 2 * MIB);
    ck_assert_uint_eq(file->size, 2 * MIB);
    ck_assert_uint_eq(node_find("n")->size, 2 * MIB);
    ck_assert_uint_eq(size_on_disk(), 2 * MIB);
    close_node(quorum);
    close_node(file);
}

#define REFUSES(options, words) graph_refuses("{'driver':'quorum','node-name':'x'," options "}", words)
#define NULLS(n) "{'driver':'null-co','size':" n "}"

static void refuses(void)
{
    REFUSES("'vote-threshold':1,'children':[]", "must be at least one");
    REFUSES("'vote-threshold':1,'children':[null]", "must be at least one");
    REFUSES("'vote-threshold':0,'children':[" NULLS("512") "]", "vote-threshold");
    REFUSES("'vote-threshold':2,'children':[" NULLS("512") "]", "vote-threshold=2 is more than the 1 children");
    REFUSES("'children':[" NULLS("512") "]", "vote-threshold");
    REFUSES("'vote-threshold':1,'children':[" NULLS("512") "," NULLS("1024") "]", "has 1024 bytes, but children.0");
    /* What cannot be made longer is not repaired. */
    REFUSES("'vote-threshold':1,'children':[" NULLS("512") "," NULLS("1024") "],'rewrite-corrupted':true",
            "has 1024 bytes, but children.0");
    REFUSES("'vote-threshold':1,'children':[" NULLS("512") "," NULLS("512") "],'blkverify':true",
            "blkverify=on needs two children and vote-threshold=2");
    REFUSES("'vote-threshold':2,'children':[" NULLS("512") "," NULLS("512") "],'blkverify':true,"
                                                                            "'rewrite-corrupted':true",
            "rewrite-corrupted=on does not go with blkverify=on");
    REFUSES("'vote-threshold':1,'children':[" NULLS("512") "],'read-pattern':'fifo','rewrite-corrupted':true",
            "it does not go with rewrite-corrupted=on");
    REFUSES("'vote-threshold':1,'children':['nope']", "nope");
    REFUSES("'vote-threshold':1,'children':[" NULLS("512") "],'read-pattern':'lifo'", "lifo");
    graph_refuses("{'driver':'blkverify','node-name':'x','test':" NULLS("512") ",'raw':" NULLS("513") "}",
                  "has 513 bytes, but test");
}

BOTH_RINGS(writes_to_all)
BOTH_RINGS(counts_failures)
BOTH_RINGS(reads_by_vote)
BOTH_RINGS(reads_from_those_who_can)
BOTH_RINGS(rewrites)
BOTH_RINGS(reads_in_order)
BOTH_RINGS(reads_without_allocating)
BOTH_RINGS(does_not_show_what_was)
BOTH_RINGS(grows_by_vote)
BOTH_RINGS(grows_for_too_few)
BOTH_RINGS(reads_beside_writes)
BOTH_RINGS(tells_status)
BOTH_RINGS(tells_status_of_what_is_read)
BOTH_RINGS(compares)
BOTH_RINGS(resizes)
BOTH_RINGS(refuses)

int main(void)
{
    const TTest *const all[] = {
        test_writes_to_all,
        test_counts_failures,
        test_reads_by_vote,
        test_reads_from_those_who_can,
        test_rewrites,
        test_reads_in_order,
        test_reads_without_allocating,
        test_does_not_show_what_was,
        test_grows_by_vote,
        test_grows_for_too_few,
        test_reads_beside_writes,
        test_tells_status,
        test_tells_status_of_what_is_read,
        test_compares,
        test_resizes,
        test_refuses,
    };

    /* That flushes fail is no news. */
    log_set_level(LOG_LEVEL_ERROR);
    return run_tests("quorum", all, array_size(all));
}
