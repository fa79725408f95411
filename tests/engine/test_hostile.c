/*
 * Hostile images. Every field of the header at its edges, and every kind of
 * table entry damaged: opening fails with a text, or the image is quarantined
 * when the damage is met, or it is harmless; in no case is memory touched that
 * is not the engine's (the sanitizers watch), or is there no end.
 */
#include <check.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/world.h"

enum expectation { REFUSED, ANYTHING };

struct damage {
    const char *name;
    uint64_t offset; /* in the header */
    unsigned width;  /* bytes */
    uint64_t value;
    enum expectation expect;
};

#define ALL UINT64_MAX
static const struct damage damages[] = {
    {"magic", 0, 4, 0, REFUSED},
    {"magic", 0, 4, 0x514649fa, REFUSED},
    {"version", 4, 4, 0, REFUSED},
    {"version", 4, 4, 1, REFUSED},
    {"version", 4, 4, 4, REFUSED},
    {"version", 4, 4, ALL, REFUSED},
    {"backing offset", 8, 8, 1, ANYTHING},
    {"backing offset", 8, 8, 103, ANYTHING},
    {"backing offset", 8, 8, 4095, ANYTHING},
    {"backing offset", 8, 8, 4096, ANYTHING},
    {"backing offset", 8, 8, 4097, REFUSED},
    {"backing offset", 8, 8, UINT64_C(1) << 63, REFUSED},
    {"backing offset", 8, 8, ALL, REFUSED},
    {"backing size", 16, 4, 1023, ANYTHING},
    {"backing size", 16, 4, 1024, ANYTHING},
    {"backing size", 16, 4, ALL, ANYTHING},
    {"cluster bits", 20, 4, 0, REFUSED},
    {"cluster bits", 20, 4, 8, REFUSED},
    {"cluster bits", 20, 4, 9, ANYTHING},
    {"cluster bits", 20, 4, 16, ANYTHING},
    {"cluster bits", 20, 4, 21, ANYTHING},
    {"cluster bits", 20, 4, 22, REFUSED},
    {"cluster bits", 20, 4, 63, REFUSED},
    {"cluster bits", 20, 4, 64, REFUSED},
    {"cluster bits", 20, 4, ALL, REFUSED},
    {"size", 24, 8, 0, ANYTHING},
    {"size", 24, 8, 1, ANYTHING},
    {"size", 24, 8, 511, ANYTHING},
    {"size", 24, 8, UINT64_C(1) << 32, REFUSED},
    {"size", 24, 8, INT64_MAX, REFUSED},
    {"size", 24, 8, UINT64_C(1) << 63, REFUSED},
    {"size", 24, 8, ALL, REFUSED},
    {"encryption", 32, 4, 1, REFUSED},
    {"encryption", 32, 4, 2, REFUSED},
    {"encryption", 32, 4, 3, REFUSED},
    {"encryption", 32, 4, ALL, REFUSED},
    {"L1 entries", 36, 4, 0, REFUSED},
    {"L1 entries", 36, 4, 2, ANYTHING},
    {"L1 entries", 36, 4, 512, ANYTHING},
    {"L1 entries", 36, 4, 4u << 20, REFUSED},
    {"L1 entries", 36, 4, (4u << 20) + 1, REFUSED},
    {"L1 entries", 36, 4, INT32_MAX, REFUSED},
    {"L1 entries", 36, 4, ALL, REFUSED},
    {"L1 offset", 40, 8, 0, REFUSED},
    {"L1 offset", 40, 8, 1, REFUSED},
    {"L1 offset", 40, 8, 512, REFUSED},
    {"L1 offset", 40, 8, 4096, ANYTHING},
    {"L1 offset", 40, 8, 8192, ANYTHING},
    {"L1 offset", 40, 8, UINT64_C(1) << 40, REFUSED},
    {"L1 offset", 40, 8, (UINT64_C(1) << 56) - 4096, REFUSED},
    {"L1 offset", 40, 8, UINT64_C(1) << 56, REFUSED},
    {"L1 offset", 40, 8, UINT64_C(1) << 57, REFUSED},
    {"L1 offset", 40, 8, UINT64_C(1) << 63, REFUSED},
    {"L1 offset", 40, 8, ALL, REFUSED},
    {"refcount table offset", 48, 8, 0, REFUSED},
    {"refcount table offset", 48, 8, 1, REFUSED},
    {"refcount table offset", 48, 8, 8192, ANYTHING},
    {"refcount table offset", 48, 8, 12288, ANYTHING},
    {"refcount table offset", 48, 8, UINT64_C(1) << 40, REFUSED},
    {"refcount table offset", 48, 8, (UINT64_C(1) << 56) - 4096, REFUSED},
    {"refcount table offset", 48, 8, UINT64_C(1) << 56, REFUSED},
    {"refcount table offset", 48, 8, UINT64_C(1) << 63, REFUSED},
    {"refcount table offset", 48, 8, ALL, REFUSED},
    {"refcount table clusters", 56, 4, 0, REFUSED},
    {"refcount table clusters", 56, 4, 2, ANYTHING},
    {"refcount table clusters", 56, 4, 2048, REFUSED},
    {"refcount table clusters", 56, 4, 2049, REFUSED},
    {"refcount table clusters", 56, 4, INT32_MAX, REFUSED},
    {"refcount table clusters", 56, 4, ALL, REFUSED},
    {"snapshots", 60, 4, 1, REFUSED},
    {"snapshots", 60, 4, 65536, REFUSED},
    {"snapshots", 60, 4, 65537, REFUSED},
    {"snapshots", 60, 4, ALL, REFUSED},
    {"snapshots offset", 64, 8, ALL, ANYTHING},
    {"incompatible: dirty", 72, 8, 1, ANYTHING},
    {"incompatible: corrupt", 72, 8, 2, REFUSED},
    {"incompatible: data file", 72, 8, 4, REFUSED},
    {"incompatible: compression", 72, 8, 8, REFUSED},
    {"incompatible: extended L2", 72, 8, 16, REFUSED},
    {"incompatible: 5", 72, 8, 32, REFUSED},
    {"incompatible: 63", 72, 8, UINT64_C(1) << 63, REFUSED},
    {"incompatible: all", 72, 8, ALL, REFUSED},
    {"compatible", 80, 8, 1, ANYTHING},
    {"compatible", 80, 8, ALL, ANYTHING},
    {"autoclear", 88, 8, 1, ANYTHING},
    {"autoclear", 88, 8, 2, ANYTHING},
    {"autoclear", 88, 8, ALL, ANYTHING},
    {"refcount order", 96, 4, 0, ANYTHING},
    {"refcount order", 96, 4, 3, ANYTHING},
    {"refcount order", 96, 4, 6, ANYTHING},
    {"refcount order", 96, 4, 7, REFUSED},
    {"refcount order", 96, 4, 32, REFUSED},
    {"refcount order", 96, 4, ALL, REFUSED},
    {"header length", 100, 4, 0, REFUSED},
    {"header length", 100, 4, 72, REFUSED},
    {"header length", 100, 4, 103, REFUSED},
    {"header length", 100, 4, 105, REFUSED},
    {"header length", 100, 4, 4096, ANYTHING},
    {"header length", 100, 4, 4104, REFUSED},
    {"header length", 100, 4, ALL, REFUSED},
    {"compression", 104, 1, 1, REFUSED},
    {"compression", 104, 1, 255, REFUSED},
    {"extension's length", 116, 4, 1, ANYTHING},
    {"backing format of no end", 112, 8, UINT64_C(0xe2792acaffffffff), REFUSED},
    {"backing format beyond the cluster", 112, 8, UINT64_C(0xe2792aca00001000), REFUSED},
    {"data file's name too long", 112, 8, UINT64_C(0x4441544100000500), REFUSED},
    {"unknown extension", 112, 8, UINT64_C(0x1234567800000008), ANYTHING},
    {"unknown extension of no end", 112, 8, UINT64_C(0x12345678fffffff8), REFUSED},
};

/* Values for entries of tables. */
static const uint64_t entries[] = {
    1,
    0x200,
    0x1000,
    0x2000,
    0x3000,
    0x4000,
    0x5000,
    UINT64_C(1) << 40,
    UINT64_C(1) << 55,
    UINT64_C(1) << 56,
    UINT64_C(1) << 61,
    UINT64_C(1) << 62,
    UINT64_C(1) << 63,
    (UINT64_C(1) << 63) | 0x200,
    (UINT64_C(1) << 63) | 0x1000,
    (UINT64_C(1) << 63) | 0x3000,
    (UINT64_C(1) << 63) | 0x4000,
    (UINT64_C(3) << 62) | 0x4000,
    (UINT64_C(1) << 62) | 0x4000,
    (UINT64_C(1) << 62) | 0x3fffffffffffffff,
    (UINT64_C(1) << 63) | 1,
    (UINT64_C(1) << 63) | 0x00fffffffffff000,
    0x00fffffffffff000,
    UINT64_MAX,
};
#define ENTRIES (sizeof(entries) / sizeof(entries[0]))

/* 4 KiB clusters: 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 the L2 table, 5 and more data. */
static void hostile_image(struct world *world)
{
    struct qcow2_create_options options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 << 10};
    struct guest guest;

    world_init(world);
    guest_create(&guest, world, &options);
    for (unsigned i = 0; i < 8; i++)
        ck_assert_int_eq(guest_write(&guest, i * 8192, 4096), 0);
    guest_close(&guest);
}

static void poke(struct world *world, uint64_t offset, unsigned width, uint64_t value)
{
    value = htobe64(value << (64 - 8 * width));
    memcpy(world->bytes + offset, &value, width);
}

/* Does all there is to do, twice; whatever it answers. Writes of the guest must never reach metadata. */
static void use(struct guest *guest)
{
    static unsigned char buf[4096];
    struct qcow2_check_result check;
    unsigned char header[64];

    memcpy(header, guest->world->bytes, 20);
    for (unsigned i = 0; i < 2; i++) {
        for (uint64_t at = 0; at + 4096 <= guest->size && at < 256 << 10; at += 4096) {
            guest_read(guest, at, buf, 4096);
            if (i || at % 12288 == 0)
                guest_write(guest, at, 512);
        }
        if (guest->size >= 65536) {
            guest_zero(guest, 8192, 16384, true);
            guest_discard(guest, 32768, 16384);
        }
        qcow2_read_compressed(guest->q, 0, buf);
        guest_flush(guest);
    }
    qcow2_check(guest->q, false, &check);
    if (guest->size < 1 << 20)
        guest_resize(guest, 1 << 20);
    qcow2_finish(guest->q);
    ck_assert_msg(memcmp(header, guest->world->bytes, 20) == 0, "a write of the guest reached the header");
}

START_TEST(header)
{
    const struct damage *damage = &damages[_i];
    struct qcow2_settings settings = {.overlap_check = UINT32_MAX};
    char text[256] = "";
    struct world world;
    struct guest guest;
    struct qcow2 *q;

    hostile_image(&world);
    poke(&world, damage->offset, damage->width, damage->value);
    int result = qcow2_open(&q, &world_io, &world, &settings, text);

    if (result == 0)
        qcow2_close(q);
    else
        ck_assert_msg(text[0], "%s: refused without a word", damage->name);
    ck_assert_msg(damage->expect == ANYTHING || result < 0, "%s = 0x%llx was accepted", damage->name,
                  (unsigned long long)damage->value);
    if (result == 0 && guest_open(&guest, &world, false) == 0) {
        if (guest.size < WORLD_FILE_MAX)
            use(&guest);
        guest_drop(&guest);
    }
    world_destroy(&world);
}
END_TEST

static void damaged_entry(uint64_t offset, unsigned width, uint64_t value)
{
    struct world world;
    struct guest guest;

    hostile_image(&world);
    poke(&world, offset, width, value);
    if (guest_open(&guest, &world, false) == 0) {
        use(&guest);
        guest_drop(&guest);
    }
    world_destroy(&world);
}

START_TEST(l2_entry)
{
    damaged_entry(0x4000, 8, entries[_i]);
    damaged_entry(0x4000 + 8 * 3, 8, entries[_i]);
}
END_TEST

START_TEST(l1_entry)
{
    damaged_entry(0x3000, 8, entries[_i]);
}
END_TEST

START_TEST(refcount_table_entry)
{
    damaged_entry(0x1000, 8, entries[_i]);
}
END_TEST

START_TEST(refcounts)
{
    for (unsigned cluster = 0; cluster < 16; cluster++) {
        damaged_entry(0x2000 + 2 * cluster, 2, 0);
        damaged_entry(0x2000 + 2 * cluster, 2, UINT16_MAX);
    }
}
END_TEST

/* What lets a guest write where metadata is must be noticed, in an image that is then left alone. */
START_TEST(guest_data_over_metadata)
{
    static const uint64_t places[] = {0, 0x1000, 0x2000, 0x3000, 0x4000};
    struct world world;
    struct guest guest;
    struct mapping mapping;

    hostile_image(&world);
    poke(&world, 0x4000, 8, (UINT64_C(1) << 63) | (places[_i] ? places[_i] : 0x1000));
    ck_assert_int_eq(guest_open(&guest, &world, false), 0);
    ck_assert_int_lt(guest_write(&guest, 0, 512), 0);
    ck_assert(qcow2_is_corrupted(guest.q));
    ck_assert_uint_eq(world.reports, 1);
    ck_assert_uint_eq(world.bytes[79] & 2, 2);
    /* Reads go on; nothing may be written in place. */
    ck_assert_int_eq(qcow2_load(guest.q, 8192, 4096, &mapping), 0);
    ck_assert(!mapping.copied);
    guest_drop(&guest);
    ck_assert_int_eq(guest_open(&guest, &world, false), -EACCES);
    world_destroy(&world);
}
END_TEST

/* Subclusters that are said to have data in a cluster that nobody has: a write beside them would give them what was there. */
START_TEST(subclusters_of_no_cluster)
{
    struct qcow2_create_options options = {
        .version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true, .size = 256 << 10};
    struct world world;
    struct guest guest;

    world_init(&world);
    guest_create(&guest, &world, &options);
    ck_assert_int_eq(guest_write(&guest, 65536, 512), 0);
    guest_close(&guest);
    /* The L2 table lies behind the header, the refcount table and block, and the L1 table. */
    poke(&world, 4 * 16384 + 16 * 1 + 8, 8, 2);
    ck_assert_int_eq(guest_open(&guest, &world, false), 0);
    ck_assert_int_lt(guest_write(&guest, 0, 512), 0);
    ck_assert(qcow2_is_corrupted(guest.q));
    guest_drop(&guest);
    world_destroy(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hostile");
    TCase *cases = tcase_create("hostile");
    SRunner *runner;

    tcase_set_timeout(cases, 20);
    tcase_add_loop_test(cases, header, 0, (int)(sizeof(damages) / sizeof(damages[0])));
    tcase_add_loop_test(cases, l2_entry, 0, (int)ENTRIES);
    tcase_add_loop_test(cases, l1_entry, 0, (int)ENTRIES);
    tcase_add_loop_test(cases, refcount_table_entry, 0, (int)ENTRIES);
    tcase_add_test(cases, refcounts);
    tcase_add_loop_test(cases, guest_data_over_metadata, 0, 5);
    tcase_add_test(cases, subclusters_of_no_cluster);
    suite_add_tcase(suite, cases);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed ? 1 : 0;
}
