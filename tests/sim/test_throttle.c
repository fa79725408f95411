/*
 * Throttling on the simulated clock, where rates are exact: what passes in a
 * time, who shares it, what bursts and live changes do, and that neither a
 * drain nor a grace period waits for what is held. The drain of `delay` too.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/grace.h"
#include "core/memory.h"
#include "drivers/filter/throttle_group.h"
#include "generated/options.h"
#include "tests/sim/load.h"
#include "tests/sim/ring_sim.h"

#define SECOND 1000000000u

static struct sim *sim;
static void (*body)(void);
static bool body_done;

/* The control coroutine's words. */

static void add_group(const char *id, struct throttle_limits limits)
{
    struct throttle_group_options options = {.limits = &limits};
    AUTO_ERROR struct error err = {0};

    ck_assert_msg(throttle_group_add(id, &options, &err) == 0, "%s", err.text);
}

#define LIMIT(name, value) .name = (value), .has_##name = true

static void set_limits(const char *id, struct throttle_limits limits)
{
    struct object *group = object_child(object_container("objects"), id);
    struct object_value value = {.kind = OBJECT_OPTIONS, .options = {.type = &throttle_limits_type, .data = &limits}};
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();

    ck_assert_msg(object_set(group, "limits", &value, &err) == 0, "%s", err.text);
    change_abort(change);
}

/* A throttle of that name over a null-co of its own. */
static void add_node(const char *name, const char *group)
{
    struct node_options below = {.driver = NODE_DRIVER_NULL_CO, .u.null_co = {.size = (uint64_t)1 << 62}};
    struct node_ref file = {.node = &below};
    struct node_options options = {.driver = NODE_DRIVER_THROTTLE,
                                   .node_name = (char *)(uintptr_t)name,
                                   .discard = NODE_DISCARD_UNMAP,
                                   .u.throttle = {.throttle_group = (char *)(uintptr_t)group, .file = &file}};
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();
    struct node *node;

    below.discard = NODE_DISCARD_UNMAP;
    ck_assert_msg(node_add(change, &options, &node, &err) == 0, "%s", err.text);
    ck_assert_int_eq(change_apply(change, NULL), 0);
}

static void seconds(double count)
{
    coroutine_sleep((uint64_t)(count * SECOND));
}

static void assert_near(uint64_t value, double wanted)
{
    ck_assert_msg((double)value >= wanted * 0.98 && (double)value <= wanted * 1.02, "%" PRIu64 " instead of %.0f",
                  value, wanted);
}

static void control(void *arg)
{
    (void)arg;
    body();
    load_stop();
    load_remove_nodes();
    body_done = true;
}

static void run(void (*what)(void))
{
    sim = sim_new(7);
    body = what;
    body_done = false;
    for (unsigned l = 0; l < LOAD_LOOPS; l++)
        sim_loop(sim, l ? "io" : "main");
    loop_set_current(loop_main);
    coroutine_start(loop_main, control, NULL);
    while (sim_step(sim, load_work, NULL) && !body_done)
        continue;
    ck_assert(body_done);
    while (sim_step(sim, NULL, NULL))
        continue;
    sim_free(sim);
    load_free();
}

/* Rates */

static void limits_requests(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1000)});
    add_node("n", "g");
    struct load *client = load_add("n", 2, 32, REQ_READ, 4096);

    for (unsigned i = 1; i <= 10; i++) {
        seconds(1);
        ck_assert_uint_le(client->done, i * 1000 + 55);
    }
    assert_near(client->done, 10000);
}

static void limits_bytes(void)
{
    add_group("g", (struct throttle_limits){LIMIT(bps_total, 10u << 20)});
    add_node("n", "g");
    struct load *client = load_add("n", 6, 8, REQ_WRITE, 65536);

    seconds(10);
    assert_near(client->done * 65536, 100u << 20);
}

/* Much is let pass at once, on several loops. */
static void limits_many(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 100000)});
    add_node("n", "g");
    struct load *client = load_add("n", 15, 64, REQ_READ, 512);

    seconds(3);
    assert_near(client->done, 300000);
}

static void limits_each_way(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_read, 200), LIMIT(bps_write, 1u << 20)});
    add_node("n", "g");
    struct load *reader = load_add("n", 2, 16, REQ_READ, 4096);
    struct load *writer = load_add("n", 2, 16, REQ_WRITE, 4096);

    seconds(10);
    assert_near(reader->done, 2000);
    assert_near(writer->done, 2560);
}

/* The total holds for both together. */
static void limits_sum(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 500), LIMIT(iops_write, 100)});
    add_node("n", "g");
    struct load *reader = load_add("n", 2, 16, REQ_READ, 4096);
    struct load *writer = load_add("n", 4, 16, REQ_WRITE, 4096);

    seconds(10);
    assert_near(writer->done, 1000);
    assert_near(reader->done + writer->done, 5000);
}

static void passes_what_is_not_limited(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1)});
    add_node("n", "g");
    struct load *client = load_add("n", 2, 4, REQ_FLUSH, 0);

    seconds(0.01);
    ck_assert_uint_gt(client->done, 100);
}

static void limits_slow_disks(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1)});
    add_node("n", "g");
    struct load *client = load_add("n", 15, 2, REQ_READ, 4096);

    seconds(100);
    ck_assert_uint_ge(client->done, 99);
    ck_assert_uint_le(client->done, 101);
}

static void counts_large_requests(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1000), LIMIT(iops_size, 8192)});
    add_node("n", "g");
    struct load *small = load_add("n", 2, 16, REQ_READ, 4096);

    seconds(10);
    assert_near(small->done, 10000);
    small->size = 24576;
    uint64_t before = small->done;

    seconds(10);
    assert_near(small->done - before, 3333);
}

/* No sum overflows, and one who asks for all that there is does not keep others out once limits are gone. */
static void survives_huge_requests(void)
{
    add_group("g", (struct throttle_limits){LIMIT(bps_total, 1), LIMIT(iops_total, 1), LIMIT(iops_size, 1)});
    add_node("n", "g");
    struct load *client = load_add("n", 2, 32, REQ_DISCARD, (uint64_t)1 << 62);

    seconds(1000);
    ck_assert_uint_eq(client->done, 1);
    set_limits("g", (struct throttle_limits){LIMIT(bps_total, 0), LIMIT(iops_total, 0), LIMIT(iops_size, 0)});
    seconds(0.001);
    ck_assert_uint_gt(client->done, 32);
}

/* Bursts */

static void bursts_at_once(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 100), LIMIT(iops_total_max, 1000)});
    add_node("n", "g");
    struct load *client = load_add("n", 2, 64, REQ_READ, 4096);

    seconds(0.1);
    assert_near(client->done, 1010);
    seconds(9.9);
    assert_near(client->done, 2000);
    /* After a rest of half the time that the bucket needs, half a burst. */
    client->depth = 0;
    seconds(6);
    uint64_t before = client->done;

    client->depth = 64;
    seconds(0.01);
    ck_assert_uint_ge(client->done - before, 480);
    ck_assert_uint_le(client->done - before, 680);
}

static void bursts_for_long(void)
{
    add_group("g", (struct throttle_limits){LIMIT(bps_read, 1000000), LIMIT(bps_read_max, 10000000),
                                            LIMIT(bps_read_max_length, 5)});
    add_node("n", "g");
    struct load *client = load_add("n", 2, 32, REQ_READ, 1000);

    for (unsigned i = 1; i <= 5; i++) {
        seconds(1);
        ck_assert_uint_le(client->done, i * 10000 + 600);
    }
    assert_near(client->done, 50000);
    /* The bucket of 5 bursts' seconds is empty by and by, and the average is left. */
    seconds(15);
    assert_near(client->done, 50000 + 20000);
    uint64_t before = client->done;

    seconds(10);
    assert_near(client->done - before, 10000);
}

/* Sharing */

static void nodes_share(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1000)});
    add_node("a", "g");
    add_node("b", "g");
    struct load *a = load_add("a", 15, 64, REQ_READ, 4096);
    struct load *b = load_add("b", 2, 4, REQ_READ, 4096);

    seconds(10);
    assert_near(a->done, 5000);
    assert_near(b->done, 5000);
    /* Who is alone has all. */
    b->depth = 0;
    seconds(1);
    uint64_t before = a->done;

    seconds(10);
    assert_near(a->done - before, 10000);
}

static void clients_share(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1000)});
    add_node("n", "g");
    struct load *greedy = load_add("n", 2, 64, REQ_READ, 4096);
    struct load *modest = load_add("n", 2, 2, REQ_READ, 4096);

    seconds(10);
    assert_near(greedy->done + modest->done, 10000);
    assert_near(modest->done, 5000);
}

/* As the connections of one export do. */
static void connections_share(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1000)});
    add_node("n", "g");
    struct load *load = load_add("n", 2, 64, REQ_READ, 4096);

    load->second = 2;
    seconds(10);
    assert_near(load->done, 10000);
    assert_near(load->done_second, 5000);
}

/* Changes */

static void changes_live(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1), LIMIT(bps_read, 100u << 20)});
    add_node("n", "g");
    struct load *client = load_add("n", 15, 16, REQ_READ, 65536);

    seconds(10);
    ck_assert_uint_le(client->done, 11);
    uint64_t before = client->done;

    set_limits("g", (struct throttle_limits){LIMIT(iops_total, 1000)});
    seconds(10);
    assert_near(client->done - before, 10000);
    /* What was not named has stayed. */
    before = client->done;
    set_limits("g", (struct throttle_limits){LIMIT(iops_total, 0)});
    seconds(10);
    assert_near(client->done - before, 16000);
    set_limits("g", (struct throttle_limits){LIMIT(bps_read, 0), LIMIT(iops_write, 0)});
    before = client->done;
    seconds(0.01);
    ck_assert_uint_gt(client->done - before, 2000);
}

static void touch(const char *name)
{
    struct change *change = change_new();
    AUTO_ERROR struct error err = {0};

    change_touch(change, node_find(name));
    ck_assert_msg(change_apply(change, &err) == 0, "%s", err.text);
}

/* A drain lets all go; the rate holds for all that. */
static void drains_at_once(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 10)});
    add_node("a", "g");
    add_node("b", "g");
    struct load *a = load_add("a", 15, 16, REQ_READ, 4096);
    struct load *b = load_add("b", 15, 1, REQ_WRITE, 4096);
    uint64_t start = sim_now(sim), drains = 0;

    seconds(1);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t before = sim_now(sim), done = b->done;

        touch("a");
        ck_assert_uint_lt(sim_now(sim) - before, 1000000);
        /* Those of the other node are not let go. */
        ck_assert_uint_le(b->done - done, 1);
        drains += 64;
        seconds(0.05);
    }
    ck_assert_uint_ge(a->done, drains);
    set_limits("g", (struct throttle_limits){LIMIT(iops_total, 100)});
    seconds(5);
    touch("a");
    uint64_t after = a->done + b->done;

    /* 64 let go at once count against what follows. */
    seconds(0.5);
    ck_assert_uint_le(a->done + b->done, after + 3);
    ck_assert_uint_gt(sim_now(sim), start);
}

/* What waits in a delay goes on at once in a drain, on all loops, and what comes after it waits again. */
static void drains_delays(void)
{
    struct node_options below = {.driver = NODE_DRIVER_NULL_CO, .u.null_co = {.size = 1 << 20}};
    struct node_ref file = {.node = &below};
    struct node_options options = {.driver = NODE_DRIVER_DELAY,
                                   .node_name = (char *)(uintptr_t) "delay",
                                   .u.delay = {.file = &file, .latency_ns = (uint64_t)10 * SECOND}};
    struct change *change = change_new();
    struct node *node;

    ck_assert_int_eq(node_add(change, &options, &node, NULL), 0);
    ck_assert_int_eq(change_apply(change, NULL), 0);
    const struct load *load = load_add("delay", 15, 4, REQ_READ, 4096);

    for (unsigned i = 1; i <= 5; i++) {
        seconds(2);
        ck_assert_uint_eq(load->done, (i - 1) * 16);
        uint64_t before = sim_now(sim);

        touch("delay");
        ck_assert_uint_lt(sim_now(sim) - before, 1000000);
        ck_assert_uint_eq(load->done, i * 16);
    }
    seconds(9);
    ck_assert_uint_eq(load->done, 80);
    seconds(2);
    ck_assert_uint_eq(load->done, 96);
}

/* Held requests do not hold up grace periods, unless what is above has looked something up for them. */
static void held_requests_have_no_epoch(void)
{
    add_group("g", (struct throttle_limits){LIMIT(iops_total, 1)});
    add_node("n", "g");
    struct node_ref file = {.name = (char *)(uintptr_t) "n"};
    struct node_options filter = {
        .driver = NODE_DRIVER_DELAY, .node_name = (char *)(uintptr_t) "filter", .u.delay.file = &file};
    struct node_options format = {
        .driver = NODE_DRIVER_RAW, .node_name = (char *)(uintptr_t) "format", .u.raw.file = &file};
    struct node *node;
    struct change *change = change_new();

    ck_assert_int_eq(node_add(change, &filter, &node, NULL), 0);
    ck_assert_int_eq(change_apply(change, NULL), 0);
    load_add("filter", 15, 8, REQ_READ, 4096);
    seconds(1);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t before = sim_now(sim);

        grace_wait();
        ck_assert_uint_lt(sim_now(sim) - before, 1000000);
        seconds(0.3);
    }
    change = change_new();
    ck_assert_int_eq(node_add(change, &format, &node, NULL), 0);
    ck_assert_int_eq(change_apply(change, NULL), 0);
    load_add("format", 2, 2, REQ_READ, 4096);
    seconds(0.1);
    uint64_t before = sim_now(sim);

    grace_wait();
    ck_assert_uint_gt(sim_now(sim) - before, SECOND / 2);
}

/* Control */

static void refuses(struct throttle_limits limits, const char *words)
{
    struct throttle_group_options options = {.limits = &limits};
    AUTO_ERROR struct error err = {0};

    ck_assert_int_eq(throttle_group_add("bad", &options, &err), -EINVAL);
    ck_assert_msg(strstr(err.text, words), "%s", err.text);
    ck_assert_ptr_null(object_child(object_container("objects"), "bad"));
}

static void refuses_bad_limits(void)
{
    AUTO_ERROR struct error err = {0};
    struct throttle_limits bad = {LIMIT(iops_total_max, 5)}, old = {LIMIT(iops_total, 10)};
    struct object_value value = {.kind = OBJECT_OPTIONS, .options = {.type = &throttle_limits_type, .data = &bad}};
    struct object_value now = {0};

    refuses((struct throttle_limits){LIMIT(bps_read_max, 7)}, "bps-read-max=7 needs bps-read");
    refuses((struct throttle_limits){LIMIT(iops_write, 9), LIMIT(iops_write_max, 8)},
            "iops-write-max=8 is lower than iops-write=9");
    refuses((struct throttle_limits){LIMIT(bps_total, 9), LIMIT(bps_total_max_length, 3)},
            "bps-total-max-length=3 needs bps-total-max");
    refuses((struct throttle_limits){LIMIT(bps_total, 9), LIMIT(iops_size, 512)},
            "iops-size=512 needs a limit of iops");
    /* Nothing changes. */
    add_group("g", old);
    struct object *group = object_child(object_container("objects"), "g");

    ck_assert_int_eq(object_set(group, "limits", &value, &err), -EINVAL);
    ck_assert_str_eq(err.text, "iops-total-max=5 is lower than iops-total=10");
    ck_assert_int_eq(object_get(group, "limits", &now, NULL), 0);
    ck_assert_uint_eq(((struct throttle_limits *)now.options.data)->iops_total, 10);
    ck_assert_uint_eq(((struct throttle_limits *)now.options.data)->iops_total_max, 0);
    object_value_clear(&now);
}

static void (*const bodies[])(void) = {
    limits_requests,
    limits_bytes,
    limits_many,
    limits_each_way,
    limits_sum,
    passes_what_is_not_limited,
    limits_slow_disks,
    counts_large_requests,
    survives_huge_requests,
    bursts_at_once,
    bursts_for_long,
    nodes_share,
    clients_share,
    connections_share,
    changes_live,
    drains_at_once,
    drains_delays,
    held_requests_have_no_epoch,
    refuses_bad_limits,
};

START_TEST(throttles)
{
    run(bodies[_i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("throttle");
    TCase *tests = tcase_create("throttle");

    tcase_add_loop_test(tests, throttles, 0, (int)array_size(bodies));
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
