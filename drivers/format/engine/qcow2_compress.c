/*
 * Compressed clusters: where they are, and what is in them. Reading takes no
 * lock: a cluster that is freed meanwhile keeps its content for a grace period.
 */
#include <zlib.h>
#include <zstd.h>

#include "drivers/format/engine/qcow2_internal.h"

/* The specification's "Compressed Clusters Descriptor". */
void compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size)
{
    uint32_t shift = 62 - (q->geometry.cluster_bits - 8);
    uint64_t sectors = (entry >> shift) & ((UINT64_C(1) << (q->geometry.cluster_bits - 8)) - 1);

    *offset = entry & ((UINT64_C(1) << shift) - 1) & (QCOW2_HOST_MAX - 1);
    *size = (sectors + 1) * 512 - (*offset & 511);
}

static int inflate_cluster(unsigned char *from, size_t from_size, void *to, size_t to_size)
{
    z_stream stream = {.next_in = from, .avail_in = (uInt)from_size, .next_out = to, .avail_out = (uInt)to_size};

    if (inflateInit2(&stream, -15) != Z_OK)
        return -ENOMEM;
    int status = inflate(&stream, Z_FINISH);
    bool whole = stream.avail_out == 0 && (status == Z_STREAM_END || status == Z_BUF_ERROR || status == Z_OK);

    inflateEnd(&stream);
    return whole ? 0 : -EIO;
}

/* The last sector has bytes that are not the frame's. */
static int zstd_cluster(const unsigned char *from, size_t from_size, void *to, size_t to_size)
{
    ZSTD_inBuffer in = {.src = from, .size = from_size};
    ZSTD_outBuffer out = {.dst = to, .size = to_size};
    ZSTD_DStream *stream = ZSTD_createDStream();
    size_t status = 1;

    if (!stream)
        return -ENOMEM;
    while (out.pos < out.size && in.pos < in.size && !ZSTD_isError(status)) {
        size_t in_before = in.pos, out_before = out.pos;

        status = ZSTD_decompressStream(stream, &out, &in);
        if (in.pos == in_before && out.pos == out_before)
            break;
    }
    ZSTD_freeDStream(stream);
    return out.pos == out.size ? 0 : -EIO;
}

struct unpacking {
    struct qcow2 *q;
    unsigned char *from;
    void *to;
    size_t from_size;
};

static int unpack(void *arg)
{
    const struct unpacking *unpacking = arg;
    uint32_t size = unpacking->q->geometry.cluster_size;

    return unpacking->q->header.compression
               ? zstd_cluster(unpacking->from, unpacking->from_size, unpacking->to, size)
               : inflate_cluster(unpacking->from, unpacking->from_size, unpacking->to, size);
}

static int compressed_entry(struct qcow2 *q, uint64_t offset, uint64_t *ret)
{
    struct l2_place place;

    tables_lock(q);
    int result = l2_get(q, offset, &place);

    if (result == 0 && !place.slot)
        result = -EAGAIN;
    if (result == 0) {
        *ret = l2_entry_get(q, place.slot, place.index).entry;
        result = *ret & QCOW2_COMPRESSED ? 0 : -EAGAIN;
    }
    tables_unlock(q);
    return result;
}

int qcow2_read_compressed(struct qcow2 *q, uint64_t offset, void *buf)
{
    uint64_t entry = 0, host, size;
    int result = compressed_entry(q, offset, &entry);

    if (result < 0)
        return result;
    compressed_range(q, entry, &host, &size);
    unsigned char *data = q->io->alloc(q->world, size);

    if (!data)
        return -ENOMEM;
    result = q->io->read(q->world, FORMAT_FILE_IMAGE, host, data, size);
    struct unpacking unpacking = {.q = q, .from = data, .to = buf, .from_size = size};

    if (result == 0)
        result = q->io->compute ? q->io->compute(q->world, unpack, &unpacking) : unpack(&unpacking);
    q->io->release(q->world, data);
    return result;
}
