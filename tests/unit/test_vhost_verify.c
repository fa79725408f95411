/*
 * What cairn-vhost-bench makes of disks that hold the wrong thing
 * (tests/bench/vhost/verify.h).
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/bench/vhost/verify.h"

#define FIRST 100u
#define COUNT 50u
#define BLOCK 8192u

static struct verify verify;
static unsigned char disk[COUNT * BLOCK];

static unsigned char *at(uint64_t block)
{
    return disk + (block - FIRST) * BLOCK;
}

/* A write that arrives where it should. */
static uint32_t put(uint64_t block, uint64_t count)
{
    uint32_t number = verify_next(&verify);

    ck_assert(verify_claim(&verify, block, count));
    verify_fill(&verify, block, count, number, at(block));
    verify_release_as(&verify, block, count, number);
    return number;
}

static void says(uint64_t block, const char *text)
{
    AUTO_ERROR struct error err = {0};

    ck_assert_int_eq(verify_check(&verify, FIRST, COUNT, disk, &err), -EILSEQ);
    AUTO_FREE char *begin = memory_format("block %llu ", (unsigned long long)block);
    ck_assert_msg(strstr(err.text, begin) && strstr(err.text, text), "%s", err.text);
}

static void is_fine(void)
{
    AUTO_ERROR struct error err = {0};

    ck_assert_msg(verify_check(&verify, FIRST, COUNT, disk, &err) == 0, "%s", err.text);
}

static void open_disk(void)
{
    memset(disk, 0x5a, sizeof(disk));
    verify_create(&verify, FIRST, COUNT, BLOCK, 7);
    is_fine();
    put(FIRST, COUNT);
    is_fine();
}

static void close_disk(void)
{
    verify_destroy(&verify);
}

START_TEST(lost)
{
    uint32_t number = verify_next(&verify);

    verify_release_as(&verify, 120, 2, number);
    says(120, "should hold write 3, and holds write 2");
}
END_TEST

START_TEST(misplaced)
{
    put(120, 1);
    memcpy(at(121), at(120), BLOCK);
    says(121, "should hold write 2, and holds block 120 of write 3");
}
END_TEST

START_TEST(torn)
{
    unsigned char old[BLOCK];

    memcpy(old, at(149), BLOCK);
    put(149, 1);
    memcpy(at(149) + 4608, old + 4608, BLOCK - 4608);
    says(149, "differs from its byte 4608 on");
}
END_TEST

START_TEST(zeroed)
{
    verify_release_as(&verify, 110, 3, VERIFY_ZERO);
    memset(at(110), 0, 3 * BLOCK);
    is_fine();
    at(112)[BLOCK - 1] = 1;
    says(112, "should hold zeroes, and differs from its byte 8191 on (0x01)");
    verify_release_as(&verify, 112, 1, VERIFY_UNKNOWN);
    is_fine();
}
END_TEST

START_TEST(claims)
{
    ck_assert(verify_claim(&verify, 110, 5));
    ck_assert(!verify_claim(&verify, 114, 1));
    ck_assert(!verify_claim(&verify, 105, 6));
    ck_assert(verify_claim(&verify, 115, 1));
    is_fine();
    verify_release(&verify, 110, 5);
    ck_assert(verify_claim(&verify, 105, 10));
}
END_TEST

START_TEST(known_parts)
{
    uint64_t block = FIRST;

    verify_release_as(&verify, FIRST, 3, VERIFY_UNKNOWN);
    verify_release_as(&verify, 110, 1, VERIFY_UNKNOWN);
    ck_assert_uint_eq(verify_known(&verify, &block, 5), 5);
    ck_assert_uint_eq(block, 103);
    block = 108;
    ck_assert_uint_eq(verify_known(&verify, &block, 5), 2);
    block = 110;
    ck_assert_uint_eq(verify_known(&verify, &block, 100), 39);
    ck_assert_uint_eq(block, 111);
    block = 150;
    ck_assert_uint_eq(verify_known(&verify, &block, 1), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vhost verify");
    TCase *tests = tcase_create("vhost verify");

    tcase_add_checked_fixture(tests, open_disk, close_disk);
    tcase_add_test(tests, lost);
    tcase_add_test(tests, misplaced);
    tcase_add_test(tests, torn);
    tcase_add_test(tests, zeroed);
    tcase_add_test(tests, claims);
    tcase_add_test(tests, known_parts);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
