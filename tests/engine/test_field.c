/*
 * Faults of other implementations that destroyed disks in the field, each by
 * its name.
 */
#include <check.h>
#include <endian.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/world.h"

#define REFTABLE_FIELDS 48u /* in the header: offset and clusters of the refcount table, 12 bytes */

static uint64_t random_state = 7;

static uint64_t random_below(uint64_t limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 33) % limit;
}

static void check_image(struct guest *guest, uint64_t leaks, const char *what)
{
    struct qcow2_check_result check;
    uint64_t differs = guest_compare(guest);

    ensure_msg(differs == UINT64_MAX, "%s: sector %lu differs", what, (unsigned long)differs);
    ensure((qcow2_check(guest->q, false, &check)) == 0);
    ensure_msg(check.corruptions == 0, "%s: %lu corruptions", what, (unsigned long)check.corruptions);
    ensure_msg(check.leaks <= leaks, "%s: %lu leaks", what, (unsigned long)check.leaks);
}

/* --- A table is published before it is refcounted, and then there is no space --- */

static const struct qcow2_create_options tight = {
    .version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 3 << 20};
#define TIGHT_STEP 4096u

/* An image that needs a larger refcount table with the next write at *at. */
static void tight_make(struct world *world, uint64_t *at)
{
    struct guest guest;
    unsigned char before[12], *old = malloc(WORLD_FILE_MAX);

    must(old);
    world_init(world);
    guest_create(&guest, world, &tight);
    memcpy(before, world->bytes + REFTABLE_FIELDS, sizeof(before));
    for (*at = 0; *at < tight.size; *at += TIGHT_STEP) {
        uint64_t old_size = world->size;

        memcpy(old, world->bytes, old_size);
        ensure((guest_write(&guest, *at, TIGHT_STEP)) == 0);
        ensure((guest_flush(&guest)) == 0);
        if (memcmp(before, world->bytes + REFTABLE_FIELDS, sizeof(before)) != 0) {
            guest_drop(&guest);
            world_resize(world, old_size);
            memcpy(world->bytes, old, old_size);
            free(old);
            return;
        }
    }
    ck_abort_msg("the refcount table never grew");
}

/* True if the N-th call failed. */
static bool tight_fails(const struct world *full, uint64_t at, int code, bool for_ever, uint64_t number)
{
    struct world world;
    struct guest guest;
    char what[96];
    unsigned failed = 0;

    snprintf(what, sizeof(what), "call %lu fails with %d%s", (unsigned long)number, code, for_ever ? " for ever" : "");
    world_init(&world);
    world_resize(&world, full->size);
    memcpy(world.bytes, full->bytes, full->size);
    ensure((guest_open(&guest, &world, false)) == 0);
    ensure((guest_read(&guest, 0, guest.model, guest.size)) == 0);
    world.calls = 0;
    world.fail_at = number;
    world.fail_code = code;
    world.fail_for_ever = for_ever;
    for (unsigned i = 0; i < 3; i++)
        failed += guest_write(&guest, at + i * TIGHT_STEP, TIGHT_STEP) < 0;
    failed += guest_flush(&guest) < 0;
    bool reached = world.calls >= number;

    ensure_msg(!for_ever || !reached || failed, "%s: nobody was told", what);
    world.fail_at = 0;
    if (!qcow2_is_corrupted(guest.q)) {
        ensure_msg(guest_flush(&guest) == 0, "%s: a later flush fails", what);
        check_image(&guest, UINT64_MAX, what);
        /* What was given out twice would show now. */
        for (unsigned i = 0; i < 40; i++)
            ensure((guest_write(&guest, (at + i * TIGHT_STEP) % tight.size, TIGHT_STEP)) == 0);
        check_image(&guest, UINT64_MAX, what);
        ensure((qcow2_finish(guest.q)) == 0);
    }
    guest_drop(&guest);
    struct guest again;
    int result = guest_open(&again, &world, false);

    ensure_msg(result == 0 || world.reports, "%s: does not open again: %d", what, result);
    if (result == 0) {
        ensure((guest_read(&again, 0, again.model, again.size)) == 0);
        check_image(&again, UINT64_MAX, what);
        guest_drop(&again);
    }
    world_destroy(&world);
    return reached;
}

START_TEST(table_published_before_it_is_refcounted)
{
    uint64_t at, number = 1;
    struct world full;

    tight_make(&full, &at);
    while (tight_fails(&full, at, _i % 2 ? -EIO : -ENOSPC, _i / 2, number))
        number++;
    ck_assert_uint_gt(number, 20);
    world_destroy(&full);
}
END_TEST

/* --- A hole is punched late, on a cluster that is in use again --- */

static struct guest *punched_guest;
static unsigned punched;
static bool punched_live[WORLD_FILE_MAX / 4096];

static void punch(void *opaque, enum format_file file, uint64_t offset, uint64_t length)
{
    for (uint64_t at = offset; at < offset + length; at += 4096)
        ensure_msg(!punched_live[at / 4096], "a hole at 0x%lx, which is in use", (unsigned long)at);
    punched++;
    world_io.discard(opaque, file, offset, length);
}

/* Which clusters of the file the guest's disk is in. */
static void note_live(void)
{
    struct mapping mapping;

    memset(punched_live, 0, sizeof(punched_live));
    for (uint64_t at = 0; at < punched_guest->size; at += 4096) {
        ensure((qcow2_load(punched_guest->q, at, 4096, &mapping)) == 0);
        if (mapping.kind == MAPPING_DATA) {
            ensure_msg(!punched_live[mapping.host / 4096], "two places share 0x%lx", (unsigned long)mapping.host);
            punched_live[mapping.host / 4096] = true;
        }
    }
}

START_TEST(hole_punched_late_onto_a_reused_cluster)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 << 10};
    struct qcow2_settings settings = {.discard_freed = true, .discard_other = true, .overlap_check = UINT32_MAX};
    struct format_io io = world_io;
    char text[256];
    struct world world;
    struct guest guest;

    io.discard = punch;
    world_init(&world);
    guest_create(&guest, &world, &options);
    qcow2_close(guest.q);
    ensure((qcow2_open(&guest.q, &io, &world, &settings, text)) == 0);
    punched_guest = &guest;
    for (unsigned i = 0; i < 4000; i++) {
        uint64_t at = random_below(64) * 4096,
                 length = (1 + random_below(64 - at / 4096 < 6 ? 64 - at / 4096 : 6)) * 4096;

        world.grace_held = random_below(3) == 0;
        switch (random_below(4)) {
        case 0:
            ensure((guest_discard(&guest, at, length)) == 0);
            break;
        case 1:
            ensure((guest_flush(&guest)) == 0);
            break;
        default:
            ensure((guest_write(&guest, at, length)) == 0);
            break;
        }
        note_live();
        ensure_msg(i % 50 || guest_compare(&guest) == UINT64_MAX, "content is lost after %u requests", i);
    }
    ck_assert_uint_gt(punched, 100);
    world.grace_held = false;
    ensure((qcow2_finish(guest.q)) == 0);
    check_image(&guest, 0, "at the end");
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

/* --- A refcount block that has moved is never used again: the file grows with each flush --- */

START_TEST(file_grows_with_each_flush)
{
    static const struct qcow2_create_options layouts[] = {
        {.version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 256 << 10},
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 << 10},
        {.version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true, .size = 256 << 10},
        {.version = 3, .cluster_bits = 9, .refcount_order = 4, .lazy_refcounts = true, .size = 256 << 10},
    };
    struct world world;
    struct guest guest;
    struct qcow2_check_result check;
    uint64_t early = 0;

    world_init(&world);
    guest_create(&guest, &world, &layouts[_i]);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t at = i % 16 * 16384;

        ensure((guest_write(&guest, at, 16384)) == 0);
        ensure((guest_flush(&guest)) == 0);
        ensure((i % 3 ? guest_discard(&guest, at, 16384) : guest_zero(&guest, at, 16384, true)) == 0);
        if (i % 2)
            ensure((guest_flush(&guest)) == 0);
        if (i == 300)
            early = world.size;
    }
    ck_assert_uint_eq(world.size, early);
    ensure((qcow2_finish(guest.q)) == 0);
    ensure((qcow2_check(guest.q, false, &check)) == 0);
    ck_assert_uint_eq(check.leaks, 0);
    check_image(&guest, 0, "at the end");
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

/* --- Tables outside the file are accepted --- */

/* 4 KiB clusters: 0 header, 1 refcount table, 2 refcount block, 3 L1 table, 4 L2 table, then data. */
static void small_image(struct world *world)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 << 10};
    struct guest guest;

    world_init(world);
    guest_create(&guest, world, &options);
    ensure((guest_write(&guest, 0, 65536)) == 0);
    guest_close(&guest);
}

static void poke(struct world *world, uint64_t offset, uint64_t value)
{
    value = htobe64(value);
    memcpy(world->bytes + offset, &value, sizeof(value));
}

static const struct outside {
    const char *what;
    uint64_t place;
    bool opens;
} outside[] = {
    {"L1 table", 40, false},
    {"refcount table", 48, false},
    {"L2 table", 0x3000, true},
    {"refcount block", 0x1000, true},
};
static const uint64_t outside_values[] = {1 << 20, 1 << 30, UINT64_C(1) << 40, (UINT64_C(1) << 56) - 4096};

START_TEST(tables_outside_the_file)
{
    const struct outside *table = &outside[_i / 4];
    uint64_t value = outside_values[_i % 4], size;
    struct world world;
    struct guest guest;
    unsigned char buf[512];

    small_image(&world);
    size = world.size;
    poke(&world, table->place, value | (_i / 4 == 2 ? UINT64_C(1) << 63 : 0));
    int result = guest_open(&guest, &world, false);

    ensure_msg(table->opens == (result == 0), "%s at 0x%lx: %d", table->what, (unsigned long)value, result);
    if (result == 0) {
        bool read = guest_read(&guest, 0, buf, sizeof(buf)) == 0, written = guest_write(&guest, 131072, 4096) == 0;

        ensure_msg(!written && world.reports == 1, "%s at 0x%lx: was used", table->what, (unsigned long)value);
        ensure_msg(read == (_i / 4 == 3), "%s at 0x%lx: read", table->what, (unsigned long)value);
        ck_assert_uint_eq(world.size, size);
        guest_drop(&guest);
    }
    world_destroy(&world);
}
END_TEST

/* --- Data behind the end of the file, where clusters read as zeroes, is cut off at the end --- */

START_TEST(data_behind_the_end)
{
    struct world world;
    struct guest guest;

    small_image(&world);
    ensure(guest_open(&guest, &world, false) == 0);
    ensure(guest_discard(&guest, 0, 4096) == 0);
    guest_close(&guest);
    /* The last clusters of the file are a hole that has no end. */
    world_resize(&world, world.size - 5 * 4096);
    ensure(guest_open(&guest, &world, false) == 0);
    ensure(guest_read(&guest, 0, guest.model, guest.size) == 0);
    ensure(guest_write(&guest, 65536 - 4096, _i ? 512 : 4096) == 0);
    ensure(guest_flush(&guest) == 0);
    /* Takes the cluster that is free, and so little makes the file grow. */
    ensure(guest_write(&guest, 131072, 4096) == 0);
    ensure(qcow2_finish(guest.q) == 0);
    check_image(&guest, 0, "at the end");
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

/* --- The allocator hands out what is in use as a table; or the header --- */

START_TEST(live_table_is_handed_out)
{
    struct world world;
    struct guest guest;
    unsigned char before[5 * 4096];

    small_image(&world);
    /* The refcount of cluster _i is 0. */
    memset(world.bytes + 0x2000 + 2 * _i, 0, 2);
    ensure((guest_open(&guest, &world, false)) == 0);
    memcpy(before, world.bytes, sizeof(before));
    ck_assert_int_lt(guest_write(&guest, 131072, 4096), 0);
    ck_assert(qcow2_is_corrupted(guest.q));
    /* But for the mark in the header all is as it was. */
    before[79] |= 2;
    ck_assert(memcmp(before, world.bytes, sizeof(before)) == 0);
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("field");
    TCase *cases = tcase_create("field");
    SRunner *runner;

    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, table_published_before_it_is_refcounted, 0, 4);
    tcase_add_test(cases, hole_punched_late_onto_a_reused_cluster);
    tcase_add_loop_test(cases, file_grows_with_each_flush, 0, 4);
    tcase_add_loop_test(cases, tables_outside_the_file, 0, 16);
    tcase_add_loop_test(cases, data_behind_the_end, 0, 2);
    tcase_add_loop_test(cases, live_table_is_handed_out, 0, 5);
    /* Images that are made again and again take the same memory. */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    suite_add_tcase(suite, cases);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed ? 1 : 0;
}
