/*
 * Numbers and structs of vhost-user (docs/interop/vhost-user.rst of QEMU), in
 * the machine's byte order and without padding.
 */
#ifndef DAEMON_VHOST_USER_PROTO_H
#define DAEMON_VHOST_USER_PROTO_H

#include <stdint.h>

enum vhost_request {
    VHOST_GET_FEATURES = 1,
    VHOST_SET_FEATURES = 2,
    VHOST_SET_OWNER = 3,
    VHOST_RESET_OWNER = 4,
    VHOST_SET_MEM_TABLE = 5,
    VHOST_SET_VRING_NUM = 8,
    VHOST_SET_VRING_ADDR = 9,
    VHOST_SET_VRING_BASE = 10,
    VHOST_GET_VRING_BASE = 11,
    VHOST_SET_VRING_KICK = 12,
    VHOST_SET_VRING_CALL = 13,
    VHOST_SET_VRING_ERR = 14,
    VHOST_GET_PROTOCOL_FEATURES = 15,
    VHOST_SET_PROTOCOL_FEATURES = 16,
    VHOST_GET_QUEUE_NUM = 17,
    VHOST_SET_VRING_ENABLE = 18,
    VHOST_SET_BACKEND_REQ_FD = 21,
    VHOST_GET_CONFIG = 24,
    VHOST_SET_CONFIG = 25,
    VHOST_GET_INFLIGHT_FD = 31,
    VHOST_SET_INFLIGHT_FD = 32,
    VHOST_RESET_DEVICE = 34,
    VHOST_GET_MAX_MEM_SLOTS = 36,
    VHOST_ADD_MEM_REG = 37,
    VHOST_REM_MEM_REG = 38,
    VHOST_SET_STATUS = 39,
    VHOST_GET_STATUS = 40,
    VHOST_REQUEST_COUNT
};

/* On the back-end channel, from us to the front end. */
enum vhost_backend_request { VHOST_BACKEND_CONFIG_CHANGE_MSG = 2 };

enum vhost_protocol_feature {
    VHOST_PROTOCOL_MQ = 0,
    VHOST_PROTOCOL_REPLY_ACK = 3,
    VHOST_PROTOCOL_BACKEND_REQ = 5,
    VHOST_PROTOCOL_CONFIG = 9,
    VHOST_PROTOCOL_INFLIGHT_SHMFD = 12,
    VHOST_PROTOCOL_RESET_DEVICE = 13,
    VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS = 15,
    VHOST_PROTOCOL_STATUS = 16
};

#define VHOST_BIT(bit) (1ull << (bit))
#define VHOST_F_PROTOCOL_FEATURES 30        /* a bit of the virtio features that no device has */

#define VHOST_FLAGS_VERSION 1u
#define VHOST_FLAGS_VERSION_MASK 3u
#define VHOST_FLAGS_REPLY 4u
#define VHOST_FLAGS_NEED_REPLY 8u

#define VHOST_FDS_MAX 8u                    /* of one message */
#define VHOST_TABLE_MAX 8u                  /* regions of VHOST_SET_MEM_TABLE */
#define VHOST_CONFIG_MAX 256u
#define VHOST_VRING_INDEX_MASK 0xffu        /* VHOST_SET_VRING_KICK, _CALL, _ERR */
#define VHOST_VRING_NO_FD 0x100u

struct vhost_header {
    uint32_t request, flags, size;
} __attribute__((packed));

struct vhost_vring_state {
    uint32_t index, num;
} __attribute__((packed));

struct vhost_vring_addr {
    uint32_t index, flags;
    uint64_t descriptor, used, available, log;
} __attribute__((packed));

struct vhost_region_desc {
    uint64_t guest_address, size, user_address, mmap_offset;
} __attribute__((packed));

struct vhost_table_desc {
    uint32_t count, padding;
    struct vhost_region_desc regions[VHOST_TABLE_MAX];
} __attribute__((packed));

struct vhost_single_region_desc {
    uint64_t padding;
    struct vhost_region_desc region;
} __attribute__((packed));

struct vhost_config_desc {
    uint32_t offset, size, flags;
    uint8_t data[VHOST_CONFIG_MAX];
} __attribute__((packed));

struct vhost_inflight_desc {
    uint64_t mmap_size, mmap_offset;
    uint16_t queue_count, queue_size;
} __attribute__((packed));

union vhost_payload {
    uint64_t number;
    struct vhost_vring_state state;
    struct vhost_vring_addr address;
    struct vhost_table_desc table;
    struct vhost_single_region_desc region;
    struct vhost_config_desc config;
    struct vhost_inflight_desc inflight;
    unsigned char bytes[1024];              /* the longest that is received, known or not */
};

#endif
