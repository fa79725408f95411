/*
 * An empty image: header, refcount table, one refcount block, L1 table, each
 * beginning at a cluster of its own. The header is written last, so that a
 * half-made image is no image.
 */
#include <stdlib.h>

#include "drivers/format/engine/qcow2_internal.h"

#define EXTENSION_BACKING_FORMAT 0xe2792acau

struct creation {
    const struct format_io *io;
    void *world;
    const struct qcow2_create_options *options;
    uint64_t cluster, l1_entries, table_clusters, blocks, l1_clusters;
};

static int create_check(const struct qcow2_create_options *options, char text[256])
{
    if (options->version < 2 || options->version > 3)
        return text_fail(text, -EINVAL, "Invalid compatibility level: version %u", options->version);
    if (options->cluster_bits < 9 || options->cluster_bits > 21)
        return text_fail(text, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    if (options->refcount_order > 6)
        return text_fail(text, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
    if (options->size % 512 || options->size > INT64_MAX)
        return text_fail(text, -EINVAL, "Image size %llu is not a multiple of 512 or too large",
                         (unsigned long long)options->size);
    if (options->version < 3 &&
        (options->refcount_order != 4 || options->lazy_refcounts || options->extended_l2 || options->zstd))
        return text_fail(text, -EINVAL, "Refcount widths, lazy refcounts, extended L2 and zstd need version 3");
    if (options->extended_l2 && options->cluster_bits < 14)
        return text_fail(text, -EINVAL, "Extended L2 entries need clusters of at least 16384 bytes");
    if (options->backing_name && strlen(options->backing_name) > 1023)
        return text_fail(text, -EINVAL, "Backing file name too long");
    return 0;
}

/* How many blocks and table clusters count the header, themselves and the L1 table. */
static void create_layout(struct creation *c)
{
    uint64_t per_block = (c->cluster * 8) >> c->options->refcount_order;
    uint64_t entry = c->options->extended_l2 ? 16 : 8, span = c->cluster / entry * c->cluster;

    c->l1_entries = c->options->size / span + (c->options->size % span != 0);
    c->l1_clusters = (c->l1_entries * 8 + c->cluster - 1) / c->cluster;
    c->blocks = c->table_clusters = 1;
    for (;;) {
        uint64_t used = 1 + c->table_clusters + c->blocks + c->l1_clusters;
        uint64_t blocks = (used + per_block - 1) / per_block;
        uint64_t table = (blocks * 8 + c->cluster - 1) / c->cluster;

        if (blocks <= c->blocks && table <= c->table_clusters)
            return;
        c->blocks = blocks;
        c->table_clusters = table;
    }
}

static void put32(unsigned char *bytes, uint32_t value)
{
    value = htobe32(value);
    memcpy(bytes, &value, sizeof(value));
}

static void put64(unsigned char *bytes, uint64_t value)
{
    value = htobe64(value);
    memcpy(bytes, &value, sizeof(value));
}

static void create_names(const struct creation *c, unsigned char *bytes, uint32_t at)
{
    const char *format = c->options->backing_format, *name = c->options->backing_name;

    if (name && format) {
        put32(bytes + at, EXTENSION_BACKING_FORMAT);
        put32(bytes + at + 4, (uint32_t)strlen(format));
        memcpy(bytes + at + 8, format, strlen(format));
        at += 8 + (uint32_t)((strlen(format) + 7) & ~(size_t)7);
    }
    at += 8; /* the end of the extensions */
    if (name) {
        put64(bytes + 8, at);
        put32(bytes + 16, (uint32_t)strlen(name));
        memcpy(bytes + at, name, strlen(name));
    }
}

static int create_header(const struct creation *c, unsigned char *bytes)
{
    const struct qcow2_create_options *options = c->options;
    uint32_t length = options->version < 3 ? QCOW2_HEADER_V2 : QCOW2_HEADER_V3 + 8;
    size_t names = (options->backing_name ? strlen(options->backing_name) : 0) +
                   (options->backing_format ? strlen(options->backing_format) : 0);

    if (length + names + 32 > c->cluster)
        return -ENAMETOOLONG;
    memset(bytes, 0, c->cluster);
    put32(bytes, QCOW2_MAGIC);
    put32(bytes + 4, options->version);
    put32(bytes + 20, options->cluster_bits);
    put64(bytes + 24, options->size);
    put32(bytes + 36, (uint32_t)c->l1_entries);
    put64(bytes + 40, c->l1_entries ? (1 + c->table_clusters + c->blocks) * c->cluster : 0);
    put64(bytes + 48, c->cluster);
    put32(bytes + 56, (uint32_t)c->table_clusters);
    if (options->version >= 3) {
        put64(bytes + 72, (options->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
                              (options->zstd ? QCOW2_INCOMPAT_COMPRESSION : 0));
        put64(bytes + 80, options->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
        put32(bytes + 96, options->refcount_order);
        put32(bytes + 100, length);
        bytes[104] = options->zstd;
    }
    create_names(c, bytes, length);
    return 0;
}

static void block_ones(unsigned char *bytes, uint64_t count, uint32_t order)
{
    for (uint64_t i = 0; i < count; i++) {
        if (order < 3)
            bytes[(i << order) / 8] |= (unsigned char)(1u << ((i << order) % 8));
        else
            bytes[((i + 1) << (order - 3)) - 1] = 1;
    }
}

static int create_tables(const struct creation *c, unsigned char *bytes)
{
    uint64_t per_block = (c->cluster * 8) >> c->options->refcount_order;
    uint64_t used = 1 + c->table_clusters + c->blocks + c->l1_clusters,
             first_block = (1 + c->table_clusters) * c->cluster;
    int result = c->io->grow(c->world, FORMAT_FILE_IMAGE, used * c->cluster);

    for (uint64_t i = 0; result == 0 && i < c->table_clusters; i++) {
        memset(bytes, 0, c->cluster);
        for (uint64_t j = 0; j < c->cluster / 8 && i * (c->cluster / 8) + j < c->blocks; j++)
            put64(bytes + 8 * j, first_block + (i * (c->cluster / 8) + j) * c->cluster);
        result = c->io->write(c->world, FORMAT_FILE_IMAGE, (1 + i) * c->cluster, bytes, c->cluster);
    }
    for (uint64_t i = 0; result == 0 && i < c->blocks; i++) {
        memset(bytes, 0, c->cluster);
        if (used > i * per_block)
            block_ones(bytes, qcow2_min(used - i * per_block, per_block), c->options->refcount_order);
        result = c->io->write(c->world, FORMAT_FILE_IMAGE, first_block + i * c->cluster, bytes, c->cluster);
    }
    memset(bytes, 0, c->cluster);
    for (uint64_t i = 0; result == 0 && i < c->l1_clusters; i++)
        result =
            c->io->write(c->world, FORMAT_FILE_IMAGE, first_block + (c->blocks + i) * c->cluster, bytes, c->cluster);
    return result < 0 ? result : c->io->flush(c->world, FORMAT_FILE_IMAGE);
}

int qcow2_create(const struct format_io *io, void *world, const struct qcow2_create_options *options, char text[256])
{
    struct creation c = {.io = io, .world = world, .options = options};
    int result = create_check(options, text);

    if (result < 0)
        return result;
    c.cluster = UINT64_C(1) << options->cluster_bits;
    create_layout(&c);
    if (c.l1_entries > QCOW2_L1_MAX / 8)
        return text_fail(text, -EFBIG, "The image size is too large for the cluster size");
    unsigned char *bytes = io->alloc(world, c.cluster);

    if (!bytes)
        return text_fail(text, -ENOMEM, "Could not allocate memory for a cluster");
    result = create_tables(&c, bytes);
    if (result == 0)
        result = create_header(&c, bytes);
    if (result == 0)
        result = io->write(world, FORMAT_FILE_IMAGE, 0, bytes, c.cluster);
    if (result == 0)
        result = io->flush(world, FORMAT_FILE_IMAGE);
    io->release(world, bytes);
    if (result == -ENAMETOOLONG)
        return text_fail(text, -EINVAL, "The backing file's name does not fit into a cluster");
    return result < 0 ? text_fail(text, result, "Could not write the image: %s", strerror(-result)) : 0;
}
