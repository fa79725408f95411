/*
 * Nodes that become longer while they are in use, and fans: what formats need
 * of core.
 */
#include "core/fan.h"
#include "tests/unit/node_harness.h"

static struct node *add_raw(const char *name, const char *file, uint64_t size)
{
    struct node_ref ref = {.name = (char *)(uintptr_t)file};
    struct node_options options = {.driver = NODE_DRIVER_RAW,
                                   .u.raw = {.file = &ref, .offset = 512, .has_size = size != 0, .size = size}};
    AUTO_ERROR struct error err = {0};
    struct node *node = NULL;

    ck_assert_msg(try_open(name, &options, &node, &err) == 0, "%s", err.text);
    return node;
}

static void grows_with(bool direct)
{
    make_file(MIB + 512);
    struct node *file = open_node("file", direct);

    if (!file)
        return;
    struct node *raw = add_raw("raw", "file", 0);
    struct edge edge = {.child = raw};
    unsigned char data[512];

    ck_assert_int_eq(edge_grow(&edge, MIB), 0);
    ck_assert_uint_eq(size_on_disk(), MIB + 512);
    ck_assert_int_eq(edge_grow(&edge, 3 * MIB), 0);
    ck_assert_uint_eq(size_on_disk(), 3 * MIB + 512);
    ck_assert_uint_eq(file->size, 3 * MIB + 512);
    ck_assert_int_eq(edge_read(&edge, 3 * MIB - 512, data, 512), 0);
    ck_assert_uint_eq(data[0], 0);
    /* Less than there is changes nothing. */
    ck_assert_int_eq(edge_grow(&edge, 2 * MIB), 0);
    ck_assert_uint_eq(size_on_disk(), 3 * MIB + 512);
    ck_assert_int_lt(edge_grow(&edge, INT64_MAX), 0);
    /* Parents are told by a message. */
    coroutine_sleep(1000000);
    ck_assert_uint_eq(raw->size, 3 * MIB);
    close_node(raw);
    close_node(file);
}

static void grows(void)
{
    grows_with(false);
    grows_with(true);
}

static void does_not_grow(void)
{
    struct node_options options = {.driver = NODE_DRIVER_NULL_CO, .u.null_co = {.size = MIB}};
    AUTO_ERROR struct error err = {0};
    struct node *null = NULL;

    make_file(MIB);
    struct node *file = open_node("file", false), *raw = add_raw("raw", "file", 4096);
    struct edge edge = {.child = raw};

    ck_assert_int_eq(edge_grow(&edge, 8192), -ENOSPC);
    ck_assert_int_eq(try_open("null", &options, &null, &err), 0);
    edge.child = null;
    ck_assert_int_eq(edge_grow(&edge, MIB), 0);
    ck_assert_int_eq(edge_grow(&edge, 2 * MIB), -ENOSPC);
    close_node(null);
    close_node(raw);
    close_node(file);
}

/* Fans */

struct sleeper {
    struct fan_task task;
    uint64_t ns;
    int result;
    bool done;
};

static int sleeper_run(struct fan_task *task)
{
    struct sleeper *sleeper = container_of(task, struct sleeper, task);

    if (sleeper->ns)
        coroutine_sleep(sleeper->ns);
    sleeper->done = true;
    return sleeper->result;
}

static void fans(void)
{
    struct sleeper tasks[] = {
        {.ns = 3000000}, {.ns = 1000000, .result = -ENOSPC}, {.ns = 0}, {.ns = 2000000, .result = -EIO}};
    struct fan fan = {0};

    ck_assert_int_eq(fan_wait(&fan), 0);
    for (unsigned i = 0; i < array_size(tasks); i++) {
        tasks[i].task.run = sleeper_run;
        fan_start(&fan, &tasks[i].task);
    }
    ck_assert(tasks[2].done && !tasks[0].done);
    ck_assert_int_eq(fan_wait(&fan), -ENOSPC);
    for (unsigned i = 0; i < array_size(tasks); i++)
        ck_assert(tasks[i].done);
    fan = (struct fan){0};
    tasks[2].result = 0;
    fan_start(&fan, &tasks[2].task);
    ck_assert_int_eq(fan_wait(&fan), 0);
}

BOTH_RINGS(grows)
BOTH_RINGS(does_not_grow)
BOTH_RINGS(fans)

int main(void)
{
    const TTest *const all[] = {test_grows, test_does_not_grow, test_fans};

    return run_tests("grow", all, array_size(all));
}
