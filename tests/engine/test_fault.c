/*
 * Faults. A workload runs again and again, and each time the next call of the
 * world fails, once or from then on: the error must reach the operation that
 * caused it, nothing else may be lost, and what is there afterwards must be an
 * image without corruption, also for who opens it anew.
 */
#include <check.h>
#include <endian.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/world.h"

struct fault {
    int code;
    bool for_ever;
};

static const struct fault faults[] = {{-EIO, false}, {-EIO, true}, {-ENOSPC, false}, {-ENOSPC, true}};

static const struct qcow2_create_options layouts[] = {
    {.version = 3, .cluster_bits = 9, .refcount_order = 4},
    {.version = 2, .cluster_bits = 9, .refcount_order = 4, .backing_name = "b", .backing_format = "raw"},
    {.version = 3, .cluster_bits = 9, .refcount_order = 6},
    {.version = 3, .cluster_bits = 12, .refcount_order = 1, .lazy_refcounts = true, .zstd = true},
    {.version = 3,
     .cluster_bits = 14,
     .refcount_order = 4,
     .extended_l2 = true,
     .backing_name = "b",
     .backing_format = "raw"},
};
#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))
#define CASES (LAYOUTS * sizeof(faults) / sizeof(faults[0]))

/* Other settings, which nothing that is written may be lost for; every second time they are dropped at the end. */
static int change_settings(struct guest *guest, uint64_t l2_cache, bool lazy, bool commit)
{
    struct qcow2_settings settings = {.l2_cache = l2_cache, .refcount_cache = l2_cache, .lazy_refcounts = lazy};
    struct qcow2_change *change = NULL;
    char text[256];

    /* As the image says where it is version 2. */
    settings.has_lazy_refcounts = guest->world->bytes[7] == 3;
    int result = qcow2_change_prepare(guest->q, &settings, &change, text);

    if (result == 0 && commit)
        qcow2_change_commit(guest->q, change);
    else if (result == 0)
        qcow2_change_abort(guest->q, change);
    return result;
}

/* One of everything. Returns how many operations failed. */
static unsigned work(struct guest *guest)
{
    uint64_t cluster = qcow2_cluster_size(guest->q);
    unsigned failed = 0;

    failed += guest_write(guest, 3 * SECTOR, SECTOR) < 0;
    failed += guest_write(guest, 2 * cluster, 3 * cluster) < 0;
    failed += guest_flush(guest) < 0;
    failed += guest_write(guest, 6 * cluster, SECTOR) < 0;
    /* More than small refcount blocks count: there will be a second one. */
    failed += guest_write(guest, 14 * cluster, 54 * cluster) < 0;
    failed += change_settings(guest, 1, true, true) < 0;
    failed += guest_zero(guest, 2 * cluster, cluster, true) < 0;
    failed += guest_discard(guest, 3 * cluster, cluster) < 0;
    failed += guest_flush(guest) < 0;
    failed += guest_compress(guest, 10 * cluster, 3 * cluster) < 0;
    failed += guest_compress(guest, 11 * cluster, cluster) < 0;
    failed += guest_write(guest, 12 * cluster, SECTOR) < 0;
    failed += change_settings(guest, 0, false, false) < 0;
    failed += guest_write(guest, 70 * cluster, 2 * cluster) < 0;
    failed += change_settings(guest, 0, false, true) < 0;
    failed += guest_zero(guest, 4 * cluster, cluster, false) < 0;
    failed += guest_resize(guest, guest->size + 70 * cluster) < 0;
    failed += guest_write(guest, guest->size - SECTOR, SECTOR) < 0;
    failed += guest_write(guest, 2 * cluster, SECTOR) < 0;
    failed += guest_flush(guest) < 0;
    return failed;
}

static void examine(struct guest *guest, const char *what)
{
    struct qcow2_check_result check;
    uint64_t differs = guest_compare(guest);

    ck_assert_msg(differs == UINT64_MAX, "%s: sector %lu differs", what, (unsigned long)differs);
    ck_assert_int_eq(qcow2_check(guest->q, false, &check), 0);
    ck_assert_msg(check.corruptions == 0, "%s: %lu corruptions", what, (unsigned long)check.corruptions);
}

/* Opens what is there as another program would, with what this guest knows. */
static void examine_anew(struct guest *old, const char *what)
{
    struct guest guest;

    ck_assert_msg(guest_open(&guest, old->world, old->backed) == 0, "%s: does not open again", what);
    if (guest.size == old->size) {
        memcpy(guest.model, old->model, guest.size);
        memcpy(guest.unsure, old->unsure, guest.size / SECTOR * sizeof(bool));
        examine(&guest, what);
    }
    guest_drop(&guest);
}

/* What is not written when it is killed never will be. */
static void die(struct guest *guest, struct world *world, const char *what)
{
    struct qcow2_check_result check;
    bool backed = guest->backed;

    world->fail_at = 0;
    guest_drop(guest);
    /* What is marked as corrupt is for others to repair. */
    if (world->bytes[79] & 2)
        return;
    ck_assert_msg(guest_open(guest, world, backed) == 0, "%s: does not open again", what);
    ck_assert_int_eq(qcow2_check(guest->q, false, &check), 0);
    ck_assert_msg(check.corruptions == 0, "%s: %lu corruptions", what, (unsigned long)check.corruptions);
    guest_drop(guest);
}

/* From the next call of the world on, the N-th fails. */
static void fail_from_now(struct world *world, const struct fault *fault, uint64_t number)
{
    world->calls = 0;
    world->fail_at = number;
    world->fail_code = fault->code;
    world->fail_for_ever = fault->for_ever;
}

static void layout_create(struct guest *guest, struct world *world, const struct qcow2_create_options *layout)
{
    struct qcow2_create_options options = *layout;

    options.size = 80ull << options.cluster_bits;
    world_init(world);
    guest_create(guest, world, &options);
}

static bool fail_and_die(const struct qcow2_create_options *layout, const struct fault *fault, bool done,
                         uint64_t number)
{
    struct world world;
    struct guest guest;
    char what[128];

    snprintf(what, sizeof(what), "layout %d, call %lu %s%s", (int)(layout - layouts), (unsigned long)number,
             done ? "seems to fail" : "fails", fault->for_ever ? " for ever" : "");
    layout_create(&guest, &world, layout);
    fail_from_now(&world, fault, number);
    world.fail_done = done;
    work(&guest);
    bool reached = world.calls >= number;

    die(&guest, &world, what);
    world_destroy(&world);
    return reached;
}

START_TEST(every_call_fails_and_then_it_dies)
{
    const struct qcow2_create_options *layout = &layouts[(size_t)_i % LAYOUTS];
    const struct fault *fault = &faults[(size_t)_i / LAYOUTS % 2];
    uint64_t number = 1;

    while (fail_and_die(layout, fault, (size_t)_i >= 2 * LAYOUTS, number))
        number++;
    ck_assert_uint_gt(number, 20);
}
END_TEST

/* A disk with something on it. */
static void written_create(struct guest *guest, struct world *world, const struct qcow2_create_options *options)
{
    world_init(world);
    guest_create(guest, world, options);
    ck_assert_int_eq(guest_write(guest, 0, 8 * SECTOR), 0);
}

/* Makes it longer while the N-th call fails, or seems to; false if there are not so many. */
static bool longer_fails(struct guest *guest, struct world *world, uint64_t number, bool done)
{
    fail_from_now(world, &faults[0], number);
    world->fail_done = done;
    return guest_resize(guest, 8 << 20) < 0;
}

/* The first thing that marks an image as dirty is that its disk becomes longer, and this fails. */
START_TEST(dirty_mark_stays)
{
    struct qcow2_create_options options = {
        .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20, .lazy_refcounts = true};
    bool reached = true;

    for (uint64_t number = 1; reached; number++) {
        struct world world;
        struct guest guest;
        char what[64];

        snprintf(what, sizeof(what), "call %lu fails", (unsigned long)number);
        written_create(&guest, &world, &options);
        reached = longer_fails(&guest, &world, number, _i);
        die(&guest, &world, what);
        world_destroy(&world);
    }
}
END_TEST

/* With lazy refcounts, and nothing else that marks the image as dirty: the new table's clusters are counted all the same. */
START_TEST(longer_disk_is_counted)
{
    struct qcow2_create_options options = {
        .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20, .lazy_refcounts = true};
    struct world world;
    struct guest guest;

    world_init(&world);
    guest_create(&guest, &world, &options);
    /* The second time a table that is longer than what half a refcount block counts. */
    ck_assert_int_eq(guest_resize(&guest, _i ? UINT64_C(400) << 20 : 8 << 20), 0);
    die(&guest, &world, "longer, and killed");
    world_destroy(&world);
}
END_TEST

/* Puts back what the first write of the header since the recording began has put there. */
static bool put_first_header(struct world *world)
{
    for (size_t i = 0; i < world->count; i++) {
        const struct record *record = &world->records[i];

        if (record->kind == RECORD_WRITE && record->offset == 0) {
            memcpy(world->bytes, record->data, record->size);
            return true;
        }
    }
    return false;
}

/* The header names a larger L1 table, and the flush after that fails. That it names the old one again is not durable
 * either before the next flush: until then the larger one must stay what it is. */
START_TEST(unpublished_table_is_nobodys)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20};
    bool reached = true, named = false;

    for (uint64_t number = 1; reached; number++) {
        struct world world;
        struct guest guest;
        char what[64];

        snprintf(what, sizeof(what), "call %lu fails", (unsigned long)number);
        written_create(&guest, &world, &options);
        ck_assert_int_eq(guest_flush(&guest), 0);
        world.recording = true;
        reached = longer_fails(&guest, &world, number, true);
        world.fail_at = 0;
        ck_assert_int_eq(guest_write(&guest, 1 << 19, 64 * SECTOR), 0);
        if (reached && put_first_header(&world)) {
            struct guest again;

            named = true;
            ck_assert_int_eq(guest_open(&again, &world, false), 0);
            memcpy(again.model, guest.model, 1 << 19);
            memset(again.unsure + (1 << 19) / SECTOR, 1, (again.size - (1 << 19)) / SECTOR);
            examine(&again, what);
            guest_drop(&again);
        }
        guest_drop(&guest);
        world_destroy(&world);
    }
    ck_assert(named);
}
END_TEST

/* True if the N-th call failed, false if there are not so many. */
static bool fail_at(const struct qcow2_create_options *layout, const struct fault *fault, bool memory, uint64_t number)
{
    struct world world;
    struct guest guest;
    char what[128];

    snprintf(what, sizeof(what), "layout %d, %s %lu fails with %d%s", (int)(layout - layouts),
             memory ? "allocation" : "call", (unsigned long)number, fault->code, fault->for_ever ? " for ever" : "");
    layout_create(&guest, &world, layout);
    fail_from_now(&world, fault, number);
    world.memory_fails = memory;
    unsigned failed = work(&guest);
    bool reached = world.calls >= number;

    world.fail_at = 0;
    ck_assert_msg(!fault->for_ever || !reached || failed, "%s: nobody was told", what);
    if (!qcow2_is_corrupted(guest.q)) {
        ck_assert_msg(world.reports == 0, "%s: %s", what, world.report);
        ck_assert_msg(guest_flush(&guest) == 0, "%s: a later flush fails", what);
        examine(&guest, what);
        ck_assert_msg(guest_write(&guest, 0, 8 * SECTOR) == 0, "%s: a later write fails", what);
        ck_assert_msg(qcow2_finish(guest.q) == 0, "%s: cannot be finished", what);
        examine(&guest, what);
        examine_anew(&guest, what);
    }
    guest_drop(&guest);
    world_destroy(&world);
    return reached;
}

START_TEST(every_call_fails)
{
    const struct qcow2_create_options *layout = &layouts[(size_t)_i % LAYOUTS];
    const struct fault *fault = &faults[(size_t)_i / LAYOUTS];
    uint64_t number = 1;

    while (fail_at(layout, fault, false, number))
        number++;
    ck_assert_uint_gt(number, 20);
}
END_TEST

START_TEST(every_allocation_fails)
{
    const struct fault fault = {.code = -ENOMEM, .for_ever = (size_t)_i / LAYOUTS};
    uint64_t number = 1;

    while (fail_at(&layouts[(size_t)_i % LAYOUTS], &fault, true, number))
        number++;
    ck_assert_uint_gt(number, 20);
}
END_TEST

START_TEST(every_allocation_of_an_open_fails)
{
    struct qcow2_create_options options = layouts[_i];
    int result = -1;

    for (uint64_t number = 1; result < 0; number++) {
        struct world world;
        struct guest guest;

        options.size = 80ull << options.cluster_bits;
        world_init(&world);
        guest_create(&guest, &world, &options);
        guest_write(&guest, 0, SECTOR);
        guest_close(&guest);
        /* Dirty, where there is such a mark: refcounts are rebuilt. */
        world.bytes[79] |= options.version == 3;
        world.memory_fails = true;
        world.calls = 0;
        world.fail_at = number;
        world.fail_code = -ENOMEM;
        result = guest_open(&guest, &world, options.backing_name != NULL);
        ck_assert(result == 0 || result == -ENOMEM);
        if (result == 0)
            guest_drop(&guest);
        world_destroy(&world);
    }
}
END_TEST

/* A discarded cluster is nobody else's while a request may be on its way to it. */
START_TEST(freed_clusters_wait_for_grace)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 1 << 20};
    struct world world;
    struct guest guest;
    struct mapping old, new;
    struct qcow2_stats stats;

    world_init(&world);
    guest_create(&guest, &world, &options);
    ck_assert_int_eq(guest_write(&guest, 0, 4096), 0);
    ck_assert_int_eq(guest_flush(&guest), 0);
    ck_assert_int_eq(qcow2_lookup(guest.q, 0, 4096, &old), 0);
    world.grace_held = true;
    ck_assert_int_eq(guest_discard(&guest, 0, 4096), 0);
    ck_assert_int_eq(guest_flush(&guest), 0);
    for (uint64_t i = 1; i < 8; i++) {
        ck_assert_int_eq(guest_write(&guest, i * 4096, 4096), 0);
        ck_assert_int_eq(qcow2_lookup(guest.q, i * 4096, 4096, &new), 0);
        ck_assert_uint_ne(new.host, old.host);
    }
    qcow2_get_stats(guest.q, &stats);
    ck_assert_uint_eq(stats.quarantine, 4096);
    world.grace_held = false;
    ck_assert_int_eq(guest_flush(&guest), 0);
    ck_assert_int_eq(guest_write(&guest, 9 * 4096, 4096), 0);
    ck_assert_int_eq(qcow2_lookup(guest.q, 9 * 4096, 4096, &new), 0);
    ck_assert_uint_eq(new.host, old.host);
    examine(&guest, "after grace");
    guest_close(&guest);
    world_destroy(&world);
}
END_TEST

/* An unflushed discard does not let the cluster go either: after a crash its old entry may be back. */
START_TEST(freed_clusters_wait_for_flush)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 1 << 20};
    struct world world;
    struct guest guest;
    struct mapping old, new;

    world_init(&world);
    guest_create(&guest, &world, &options);
    ck_assert_int_eq(guest_write(&guest, 0, 4096), 0);
    ck_assert_int_eq(guest_flush(&guest), 0);
    ck_assert_int_eq(qcow2_lookup(guest.q, 0, 4096, &old), 0);
    ck_assert_int_eq(guest_discard(&guest, 0, 4096), 0);
    ck_assert_int_eq(guest_write(&guest, 4096, 4096), 0);
    ck_assert_int_eq(qcow2_lookup(guest.q, 4096, 4096, &new), 0);
    ck_assert_uint_ne(new.host, old.host);
    guest_close(&guest);
    world_destroy(&world);
}
END_TEST

/*
 * A slice that is being read in is nobody's answer yet: not for who knows its slot from before. Here two entries of the
 * L1 table name one table, so that the second keeps the number of a slot that has become another's.
 */
#define STALE_SPAN 32768u /* bytes of the disk that a table of 512 bytes describes */

static struct guest *stale_guest;
static unsigned stale_asked;

static void stale_step(void *world, enum format_step step)
{
    struct mapping mapping;

    (void)world;
    if (step != FORMAT_L2_LOAD)
        return;
    for (unsigned i = 0; i < 2; i++) {
        int result = qcow2_lookup(stale_guest->q, i * STALE_SPAN, SECTOR, &mapping);

        stale_asked += result == 0;
        ck_assert(result == -EAGAIN || (mapping.kind == MAPPING_DATA && mapping.host == 5 * SECTOR));
    }
}

START_TEST(slice_is_nobodys_while_it_is_read)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20};
    struct format_io io = world_io;
    struct qcow2_settings settings = {.l2_cache = 1, .refcount_cache = 1};
    struct mapping mapping;
    struct world world;
    struct guest guest;
    uint64_t l1;
    char text[256];

    world_init(&world);
    guest_create(&guest, &world, &options);
    for (uint64_t at = 0; at < options.size; at += STALE_SPAN)
        ck_assert_int_eq(guest_write(&guest, at, SECTOR), 0);
    ck_assert_int_eq(qcow2_finish(guest.q), 0);
    qcow2_close(guest.q);
    memcpy(&l1, world.bytes + 40, 8);
    l1 = be64toh(l1);
    memcpy(world.bytes + l1 + 8, world.bytes + l1, 8);
    ck_assert_int_eq(qcow2_open(&guest.q, &io, &world, &settings, text), 0);
    ck_assert_int_eq(qcow2_load(guest.q, 0, SECTOR, &mapping), 0);
    ck_assert_uint_eq(mapping.host, 5 * SECTOR);
    io.step = stale_step;
    stale_guest = &guest;
    /* The table's slice comes and goes, first by way of the one entry and then of both. */
    for (uint64_t i = 0, random = 1; i < 10000; i++, random = random * 6364136223846793005u + 1) {
        uint64_t region = i % 64 < 2 ? i % 2 : 2 + (random >> 40) % 30;

        ck_assert_int_eq(qcow2_load(guest.q, region * STALE_SPAN, SECTOR, &mapping), 0);
    }
    ck_assert_uint_gt(stale_asked, 100);
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

/* Tables that cannot be written stay in memory, and are not in the way of those that are only read. */
static bool stuck_writes;

static int stuck_write(void *world, enum format_file file, uint64_t offset, const void *buf, size_t size)
{
    return stuck_writes ? -ENOSPC : world_io.write(world, file, offset, buf, size);
}

START_TEST(reads_go_on_when_tables_cannot_be_written)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20};
    struct qcow2_settings settings = {.l2_cache = 1, .refcount_cache = 1};
    struct format_io io = world_io;
    struct world world;
    struct guest guest;
    char text[256];

    io.write = stuck_write;
    world_init(&world);
    guest_create(&guest, &world, &options);
    for (uint64_t at = 0; at < options.size; at += STALE_SPAN)
        ck_assert_int_eq(guest_write(&guest, at, SECTOR), 0);
    ck_assert_int_eq(qcow2_finish(guest.q), 0);
    qcow2_close(guest.q);
    ck_assert_int_eq(qcow2_open(&guest.q, &io, &world, &settings, text), 0);
    /* Zeroes need no space but for their table. */
    stuck_writes = true;
    for (uint64_t at = 0; at < options.size; at += STALE_SPAN) {
        if (guest_zero(&guest, at, SECTOR, true) < 0)
            break;
    }
    if (_i)
        qcow2_load(guest.q, 0, SECTOR, &(struct mapping){0});
    ck_assert_uint_eq(guest_compare(&guest), UINT64_MAX);
    stuck_writes = false;
    ck_assert_int_eq(qcow2_finish(guest.q), 0);
    examine(&guest, "at the end");
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fault");
    TCase *cases = tcase_create("fault");
    SRunner *runner;

    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, every_call_fails, 0, (int)CASES);
    tcase_add_loop_test(cases, every_allocation_fails, 0, (int)(2 * LAYOUTS));
    tcase_add_loop_test(cases, every_allocation_of_an_open_fails, 0, (int)LAYOUTS);
    tcase_add_loop_test(cases, dirty_mark_stays, 0, 2);
    tcase_add_loop_test(cases, longer_disk_is_counted, 0, 2);
    tcase_add_test(cases, unpublished_table_is_nobodys);
    tcase_add_loop_test(cases, every_call_fails_and_then_it_dies, 0, (int)(4 * LAYOUTS));
    tcase_add_test(cases, freed_clusters_wait_for_grace);
    tcase_add_test(cases, freed_clusters_wait_for_flush);
    tcase_add_test(cases, slice_is_nobodys_while_it_is_read);
    tcase_add_loop_test(cases, reads_go_on_when_tables_cannot_be_written, 0, 2);
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
