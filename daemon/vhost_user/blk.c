/*
 * Requests of virtio-blk (virtio 1.2, section 5.2.6): from a chain of buffers
 * to a request of the graph, and from its result to a status byte. The guest's
 * memory is the request's; nothing is copied but the header.
 */
#include "daemon/vhost_user/blk.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <string.h>

#include "core/iov.h"
#include "core/memory.h"
#include "daemon/vhost_user/queue.h"

/* The buffers of a request without header and status. */
struct blk_data {
    struct iovec *out, *in;         /* read by the device, written by it */
    unsigned out_count, in_count;
    uint64_t out_bytes, in_bytes;
};

static bool blk_end(struct vhost_slot *slot, uint8_t status, uint32_t written)
{
    struct vhost_queue *queue = slot->queue;

    *slot->status = status;
    queue->ring.ops->put(queue, slot, written);
    slot->busy = false;
    queue->slots.busy--;
    if (unlikely(++queue->ring.unshown >= VHOST_SHOW))
        vhost_queue_show(queue);
    if (!list_is_linked(&queue->hook.link))
        loop_hook_queue(queue->poller.loop, &queue->hook);
    return true;
}

static bool blk_fail(struct vhost_slot *slot, uint8_t status)
{
    return blk_end(slot, status, 1);
}

void vhost_blk_done(struct request *req)
{
    struct vhost_slot *slot = container_of(req, struct vhost_slot, request);

    if (likely(req->result == 0))
        blk_end(slot, VIRTIO_BLK_S_OK, slot->written);
    else
        blk_fail(slot, req->result == -ENOTSUP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR);
}

/* The header is 16 bytes, wherever the driver has cut them. */
static void blk_take_header(const struct vhost_chain *chain, struct virtio_blk_outhdr *header, struct blk_data *data)
{
    struct iovec *first = chain->iov;
    size_t left = sizeof(*header);
    uint64_t words[2];

    if (likely(first->iov_len >= sizeof(words)))
        memcpy(words, first->iov_base, sizeof(words));
    else
        iov_to_buffer(first, chain->readable, 0, words, sizeof(words));
    words[0] = vhost_once(words[0]);
    words[1] = vhost_once(words[1]);
    memcpy(header, words, sizeof(*header));
    while (left >= first->iov_len) {
        left -= first->iov_len;
        first++;
        if (first == chain->iov + chain->readable)
            break;
    }
    if (left) {
        first->iov_base = (char *)first->iov_base + left;
        first->iov_len -= left;
    }
    data->out = first;
    data->out_count = chain->readable - (unsigned)(first - chain->iov);
    data->out_bytes = chain->read_bytes - sizeof(*header);
}

/* The last byte that the device may write is the status. */
static uint8_t *blk_take_status(const struct vhost_chain *chain, struct blk_data *data)
{
    struct iovec *last = &chain->iov[chain->count - 1];
    uint8_t *status = (uint8_t *)last->iov_base + --last->iov_len;

    data->in = chain->iov + chain->readable;
    data->in_count = chain->count - chain->readable - (last->iov_len == 0);
    data->in_bytes = chain->write_bytes - 1;
    return status;
}

static bool blk_range_is_good(const struct vhost_queue *queue, uint64_t sector, uint64_t bytes)
{
    return sector <= INT64_MAX >> VHOST_SECTOR_BITS &&
           (((sector << VHOST_SECTOR_BITS) | bytes) & queue->disk->block_mask) == 0;
}

static uint32_t blk_write_flags(const struct vhost_queue *queue)
{
    return atomic_load_explicit(&queue->disk->writethrough, memory_order_relaxed) ? REQ_FUA : 0;
}

static bool blk_start(struct vhost_slot *slot, enum request_op op, uint32_t flags, uint64_t offset, uint64_t length)
{
    struct request *req = &slot->request;

    req->op = (uint8_t)op;
    req->flags = flags;
    req->offset = offset;
    req->length = length;
    consumer_submit(slot->queue->consumer, req);
    return true;
}

static bool blk_read_or_write(struct vhost_slot *slot, enum request_op op, uint64_t sector, const struct iovec *iov,
                              unsigned count, uint64_t bytes)
{
    struct vhost_queue *queue = slot->queue;
    struct request *req = &slot->request;
    struct iovec *own = slot->iov;

    if (unlikely(!blk_range_is_good(queue, sector, bytes) || bytes > VHOST_DATA_MAX))
        return blk_fail(slot, VIRTIO_BLK_S_IOERR);
    if (unlikely(bytes == 0))
        return blk_end(slot, VIRTIO_BLK_S_OK, slot->written);
    if (unlikely(count > array_size(slot->iov)))
        own = queue->slots.iov + (size_t)vhost_slot_index(queue, slot) * VHOST_IOV_MAX;
    for (unsigned i = 0; i < count; i++)
        own[i] = iov[i];
    req->iov = own;
    req->iov_count = (uint16_t)count;
    return blk_start(slot, op, op == REQ_WRITE ? blk_write_flags(queue) : 0, sector << VHOST_SECTOR_BITS, bytes);
}

static bool blk_get_id(struct vhost_slot *slot, const struct blk_data *data)
{
    char id[VIRTIO_BLK_ID_BYTES] = {0};
    size_t size = data->in_bytes < sizeof(id) ? (size_t)data->in_bytes : sizeof(id);

    memcpy(id, slot->queue->disk->id, strnlen(slot->queue->disk->id, sizeof(id)));
    iov_from_buffer(data->in, data->in_count, 0, id, size);
    return blk_end(slot, VIRTIO_BLK_S_OK, (uint32_t)size + 1);
}

/* Discard and write-zeroes, with one range (5.2.6.2). */
static bool blk_range(struct vhost_slot *slot, const struct blk_data *data, bool zeroes)
{
    struct vhost_queue *queue = slot->queue;
    struct virtio_blk_discard_write_zeroes range;
    uint64_t words[2];

    if (data->out_bytes != sizeof(words))
        return blk_fail(slot, VIRTIO_BLK_S_IOERR);
    iov_to_buffer(data->out, data->out_count, 0, words, sizeof(words));
    words[0] = vhost_once(words[0]);
    words[1] = vhost_once(words[1]);
    memcpy(&range, words, sizeof(range));
    uint64_t sector = le64toh(range.sector), bytes = (uint64_t)le32toh(range.num_sectors) << VHOST_SECTOR_BITS;
    uint32_t flags = le32toh(range.flags);
    bool unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

    if (flags & ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP || (unmap && !zeroes))
        return blk_fail(slot, VIRTIO_BLK_S_UNSUPP);
    if (!blk_range_is_good(queue, sector, bytes) || le32toh(range.num_sectors) > VHOST_RANGE_SECTORS_MAX)
        return blk_fail(slot, VIRTIO_BLK_S_IOERR);
    if (bytes == 0)
        return blk_end(slot, VIRTIO_BLK_S_OK, 1);
    slot->request.iov = NULL;
    slot->request.iov_count = 0;
    return blk_start(slot, zeroes ? REQ_WRITE_ZEROES : REQ_DISCARD,
                     blk_write_flags(queue) | (unmap ? REQ_MAY_UNMAP : 0), sector << VHOST_SECTOR_BITS, bytes);
}

/* What is not a read or a write of data. */
static bool blk_other(struct vhost_slot *slot, uint32_t type, const struct blk_data *data)
{
    const struct vhost_disk *disk = slot->queue->disk;

    slot->written = 1;
    slot->request.iov = NULL;
    slot->request.iov_count = 0;
    switch (type) {
    case VIRTIO_BLK_T_FLUSH:
        return blk_start(slot, REQ_FLUSH, 0, 0, 0);
    case VIRTIO_BLK_T_GET_ID:
        return blk_get_id(slot, data);
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        if (disk->read_only)
            return blk_fail(slot, VIRTIO_BLK_S_IOERR);
        if (!(disk->features >> (type == VIRTIO_BLK_T_DISCARD ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES) & 1))
            return blk_fail(slot, VIRTIO_BLK_S_UNSUPP);
        return blk_range(slot, data, type == VIRTIO_BLK_T_WRITE_ZEROES);
    default:
        return blk_fail(slot, VIRTIO_BLK_S_UNSUPP);
    }
}

bool vhost_blk_submit(struct vhost_queue *queue, struct vhost_slot *slot, const struct vhost_chain *chain)
{
    struct virtio_blk_outhdr header;
    struct blk_data data;

    if (unlikely(chain->read_bytes < sizeof(header) || chain->write_bytes == 0)) {
        vhost_queue_break(queue, "a request of %llu bytes without room for %s", (unsigned long long)chain->read_bytes,
                          chain->write_bytes ? "its header" : "its status");
        return false;
    }
    blk_take_header(chain, &header, &data);
    slot->status = blk_take_status(chain, &data);
    uint32_t type = le32toh(header.type);

    if (likely(type == VIRTIO_BLK_T_IN)) {
        slot->written = (uint32_t)data.in_bytes + 1;
        return blk_read_or_write(slot, REQ_READ, le64toh(header.sector), data.in, data.in_count, data.in_bytes);
    }
    slot->written = 1;
    if (unlikely(type != VIRTIO_BLK_T_OUT))
        return blk_other(slot, type, &data);
    if (unlikely(queue->disk->read_only))
        return blk_fail(slot, VIRTIO_BLK_S_IOERR);
    return blk_read_or_write(slot, REQ_WRITE, le64toh(header.sector), data.out, data.out_count, data.out_bytes);
}
