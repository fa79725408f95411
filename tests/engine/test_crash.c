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
    size_t end;        /* records before the cut */
    struct world base; /* the files when the recording began */
    enum loss losses[FORMAT_FILE_COUNT];
    bool data_file;
    bool lazy; /* refcounts are allowed to be wrong while the image is marked */
};

static void base_take(struct cut *cut)
{
    world_init(&cut->base);
    for (enum format_file file = 0; file < FORMAT_FILE_COUNT; file++) {
        uint64_t size = world_file_size(cut->log, file);

        world_resize_file(&cut->base, file, size);
        if (size)
            memcpy(world_bytes(&cut->base, file), world_bytes(cut->log, file), size);
    }
}

static void cut_apply(struct world *world, const struct record *record, enum loss loss)
{
    if (record->kind == RECORD_SIZE) {
        world_resize_file(world, record->file, record->offset);
        return;
    }
    if (record->kind != RECORD_WRITE || (loss == LOSS_SOME && random_below(2)))
        return;
    if (record->offset + record->size > world_file_size(world, record->file))
        world_resize_file(world, record->file, record->offset + record->size);
    for (size_t done = 0, part; done < record->size; done += part) {
        part = SECTOR - (record->offset + done) % SECTOR;
        part = part < record->size - done ? part : record->size - done;
        if (loss != LOSS_TORN || random_below(2))
            memcpy(world_bytes(world, record->file) + record->offset + done, record->data + done, part);
    }
}

/*
 * What is on disk of a file: all before its last flush, and of the rest what the loss leaves, in another order. What
 * happens to one file says nothing of the other.
 */
static void cut_build_file(const struct cut *cut, struct world *world, enum format_file file)
{
    const struct record *records = cut->log->records;
    size_t flushed = 0, pending[512], count = 0;
    uint64_t size = world_file_size(&cut->base, file);
    enum loss loss = cut->losses[file];

    world_resize_file(world, file, size);
    if (size)
        memcpy(world_bytes(world, file), world_bytes(&cut->base, file), size);
    for (size_t i = 0; i < cut->end; i++) {
        if (records[i].kind == RECORD_FLUSH && records[i].file == file)
            flushed = i + 1;
    }
    for (size_t i = 0; i < flushed; i++) {
        if (records[i].file == file)
            cut_apply(world, &records[i], LOSS_NONE);
    }
    for (size_t i = flushed; i < cut->end && loss != LOSS_ALL; i++) {
        if (records[i].file != file)
            continue;
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

/* qemu-img makes an internal snapshot: from now on clusters and tables are shared. */
static void image_snapshot(struct world *world)
{
    char command[256], path[128];

    snprintf(path, sizeof(path), "%s/snapshot.qcow2", folder);
    ensure(world_save(world, FORMAT_FILE_IMAGE, path));
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

static void cut_show(const struct world *world, bool data_file, const char *what)
{
    char command[512], path[128], data[128], option[256] = "";

    snprintf(path, sizeof(path), "%s/cut.qcow2", folder);
    ensure(world_save(world, FORMAT_FILE_IMAGE, path));
    if (data_file) {
        snprintf(data, sizeof(data), "%s/cut.data", folder);
        ensure(world_save(world, FORMAT_FILE_DATA, data));
        snprintf(option, sizeof(option), ",data-file.driver=file,data-file.filename=%s", data);
    }
    snprintf(command, sizeof(command),
             "qemu-img check -q --image-opts driver=qcow2,file.driver=file,file.filename=%s%s >/dev/null 2>&1", path,
             option);
    int status = system(command);
    int code = WEXITSTATUS(status);

    ensure_msg(code == 0 || code == 3, "%s: qemu-img check says %d, see %s", what, code, path);
    cuts_shown++;
}

/* Whether the guest has tried since the promise to put this into a sector. */
static bool cut_changed(const struct cut *cut, size_t promise, uint64_t at, const unsigned char *bytes)
{
    for (size_t i = promise; i < cut->end; i++) {
        const struct record *record = &cut->log->records[i];

        if (record->kind != RECORD_TOUCH || at < record->offset || at >= record->offset + record->size)
            continue;
        if (!record->data || memcmp(bytes, record->data + (at - record->offset), SECTOR) == 0)
            return true;
    }
    return false;
}

/* What the last promise before the cut said, or what the guest has written since: what began during the flush too. */
static void cut_promises(const struct cut *cut, struct guest *guest, const char *what)
{
    const struct record *records = cut->log->records, *promise = NULL;
    unsigned char buf[SECTOR], outside[SECTOR];

    for (size_t i = 0; i < cut->end; i++) {
        if (records[i].kind == RECORD_PROMISE)
            promise = &records[i];
    }
    for (uint64_t at = 0; promise && at < promise->size; at += SECTOR) {
        ensure(guest_read(guest, at, buf, SECTOR) == 0);
        if ((at >= guest->size || memcmp(buf, promise->data + at, SECTOR) != 0) &&
            !cut_changed(cut, promise->offset, at, buf))
            ck_abort_msg("%s: sector %lu is not what was promised", what, (unsigned long)(at / SECTOR));
        /* Others read a raw data file by themselves. */
        ensure(!guest->raw || world_io.read(guest->world, FORMAT_FILE_DATA, at, outside, SECTOR) == 0);
        if (guest->raw && memcmp(outside, promise->data + at, SECTOR) != 0 &&
            !cut_changed(cut, promise->offset, at, outside))
            ck_abort_msg("%s: sector %lu of the raw file is not what was promised", what, (unsigned long)(at / SECTOR));
    }
}

static void cut_examine(struct cut *cut, enum loss loss, bool backed, const char *name)
{
    struct world world;
    struct guest guest;
    struct qcow2_check_result check;
    char what[256];

    cut->losses[FORMAT_FILE_IMAGE] = loss;
    snprintf(what, sizeof(what), "%s, cut %zu of %zu, loss %d, of data %d", name, cut->end, cut->log->count, (int)loss,
             (int)cut->losses[FORMAT_FILE_DATA]);
    world_init(&world);
    for (enum format_file file = 0; file < FORMAT_FILE_COUNT; file++)
        cut_build_file(cut, &world, file);
    if (cuts_made++ % (cuts_asked / 200 + 1) == 0 && !cut->lazy)
        cut_show(&world, cut->data_file, what);
    ensure_msg(guest_open_data_file(&guest, &world, backed, cut->data_file) == 0, "%s: does not open", what);
    ensure(qcow2_check(guest.q, false, &check) == 0);
    if (check.corruptions)
        cut_show(&world, cut->data_file, what);
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
#define BACKED .backing_name = "b", .backing_format = "raw"

static const struct layout {
    struct qcow2_create_options options;
    enum guest_data data;
} layouts[] = {
    {.options = {.version = 3, .cluster_bits = 9, .refcount_order = 4}},
    {.options = {.version = 2, .cluster_bits = 9, .refcount_order = 4}},
    {.options = {.version = 3, .cluster_bits = 9, .refcount_order = 6, BACKED}},
    {.options = {.version = 3, .cluster_bits = 12, .refcount_order = 0}},
    {.options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, .lazy_refcounts = true, .zstd = true}},
    {.options = {.version = 2, .cluster_bits = 12, .refcount_order = 4, BACKED}},
    {.options = {.version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true}},
    {.options = {.version = 3, .cluster_bits = 14, .refcount_order = 3, .extended_l2 = true, BACKED}},
    {.options = {.version = 3, .cluster_bits = 9, .refcount_order = 4}, .data = DATA_APART},
    {.options = {.version = 3, .cluster_bits = 12, .refcount_order = 4, BACKED}, .data = DATA_APART},
    {.options = {.version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true, BACKED},
     .data = DATA_APART},
    {.options = {.version = 3, .cluster_bits = 9, .refcount_order = 4, .lazy_refcounts = true}, .data = DATA_RAW},
    {.options = {.version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true}, .data = DATA_RAW},
};
#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))
#define FIRST_APART 8 /* layout with a data file */

static void start_plain(struct guest *guest, struct world *world, const struct qcow2_create_options *options,
                        enum guest_data data)
{
    guest_create_data_file(guest, world, options, data);
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
        start_plain(guest, world, options, DATA_IN_IMAGE);
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

/* Runs the actions and looks at so many cuts of them; 0: at each place, with each loss of each file. */
static void crash(unsigned layout, bool snapshot, const enum action *actions, unsigned count, unsigned long cuts)
{
    struct qcow2_create_options options = layouts[layout].options;
    enum guest_data data = layouts[layout].data;
    uint64_t cluster = UINT64_C(1) << options.cluster_bits;
    struct world world;
    struct guest guest;
    char name[96];

    /* So wide that tables are many, and leave the small caches. */
    wide = count > 3 && options.cluster_bits == 9 && random_below(2);
    options.size = (wide ? 1000 : 16) * cluster;
    /* A refcount of one bit cannot say that a cluster is shared, and a data file's clusters have none. */
    snapshot = snapshot && options.refcount_order > 0 && data == DATA_IN_IMAGE;
    world_init(&world);
    world.small_caches = random_below(2);
    if (snapshot)
        start_shared(layout, &guest, &world, &options);
    else
        start_plain(&guest, &world, &options, data);
    struct cut cut = {.log = &world, .data_file = data != DATA_IN_IMAGE, .lazy = options.lazy_refcounts};

    base_take(&cut);
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
    /* Whoever closes an image may turn the machine off. */
    ensure(qcow2_finish(guest.q) == 0);
    world_record(&world, RECORD_PROMISE, world.count, guest.model, guest.size);
    world.recording = false;
    snprintf(name, sizeof(name), "layout %u%s, actions %d %d %d of %u", layout, snapshot ? " with a snapshot" : "",
             (int)actions[0], count > 1 ? (int)actions[1] : -1, count > 2 ? (int)actions[2] : -1, count);
    unsigned long places = world.count + 1;

    cuts = cuts ? cuts : places * LOSS_COUNT * (cut.data_file ? LOSS_COUNT : 1);
    for (unsigned long i = 0; i < cuts; i++) {
        bool all = cuts >= places * LOSS_COUNT;

        cut.end = all ? (i / LOSS_COUNT) % places : i == LOSS_ALL ? world.count : random_below((uint32_t)places);
        if (cut.data_file)
            cut.losses[FORMAT_FILE_DATA] = all ? i / LOSS_COUNT / places % LOSS_COUNT : random_below(LOSS_COUNT);
        cut_examine(&cut, (enum loss)(i % LOSS_COUNT), options.backing_name != NULL, name);
    }
    guest_drop(&guest);
    world_destroy(&cut.base);
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

/* Data and tables in files of their own: what one has says nothing of what the other has. */
START_TEST(crash_data_file)
{
    static const enum action sequences[][3] = {
        {WRITE_LARGE, FLUSH, REWRITE}, {WRITE_LARGE, REWRITE, FLUSH},       {ZERO_UNMAP, WRITE_SMALL, FLUSH},
        {DISCARD, FLUSH, REWRITE},     {WRITE_LARGE, DISCARD, WRITE_SMALL}, {SHRINK, GROW, FLUSH},
    };

    for (unsigned i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++)
        crash((unsigned)_i, false, sequences[i], 3, 0);
}
END_TEST

/* --- Refcount blocks, and tables of them --- */

#define REFTABLE_FIELD 48u /* of the header: where the table is */
#define REFTABLE_SIZE 512u /* of the first one */
#define REFTABLE_TRIES 2u  /* cuts at one place that lose something else each time */
#define REFTABLE_EVERY 6u  /* of so many blocks, one is looked at */

static uint64_t reftable_offset(const struct world *world)
{
    uint64_t offset;

    memcpy(&offset, world->bytes + REFTABLE_FIELD, sizeof(offset));
    return be64toh(offset);
}

/* The second time somebody else writes on during each flush: blocks and tables are made while others are written. */
static uint64_t blocks_at;
static struct guest *blocks_guest;

static void blocks_meanwhile(struct world *world)
{
    (void)world;
    if (blocks_at + 8 * SECTOR <= blocks_guest->size)
        ensure(guest_write(blocks_guest, blocks_at, 8 * SECTOR) == 0);
    blocks_at += 8 * SECTOR;
}

/* Writes and flushes a disk from its begin to its end, and looks at all cuts of some steps that made a block, and of the
 * one that made another table. */
START_TEST(crash_refcount_blocks)
{
    const struct qcow2_create_options options = {.version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 3 << 20};
    unsigned char before[REFTABLE_SIZE];
    unsigned blocks = 0, tables = 0;
    struct world world;
    struct guest guest;

    world_init(&world);
    guest_create(&guest, &world, &options);
    blocks_guest = &guest;
    for (blocks_at = 0; blocks_at < options.size && !tables;) {
        uint64_t at = blocks_at;
        struct cut cut = {.log = &world};

        world.meanwhile = NULL;
        ensure(guest_flush(&guest) == 0);
        uint64_t table = reftable_offset(&world);

        memcpy(before, world.bytes + table, sizeof(before));
        world_forget(&world);
        base_take(&cut);
        blocks_at += 8 * SECTOR;
        world.meanwhile = _i ? blocks_meanwhile : NULL;
        world.recording = true;
        world_record(&world, RECORD_PROMISE, 0, guest.model, guest.size);
        ensure(guest_write(&guest, at, 8 * SECTOR) == 0 && guest_flush(&guest) == 0);
        world.recording = false;
        bool grown = reftable_offset(&world) != table, named = memcmp(before, world.bytes + table, sizeof(before)) != 0;

        bool looks = grown || (named && blocks % REFTABLE_EVERY == 0);

        blocks += named;
        tables += grown;
        for (size_t i = 0; looks && i < REFTABLE_TRIES * LOSS_COUNT * (world.count + 1); i++) {
            cut.end = i / LOSS_COUNT % (world.count + 1);
            cut_examine(&cut, (enum loss)(i % LOSS_COUNT), false, grown ? "a refcount table grows" : "a block is made");
        }
        world_destroy(&cut.base);
    }
    ensure(tables && blocks > 10);
    guest_drop(&guest);
    world_destroy(&world);
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
    FILE *backing;

    snprintf(path, sizeof(path), "%s/b", folder);
    if (!(backing = fopen(path, "wb")) || fclose(backing) != 0 || truncate(path, 1 << 20) < 0)
        return 1;
    tcase_set_timeout(cases, cuts_asked > 12000 ? 0 : 120);
    tcase_add_test(cases, crash_short);
    tcase_add_loop_test(cases, crash_refcount_blocks, 0, 2);
    tcase_add_loop_test(cases, crash_data_file, FIRST_APART, (int)LAYOUTS);
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
