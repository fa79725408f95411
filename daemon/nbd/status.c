/*
 * Block status: the extents of base:allocation. The driver fills an array in
 * the slot's buffer, which is then turned into descriptors in place: none is
 * larger than the extent that it is made from.
 */
#include "daemon/nbd/status.h"

#include <errno.h>

#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/proto.h"

/* A buffer of this size tells of 4095 extents, one of a page of 255. */
#define STATUS_BUFFER (64u * 1024)
/* Up to here it is not worth more than a page. */
#define STATUS_SHORT (1u << 20)
/* Extents begin here; the context's id, and the count of extended replies, go right before them. */
#define STATUS_HEAD 16u

_Static_assert(sizeof(struct extent) == 16, "as large as an extended descriptor");

const struct nbd_refusal *nbd_status_payload(const unsigned char *payload, uint64_t size, uint64_t *length)
{
    static const struct nbd_refusal wrong = {-EINVAL, "block status payload does not name negotiated contexts"};

    /* One context can be negotiated, so that no other list is right. */
    if (size != NBD_STATUS_PAYLOAD_SIZE || nbd_get32(payload + 8) != NBD_BASE_ALLOCATION_ID)
        return &wrong;
    *length = nbd_get64(payload);
    return NULL;
}

int nbd_status_prepare(struct nbd_slot *slot)
{
    bool one = slot->flags & NBD_CMD_FLAG_REQ_ONE;
    size_t size = one || slot->length <= STATUS_SHORT ? BUFFER_ALIGN : STATUS_BUFFER;
    int result = nbd_slot_buffer(slot, size);

    if (result < 0)
        return result;
    slot->status.extents = (struct extent *)(void *)((char *)slot->buffer + STATUS_HEAD);
    slot->status.count = 0;
    slot->status.limit = one ? 1 : (uint32_t)((size - STATUS_HEAD) / sizeof(struct extent));
    slot->request.extents = &slot->status;
    return 0;
}

void nbd_status_encode(struct nbd_slot *slot)
{
    bool extended = slot->connection->extended;
    unsigned char *extents = (unsigned char *)slot->buffer + STATUS_HEAD, *at = extents;
    unsigned char *head = extents - (extended ? 8 : 4);

    for (uint32_t i = 0; i < slot->status.count; i++) {
        struct extent extent = slot->status.extents[i];

        at = extended ? nbd_put64(at, extent.length) : nbd_put32(at, (uint32_t)extent.length);
        at = extended ? nbd_put64(at, extent.flags) : nbd_put32(at, extent.flags);
    }
    nbd_put32(head, NBD_BASE_ALLOCATION_ID);
    if (extended)
        nbd_put32(head + 4, slot->status.count);
    slot->payload = (struct iovec){.iov_base = head, .iov_len = (size_t)(at - head)};
}
