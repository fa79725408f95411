/*
 * Chains of descriptors, as both kinds of ring have them: guest addresses
 * become buffers that lie in the memory table.
 */
#include <endian.h>
#include <inttypes.h>

#include "core/memory.h"
#include "daemon/vhost_user/queue.h"

static inline bool chain_append(struct vhost_queue *queue, struct vhost_chain *chain, unsigned char *at, uint64_t size,
                                bool writable)
{
    if (unlikely(chain->count == VHOST_IOV_MAX)) {
        vhost_queue_break(queue, "a chain of more than %u buffers", VHOST_IOV_MAX);
        return false;
    }
    chain->iov[chain->count++] = (struct iovec){.iov_base = at, .iov_len = size};
    if (writable) {
        chain->write_bytes += size;
    } else {
        chain->readable++;
        chain->read_bytes += size;
    }
    return true;
}

/* A buffer that is not in the region that was used last, or not wholly. */
static __attribute__((noinline)) bool chain_add_anywhere(struct vhost_queue *queue, struct vhost_chain *chain,
                                                         uint64_t guest, uint32_t size, bool writable)
{
    if (size == 0) {
        vhost_queue_break(queue, "a buffer without bytes at 0x%" PRIx64, guest);
        return false;
    }
    for (uint64_t left = size; left;) {
        const struct vhost_region *region = vhost_memory_find(queue->memory, guest);

        if (!region) {
            vhost_queue_break(queue, "address 0x%" PRIx64 " is not in the guest's memory", guest);
            return false;
        }
        queue->view = *region;
        uint64_t inside = guest - region->guest;
        uint64_t part = left < region->size - inside ? left : region->size - inside;

        if (!chain_append(queue, chain, region->host + inside, part, writable))
            return false;
        guest += part;
        left -= part;
    }
    return true;
}

static __attribute__((noinline)) bool chain_out_of_order(struct vhost_queue *queue)
{
    vhost_queue_break(queue, "a buffer to be read follows one to be written");
    return false;
}

static inline bool chain_add(struct vhost_queue *queue, struct vhost_chain *chain, uint64_t guest, uint32_t size,
                             bool writable)
{
    uint64_t inside = guest - queue->view.guest;

    if (unlikely(!writable && chain->count > chain->readable))
        return chain_out_of_order(queue);
    /* size - 1: no buffer is empty. */
    if (unlikely(inside >= queue->view.size || (uint64_t)size - 1 >= queue->view.size - inside))
        return chain_add_anywhere(queue, chain, guest, size, writable);
    return chain_append(queue, chain, queue->view.host + inside, size, writable);
}

bool vhost_chain_add(struct vhost_queue *queue, struct vhost_chain *chain, uint64_t guest, uint32_t size, bool writable)
{
    return chain_add(queue, chain, guest, size, writable);
}

/* Packed descriptors have an id and the flags where split ones have the flags and the next one. */
static uint16_t chain_table_flags(const struct vring_desc *desc, bool linked)
{
    return le16toh(linked ? desc->flags : desc->next);
}

static inline bool chain_table_entry(struct vhost_queue *queue, struct vhost_chain *chain,
                                     const struct vring_desc *desc, uint16_t flags)
{
    if (unlikely(flags & VRING_DESC_F_INDIRECT)) {
        vhost_queue_break(queue, "an indirect table in an indirect table");
        return false;
    }
    return chain_add(queue, chain, le64toh(desc->addr), le32toh(desc->len), flags & VRING_DESC_F_WRITE);
}

/* Entry index of the table; one that lies across regions is put together. */
static bool chain_table_get(struct vhost_queue *queue, const unsigned char *table, uint64_t guest, unsigned index,
                            struct vring_desc *desc)
{
    if (likely(table != NULL)) {
        *desc = vhost_desc_once(table + index * sizeof(*desc));
        return true;
    }
    if (vhost_memory_read(queue->memory, guest + index * sizeof(*desc), desc, sizeof(*desc))) {
        *desc = vhost_desc_once(desc);
        return true;
    }
    vhost_queue_break(queue, "an indirect table at 0x%" PRIx64 " is not in the guest's memory", guest);
    return false;
}

static const unsigned char *chain_table_host(struct vhost_queue *queue, uint64_t guest, uint32_t size)
{
    if (unlikely(guest - queue->view.guest >= queue->view.size)) {
        const struct vhost_region *region = vhost_memory_find(queue->memory, guest);

        if (!region)
            return NULL;
        queue->view = *region;
    }
    uint64_t inside = guest - queue->view.guest;

    return size <= queue->view.size - inside ? queue->view.host + inside : NULL;
}

bool vhost_chain_add_table(struct vhost_queue *queue, struct vhost_chain *chain, uint64_t guest, uint32_t size,
                           bool linked)
{
    const unsigned char *table = chain_table_host(queue, guest, size);
    unsigned entries = size / sizeof(struct vring_desc), index = 0;
    struct vring_desc desc;

    if (unlikely(size == 0 || size % sizeof(desc) || entries > VHOST_IOV_MAX)) {
        vhost_queue_break(queue, "an indirect table of %u bytes", size);
        return false;
    }
    for (unsigned seen = 0;; seen++) {
        if (unlikely(seen == entries || index >= entries)) {
            vhost_queue_break(queue, "a chain leaves its indirect table of %u entries", entries);
            return false;
        }
        if (unlikely(!chain_table_get(queue, table, guest, index, &desc)))
            return false;
        uint16_t flags = chain_table_flags(&desc, linked);

        if (unlikely(!chain_table_entry(queue, chain, &desc, flags)))
            return false;
        if (linked && !(flags & VRING_DESC_F_NEXT))
            return true;
        if (!linked && seen + 1 == entries)
            return true;
        index = linked ? le16toh(desc.next) : index + 1;
    }
}
