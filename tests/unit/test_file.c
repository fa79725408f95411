/*
 * The file driver's I/O on real files: against a model, with odd sizes and
 * offsets, short transfers, failing flushes, full disks, and aligned direct
 * writes against read-modify-write in the same blocks. Each test runs on
 * io_uring and on the thread ring. Works without root; what the file system
 * below TMPDIR does not have is left out.
 */
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "tests/unit/node_harness.h"

/* Ways to make the ring worse than it is. */

static const struct ring_ops *real_ops;
static struct ring_ops bad_ops;
static unsigned fsync_calls, fsync_failing, short_transfers;

static void bad_rw(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov, unsigned count,
                   uint64_t offset, int rw_flags)
{
    static struct iovec cut[64];
    static unsigned next;

    if (short_transfers && rand() % 2 && iov->iov_len > 1) {
        struct iovec *one = &cut[next++ % 64];

        *one = *iov;
        one->iov_len = 1 + (size_t)rand() % (iov->iov_len - 1);
        short_transfers++;
        real_ops->rw(ring, op, write, fd, one, 1, offset, rw_flags);
        return;
    }
    real_ops->rw(ring, op, write, fd, iov, count, offset, rw_flags);
}

static int fail_with_eio(void *arg)
{
    (void)arg;
    return -EIO;
}

static void bad_fsync(struct ring *ring, struct ring_op *op, int fd, bool data_only)
{
    if (++fsync_calls == fsync_failing)
        real_ops->call(ring, op, fail_with_eio, NULL);
    else
        real_ops->fsync(ring, op, fd, data_only);
}

static const struct ring_ops *make_bad(const struct ring_ops *real)
{
    real_ops = real;
    bad_ops = *real;
    bad_ops.rw = bad_rw;
    bad_ops.fsync = bad_fsync;
    fsync_calls = fsync_failing = short_transfers = 0;
    return &bad_ops;
}

/* A random load against a model in memory. */

#define MODEL_SIZE (512u * 1024 + 1000)

static unsigned char model[MODEL_SIZE], content[MODEL_SIZE] __attribute__((aligned(4096)));

static void one_random_request(struct edge *edge)
{
    static unsigned char data[MODEL_SIZE + 4096] __attribute__((aligned(4096)));
    bool aligned = rand() % 2;
    uint64_t offset = (uint64_t)rand() % MODEL_SIZE, size = (uint64_t)rand() % (rand() % 4 ? 9000 : 200000);

    if (aligned) {
        offset &= ~(uint64_t)4095;
        size = (size + 4095) & ~(uint64_t)4095;
    }
    if (size > MODEL_SIZE - offset)
        size = MODEL_SIZE - offset;
    unsigned char *from = data + (aligned ? 0 : rand() % 100);

    switch (rand() % 6) {
    case 0:
    case 1:
        for (uint64_t i = 0; i < size; i++)
            from[i] = (unsigned char)rand();
        ck_assert_int_eq(edge_write(edge, offset, from, size, rand() % 10 ? 0 : REQ_FUA), 0);
        memcpy(model + offset, from, size);
        break;
    case 2:
        ck_assert_int_eq(edge_write_zeroes(edge, offset, size, rand() % 2 ? REQ_MAY_UNMAP : 0), 0);
        memset(model + offset, 0, size);
        break;
    case 3:
        ck_assert_int_eq(edge_discard(edge, offset, size), 0);
        ck_assert_int_eq(edge_write_zeroes(edge, offset, size, 0), 0);
        memset(model + offset, 0, size);
        break;
    default:
        memset(from, 0x55, size);
        ck_assert_int_eq(edge_read(edge, offset, from, size), 0);
        ck_assert_mem_eq(from, model + offset, size);
    }
}

static void random_load(bool direct, unsigned shorten)
{
    struct edge edge = {0};
    FILE *file;

    make_file(MODEL_SIZE);
    memset(model, 0, sizeof(model));
    if (!(edge.child = open_node("a", direct)))
        return;
    ck_assert_uint_eq(edge.child->size, MODEL_SIZE);
    short_transfers = shorten;
    for (unsigned i = 0; i < 400; i++)
        one_random_request(&edge);
    ck_assert_int_eq(edge_flush(&edge), 0);
    ck_assert_int_eq(edge_read(&edge, 0, content, MODEL_SIZE), 0);
    ck_assert_mem_eq(content, model, MODEL_SIZE);
    if (shorten)
        ck_assert_uint_gt(short_transfers, 50);
    close_node(edge.child);
    ck_assert_uint_eq(size_on_disk(), MODEL_SIZE);
    ck_assert_ptr_nonnull(file = fopen(test_path, "r"));
    ck_assert_uint_eq(fread(content, 1, MODEL_SIZE, file), MODEL_SIZE);
    fclose(file);
    ck_assert_mem_eq(content, model, MODEL_SIZE);
}

static void random_buffered(void)
{
    random_load(false, 0);
}

static void random_direct(void)
{
    random_load(true, 0);
}

static void random_short(void)
{
    random_load(false, 1);
}

/* Aligned writes from another loop, and writes inside the same blocks: each must keep its bytes. */

#define RACE_BLOCKS 8u
#define RACE_ROUNDS 40u
#define RACE_BLOCK 4096u
#define RACE_INSIDE 96u

struct racer {
    struct loop_message message, done;
    struct edge *edge;
    unsigned block, round;
};

static unsigned racers_left;
static struct coroutine *race_waiter;

static void racer_done(struct loop_message *message)
{
    (void)message;
    if (--racers_left == 0)
        coroutine_wake(race_waiter);
}

static void race_aligned(void *arg)
{
    struct racer *racer = arg;
    AUTO_FREE unsigned char *block = buffer_alloc(RACE_BLOCK);

    memset(block, (int)(racer->round % 255 + 1), RACE_BLOCK);
    ck_assert_int_eq(edge_write(racer->edge, racer->block * RACE_BLOCK, block, RACE_BLOCK, 0), 0);
    racer->done.run = racer_done;
    loop_post(loop_main, &racer->done);
}

static void race_aligned_start(struct loop_message *message)
{
    coroutine_start(loop_current(), race_aligned, container_of(message, struct racer, message));
}

static void race_inside(void *arg)
{
    struct racer *racer = arg;
    unsigned char bytes[RACE_INSIDE];
    uint64_t offset = racer->block * RACE_BLOCK + 700 + racer->round % 100;

    memset(bytes, 0, sizeof(bytes));
    ck_assert_int_eq(edge_write(racer->edge, offset, bytes, sizeof(bytes), 0), 0);
    racer->done.run = racer_done;
    loop_post(loop_main, &racer->done);
}

static void race_check(struct edge *edge, unsigned round)
{
    unsigned char block[RACE_BLOCK];

    for (unsigned i = 0; i < RACE_BLOCKS; i++) {
        unsigned inside = 700 + round % 100;

        ck_assert_int_eq(edge_read(edge, i * RACE_BLOCK, block, RACE_BLOCK), 0);
        for (unsigned at = 0; at < RACE_BLOCK; at++) {
            bool either = at >= inside && at < inside + RACE_INSIDE;

            ck_assert_msg(block[at] == (unsigned char)(round % 255 + 1) || (either && block[at] == 0),
                          "round %u, block %u, byte %u is %u", round, i, at, block[at]);
        }
    }
}

static void race_direct(void)
{
    AUTO_ERROR struct error err = {0};
    struct edge edge = {0};
    struct loop *other;
    struct racer aligned[RACE_BLOCKS], inside[RACE_BLOCKS];

    make_file(RACE_BLOCKS * RACE_BLOCK);
    if (!(edge.child = open_node("a", true)))
        return;
    ck_assert_int_eq(loop_create(&other, "io", NULL, &err), 0);
    ck_assert_int_eq(loop_start_thread(other, &err), 0);
    race_waiter = coroutine_self();
    for (unsigned round = 0; round < RACE_ROUNDS; round++) {
        racers_left = 2 * RACE_BLOCKS;
        for (unsigned i = 0; i < RACE_BLOCKS; i++) {
            aligned[i] = (struct racer){.edge = &edge, .block = i, .round = round};
            inside[i] = aligned[i];
            aligned[i].message.run = race_aligned_start;
            loop_post(i % 2 ? other : loop_main, &aligned[i].message);
            coroutine_start(loop_main, race_inside, &inside[i]);
        }
        coroutine_yield();
        race_check(&edge, round);
    }
    loop_stop_thread(other);
    loop_destroy(other);
    close_node(edge.child);
}

/* The end of the file. */

static void odd_end_of(bool direct)
{
    static unsigned char bytes[4096] __attribute__((aligned(4096)));
    struct edge edge = {0};

    make_file(1000);
    if (!(edge.child = open_node("a", direct)))
        return;
    ck_assert_uint_eq(edge.child->size, 1000);
    memset(bytes, 7, 1000);
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 1000, 0), 0);
    ck_assert_uint_eq(size_on_disk(), 1000);
    memset(bytes, 8, 100);
    ck_assert_int_eq(edge_write(&edge, 900, bytes, 100, REQ_FUA), 0);
    ck_assert_uint_eq(size_on_disk(), 1000);
    ck_assert_int_eq(edge_read(&edge, 890, bytes, 110), 0);
    ck_assert_uint_eq(bytes[9], 7);
    ck_assert_uint_eq(bytes[10], 8);
    ck_assert_uint_eq(bytes[109], 8);
    ck_assert_int_eq(edge_write_zeroes(&edge, 990, 10, 0), 0);
    ck_assert_uint_eq(size_on_disk(), 1000);
    /* Somebody shortened the file: what is gone reads as zeroes. */
    ck_assert_int_eq(truncate(test_path, 600), 0);
    memset(bytes, 9, 1000);
    ck_assert_int_eq(edge_read(&edge, 0, bytes, 1000), 0);
    ck_assert_uint_eq(bytes[599], 7);
    for (unsigned i = 600; i < 1000; i++)
        ck_assert_uint_eq(bytes[i], 0);
    close_node(edge.child);
}

static void odd_end(void)
{
    odd_end_of(false);
    odd_end_of(true);
}

/* Holes. */

static void holes(void)
{
    struct extent extents[8];
    struct extent_list list = {.limit = 8, .extents = extents};
    static unsigned char bytes[65536];
    struct edge edge = {0};

    make_file(MIB);
    edge.child = open_node("a", false);
    memset(bytes, 1, sizeof(bytes));
    ck_assert_int_eq(edge_write(&edge, 256 * 1024, bytes, 65536, 0), 0);
    ck_assert_int_eq(edge_status(&edge, 0, MIB, &list), 0);
    uint64_t sum = 0;

    for (unsigned i = 0; i < list.count; i++)
        sum += extents[i].length;
    ck_assert_uint_eq(sum, MIB);
    if (list.count == 3) {      /* a file system with holes */
        ck_assert_uint_eq(extents[0].length, 256 * 1024);
        ck_assert_uint_eq(extents[0].flags, EXTENT_HOLE | EXTENT_ZERO);
        ck_assert_uint_eq(extents[1].length, 65536);
        ck_assert_uint_eq(extents[1].flags, 0);
        list = (struct extent_list){.limit = 1, .extents = extents};
        ck_assert_int_eq(edge_status(&edge, 256 * 1024 + 100, 5000, &list), 0);
        ck_assert_uint_eq(list.count, 1);
        ck_assert_uint_eq(extents[0].length, 5000);
        ck_assert_int_eq(edge_discard(&edge, 0, MIB), 0);
        list = (struct extent_list){.limit = 8, .extents = extents};
        ck_assert_int_eq(edge_status(&edge, 1, MIB - 2, &list), 0);
        ck_assert_uint_eq(list.count, 1);
        ck_assert_uint_eq(extents[0].flags, EXTENT_HOLE | EXTENT_ZERO);
    }
    /* Behind the end of a file that somebody shortened there are only zeroes. */
    ck_assert_int_eq(truncate(test_path, 0), 0);
    list = (struct extent_list){.limit = 8, .extents = extents};
    ck_assert_int_eq(edge_status(&edge, 4096, 4096, &list), 0);
    ck_assert_uint_eq(list.count, 1);
    ck_assert_uint_eq(extents[0].length, 4096);
    close_node(edge.child);
}

/* A failed flush is not forgotten, and flushes that come together share one fdatasync(). */

static unsigned flushes_left;

static void flush_once(void *arg)
{
    ck_assert_int_eq(edge_flush(arg), 0);
    if (--flushes_left == 0)
        coroutine_wake(race_waiter);
}

static void flushing(void)
{
    struct edge edge = {0};
    unsigned char bytes[512] = {1};

    make_file(4096);
    edge.child = open_node("a", false);
    race_waiter = coroutine_self();
    flushes_left = 20;
    for (unsigned i = 0; i < 20; i++)
        coroutine_start(test_loop, flush_once, &edge);
    coroutine_yield();
    ck_assert_uint_eq(fsync_calls, 2);
    fsync_failing = 3;
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 512, 0), 0);
    ck_assert_int_eq(edge_flush(&edge), -EIO);
    ck_assert_int_eq(edge_flush(&edge), -EIO);
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 512, REQ_FUA), -EIO);
    ck_assert_int_eq(edge_write_zeroes(&edge, 0, 512, REQ_FUA), -EIO);
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 512, 0), 0);
    ck_assert_uint_eq(fsync_calls, 3);
    close_node(edge.child);
    /* Opened anew it starts again. */
    edge.child = open_node("a", false);
    ck_assert_int_eq(edge_flush(&edge), 0);
    close_node(edge.child);
}

/* No room: the request is told, and what fits was written. */
static void no_room(void)
{
    static unsigned char bytes[65536];
    struct rlimit old, limit;
    struct edge edge = {0};

    make_file(MIB);
    edge.child = open_node("a", false);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 100000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 65536, 0), 0);
    ck_assert_int_eq(edge_write(&edge, 65536, bytes, 65536, 0), -EFBIG);
    ck_assert_int_eq(edge_write(&edge, 200000, bytes, 100, 0), -EFBIG);
    ck_assert_int_eq(edge_read(&edge, 200000, bytes, 100), 0);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_int_eq(edge_write(&edge, 200000, bytes, 100, 0), 0);
    close_node(edge.child);
}

/* A tmpfs of its own, which is full soon: the error is told, what was there stays, and room helps. */

#define SMALL_DISK (1024u * 1024)
#define SMALL_PIECE (64u * 1024)

static void small_disk(void)
{
    static unsigned char bytes[SMALL_PIECE], back[SMALL_PIECE];
    struct edge edge = {0};
    uint64_t offset = 0;
    int result;

    make_file(8 * SMALL_DISK);
    edge.child = open_node("a", false);
    memset(bytes, 3, sizeof(bytes));
    while ((result = edge_write(&edge, offset, bytes, SMALL_PIECE, 0)) == 0)
        offset += SMALL_PIECE;
    ck_assert_int_eq(result, -ENOSPC);
    ck_assert_uint_gt(offset, SMALL_DISK / 2);
    ck_assert_int_eq(edge_write_zeroes(&edge, 4 * SMALL_DISK, SMALL_DISK, 0), -ENOSPC);
    ck_assert_int_eq(edge_flush(&edge), 0);
    ck_assert_int_eq(edge_read(&edge, offset - SMALL_PIECE, back, SMALL_PIECE), 0);
    ck_assert_mem_eq(back, bytes, SMALL_PIECE);
    ck_assert_int_eq(edge_discard(&edge, 0, 4 * SMALL_PIECE), 0);
    ck_assert_int_eq(edge_write(&edge, offset, bytes, SMALL_PIECE, 0), 0);
    /* Zeroes that keep their space, and zeroes that do not. */
    ck_assert_int_eq(edge_write_zeroes(&edge, offset, SMALL_PIECE, 0), 0);
    ck_assert_int_eq(edge_write_zeroes(&edge, 0, 8 * SMALL_DISK, REQ_MAY_UNMAP | REQ_FAST_ONLY), 0);
    ck_assert_int_eq(edge_read(&edge, offset - 1, back, 2), 0);
    ck_assert_uint_eq(back[0] | back[1], 0);
    close_node(edge.child);
}

/* The mount is this process's own; it must be there before any thread is. */
START_TEST(test_small_disk)
{
    AUTO_FREE char *directory = memory_format("%s.mount", test_path);

    mkdir(directory, 0700);
    if ((unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) &&
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
        mount("tmpfs", directory, "tmpfs", 0, "size=1m") == 0) {
        snprintf(test_path, sizeof(test_path), "%s/file", directory);
        run_on(LOOP_RING_URING, small_disk);
        run_on(LOOP_RING_THREADS, small_disk);
        umount2(directory, MNT_DETACH);
    }
    rmdir(directory);
}
END_TEST

BOTH_RINGS(random_buffered)
BOTH_RINGS(random_direct)
BOTH_RINGS(random_short)
BOTH_RINGS(race_direct)
BOTH_RINGS(odd_end)
BOTH_RINGS(holes)
BOTH_RINGS(flushing)
BOTH_RINGS(no_room)

int main(void)
{
    const TTest *const all[] = {test_random_buffered, test_random_direct, test_random_short,
                                test_race_direct,     test_odd_end,       test_holes,
                                test_flushing,        test_no_room,       test_small_disk};

    test_ring_ops = make_bad;
    return run_tests("file", all, array_size(all));
}
