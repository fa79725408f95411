/*
 * The header: its fields, the extensions that matter to us, and writing back
 * what changes. All that ever changes lies in the first 512 bytes, which are
 * written at once; extensions and names are left as they were found.
 */
#include <stdarg.h>
#include <stdio.h>

#include "drivers/format/engine/qcow2_internal.h"

#define EXTENSION_BACKING_FORMAT 0xe2792acau
#define EXTENSION_FEATURES 0x6803f857u
#define EXTENSION_DATA_FILE 0x44415441u
#define EXTENSION_BITMAPS 0x23852875u
#define NAME_MAX_BYTES 1023u

int text_fail(char text[256], int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(text, 256, format, args);
    va_end(args);
    return code;
}

static uint32_t load32(const unsigned char *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return be32toh(value);
}

static uint64_t load64(const unsigned char *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return be64toh(value);
}

static void store32(unsigned char *bytes, uint32_t value)
{
    value = htobe32(value);
    memcpy(bytes, &value, sizeof(value));
}

static void store64(unsigned char *bytes, uint64_t value)
{
    value = htobe64(value);
    memcpy(bytes, &value, sizeof(value));
}

static void header_parse(struct qcow2_header *header, const unsigned char *bytes)
{
    header->version = load32(bytes + 4);
    header->backing_offset = load64(bytes + 8);
    header->backing_size = load32(bytes + 16);
    header->cluster_bits = load32(bytes + 20);
    header->size = load64(bytes + 24);
    header->crypt_method = load32(bytes + 32);
    header->l1_entries = load32(bytes + 36);
    header->l1_offset = load64(bytes + 40);
    header->reftable_offset = load64(bytes + 48);
    header->reftable_clusters = load32(bytes + 56);
    header->snapshots = load32(bytes + 60);
    header->snapshots_offset = load64(bytes + 64);
    header->refcount_order = 4;
    header->length = QCOW2_HEADER_V2;
    if (header->version < 3)
        return;
    header->incompatible = load64(bytes + 72);
    header->compatible = load64(bytes + 80);
    header->autoclear = load64(bytes + 88);
    header->refcount_order = load32(bytes + 96);
    header->length = load32(bytes + 100);
    if (header->length > QCOW2_HEADER_V3)
        header->compression = bytes[104];
}

int header_write(struct qcow2 *q)
{
    struct qcow2_header *header = &q->header;
    unsigned char *bytes = q->sector;

    store64(bytes + 24, header->size);
    store32(bytes + 36, header->l1_entries);
    store64(bytes + 40, header->l1_offset);
    store64(bytes + 48, header->reftable_offset);
    store32(bytes + 56, header->reftable_clusters);
    if (header->version >= 3) {
        store64(bytes + 72, header->incompatible);
        store64(bytes + 80, header->compatible);
        store64(bytes + 88, header->autoclear);
    }
    return image_write(q, 0, bytes, QCOW2_HEADER_SECTOR);
}

int header_mark_dirty(struct qcow2 *q)
{
    if (q->header.incompatible & QCOW2_INCOMPAT_DIRTY)
        return 0;
    q->header.incompatible |= QCOW2_INCOMPAT_DIRTY;
    int result = header_write(q);

    if (result == 0)
        result = image_flush(q);
    if (result < 0)
        q->header.incompatible &= ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
    return result;
}

static char *name_copy(struct qcow2 *q, const unsigned char *bytes, uint32_t size)
{
    char *name = q->io->alloc(q->world, (size_t)size + 1);

    if (name)
        memcpy(name, bytes, size);
    return name;
}

static int header_name(struct qcow2 *q, char **name, const unsigned char *bytes, uint32_t size, const char *what,
                       char text[256])
{
    if (size > NAME_MAX_BYTES || memchr(bytes, 0, size))
        return text_fail(text, -EINVAL, "The name of the %s in the image is too long or has a zero byte", what);
    q->io->release(q->world, *name);
    *name = name_copy(q, bytes, size);
    return *name ? 0 : text_fail(text, -ENOMEM, "Could not allocate memory for the header");
}

/* The names that the image gives to unknown incompatible features. */
static int header_unknown(const struct qcow2 *q, const unsigned char *table, uint32_t size, char text[256])
{
    uint64_t unknown = q->header.incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;
    size_t used = (size_t)snprintf(text, 256, "Unsupported qcow2 feature(s):");

    for (unsigned bit = 0; bit < 64; bit++) {
        char name[47] = "";

        if (!(unknown >> bit & 1))
            continue;
        for (uint32_t at = 0; at + 48 <= size; at += 48) {
            if (table[at] == 0 && table[at + 1] == bit)
                memcpy(name, table + at + 2, sizeof(name) - 1);
        }
        for (char *c = name; *c; c++) {
            if (*c < ' ' || *c > '~')
                *c = '?';
        }
        if (!name[0])
            snprintf(name, sizeof(name), "unknown incompatible feature bit %u", bit);
        if (used < 256)
            used += (size_t)snprintf(text + used, 256 - used, " %s", name);
    }
    return -ENOTSUP;
}

static int header_extension(struct qcow2 *q, uint32_t type, const unsigned char *bytes, uint32_t size, char text[256])
{
    if (type == EXTENSION_BACKING_FORMAT)
        return header_name(q, &q->backing_format, bytes, size, "backing file's format", text);
    if (type == EXTENSION_DATA_FILE)
        return header_name(q, &q->data_file_name, bytes, size, "data file", text);
    if (type == EXTENSION_BITMAPS && size >= 24) {
        q->header.bitmaps_size = load64(bytes + 8);
        q->header.bitmaps_offset = load64(bytes + 16);
    }
    if (type == EXTENSION_FEATURES && q->header.incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN)
        return header_unknown(q, bytes, size, text);
    return 0;
}

/* Extensions lie between the header and the backing file's name, or the end of the cluster. */
static int header_extensions(struct qcow2 *q, const unsigned char *cluster, char text[256])
{
    uint64_t end = q->header.backing_offset ? q->header.backing_offset : q->geometry.cluster_size;
    uint64_t at = q->header.length;

    while (at + 8 <= end) {
        uint32_t type = load32(cluster + at), size = load32(cluster + at + 4);

        at += 8;
        if (type == 0)
            break;
        if (size > end - at)
            return text_fail(text, -EINVAL, "Header extension 0x%08x of %u bytes is too large", type, size);
        int result = header_extension(q, type, cluster + at, size, text);

        if (result < 0)
            return result;
        at += ((uint64_t)size + 7) & ~UINT64_C(7);
    }
    if (q->header.incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN)
        return header_unknown(q, cluster, 0, text);
    return 0;
}

static int header_check_basics(struct qcow2 *q, char text[256])
{
    const struct qcow2_header *header = &q->header;

    if (header->version < 2 || header->version > 3)
        return text_fail(text, -ENOTSUP, "Unsupported qcow2 version %u", header->version);
    if (header->cluster_bits < 9 || header->cluster_bits > 21)
        return text_fail(text, -EINVAL, "Unsupported cluster size: 2^%u", header->cluster_bits);
    if (header->length < (header->version < 3 ? QCOW2_HEADER_V2 : QCOW2_HEADER_V3) || header->length % 8)
        return text_fail(text, -EINVAL, "qcow2 header too short");
    if (header->length > UINT32_C(1) << header->cluster_bits)
        return text_fail(text, -EINVAL, "qcow2 header exceeds cluster size");
    if (header->backing_offset > UINT32_C(1) << header->cluster_bits)
        return text_fail(text, -EINVAL, "Invalid backing file offset");
    if (header->refcount_order > 6)
        return text_fail(text, -EINVAL, "Reference count entry width too large; may not exceed 64 bits");
    if (header->crypt_method > 2)
        return text_fail(text, -EINVAL, "Unsupported encryption method %u", header->crypt_method);
    if (header->crypt_method)
        return text_fail(text, -ENOTSUP, "Encryption of qcow2 images is not supported");
    return 0;
}

static int header_check_tables(const struct qcow2 *q, char text[256])
{
    const struct qcow2_header *header = &q->header;
    uint32_t cluster = q->geometry.cluster_size;
    uint64_t span = l2_bytes(q);

    if (header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2 && header->cluster_bits < 14)
        return text_fail(text, -EINVAL,
                         "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
    if (header->incompatible & QCOW2_INCOMPAT_COMPRESSION ? header->compression != 1 : header->compression != 0)
        return text_fail(text, -ENOTSUP, "qcow2: Unknown compression type: %u", header->compression);
    if (header->size > INT64_MAX || header->size / span + (header->size % span != 0) > header->l1_entries)
        return text_fail(text, -EINVAL, "L1 table is too small for a disk of %llu bytes",
                         (unsigned long long)header->size);
    if (header->l1_entries > QCOW2_L1_MAX / 8)
        return text_fail(text, -EFBIG, "Active L1 table too large");
    if (header->l1_entries &&
        (header->l1_offset & (cluster - 1) || header->l1_offset == 0 || header->l1_offset > QCOW2_HOST_MAX))
        return text_fail(text, -EINVAL, "Active L1 table offset invalid");
    if (header->snapshots > QCOW2_SNAPSHOTS_MAX)
        return text_fail(text, -EINVAL, "Snapshot table too large");
    if (header->snapshots && (header->snapshots_offset & (cluster - 1) || header->snapshots_offset == 0 ||
                              header->snapshots_offset > QCOW2_HOST_MAX))
        return text_fail(text, -EINVAL, "Snapshot table offset invalid");
    if (header->incompatible & QCOW2_INCOMPAT_CORRUPT && !q->settings.read_only)
        return text_fail(text, -EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    if (header->incompatible & QCOW2_INCOMPAT_DATA_FILE && header->backing_offset && qcow2_data_file_raw(q))
        return text_fail(text, -EINVAL, "A raw data file goes with no backing file");
    return 0;
}

static void header_geometry(struct qcow2 *q)
{
    struct geometry *g = &q->geometry;
    const struct qcow2_header *header = &q->header;
    bool extended = header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;

    g->data_file = header->incompatible & QCOW2_INCOMPAT_DATA_FILE;
    g->cluster_bits = header->cluster_bits;
    g->cluster_size = UINT32_C(1) << g->cluster_bits;
    g->entry_size = extended ? 16 : 8;
    g->l2_bits = g->cluster_bits - (extended ? 4 : 3);
    uint32_t slice = g->cluster_size < QCOW2_SLICE_MAX ? g->cluster_size : QCOW2_SLICE_MAX;

    g->slice_entries = slice / g->entry_size;
    g->slice_bits = (uint32_t)__builtin_ctz(g->slice_entries);
    g->slices = g->cluster_size / slice;
    g->subclusters = extended ? 32 : 1;
    g->subcluster_bits = g->cluster_bits - (extended ? 5 : 0);
    g->refcount_order = header->refcount_order;
    g->refcount_bits = g->cluster_bits + 3 - g->refcount_order;
    g->refcount_max = g->refcount_order == 6 ? INT64_MAX : (UINT64_C(1) << (1u << g->refcount_order)) - 1;
}

/* What lies in the first cluster besides the fields: extensions and the backing file's name. */
static int header_read_cluster(struct qcow2 *q, char text[256])
{
    const struct qcow2_header *header = &q->header;
    unsigned char *cluster = q->io->alloc(q->world, q->geometry.cluster_size);

    if (!cluster)
        return text_fail(text, -ENOMEM, "Could not allocate memory for the header");
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, 0, cluster, q->geometry.cluster_size);

    if (result < 0)
        text_fail(text, result, "Could not read qcow2 header");
    else
        result = header_extensions(q, cluster, text);
    if (result == 0 && header->backing_offset) {
        if (header->backing_size > NAME_MAX_BYTES ||
            header->backing_size > q->geometry.cluster_size - header->backing_offset)
            result = text_fail(text, -EINVAL, "Backing file name too long");
        else if (header->backing_size)
            result = header_name(q, &q->backing_name, cluster + header->backing_offset, header->backing_size,
                                 "backing file", text);
    }
    q->io->release(q->world, cluster);
    return result;
}

int header_read(struct qcow2 *q, char text[256])
{
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, 0, q->sector, sizeof(q->sector));

    if (result < 0)
        return text_fail(text, result, "Could not read qcow2 header");
    if (load32(q->sector) != QCOW2_MAGIC)
        return text_fail(text, -EMEDIUMTYPE, "Image is not in qcow2 format");
    header_parse(&q->header, q->sector);
    result = header_check_basics(q, text);
    if (result < 0)
        return result;
    header_geometry(q);
    result = header_read_cluster(q, text);
    return result < 0 ? result : header_check_tables(q, text);
}
