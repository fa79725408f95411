/*
 * What the device is: see config.h.
 */
#include "daemon/vhost_user/config.h"

#include <endian.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

#include "daemon/vhost_user/blk.h"
#include "daemon/vhost_user/export.h"
#include "generated/options.h"

/* What file systems align to when nobody tells them more. */
#define CONFIG_PHYSICAL_BLOCK 4096u

uint64_t vhost_config_features(const struct vhost_export *export)
{
    uint64_t features = VHOST_BIT(VIRTIO_F_VERSION_1) | VHOST_BIT(VHOST_F_PROTOCOL_FEATURES) |
                        VHOST_BIT(VIRTIO_F_RING_PACKED) | VHOST_BIT(VIRTIO_RING_F_INDIRECT_DESC) |
                        VHOST_BIT(VIRTIO_RING_F_EVENT_IDX) | VHOST_BIT(VIRTIO_BLK_F_SIZE_MAX) |
                        VHOST_BIT(VIRTIO_BLK_F_SEG_MAX) | VHOST_BIT(VIRTIO_BLK_F_BLK_SIZE) |
                        VHOST_BIT(VIRTIO_BLK_F_TOPOLOGY) | VHOST_BIT(VIRTIO_BLK_F_FLUSH) | VHOST_BIT(VIRTIO_BLK_F_MQ);

    if (!export->export->writable)
        return features | VHOST_BIT(VIRTIO_BLK_F_RO);
    /* With the export's writethrough there is nothing to choose. */
    if (!export->export->options->writethrough)
        features |= VHOST_BIT(VIRTIO_BLK_F_CONFIG_WCE);
    return features | VHOST_BIT(VIRTIO_BLK_F_DISCARD) | VHOST_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
}

uint64_t vhost_config_protocol_features(void)
{
    return VHOST_BIT(VHOST_PROTOCOL_MQ) | VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK) | VHOST_BIT(VHOST_PROTOCOL_BACKEND_REQ) |
           VHOST_BIT(VHOST_PROTOCOL_CONFIG) | VHOST_BIT(VHOST_PROTOCOL_INFLIGHT_SHMFD) |
           VHOST_BIT(VHOST_PROTOCOL_RESET_DEVICE) | VHOST_BIT(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS) |
           VHOST_BIT(VHOST_PROTOCOL_STATUS);
}

static uint32_t config_segments(const struct vhost_export *export)
{
    uint64_t fit = export->options->queue_size - 2;

    return fit < VHOST_SEGMENTS_MAX ? (uint32_t)fit : VHOST_SEGMENTS_MAX;
}

void vhost_config_read(const struct vhost_export *export, bool writeback, uint8_t *data)
{
    uint32_t block = (uint32_t)export->options->logical_block_size;
    uint32_t physical = block < CONFIG_PHYSICAL_BLOCK ? CONFIG_PHYSICAL_BLOCK : block;
    uint64_t blocks = consumer_size(&export->export->consumer) / block;
    /* Drivers split what is longer, and the parts must be whole blocks. */
    uint32_t range = VHOST_RANGE_SECTORS_MAX & ~((block >> VHOST_SECTOR_BITS) - 1);
    struct virtio_blk_config config = {
        .capacity = htole64(blocks * (block >> VHOST_SECTOR_BITS)),
        .size_max = htole32(VHOST_SEGMENT_SIZE_MAX),
        .seg_max = htole32(config_segments(export)),
        .blk_size = htole32(block),
        .physical_block_exp = (uint8_t)__builtin_ctz(physical / block),
        .min_io_size = htole16((uint16_t)(physical / block)),
        .wce = writeback,
        .num_queues = htole16((uint16_t)export->options->num_queues),
        .max_discard_sectors = htole32(range),
        .max_discard_seg = htole32(1),
        .discard_sector_alignment = htole32(block >> VHOST_SECTOR_BITS),
        .max_write_zeroes_sectors = htole32(range),
        .max_write_zeroes_seg = htole32(1),
        .write_zeroes_may_unmap = 1,
    };

    memset(data, 0, VHOST_CONFIG_MAX);
    memcpy(data, &config, sizeof(config));
}

bool vhost_config_is_cache_mode(uint32_t offset, uint32_t size)
{
    return offset == offsetof(struct virtio_blk_config, wce) && size == 1;
}
