/*
 * Races of qcow2 that destroyed data elsewhere, each played with an operation
 * that the file holds back: the order in which it goes wrong is certain, not
 * likely. By map() and by slow() alone.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/log.h"
#include "core/loop.h"
#include "core/memory.h"
#include "tests/sim/ring_sim.h"
#include "tests/sim/stage.h"

#define OTHERS 5u /* clusters that are written meanwhile: as many as there are free slots */

static void (*play)(void);
static uint64_t cluster; /* bytes */

static void finish(struct crowd_slot *slot)
{
    while (slot->busy)
        coroutine_sleep(10000);
    ck_assert_int_eq(slot->result, 0);
}

static void request(uint8_t op, uint64_t offset, uint64_t length)
{
    finish(crowd_submit(stage.crowd, op, 0, offset, length));
}

static void hold(unsigned kinds)
{
    struct sim_fault fault = {.kinds = kinds, .fd = stage.file.fd, .count = 1, .result = SIM_NEVER};

    sim_fault(stage.sim, &fault);
}

/* Until the file holds something back: nothing would be shown otherwise. */
static void wait_until_held(void)
{
    for (unsigned i = 0; i < 1000 && !sim_held(stage.sim); i++)
        coroutine_sleep(100000);
    ck_assert_uint_eq(sim_held(stage.sim), 1);
}

static void write_others(void)
{
    for (unsigned i = 1; i <= OTHERS; i++)
        request(REQ_WRITE, i * cluster, cluster);
}

static void read_others(void)
{
    for (unsigned i = 1; i <= OTHERS; i++)
        request(REQ_READ, i * cluster, cluster);
}

/*
 * A write in place is on its way to its cluster while a discard lets go of
 * that. Whoever is given the cluster next must not find the late write in it.
 */
static void play_write_versus_discard(void)
{
    request(REQ_WRITE, 0, cluster);
    request(REQ_FLUSH, 0, 0);
    hold(SIM_WRITE);
    struct crowd_slot *late = crowd_submit(stage.crowd, REQ_WRITE, 0, 0, cluster);

    wait_until_held();
    request(REQ_DISCARD, 0, cluster);
    for (unsigned i = 0; i < 3; i++) {
        request(REQ_FLUSH, 0, 0);
        coroutine_sleep(10000000);
    }
    for (unsigned i = 1; i < OTHERS; i++)
        request(REQ_WRITE, i * cluster, cluster);
    sim_release(stage.sim);
    finish(late);
    request(REQ_WRITE, OTHERS * cluster, cluster);
}

/* The same with a read, which must not be given another's data. */
static void play_read_versus_discard(void)
{
    request(REQ_WRITE, 0, cluster);
    request(REQ_FLUSH, 0, 0);
    hold(SIM_READ);
    struct crowd_slot *late = crowd_submit(stage.crowd, REQ_READ, 0, 0, cluster);
    AUTO_FREE unsigned char *before = memory_zero(cluster);

    memcpy(before, stage.crowd->bytes, cluster);
    wait_until_held();
    request(REQ_DISCARD, 0, cluster);
    for (unsigned i = 0; i < 3; i++) {
        request(REQ_FLUSH, 0, 0);
        coroutine_sleep(10000000);
    }
    for (unsigned i = 1; i < OTHERS; i++)
        request(REQ_WRITE, i * cluster, cluster);
    sim_release(stage.sim);
    finish(late);
    for (unsigned i = 0; i < cluster; i++)
        ck_assert(late->data[i] == before[i] || late->data[i] == 0);
    request(REQ_WRITE, OTHERS * cluster, cluster);
}

/* The data of an allocating write is on its way; a discard of the same place must wait for the link, and free it. */
static void play_allocating_write_versus_discard(void)
{
    hold(SIM_WRITE);
    struct crowd_slot *late = crowd_submit(stage.crowd, REQ_WRITE, 0, 0, cluster);

    wait_until_held();
    struct crowd_slot *discard = crowd_submit(stage.crowd, REQ_DISCARD, 0, 0, cluster);

    coroutine_sleep(10000000);
    for (unsigned i = 1; i < OTHERS; i++)
        request(REQ_WRITE, i * cluster, cluster);
    ck_assert(late->busy && discard->busy);
    sim_release(stage.sim);
    finish(late);
    finish(discard);
    request(REQ_FLUSH, 0, 0);
    request(REQ_WRITE, OTHERS * cluster, cluster);
}

/* Two writes to one new cluster at the same time: there is one cluster, and both are in it. */
static void play_two_allocating_writes(void)
{
    hold(SIM_WRITE);
    struct crowd_slot *first = crowd_submit(stage.crowd, REQ_WRITE, 0, 0, 1024);

    wait_until_held();
    struct crowd_slot *second = crowd_submit(stage.crowd, REQ_WRITE, 0, 2048, 1024);

    coroutine_sleep(10000000);
    sim_release(stage.sim);
    finish(first);
    finish(second);
    request(REQ_READ, 0, cluster);
    write_others();
}

/* The hole for what was discarded comes late: nobody may have been given the cluster before. */
static void play_hole_punched_late(void)
{
    struct crowd_slot *slots[OTHERS];
    unsigned count = 0;

    request(REQ_WRITE, 0, cluster);
    request(REQ_FLUSH, 0, 0);
    hold(SIM_FALLOCATE);
    request(REQ_DISCARD, 0, cluster);
    slots[count++] = crowd_submit(stage.crowd, REQ_FLUSH, 0, 0, 0);
    for (unsigned i = 0; i < 100 && !sim_held(stage.sim); i++)
        coroutine_sleep(1000000);
    while (count < OTHERS) {
        slots[count] = crowd_submit(stage.crowd, REQ_WRITE, 0, count * cluster, cluster);
        coroutine_sleep(10000000);
        count++;
    }
    wait_until_held();
    coroutine_sleep(10000000);
    sim_release(stage.sim);
    for (unsigned i = 0; i < count; i++)
        finish(slots[i]);
    request(REQ_FLUSH, 0, 0);
    request(REQ_WRITE, OTHERS * cluster, cluster);
}

/*
 * A host cluster whose only compressed data was discarded gets its hole, while
 * another compressed write finds room in it.
 */
static void play_hole_punched_where_compressed_data_goes(void)
{
    finish(crowd_submit(stage.crowd, REQ_WRITE, REQ_COMPRESSED, 0, cluster));
    request(REQ_DISCARD, 0, cluster);
    for (unsigned i = 0; i < 3; i++) {
        request(REQ_FLUSH, 0, 0);
        coroutine_sleep(10000000);
    }
    hold(SIM_FALLOCATE);
    struct crowd_slot *plain = crowd_submit(stage.crowd, REQ_WRITE, 0, 2 * cluster, cluster);

    wait_until_held();
    struct crowd_slot *late = crowd_submit(stage.crowd, REQ_WRITE, REQ_COMPRESSED, cluster, cluster);

    coroutine_sleep(10000000);
    sim_release(stage.sim);
    finish(plain);
    finish(late);
    request(REQ_READ, cluster, cluster);
    for (unsigned i = 2; i <= OTHERS; i++)
        request(REQ_WRITE, i * cluster, cluster);
}

static void control(void *arg)
{
    (void)arg;
    stage_add_nodes(false);
    play();
    read_others();
    sim_forget_faults(stage.sim);
    stage_wait_for_crowd();
    stage_read_all();
    stage.size = consumer_size(&stage.crowd->consumer);
    stage_remove_nodes();
    stage.done = true;
}

static void (*const plays[])(void) = {
    play_write_versus_discard,  play_read_versus_discard, play_allocating_write_versus_discard,
    play_two_allocating_writes, play_hole_punched_late,   play_hole_punched_where_compressed_data_goes,
};

/* On images with whole clusters and with subclusters. */
static void perform(unsigned number, const char *options, bool by_slow)
{
    const struct image *image = images;

    while (strcmp(image->options, options) != 0)
        image++;
    for (uint64_t seed = 0; seed < 4; seed++) {
        stage_begin(seed, by_slow, image);
        play = plays[number];
        cluster = strstr(options, "16k") ? 16384 : 4096;
        coroutine_start(loop_main, control, NULL);
        while (sim_step(stage.sim, NULL, NULL))
            continue;
        stage_end(seed == 0);
    }
}

#define RACE(name, number)                                                                                        \
    START_TEST(name)                                                                                              \
    {                                                                                                             \
        perform(number, _i / 2 ? "cluster_size=16k,extended_l2=on" : "cluster_size=4k,refcount_bits=64", _i % 2); \
    }                                                                                                             \
    END_TEST

RACE(write_versus_discard, 0)
RACE(read_versus_discard, 1)
RACE(allocating_write_versus_discard, 2)
RACE(two_allocating_writes, 3)
RACE(hole_punched_late, 4)
RACE(hole_punched_where_compressed_data_goes, 5)

int main(void)
{
    Suite *suite = suite_create("qcow2 races");
    TCase *cases = tcase_create("race");

    if (!images_make())
        return 1;
    log_set_level(LOG_LEVEL_ERROR);
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, write_versus_discard, 0, 4);
    tcase_add_loop_test(cases, read_versus_discard, 0, 4);
    tcase_add_loop_test(cases, allocating_write_versus_discard, 0, 4);
    tcase_add_loop_test(cases, two_allocating_writes, 0, 4);
    tcase_add_loop_test(cases, hole_punched_late, 0, 4);
    tcase_add_loop_test(cases, hole_punched_where_compressed_data_goes, 0, 4);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    images_free();
    return failed != 0;
}
