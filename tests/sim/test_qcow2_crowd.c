/*
 * qcow2 under a crowd, by seed: requests from three loops on images of all
 * layouts, over files whose operations end late, in any order, in parts or not
 * at all, beside resizes; with the answers of map() where it has any, and by
 * slow() alone. What is read must be right at any time; at some moments the
 * power fails, and what is left must be an image without corruption that holds
 * all that was flushed; and at the end the image must be whole.
 *
 * The last number that Check prints before a failure's text is the seed. CAIRN_SEED=N runs one seed, CAIRN_SEEDS=N so
 * many from 0 on, CAIRN_REQUESTS=N of so many requests each.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/node.h"
#include "generated/options.h"
#include "tests/engine/world.h"
#include "tests/sim/power.h"
#include "tests/sim/ring_sim.h"
#include "tests/sim/stage.h"

#ifdef __SANITIZE_ADDRESS__
#define SEEDS 20
#else
#define SEEDS 64
#endif
#define REQUESTS 400

#define DATA_SEEDS_SHARE 4 /* of the seeds, once more with data files */

static unsigned long seeds = SEEDS, requests = REQUESTS;
#define IN_PLACE 16384u /* bytes of a write in place */

static unsigned power_lasts; /* steps of the simulation, on average */

/* Loss of power */

static void look_at_promises(struct guest *guest, const char *what)
{
    unsigned char buf[SECTOR];
    uint64_t size = guest->size < stage.size_low ? guest->size : stage.size_low;

    ck_assert_msg(stage.faulty || guest->size >= stage.size_low, "%s: the disk is too short", what);
    for (uint64_t at = 0; at < size; at += SECTOR) {
        ck_assert_msg(guest_read(guest, at, buf, SECTOR) == 0, "%s: cannot read at %lu", what, (unsigned long)at);
        for (unsigned i = 0; i < SECTOR; i++) {
            if (crowd_is_promised(stage.crowd, at + i) && buf[i] != stage.crowd->bytes[at + i])
                ck_abort_msg("%s: 0x%02x instead of 0x%02x at %lu, which was flushed", what, buf[i],
                             stage.crowd->bytes[at + i], (unsigned long)(at + i));
        }
    }
}

static void lose_power(void)
{
    struct world world;
    struct guest guest;
    struct qcow2_check_result check;
    char what[96];

    world_init(&world);
    power_fail(0, &world.bytes, &world.size);
    if (stage.image->data_file)
        power_fail(1, &world.data, &world.data_size);
    world.room = world.size;
    world.data_room = world.data_size;
    snprintf(what, sizeof(what), "power lost after %lu requests", (unsigned long)stage.crowd->ended_count);
    int result = guest_open_data_file(&guest, &world, stage.below != BELOW_NOTHING, stage.image->data_file);

    ck_assert_msg(result == 0 || (stage.faulty && result == -EACCES), "%s: does not open: %d", what, result);
    stage.crashes++;
    if (result == 0) {
        guest.backing_size = BACKING_SIZE;
        ck_assert_int_eq(qcow2_check(guest.q, false, &check), 0);
        ck_assert_msg(check.corruptions == 0, "%s: %lu corruptions", what, (unsigned long)check.corruptions);
        look_at_promises(&guest, what);
        guest_drop(&guest);
    }
    world_destroy(&world);
}

static bool work(struct loop *loop, void *arg)
{
    if (stage.file.fd >= 0 && stage.size_low && stage_random(power_lasts) == 0)
        lose_power();
    return crowd_work(loop, arg);
}

/* Steps of the control coroutine. */

static void step_resize(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = node_find("disk");
    uint64_t before = node->size, size = (64 + stage_random(CROWD_DISK_MAX / 512 - 64)) * 512;

    if (stage.image->snapshot)
        return;
    stage.size_low = size < before ? size : before;
    crowd_resizing(stage.crowd, before, size);
    int result = node_resize(node, size, &err);

    ck_assert_msg(result == 0 || stage.faulty, "cannot resize: %s", err.text);
    ck_assert(node->size == (result == 0 ? size : before) || stage.faulty);
    crowd_resized(stage.crowd, before, size, result < 0);
    stage.size_low = stage.faulty && result < 0 ? stage.size_low : node->size;
}

static void step_break(void)
{
    struct sim_fault bad = {
        .kinds = SIM_READ | SIM_WRITE | SIM_FALLOCATE, .fd = stage.file.fd, .permille = 20, .result = -EIO};
    struct sim_fault full = {
        .kinds = SIM_WRITE | SIM_FALLOCATE, .fd = stage.file.fd, .permille = 20, .result = -ENOSPC};
    struct sim_fault gone = {.kinds = SIM_FSYNC, .fd = stage.file.fd, .permille = 10, .count = 1, .result = -EIO};

    sim_forget_faults(stage.sim);
    if (!stage.faulty || stage_random(2))
        return;
    sim_fault(stage.sim, &bad);
    sim_fault(stage.sim, &full);
    if (stage_random(8) == 0) {
        sim_fault(stage.sim, &gone);
        stage.no_flush = true;
    }
}

static void control(void *arg)
{
    (void)arg;
    stage_add_nodes(true);
    while (stage.crowd->ended_count < stage.crowd->limit) {
        coroutine_sleep(stage_random(1500000));
        if (stage_random(4) == 0)
            step_resize();
        if (stage_random(2) == 0)
            step_break();
    }
    sim_forget_faults(stage.sim);
    stage_wait_for_crowd();
    stage_read_all();
    stage.size = consumer_size(&stage.crowd->consumer);
    stage_remove_nodes();
    stage.done = true;
}

/* Runs */

static void crowd_by_seed(uint64_t seed, bool by_slow, const struct image *image)
{
    power_lasts = image ? 100 : 1500;
    stage_begin(seed, by_slow, image);
    stage.crowd->limit = requests;
    stage.crowd->faulty = stage.faulty = stage_random(4) == 0;
    coroutine_start(loop_main, control, NULL);
    while (sim_step(stage.sim, work, stage.crowd))
        continue;
    stage_end(seed % 16 == 0);
}

START_TEST(by_map)
{
    crowd_by_seed((uint64_t)_i, false, NULL);
}
END_TEST

START_TEST(by_slow)
{
    crowd_by_seed((uint64_t)_i, true, NULL);
}
END_TEST

static void request(uint8_t op, uint64_t offset, uint64_t length)
{
    struct crowd_slot *slot = crowd_submit(stage.crowd, op, 0, offset, length);

    while (slot->busy)
        coroutine_sleep(100000);
    ck_assert_int_eq(slot->result, 0);
}

/* Nothing of the tables waits when these flushes come: data that was written in place is all that they are for. */
static void control_in_place(void *arg)
{
    (void)arg;
    stage_add_nodes(false);
    request(REQ_WRITE, 0, IN_PLACE);
    for (unsigned i = 0; i < 4; i++) {
        request(REQ_FLUSH, 0, 0);
        request(REQ_WRITE, i * 512, IN_PLACE - 4 * 512);
        request(REQ_FLUSH, 0, 0);
        for (unsigned k = 0; k < 8; k++)
            lose_power();
    }
    stage_wait_for_crowd();
    stage_read_all();
    stage.size = consumer_size(&stage.crowd->consumer);
    stage_remove_nodes();
    stage.done = true;
}

START_TEST(flush_of_what_was_written_in_place)
{
    stage_begin(1, false, &images[_i]);
    coroutine_start(loop_main, control_in_place, NULL);
    while (sim_step(stage.sim, NULL, NULL))
        continue;
    stage_end(true);
}
END_TEST

/* What is in one file may need what is in the other: these lose power often. */
START_TEST(by_data_file)
{
    unsigned image = _i % 2 ? 0 : image_count - 1;

    while (!images[image].data_file)
        image = (image + 1) % image_count;
    crowd_by_seed((uint64_t)_i, _i % 4 == 0, &images[image]);
}
END_TEST

static unsigned long setting(const char *name, unsigned long fallback)
{
    const char *text = getenv(name);

    return text ? strtoul(text, NULL, 10) : fallback;
}

int main(void)
{
    int seed = (int)setting("CAIRN_SEED", UINT32_MAX);
    Suite *suite = suite_create("qcow2 crowd");
    TCase *cases = tcase_create("seed");

    seeds = setting("CAIRN_SEEDS", SEEDS);
    requests = setting("CAIRN_REQUESTS", REQUESTS);
    if (!images_make())
        return 1;
    /* That flushes of broken disks fail is no news. */
    log_set_level(LOG_LEVEL_ERROR);
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, by_map, seed >= 0 ? seed : 0, seed >= 0 ? seed + 1 : (int)seeds);
    tcase_add_loop_test(cases, by_slow, seed >= 0 ? seed : 0, seed >= 0 ? seed + 1 : (int)seeds);
    tcase_add_loop_test(cases, by_data_file, seed >= 0 ? seed : 0,
                        seed >= 0 ? seed + 1 : (int)(seeds / DATA_SEEDS_SHARE));
    tcase_add_loop_test(cases, flush_of_what_was_written_in_place, 0, (int)image_count);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    images_free();
    return failed != 0;
}
