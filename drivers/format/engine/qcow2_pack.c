/*
 * Compressed clusters, written. They are packed: one begins where the last one
 * ended, at any byte, and a host cluster counts one reference for each of them
 * that has bytes in it. What is packed never changes its place or content; a
 * rewrite is packed anew, and the old reference goes to the quarantine.
 *
 * alloc.packed is where the next one goes. It is forgotten when the references
 * of its host cluster are gone (qcow2_refcount.c), since then the cluster may
 * be somebody else's.
 */
#include <zlib.h>
#include <zstd.h>

#include "drivers/format/engine/qcow2_internal.h"

/* Readers of the format have a window of 4 KiB. */
#define DEFLATE_WINDOW (-12)
#define DEFLATE_MEMORY 9

struct packing {
    const struct qcow2 *q;
    const void *from;
    void *to;    /* a cluster */
    size_t size; /* of the result */
};

static int pack_deflate(struct packing *packing, size_t size)
{
    z_stream stream = {.next_in = (Bytef *)(uintptr_t)packing->from,
                       .avail_in = (uInt)size,
                       .next_out = packing->to,
                       .avail_out = (uInt)size - 1};

    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW, DEFLATE_MEMORY, Z_DEFAULT_STRATEGY) !=
        Z_OK)
        return -ENOMEM;
    int status = deflate(&stream, Z_FINISH);

    packing->size = size - 1 - stream.avail_out;
    deflateEnd(&stream);
    return status == Z_STREAM_END ? 0 : -E2BIG;
}

static int pack_zstd(struct packing *packing, size_t size)
{
    size_t result = ZSTD_compress(packing->to, size - 1, packing->from, size, ZSTD_CLEVEL_DEFAULT);

    packing->size = result;
    return ZSTD_isError(result) ? -E2BIG : 0;
}

static int pack(void *arg)
{
    struct packing *packing = arg;
    uint32_t size = packing->q->geometry.cluster_size;

    return packing->q->header.compression ? pack_zstd(packing, size) : pack_deflate(packing, size);
}

/* Bytes left in the host cluster that is being filled; 0 if it takes no more. */
static int pack_room(struct qcow2 *q, uint64_t *ret)
{
    uint64_t mask = q->geometry.cluster_size - 1, count = 0;

    *ret = 0;
    if (!(q->alloc.packed & mask))
        return 0;
    int result = refcount_get(q, q->alloc.packed >> q->geometry.cluster_bits, &count);

    if (result == 0 && count && count < q->geometry.refcount_max)
        *ret = q->geometry.cluster_size - (q->alloc.packed & mask);
    return result;
}

/* A place for size bytes; its clusters count one more reference. */
static int pack_alloc(struct qcow2 *q, uint64_t size, uint64_t *ret)
{
    uint32_t bits = q->geometry.cluster_bits;
    uint64_t room, at = q->alloc.packed, more, count;
    bool fresh;
    int result = pack_room(q, &room);

    if (result == 0 && room < size)
        result = clusters_alloc(q, 1, true, &more, &count, &fresh);
    if (result < 0)
        return result;
    /* To find a place for a refcount block may have changed what is known. */
    if (room && at != q->alloc.packed)
        room = 0;
    bool begins = room < size && !(room && more == qcow2_align_up(at, q->geometry.cluster_size));

    *ret = begins ? more : at;
    if (!begins)
        result = refcount_add(q, at >> bits, 1, 1);
    if (result < 0 && room < size)
        clusters_give_back(q, more, 1);
    if (result == 0)
        q->alloc.packed = *ret + size;
    return result;
}

static uint64_t pack_clusters(const struct qcow2 *q, uint64_t host, uint64_t size)
{
    uint32_t bits = q->geometry.cluster_bits;

    return ((host + size - 1) >> bits) - (host >> bits) + 1;
}

static int pack_begin(struct qcow2 *q, uint64_t size, uint64_t *host)
{
    uint32_t shift = 62 - (q->geometry.cluster_bits - 8);

    tables_lock(q);
    int result = q->corrupted ? -EIO : pack_alloc(q, size, host);

    /* The descriptor cannot name places that far away. */
    if (result == 0 && *host + size > UINT64_C(1) << shift) {
        clusters_give_back(q, *host, pack_clusters(q, *host, size));
        result = -E2BIG;
    }
    tables_unlock(q);
    return result;
}

static int pack_link(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t size)
{
    uint64_t sectors = ((host + size - 1) >> 9) - (host >> 9);
    uint64_t entry = QCOW2_COMPRESSED | sectors << (62 - (q->geometry.cluster_bits - 8)) | host;
    struct l2_place place;
    int result = l2_get_writable(q, offset, &place);

    if (result == 0)
        result = freed_reserve(q, 1);
    if (result < 0)
        return result;
    entry_free(q, l2_entry_get(q, place.slot, place.index), q->settings.discard_other);
    slot_begin(place.slot);
    l2_entry_set(q, place.slot, place.index, (struct l2_entry){.entry = entry});
    slot_end(place.slot);
    return 0;
}

int qcow2_write_compressed(struct qcow2 *q, uint64_t offset, const void *data)
{
    struct packing packing = {.q = q, .from = data};
    uint64_t host = 0;

    if (qcow2_has_data_file(q))
        return -ENOTSUP;
    packing.to = q->io->alloc(q->world, q->geometry.cluster_size);
    if (!packing.to)
        return -ENOMEM;
    int result = q->io->compute ? q->io->compute(q->world, pack, &packing) : pack(&packing);

    if (result == 0)
        result = pack_begin(q, packing.size, &host);
    if (result == 0) {
        result = q->io->write(q->world, FORMAT_FILE_IMAGE, host, packing.to, packing.size);
        tables_lock(q);
        if (result == 0)
            result = pack_link(q, offset, host, packing.size);
        if (result < 0)
            clusters_give_back(q, host, pack_clusters(q, host, packing.size));
        tables_unlock(q);
    }
    q->io->release(q->world, packing.to);
    return result;
}
