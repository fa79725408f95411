/*
 * Views into iovecs against the plainest possible model.
 */
#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/iov.h"

#define BUFFER 4096

static bool plain_is_zero(const unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i])
            return false;
    }
    return true;
}

/* Every length up to some steps, every alignment, the one byte at every place. */
START_TEST(zero_every_place)
{
    static unsigned char buffer[256 + 64];

    for (size_t start = 0; start < 33; start++) {
        for (size_t size = 0; size <= 200; size++) {
            ck_assert(buffer_is_zero(buffer + start, size));
            for (size_t at = 0; at < size; at++) {
                buffer[start + at] = 0x80;
                ck_assert(!buffer_is_zero(buffer + start, size));
                buffer[start + at] = 0;
            }
            /* Neighbours do not count. */
            buffer[start + size] = 1;
            if (start)
                buffer[start - 1] = 1;
            ck_assert(buffer_is_zero(buffer + start, size));
            buffer[start + size] = 0;
            if (start)
                buffer[start - 1] = 0;
        }
    }
}
END_TEST

START_TEST(zero_random)
{
    unsigned char *buffer = malloc(BUFFER);

    for (unsigned round = 0; round < 20000; round++) {
        size_t start = (size_t)rand() % 64, size = (size_t)rand() % (BUFFER - 64);

        memset(buffer, 0, BUFFER);
        if (round % 2)
            buffer[rand() % BUFFER] = (unsigned char)(1 + rand() % 255);
        ck_assert_int_eq(buffer_is_zero(buffer + start, size), plain_is_zero(buffer + start, size));
    }
    free(buffer);
}
END_TEST

/* Cuts buffer into count elements, some of them empty. */
static void cut(unsigned char *buffer, size_t size, struct iovec *iov, unsigned count)
{
    size_t done = 0;

    for (unsigned i = 0; i < count; i++) {
        size_t length = i + 1 == count ? size - done : (size_t)rand() % (size - done + 1) / 2;

        if (rand() % 5 == 0 && i + 1 < count)
            length = 0;
        iov[i] = (struct iovec){.iov_base = buffer + done, .iov_len = length};
        done += length;
    }
}

START_TEST(copies)
{
    unsigned char buffer[BUFFER], model[BUFFER], piece[BUFFER];
    struct iovec iov[9];

    for (unsigned round = 0; round < 5000; round++) {
        unsigned count = 1 + (unsigned)rand() % 9;
        size_t offset = (size_t)rand() % BUFFER, size = (size_t)rand() % (BUFFER - offset + 1);

        for (unsigned i = 0; i < BUFFER; i++) {
            buffer[i] = model[i] = (unsigned char)rand();
            piece[i] = (unsigned char)rand();
        }
        cut(buffer, BUFFER, iov, count);
        ck_assert_uint_eq(iov_size(iov, count), BUFFER);
        switch (round % 3) {
        case 0:
            iov_from_buffer(iov, count, offset, piece, size);
            memcpy(model + offset, piece, size);
            break;
        case 1:
            iov_fill(iov, count, offset, 0x5a, size);
            memset(model + offset, 0x5a, size);
            break;
        default:
            iov_to_buffer(iov, count, offset, piece, size);
            ck_assert_mem_eq(piece, model + offset, size);
        }
        ck_assert_mem_eq(buffer, model, BUFFER);
    }
}
END_TEST

START_TEST(slices)
{
    unsigned char buffer[BUFFER];
    struct iovec iov[9], out[9];

    for (unsigned round = 0; round < 5000; round++) {
        unsigned count = 1 + (unsigned)rand() % 9;
        size_t offset = (size_t)rand() % BUFFER, size = (size_t)rand() % (BUFFER - offset + 1);
        unsigned char *at = buffer + offset;

        cut(buffer, BUFFER, iov, count);
        unsigned used = iov_slice(iov, count, offset, size, out);

        ck_assert_uint_le(used, count);
        ck_assert_uint_eq(iov_size(out, used), size);
        for (unsigned i = 0; i < used; i++) {
            ck_assert_ptr_eq(out[i].iov_base, at);
            ck_assert_uint_gt(out[i].iov_len, 0);
            at += out[i].iov_len;
        }
    }
}
END_TEST

/* What lies behind the last element is not there. */
START_TEST(beyond_the_end)
{
    unsigned char buffer[16] = {0}, piece[32];
    struct iovec iov[2] = {{.iov_base = buffer, .iov_len = 8}, {.iov_base = buffer + 8, .iov_len = 8}}, out[2];

    memset(piece, 1, sizeof(piece));
    iov_from_buffer(iov, 2, 12, piece, 32);
    ck_assert_uint_eq(buffer[11], 0);
    ck_assert_uint_eq(buffer[15], 1);
    ck_assert_uint_eq(iov_slice(iov, 2, 4, 100, out), 2);
    ck_assert_uint_eq(iov_size(out, 2), 12);
    ck_assert_uint_eq(iov_slice(iov, 2, 16, 1, out), 0);
    ck_assert_uint_eq(iov_slice(iov, 0, 0, 1, out), 0);
}
END_TEST

START_TEST(alignment)
{
    static unsigned char buffer[8192] __attribute__((aligned(4096)));
    struct iovec iov[2] = {{.iov_base = buffer, .iov_len = 4096}, {.iov_base = buffer + 4096, .iov_len = 512}};

    ck_assert(iov_is_aligned(iov, 2, 512));
    ck_assert(!iov_is_aligned(iov, 2, 1024));
    ck_assert(iov_is_aligned(iov, 1, 4096));
    ck_assert(iov_is_aligned(iov, 0, 4096));
    iov[0].iov_base = buffer + 1;
    ck_assert(!iov_is_aligned(iov, 2, 2));
    ck_assert(iov_is_aligned(iov, 2, 1));
}
END_TEST

START_TEST(zero_iov)
{
    unsigned char buffer[BUFFER] = {0};
    struct iovec iov[5];

    for (unsigned round = 0; round < 2000; round++) {
        size_t at = (size_t)rand() % BUFFER;

        cut(buffer, BUFFER, iov, 5);
        ck_assert(iov_is_zero(iov, 5));
        buffer[at] = 1;
        ck_assert(!iov_is_zero(iov, 5));
        buffer[at] = 0;
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("iov");
    TCase *tests = tcase_create("iov");

    tcase_add_test(tests, zero_every_place);
    tcase_add_test(tests, zero_random);
    tcase_add_test(tests, copies);
    tcase_add_test(tests, slices);
    tcase_add_test(tests, beyond_the_end);
    tcase_add_test(tests, alignment);
    tcase_add_test(tests, zero_iov);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
