/*
 * What writes to qcow2 nodes do by their flags: compressed ones, and fills,
 * which must not touch what is there. The images are made and checked by
 * qemu-img, also with data that cannot be compressed, in parts of clusters,
 * and several times over.
 */
#include "core/fan.h"
#include "tests/unit/node_harness.h"

#define CLUSTER 65536u
#define DISK_SIZE (4 * MIB + 12 * 1024)

static unsigned char *model;

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
    char command[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    ck_assert_msg(system(command) == 0, "%s", command);
}

static struct node *open_image(bool direct)
{
    struct node *file = open_node("file", direct);
    struct node_ref ref = {.name = (char *)(uintptr_t) "file"};
    struct node_options options = {.driver = NODE_DRIVER_QCOW2, .u.qcow2 = {.file = &ref}};
    AUTO_ERROR struct error err = {0};
    struct node *node = NULL;

    if (!file)
        return NULL;
    ck_assert_msg(try_open("disk", &options, &node, &err) == 0, "%s", err.text);
    return node;
}

static void close_image(struct node *disk)
{
    close_node(disk);
    close_node(node_find("file"));
    shell("qemu-img check -q -f qcow2 %s", test_path);
}

static void content(unsigned char *data, size_t size, unsigned seed, bool packs)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1103515245 + 12345;
        data[i] = (unsigned char)(packs ? seed >> 31 : seed >> 16);
    }
}

/* Writes and keeps the model. */
static void write_as(struct edge *edge, uint64_t offset, uint64_t size, unsigned seed, bool packs, uint32_t flags)
{
    content(model + offset, size, seed, packs);
    ck_assert_int_eq(edge_write(edge, offset, model + offset, size, flags), 0);
}

static void reads_as_model(struct edge *edge)
{
    unsigned char *data = memory_zero(DISK_SIZE);

    ck_assert_int_eq(edge_read(edge, 0, data, DISK_SIZE), 0);
    for (uint64_t at = 0; at < DISK_SIZE; at += 512)
        ck_assert_msg(memcmp(data + at, model + at, 512) == 0, "sector %lu", (unsigned long)(at / 512));
    free(data);
}

/* The image as stock tools read it. */
static void stock_reads_as_model(void)
{
    char path[300];

    snprintf(path, sizeof(path), "%s.raw", test_path);
    FILE *raw = fopen(path, "wb");

    ck_assert_ptr_nonnull(raw);
    ck_assert_uint_eq(fwrite(model, 1, DISK_SIZE, raw), DISK_SIZE);
    ck_assert_int_eq(fclose(raw), 0);
    shell("qemu-img compare -q -f qcow2 -F raw %s %s", test_path, path);
    unlink(path);
}

static void pack(struct edge *edge)
{
    write_as(edge, 0, 20 * CLUSTER, 1, true, REQ_COMPRESSED);
    write_as(edge, 20 * CLUSTER, 3 * CLUSTER, 2, false, REQ_COMPRESSED);
    reads_as_model(edge);
    /* Again, in another place of the file; parts; the last cluster; what was not compressed. */
    write_as(edge, 2 * CLUSTER, CLUSTER, 3, true, REQ_COMPRESSED);
    write_as(edge, 4 * CLUSTER + 512, 2 * CLUSTER, 4, true, REQ_COMPRESSED);
    write_as(edge, DISK_SIZE - CLUSTER, CLUSTER, 5, true, REQ_COMPRESSED);
    write_as(edge, 30 * CLUSTER, CLUSTER, 6, true, 0);
    write_as(edge, 30 * CLUSTER + 4096, 4096, 7, true, REQ_COMPRESSED);
    reads_as_model(edge);
    /* Plain writes into compressed clusters. */
    write_as(edge, 8 * CLUSTER + 4096, 4096, 8, false, 0);
    write_as(edge, 9 * CLUSTER, CLUSTER, 9, false, 0);
    write_as(edge, 9 * CLUSTER, CLUSTER, 10, true, REQ_COMPRESSED | REQ_FUA);
    reads_as_model(edge);
    ck_assert_int_eq(edge_flush(edge), 0);
}

static void packs_with(const char *options, bool direct)
{
    shell("qemu-img create -q -f qcow2 -o %s %s %u", options, test_path, DISK_SIZE);
    struct node *disk = open_image(direct);

    if (!disk)
        return;
    struct edge edge = {.child = disk};

    model = memory_zero(DISK_SIZE);
    pack(&edge);
    close_image(disk);
    stock_reads_as_model();
    disk = open_image(direct);
    edge.child = disk;
    reads_as_model(&edge);
    close_image(disk);
    free(model);
}

static void packs(void)
{
    packs_with("compat=1.1", false);
    packs_with("compression_type=zstd", true);
    packs_with("compat=0.10", false);
    packs_with("refcount_bits=1", false);
    packs_with("refcount_bits=2,cluster_size=4k", false);
    packs_with("extended_l2=on", false);
}

/* What is compressed takes less. */
static void packs_close(void)
{
    shell("qemu-img create -q -f qcow2 %s %u", test_path, DISK_SIZE);
    struct node *disk = open_image(false);
    struct edge edge = {.child = disk};

    model = memory_zero(DISK_SIZE);
    for (unsigned i = 0; i < DISK_SIZE / CLUSTER; i++)
        write_as(&edge, (uint64_t)i * CLUSTER, CLUSTER, i, true, REQ_COMPRESSED);
    close_image(disk);
    ck_assert_uint_lt(size_on_disk(), 2 * MIB);
    stock_reads_as_model();
    free(model);
}

/* What is filled in comes from below. */
static void create_overlay(void)
{
    shell("truncate -s %u %s.base && qemu-img create -q -f qcow2 -b %s.base -F raw %s", DISK_SIZE, test_path, test_path,
          test_path);
}

static void remove_base(void)
{
    shell("rm %s.base", test_path);
}

static void fills(void)
{
    create_overlay();
    struct node *disk = open_image(false);
    struct edge edge = {.child = disk};
    unsigned char *fill = memory_zero(8 * CLUSTER);

    model = memory_zero(DISK_SIZE);
    write_as(&edge, 2 * CLUSTER, 4096, 1, false, 0);
    write_as(&edge, 5 * CLUSTER, CLUSTER, 2, true, REQ_COMPRESSED);
    ck_assert_int_eq(edge_write_zeroes(&edge, 7 * CLUSTER, CLUSTER, 0), 0);
    /* Two that overlap: the second finds everything there. */
    content(fill, 8 * CLUSTER, 3, true);
    ck_assert_int_eq(edge_write(&edge, CLUSTER, fill, 8 * CLUSTER, REQ_FILL | REQ_COMPRESSED), 0);
    for (unsigned i = 1; i < 9; i++) {
        if (i != 2 && i != 5 && i != 7)
            memcpy(model + (size_t)i * CLUSTER, fill + (size_t)(i - 1) * CLUSTER, CLUSTER);
    }
    reads_as_model(&edge);
    memset(fill, 7, 8 * CLUSTER);
    ck_assert_int_eq(edge_write(&edge, 0, fill, 8 * CLUSTER, REQ_FILL), 0);
    memset(model, 7, CLUSTER);
    ck_assert_int_eq(edge_write(&edge, 20 * CLUSTER + 512, fill, 512, REQ_FILL), 0);
    memset(model + 20 * CLUSTER + 512, 7, 512);
    reads_as_model(&edge);
    close_image(disk);
    stock_reads_as_model();
    remove_base();
    free(fill);
    free(model);
}

/* A guest's write and a fill of the same place, at once: the guest's stays. */
struct racer {
    struct fan_task task;
    struct edge *edge;
    uint64_t offset, size;
    const void *data;
    uint32_t flags;
};

static int racer_run(struct fan_task *task)
{
    const struct racer *racer = container_of(task, struct racer, task);

    return edge_write(racer->edge, racer->offset, racer->data, racer->size, racer->flags);
}

static void fills_lose(void)
{
    create_overlay();
    struct node *disk = open_image(false);
    struct edge edge = {.child = disk};
    unsigned char *fill = memory_zero(DISK_SIZE);

    model = memory_zero(DISK_SIZE);
    for (unsigned i = 0; i < 32; i++) {
        uint64_t at = (uint64_t)i * 2 * CLUSTER, inner = at + 4096 * (i % 16);
        struct racer racers[] = {{.task.run = racer_run, .edge = &edge, .offset = at, .size = 2 * CLUSTER},
                                 {.task.run = racer_run, .edge = &edge, .offset = inner, .size = 4096}};
        struct fan fan = {0};

        content(model + inner, 4096, i, false);
        racers[0].data = fill + at;
        racers[0].flags = REQ_FILL | (i & 4 ? REQ_COMPRESSED : 0);
        racers[1].data = model + inner;
        racers[1].flags = i & 8 ? REQ_COMPRESSED : 0;
        fan_start(&fan, &racers[i & 1].task);
        fan_start(&fan, &racers[!(i & 1)].task);
        ck_assert_int_eq(fan_wait(&fan), 0);
    }
    reads_as_model(&edge);
    close_image(disk);
    remove_base();
    free(fill);
    free(model);
}

BOTH_RINGS(packs)
BOTH_RINGS(packs_close)
BOTH_RINGS(fills)
BOTH_RINGS(fills_lose)

int main(void)
{
    const TTest *const all[] = {test_packs, test_packs_close, test_fills, test_fills_lose};

    return run_tests("qcow2_flags", all, array_size(all));
}
