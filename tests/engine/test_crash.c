/*
 * Crashes. A workload runs in a world that records every write, flush and
 * change of size; then the disk is cut off after each record, with what was
 * not flushed kept, lost, torn or reordered. Whatever is left must be an image
 * without corruption (leaks are allowed), with everything that a flush
 * promised. Some images are shown to qemu-img as well.
 *
 * CAIRN_CUTS: how many cuts to look at (12000); CAIRN_SEED replays.
 */
#include <check.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/engine/world.h"

/* As ck_assert(), which costs a system call even when all is well. */
#define ensure_msg(what, ...) ((what) ? (void)0 : ck_abort_msg(__VA_ARGS__))
#define ensure(what) ensure_msg(what, "%s", #what)

static uint64_t random_state = 1;
static unsigned long cuts_made, cuts_shown, cuts_asked;
static bool wide; /* actions reach all of the disk, not its first clusters alone */
static char folder[] = "/tmp/cairn-crash-XXXXXX";

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % limit;
}

static unsigned long setting(const char *name, unsigned long fallback)
{
    const char *text = getenv(name);

    return text ? strtoul(text, NULL, 10) : fallback;
}

/* --- Workloads --- */

enum action {
    WRITE_SMALL,
    WRITE_LARGE,
    ZERO,
    ZERO_UNMAP,
    DISCARD,
    FLUSH,
    GROW,
    SHRINK,
    REWRITE,
    COMPRESS,
    ACTION_COUNT
};

/* Disks with internal snapshots are not resized. */
static bool act_resizes(enum action action)
{
    return action == GROW || action == SHRINK;
}

/* Disks end with a cluster, or in one. */
static uint64_t act_unit(uint64_t cluster)
{
    return random_below(2) ? cluster : SECTOR;
}

static void act(struct guest *guest, enum action action, uint64_t cluster)
{
    uint64_t sectors = guest->size / SECTOR, at = random_below((uint32_t)sectors), left = sectors - at;
    uint64_t small = 1 + random_below(4);
    uint64_t start = cluster * random_below(wide ? (uint32_t)(guest->size / cluster) : 4);

    small = small < left ? small : left;
    if (start + 2 * cluster > guest->size)
        start = 0;
    uint64_t length = 2 * cluster < guest->size - start ? 2 * cluster : guest->size - start;

    switch (action) {
    case WRITE_SMALL:
        ensure(guest_write(guest, at * SECTOR, small * SECTOR) == 0);
        break;
    case WRITE_LARGE:
        ensure(guest_write(guest, start + SECTOR < guest->size ? start : 0, length) == 0);
        break;
    case COMPRESS:
        ensure(guest_compress(guest, start, 2 * cluster) == 0);
        break;
    case ZERO:
    case ZERO_UNMAP:
        ensure(guest_zero(guest, start, length, action == ZERO_UNMAP) == 0);
        break;
    case DISCARD:
        ensure(guest_discard(guest, start, length) == 0);
        break;
    case FLUSH:
        ensure(guest_flush(guest) == 0);
        break;
    case GROW:
        if (guest->size < (wide ? 1200 : 64) * cluster)
            ensure(guest_resize(guest, guest->size + act_unit(cluster) * (1 + random_below(8))) == 0);
        break;
    case SHRINK:
        if (guest->size > 12 * cluster)
            ensure(guest_resize(guest, guest->size - act_unit(cluster) * (1 + random_below(3))) == 0);
        break;
    default:
        ensure(guest_write(guest, start, SECTOR) == 0);
        break;
    }
}

/* While a flush is under way, others go on. */
static struct guest *meanwhile_guest;

static void meanwhile(struct world *world)
{
    static const enum action actions[] = {WRITE_SMALL, WRITE_LARGE, ZERO_UNMAP, DISCARD, REWRITE, COMPRESS};

    (void)world;
    for (unsigned i = random_below(3); i > 0; i--)
        act(meanwhile_guest, actions[random_below(6)], qcow2_cluster_size(meanwhile_guest->q));
}

/* --- Cuts --- */

enum loss { LOSS_NONE, LOSS_ALL, LOSS_SOME, LOSS_TORN, LOSS_COUNT };

struct cut {
    const struct world *log;
    size_t end;                /* records before the cut */
    const unsigned char *base; /* the image when the recording began */
    uint64_t base_size;
    bool lazy; /* refcounts are allowed to be wrong while the image is marked */
};

static void cut_apply(struct world *world, const struct record *record, enum loss loss)
{
    if (record->kind == RECORD_SIZE) {
        world_resize(world, record->offset);
        return;
    }
    if (record->kind != RECORD_WRITE || (loss == LOSS_SOME && random_below(2)))
        return;
    if (record->offset + record->size > world->size)
        world_resize(world, record->offset + record->size);
    for (size_t done = 0, part; done < record->size; done += part) {
        part = SECTOR - (record->offset + done) % SECTOR;
        part = part < record->size - done ? part : record->size - done;
        if (loss != LOSS_TORN || random_below(2))
            memcpy(world->bytes + record->offset + done, record->data + done, part);
    }
}

/* What is on disk: all before the last flush, and of the rest what the loss leaves, in another order. */
static void cut_build(const struct cut *cut, struct world *world, enum loss loss)
{
    const struct record *records = cut->log->records;
    size_t flushed = 0, pending[512], count = 0;

    world_init(world);
    world_resize(world, cut->base_size);
    memcpy(world->bytes, cut->base, cut->base_size);
    for (size_t i = 0; i < cut->end; i++) {
        if (records[i].kind == RECORD_FLUSH)
            flushed = i + 1;
    }
    for (size_t i = 0; i < flushed; i++)
        cut_apply(world, &records[i], LOSS_NONE);
    for (size_t i = flushed; i < cut->end && loss != LOSS_ALL; i++) {
        if (loss == LOSS_NONE || count == 512 || records[i].kind == RECORD_SIZE)
            cut_apply(world, &records[i], loss);
        else
            pending[count++] = i;
    }
    for (; count; count--) {
        size_t next = random_below((uint32_t)count);

        cut_apply(world, &records[pending[next]], loss);
        pending[next] = pending[count - 1];
    }
}

static void image_save(const struct world *world, const char *path)
{
    FILE *file = fopen(path, "wb");

    uint64_t size = world->size;

    ensure(file);
    /* The end is mostly empty. */
    while (size && world->bytes[size - 1] == 0)
        size--;
    ensure(fwrite(world->bytes, 1, size, file) == size);
    ensure(fclose(file) == 0);
    ensure(truncate(path, (off_t)world->size) == 0);
}

/* qemu-img makes an internal snapshot: from now on clusters and tables are shared. */
static void image_snapshot(struct world *world)
{
    char command[256], path[128];

    snprintf(path, sizeof(path), "%s/snapshot.qcow2", folder);
    image_save(world, path);
    snprintf(command, sizeof(command), "qemu-img snapshot -q -c s %s", path);
    ensure(system(command) == 0);
    FILE *file = fopen(path, "rb");

    ensure(file);
    fseek(file, 0, SEEK_END);
    world_resize(world, (uint64_t)ftell(file));
    rewind(file);
    ensure(fread(world->bytes, 1, world->size, file) == world->size);
    fclose(file);
}

static void cut_show(const struct world *world, const char *what)
{
    char command[256], path[128];

    snprintf(path, sizeof(path), "%s/cut.qcow2", folder);
    image_save(world, path);
    snprintf(command, sizeof(command), "qemu-img check -q -f qcow2 %s >/dev/null 2>&1", path);
    int status = system(command);
    int code = WEXITSTATUS(status);

    ensure_msg(code == 0 || code == 3, "%s: qemu-img check says %d, see %s", what, code, path);
    cuts_shown++;
}

static void cut_touch(const struct record *record, bool *touched)
{
    for (uint64_t at = 0; record->kind == RECORD_TOUCH && at < record->size; at += SECTOR)
        touched[(record->offset + at) / SECTOR] = true;
}

/* What the last promise before the cut said, except where the guest has begun a change since. */
static void cut_promises(const struct cut *cut, struct guest *guest, const char *what)
{
    const struct record *records = cut->log->records, *promise = NULL;
    bool *touched = calloc(WORLD_FILE_MAX / SECTOR, sizeof(bool));
    unsigned char buf[SECTOR];

    ensure(touched);
    for (size_t i = 0; i < cut->end; i++) {
        if (records[i].kind == RECORD_PROMISE) {
            promise = &records[i];
            memset(touched, 0, WORLD_FILE_MAX / SECTOR * sizeof(bool));
            /* What began during the flush is not promised. */
            for (size_t k = promise->offset; k < i; k++)
                cut_touch(&records[k], touched);
        }
        cut_touch(&records[i], touched);
    }
    for (uint64_t at = 0; promise && at < promise->size; at += SECTOR) {
        if (touched[at / SECTOR])
            continue;
        ensure_msg(at < guest->size, "%s: the disk is too short", what);
        ensure(guest_read(guest, at, buf, SECTOR) == 0);
        ensure_msg(memcmp(buf, promise->data + at, SECTOR) == 0, "%s: sector %lu was promised", what,
                   (unsigned long)(at / SECTOR));
    }
    free(touched);
}

static void cut_examine(const struct cut *cut, enum loss loss, bool backed, const char *name)
{
    struct world world;
    struct guest guest;
    struct qcow2_check_result check;
    char what[256];

    snprintf(what, sizeof(what), "%s, cut %zu of %zu, loss %d", name, cut->end, cut->log->count, (int)loss);
    cut_build(cut, &world, loss);
    if (cuts_made++ % (cuts_asked / 200 + 1) == 0 && !cut->lazy)
        cut_show(&world, what);
    ensure_msg(guest_open(&guest, &world, backed) == 0, "%s: does not open", what);
    ensure(qcow2_check(guest.q, false, &check) == 0);
    if (check.corruptions)
        cut_show(&world, what);
    ensure_msg(check.corruptions == 0, "%s: %lu corruptions", what, (unsigned long)check.corruptions);
    cut_promises(cut, &guest, what);
    if (cuts_made % 5 == 0) {
        ensure(guest_read(&guest, 0, guest.model, guest.size) == 0);
        act(&guest, WRITE_LARGE, qcow2_cluster_size(guest.q));
        ensure_msg(guest_compare(&guest) == UINT64_MAX, "%s: a later write went wrong", what);
        ensure(qcow2_finish(guest.q) == 0);
        ensure(qcow2_check(guest.q, false, &check) == 0);
        ensure_msg(check.corruptions == 0, "%s: %lu corruptions after a later write", what,
                   (unsigned long)check.corruptions);
    }
    ensure_msg(world.reports == 0, "%s: %s", what, world.report);
    guest_drop(&guest);
    world_destroy(&world);
}

/* Layouts: small ones, so that tables and refcount blocks are short and often made. */
static const struct qcow2_create_options layouts[] = {
    {.version = 3, .cluster_bits = 9, .refcount_order = 4},
    {.version = 2, .cluster_bits = 9, .refcount_order = 4},
    {.version = 3, .cluster_bits = 9, .refcount_order = 6, .backing_name = "b", .backing_format = "raw"},
    {.version = 3, .cluster_bits = 12, .refcount_order = 0},
    {.version = 3, .cluster_bits = 12, .refcount_order = 4, .lazy_refcounts = true, .zstd = true},
    {.version = 2, .cluster_bits = 12, .refcount_order = 4, .backing_name = "b", .backing_format = "raw"},
    {.version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true},
    {.version = 3,
     .cluster_bits = 14,
     .refcount_order = 3,
     .extended_l2 = true,
     .backing_name = "b",
     .backing_format = "raw"},
};
#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))

static void start_plain(struct guest *guest, struct world *world, const struct qcow2_create_options *options)
{
    guest_create(guest, world, options);
    for (unsigned i = 0; i < 3; i++)
        act(guest, WRITE_SMALL, UINT64_C(1) << options->cluster_bits);
    ensure(guest_flush(guest) == 0);
}

/* An image with a snapshot, and what its disk holds. */
static struct start {
    unsigned char *bytes, *model;
    uint64_t size, disk;
    unsigned used;
} starts[LAYOUTS];
#define START_USES 16u /* before another one is made: qemu-img takes its time */

static void start_shared(unsigned layout, struct guest *guest, struct world *world,
                         const struct qcow2_create_options *options)
{
    struct start *start = &starts[layout];

    if (start->used++ % START_USES == 0 || start->disk != options->size) {
        start_plain(guest, world, options);
        start->disk = options->size;
        start->model = realloc(start->model, start->disk);
        ensure(start->model);
        memcpy(start->model, guest->model, start->disk);
        guest_close(guest);
        image_snapshot(world);
        start->size = world->size;
        start->bytes = realloc(start->bytes, start->size);
        ensure(start->bytes);
        memcpy(start->bytes, world->bytes, start->size);
    }
    world_resize(world, start->size);
    memcpy(world->bytes, start->bytes, start->size);
    ensure(guest_open(guest, world, options->backing_name != NULL) == 0);
    memcpy(guest->model, start->model, start->disk);
}

/* Runs the actions and looks at cuts of them, at every place or at so many. */
static void crash(unsigned layout, bool snapshot, const enum action *actions, unsigned count, unsigned long cuts)
{
    struct qcow2_create_options options = layouts[layout];
    uint64_t cluster = UINT64_C(1) << options.cluster_bits;
    struct world world;
    struct guest guest;
    char name[96];

    /* So wide that tables are many, and leave the small caches. */
    wide = count > 3 && options.cluster_bits == 9 && random_below(2);
    options.size = (wide ? 1000 : 16) * cluster;
    /* A refcount of one bit cannot say that a cluster is shared. */
    snapshot = snapshot && options.refcount_order > 0;
    world_init(&world);
    world.small_caches = random_below(2);
    if (snapshot)
        start_shared(layout, &guest, &world, &options);
    else
        start_plain(&guest, &world, &options);
    struct cut cut = {.log = &world, .base_size = world.size, .lazy = options.lazy_refcounts};
    unsigned char *base = malloc(world.size);

    ensure(base);
    memcpy(base, world.bytes, world.size);
    cut.base = base;
    meanwhile_guest = &guest;
    world.recording = true;
    world_record(&world, RECORD_PROMISE, 0, guest.model, guest.size);
    for (unsigned i = 0; i < count; i++) {
        /* To resize, one has to be alone; and what has to write tables back itself has to wait for the flush. */
        world.meanwhile = act_resizes(actions[i]) || world.small_caches ? NULL : meanwhile;
        if (!snapshot || !act_resizes(actions[i]))
            act(&guest, actions[i], cluster);
    }
    world.meanwhile = NULL;
    ensure_msg(guest_compare(&guest) == UINT64_MAX, "layout %u: reads differ", layout);
    ensure(qcow2_finish(guest.q) == 0);
    world.recording = false;
    snprintf(name, sizeof(name), "layout %u%s, actions %d %d %d of %u", layout, snapshot ? " with a snapshot" : "",
             (int)actions[0], count > 1 ? (int)actions[1] : -1, count > 2 ? (int)actions[2] : -1, count);
    for (unsigned long i = 0; i < cuts && world.count; i++) {
        cut.end = cuts >= world.count * LOSS_COUNT ? (i / LOSS_COUNT) % (world.count + 1)
                                                   : random_below((uint32_t)world.count + 1);
        cut_examine(&cut, (enum loss)(i % LOSS_COUNT), options.backing_name != NULL, name);
    }
    guest_drop(&guest);
    free(base);
    world_destroy(&world);
}

#define SEQUENCES (ACTION_COUNT * ACTION_COUNT * ACTION_COUNT)
#define ENOUGH_CUTS 24u /* of one sequence on one layout, before another layout is as good */

/* All sequences of one, two and three actions; with many cuts, on several layouts, with and without a snapshot. */
START_TEST(crash_short)
{
    unsigned long cuts = cuts_asked * 2 / 3 / SEQUENCES + 1, rounds = cuts / ENOUGH_CUTS + 1;

    rounds = rounds < 2 * LAYOUTS ? rounds : 2 * LAYOUTS;
    for (unsigned i = 0; i < SEQUENCES; i++) {
        enum action actions[] = {i % ACTION_COUNT, i / ACTION_COUNT % ACTION_COUNT, i / ACTION_COUNT / ACTION_COUNT};
        unsigned first = random_below(2 * LAYOUTS);

        for (unsigned r = 0; r < rounds; r++) {
            unsigned which = (first + r) % (2 * LAYOUTS);

            crash(which / 2, which % 2, actions, 3, cuts / rounds + 1);
        }
    }
}
END_TEST

START_TEST(crash_long)
{
    unsigned long cuts = cuts_asked / 3 / LAYOUTS / 4;

    for (unsigned round = 0; round < 4; round++) {
        enum action actions[120];

        for (unsigned i = 0; i < 120; i++)
            actions[i] = (enum action)random_below(ACTION_COUNT);
        crash((unsigned)_i, round % 2, actions, 120, cuts);
    }
}
END_TEST

/* A larger refcount table takes the place of the first: fields of the header that name it. */
#define REFTABLE_FIELDS 48u
#define REFTABLE_FIELDS_SIZE 12u

START_TEST(crash_refcount_table_grows)
{
    const struct qcow2_create_options options = {.version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 3 << 20};
    unsigned char before[REFTABLE_FIELDS_SIZE], *base = malloc(WORLD_FILE_MAX);
    struct world world;
    struct guest guest;
    bool grown = false;

    ensure(base);
    world_init(&world);
    guest_create(&guest, &world, &options);
    memcpy(before, world.bytes + REFTABLE_FIELDS, sizeof(before));
    for (uint64_t at = 0; at < options.size && !grown; at += 8 * SECTOR) {
        struct cut cut = {.log = &world, .base = base, .base_size = world.size};

        world_forget(&world);
        memcpy(base, world.bytes, world.size);
        world.recording = true;
        world_record(&world, RECORD_PROMISE, 0, guest.model, guest.size);
        ensure(guest_write(&guest, at, 8 * SECTOR) == 0 && guest_flush(&guest) == 0);
        world.recording = false;
        grown = memcmp(before, world.bytes + REFTABLE_FIELDS, sizeof(before)) != 0;
        for (size_t i = 0; grown && i < LOSS_COUNT * (world.count + 1); i++) {
            cut.end = i / LOSS_COUNT;
            cut_examine(&cut, (enum loss)(i % LOSS_COUNT), false, "the refcount table grows");
        }
    }
    ensure(grown);
    guest_drop(&guest);
    world_destroy(&world);
    free(base);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("crash");
    TCase *cases = tcase_create("crash");
    SRunner *runner;

    random_state = setting("CAIRN_SEED", 20);
    cuts_asked = setting("CAIRN_CUTS", 12000);
    /* Each cut needs the same memory again. */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    if (!mkdtemp(folder))
        return 1;
    /* qemu-img wants the backing file to be there. */
    char path[64];

    snprintf(path, sizeof(path), "%s/b", folder);
    FILE *backing = fopen(path, "wb");

    if (!backing || fclose(backing) != 0 || truncate(path, 1 << 20) < 0)
        return 1;
    tcase_set_timeout(cases, cuts_asked > 12000 ? 0 : 120);
    tcase_add_test(cases, crash_short);
    tcase_add_test(cases, crash_refcount_table_grows);
    tcase_add_loop_test(cases, crash_long, 0, (int)LAYOUTS);
    suite_add_tcase(suite, cases);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    if (!failed) {
        char command[64];

        snprintf(command, sizeof(command), "rm -r %s", folder);
        failed = system(command);
    }
    return failed ? 1 : 0;
}
