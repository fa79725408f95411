/* In-flight regions: what a back end finds when the one before it vanished between any two of its stores. */
#include <check.h>
#include <endian.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/vhost_user/inflight.h"
#include "daemon/vhost_user/queue.h"

#define SIZE 8u

static struct vhost_inflight before, after;
static struct vring_packed_desc ring[SIZE];

static void setup(void)
{
    before = (struct vhost_inflight){.region = memory_zero(vhost_inflight_size(SIZE, true))};
    memset(ring, 0, sizeof(ring));
}

static void teardown(void)
{
    void *region = before.region;

    vhost_inflight_end(&before, true);
    free(region);
}

static void expect_again(const uint16_t *entries, unsigned count)
{
    ck_assert_uint_eq(after.again_count, count);
    for (unsigned i = 0; i < count; i++)
        ck_assert_uint_eq(after.again[i], entries[i]);
}

/* Lets go of what the second back end found, and leaves the region as it is. */
static void forget(void)
{
    void *region = after.region;

    after.region = NULL;
    vhost_inflight_end(&after, true);
    after.region = region;
}

static void expect_split(uint16_t used_idx, const uint16_t *entries, unsigned count)
{
    AUTO_ERROR struct error err = {0};

    after = (struct vhost_inflight){.region = before.region};
    ck_assert_int_eq(vhost_inflight_split_begin(&after, SIZE, used_idx, &err), 1);
    expect_again(entries, count);
    ck_assert_uint_eq(after.split->used_idx, used_idx);
    forget();
}

static void take_split(const uint16_t *heads, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        vhost_inflight_split_take(&before, heads[i]);
}

START_TEST(split)
{
    static const uint16_t heads[] = {5, 1, 7, 2}, rest[] = {1, 2};

    ck_assert_int_eq(vhost_inflight_split_begin(&before, SIZE, 65535, NULL), 0);
    expect_split(65535, NULL, 0);
    take_split(heads, 4);
    expect_split(65535, heads, 4);
    vhost_inflight_split_put(&before, 7);
    vhost_inflight_split_put(&before, 5);
    /* The batch was not shown: all of it is still in flight. */
    expect_split(65535, heads, 4);
    /* It was shown, and not noted. */
    expect_split(1, rest, 2);
}
END_TEST

START_TEST(split_noted)
{
    static const uint16_t heads[] = {5, 1, 7, 2}, rest[] = {1, 2};

    ck_assert_int_eq(vhost_inflight_split_begin(&before, SIZE, 3, NULL), 0);
    take_split(heads, 4);
    vhost_inflight_split_put(&before, 7);
    vhost_inflight_split_put(&before, 5);
    vhost_inflight_split_publish(&before, 5);
    expect_split(5, rest, 2);
    /* The last batch must not be taken for one more. */
    vhost_inflight_split_put(&before, 2);
    expect_split(5, rest, 2);
    expect_split(6, rest, 1);
}
END_TEST

static void refuse_split(uint16_t used_idx)
{
    AUTO_ERROR struct error err = {0};

    after = (struct vhost_inflight){.region = before.region};
    ck_assert_int_eq(vhost_inflight_split_begin(&after, SIZE, used_idx, &err), -EINVAL);
    ck_assert_ptr_nonnull(err.text);
    forget();
}

START_TEST(split_nonsense)
{
    ck_assert_int_eq(vhost_inflight_split_begin(&before, SIZE, 0, NULL), 0);
    refuse_split(SIZE + 1);
    refuse_split(65535);
    before.split->last_batch_head = SIZE;
    refuse_split(1);
    before.split->desc_num = SIZE / 2;
    refuse_split(0);
    before.split->desc_num = SIZE;
    before.split->version = 2;
    refuse_split(0);
}
END_TEST

/* Packed. What the driver made available, at the place and in the lap where it is. */
static void make_available(unsigned from, unsigned count, bool wrap)
{
    for (unsigned i = from; i < from + count; i++)
        ring[i % SIZE].flags = htole16(vhost_packed_flags(i < SIZE ? wrap : !wrap, i < SIZE ? !wrap : wrap));
}

static void begin_packed(uint16_t used, bool wrap)
{
    struct vhost_inflight_place place = {.index = used, .wrap = wrap};
    unsigned ahead = 0;

    ck_assert_int_eq(vhost_inflight_packed_begin(&before, ring, SIZE, &place, &ahead, NULL), 0);
    ck_assert_uint_eq(ahead, 0);
}

/* One chain; returns its first entry. */
static uint16_t take_packed(unsigned count)
{
    uint16_t first = before.free_head, last = first;

    for (unsigned i = 0; i < count; i++)
        last = vhost_inflight_packed_add(&before, 0x1000 * i, 512, 3, i + 1 < count ? VRING_DESC_F_NEXT : 0);
    vhost_inflight_packed_take(&before, first, last, (uint16_t)count);
    return first;
}

static void announce(uint16_t used, bool wrap)
{
    before.packed->free_head = before.free_head;
    before.packed->used_wrap_counter = wrap;
    before.packed->used_idx = used;
}

static void expect_packed(uint16_t used, bool wrap, unsigned ahead, const uint16_t *entries, unsigned count)
{
    AUTO_ERROR struct error err = {0};
    struct vhost_inflight_place place = {0};
    unsigned found = 0, idle = 0;

    after = (struct vhost_inflight){.region = before.region};
    ck_assert_msg(vhost_inflight_packed_begin(&after, ring, SIZE, &place, &found, &err) == 1, "%s", err.text);
    expect_again(entries, count);
    ck_assert_uint_eq(place.index, used);
    ck_assert_int_eq(place.wrap, wrap);
    ck_assert_uint_eq(found, ahead);
    /* All others can be taken. */
    for (uint16_t entry = after.free_head; entry < SIZE && idle <= SIZE; entry = after.next[entry])
        idle++;
    ck_assert_uint_eq(idle, SIZE - ahead);
    forget();
}

START_TEST(packed)
{
    uint16_t all[3], rest[2];

    begin_packed(0, true);
    make_available(0, 6, true);
    all[0] = take_packed(2);
    all[1] = rest[0] = take_packed(1);
    all[2] = rest[1] = take_packed(3);
    expect_packed(0, true, 6, all, 3);
    vhost_inflight_packed_put(&before, all[0], 1);
    announce(2, true);
    bool shown = _i;

    if (shown)
        ring[0].flags = htole16(vhost_packed_flags(true, true));
    expect_packed(shown ? 2 : 0, true, shown ? 4 : 6, shown ? rest : all, shown ? 2 : 3);
    /* Once more: nothing has changed. */
    expect_packed(shown ? 2 : 0, true, shown ? 4 : 6, shown ? rest : all, shown ? 2 : 3);
}
END_TEST

/* As many requests as the ring has entries end at once: the place is the same, one lap later. */
START_TEST(packed_lap)
{
    uint16_t all[SIZE];

    begin_packed(3, true);
    make_available(3, SIZE, true);
    for (unsigned i = 0; i < SIZE; i++)
        all[i] = take_packed(1);
    for (unsigned i = 0; i < SIZE; i++)
        vhost_inflight_packed_put(&before, all[i], all[i]);
    announce(3, false);
    /* All are written but the first one, which shows them. */
    for (unsigned i = 4; i < 3 + SIZE; i++)
        ring[i % SIZE].flags = htole16(vhost_packed_flags(i < SIZE, i < SIZE));
    if (_i) {
        ring[3].flags = htole16(vhost_packed_flags(true, true));
        expect_packed(3, false, 0, NULL, 0);
        return;
    }
    expect_packed(3, true, SIZE, all, SIZE);
    /* What was not shown must not show up behind the first request of a later batch. */
    for (unsigned i = 3; i < 3 + SIZE; i++)
        ck_assert_uint_eq(le16toh(ring[i % SIZE].flags), vhost_packed_flags(i < SIZE, i >= SIZE));
}
END_TEST

/* Between the stores of the wrap counter and of the index. Entries that are not available yet stay as they are. */
START_TEST(packed_half_announced)
{
    uint16_t all[2];

    begin_packed(6, true);
    make_available(6, 3, true);
    all[0] = take_packed(2);
    all[1] = take_packed(1);
    for (unsigned i = 1; i < 6; i++)
        ring[i].flags = htole16(vhost_packed_flags(true, true));
    before.packed->used_wrap_counter = false;
    expect_packed(6, true, 3, all, 2);
    for (unsigned i = 1; i < 6; i++)
        ck_assert_uint_eq(le16toh(ring[i].flags), vhost_packed_flags(true, true));
}
END_TEST

/* Between the same two at the end of a batch that goes round; the driver has taken it, and has made all available. */
START_TEST(packed_half_committed)
{
    uint16_t all[2];

    begin_packed(6, true);
    make_available(6, 3, true);
    all[0] = take_packed(2);
    all[1] = take_packed(1);
    vhost_inflight_packed_put(&before, all[0], 1);
    vhost_inflight_packed_put(&before, all[1], all[1]);
    announce(1, false);
    make_available(1, SIZE, false);
    for (unsigned i = 0; i < 2; i++)
        before.packed->desc[all[i]].inflight = 0;
    before.packed->old_free_head = before.free_head;
    before.packed->old_used_wrap_counter = false;
    expect_packed(1, false, 0, NULL, 0);
}
END_TEST

START_TEST(packed_nonsense)
{
    static const struct {
        uint16_t first_next, num, free_head, used;
    } cases[] = {{SIZE, 2, 3, 0}, {0, 2, 3, 0},    {1, 0, 3, 0}, {1, SIZE + 1, 3, 0},
                 {1, 2, SIZE, 0}, {1, 2, 3, SIZE}, {1, 3, 3, 0}, {65535, 2, 65535, 65535}};
    AUTO_ERROR struct error err = {0};
    struct vhost_inflight_place place = {0};
    unsigned ahead;

    begin_packed(0, true);
    make_available(0, 3, true);
    uint16_t first = take_packed(2);

    take_packed(1);
    before.packed->desc[first].next = cases[_i].first_next;
    before.packed->desc[first].num = cases[_i].num;
    before.packed->free_head = before.packed->old_free_head = cases[_i].free_head;
    before.packed->used_idx = before.packed->old_used_idx = cases[_i].used;
    after = (struct vhost_inflight){.region = before.region};
    ck_assert_int_eq(vhost_inflight_packed_begin(&after, ring, SIZE, &place, &ahead, &err), -EINVAL);
    ck_assert_ptr_nonnull(err.text);
    forget();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vhost_inflight");
    TCase *tests = tcase_create("all");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, split);
    tcase_add_test(tests, split_noted);
    tcase_add_test(tests, split_nonsense);
    tcase_add_loop_test(tests, packed, 0, 2);
    tcase_add_loop_test(tests, packed_lap, 0, 2);
    tcase_add_test(tests, packed_half_announced);
    tcase_add_test(tests, packed_half_committed);
    tcase_add_loop_test(tests, packed_nonsense, 0, 8);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
