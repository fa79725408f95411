/*
 * What goes over a vhost-user socket, as docs/interop/vhost-user.rst of QEMU
 * describes it: numbers in the machine's byte order, structs without padding.
 * Written apart from the back end's own header, so that a misread number does
 * not agree with itself.
 */
#ifndef TESTS_BENCH_VHOST_PROTO_H
#define TESTS_BENCH_VHOST_PROTO_H

#include <linux/virtio_blk.h>
#include <stddef.h>
#include <stdint.h>

enum front_request {
    FRONT_GET_FEATURES = 1,
    FRONT_SET_FEATURES = 2,
    FRONT_SET_OWNER = 3,
    FRONT_SET_MEM_TABLE = 5,
    FRONT_SET_VRING_NUM = 8,
    FRONT_SET_VRING_ADDR = 9,
    FRONT_SET_VRING_BASE = 10,
    FRONT_GET_VRING_BASE = 11,
    FRONT_SET_VRING_KICK = 12,
    FRONT_SET_VRING_CALL = 13,
    FRONT_SET_VRING_ERR = 14,
    FRONT_GET_PROTOCOL_FEATURES = 15,
    FRONT_SET_PROTOCOL_FEATURES = 16,
    FRONT_GET_QUEUE_NUM = 17,
    FRONT_SET_VRING_ENABLE = 18,
    FRONT_SET_BACKEND_REQ_FD = 21,
    FRONT_GET_CONFIG = 24,
    FRONT_SET_CONFIG = 25,
    FRONT_GET_INFLIGHT_FD = 31,
    FRONT_SET_INFLIGHT_FD = 32,
    FRONT_RESET_DEVICE = 34,
    FRONT_GET_MAX_MEM_SLOTS = 36,
    FRONT_ADD_MEM_REG = 37,
    FRONT_REM_MEM_REG = 38,
    FRONT_SET_STATUS = 39,
    FRONT_GET_STATUS = 40
};

/* Requests of the back end, on its own channel. */
enum front_backend_request { FRONT_BACKEND_CONFIG_CHANGE = 2 };

/* Bits of the protocol features. */
enum front_protocol {
    FRONT_PROTOCOL_MQ = 0,
    FRONT_PROTOCOL_REPLY_ACK = 3,
    FRONT_PROTOCOL_BACKEND_REQ = 5,
    FRONT_PROTOCOL_CONFIG = 9,
    FRONT_PROTOCOL_INFLIGHT_SHMFD = 12,
    FRONT_PROTOCOL_RESET_DEVICE = 13,
    FRONT_PROTOCOL_CONFIGURE_MEM_SLOTS = 15,
    FRONT_PROTOCOL_STATUS = 16
};

#define FRONT_F_PROTOCOL_FEATURES 30    /* a bit of the virtio features */
#define FRONT_VERSION 1u
#define FRONT_FLAG_REPLY 4u
#define FRONT_FLAG_NEED_REPLY 8u
#define FRONT_NO_FD 0x100u              /* in the payload of SET_VRING_KICK, _CALL and _ERR */
#define FRONT_TABLE_REGIONS 8u          /* most regions in a SET_MEM_TABLE */
#define FRONT_CONFIG_MAX 256u

/* The part of the configuration space that every back end of these years knows. */
#define FRONT_CONFIG_SIZE ((uint32_t)offsetof(struct virtio_blk_config, max_secure_erase_sectors))

struct front_header {
    uint32_t request, flags, size;
} __attribute__((packed));

struct front_vring_state {
    uint32_t index, num;
} __attribute__((packed));

struct front_vring_addr {
    uint32_t index, flags;
    uint64_t descriptor, used, available, log;
} __attribute__((packed));

struct front_region {
    uint64_t guest, size, user, offset;
} __attribute__((packed));

struct front_table {
    uint32_t count, padding;
    struct front_region regions[FRONT_TABLE_REGIONS];
} __attribute__((packed));

struct front_single_region {
    uint64_t padding;
    struct front_region region;
} __attribute__((packed));

struct front_config {
    uint32_t offset, size, flags;
    uint8_t data[FRONT_CONFIG_MAX];
} __attribute__((packed));

struct front_inflight {
    uint64_t size, offset;
    uint16_t queues, queue_size;
} __attribute__((packed));

union front_payload {
    uint64_t number;
    struct front_vring_state state;
    struct front_vring_addr address;
    struct front_table table;
    struct front_single_region region;
    struct front_config config;
    struct front_inflight inflight;
};

#endif
