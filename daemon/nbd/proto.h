/*
 * The NBD protocol's numbers, as in doc/proto.md of the NBD project. All
 * integers on the wire are big endian.
 */
#ifndef DAEMON_NBD_PROTO_H
#define DAEMON_NBD_PROTO_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC 0x4e42444d41474943u           /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054u    /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9u
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REPLY_MAGIC 0x6e8a278cu

/* Handshake flags, the server's and the client's. */
enum { NBD_FLAG_FIXED_NEWSTYLE = 1, NBD_FLAG_NO_ZEROES = 2 };

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11
};

#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP 0x80000001u
#define NBD_REP_ERR_INVALID 0x80000003u
#define NBD_REP_ERR_UNKNOWN 0x80000006u
#define NBD_REP_ERR_SHUTDOWN 0x80000007u
#define NBD_REP_ERR_TOO_BIG 0x80000009u
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

enum { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_DESCRIPTION = 2, NBD_INFO_BLOCK_SIZE = 3 };

/* Transmission flags. */
enum {
    NBD_FLAG_HAS_FLAGS = 1,
    NBD_FLAG_READ_ONLY = 2,
    NBD_FLAG_SEND_FLUSH = 4,
    NBD_FLAG_SEND_FUA = 8,
    NBD_FLAG_SEND_TRIM = 32,
    NBD_FLAG_SEND_WRITE_ZEROES = 64,
    NBD_FLAG_SEND_DF = 128,
    NBD_FLAG_CAN_MULTI_CONN = 256,
    NBD_FLAG_SEND_CACHE = 1024,
    NBD_FLAG_SEND_FAST_ZERO = 2048,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 4096
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
    NBD_CMD_COUNT
};

enum {
    NBD_CMD_FLAG_FUA = 1,
    NBD_CMD_FLAG_NO_HOLE = 2,
    NBD_CMD_FLAG_DF = 4,
    NBD_CMD_FLAG_REQ_ONE = 8,
    NBD_CMD_FLAG_FAST_ZERO = 16,
    NBD_CMD_FLAG_PAYLOAD_LEN = 32
};

#define NBD_REPLY_FLAG_DONE 1u
#define NBD_REPLY_NONE 0u
#define NBD_REPLY_OFFSET_DATA 1u
#define NBD_REPLY_BLOCK_STATUS 5u
#define NBD_REPLY_BLOCK_STATUS_EXT 6u
#define NBD_REPLY_ERROR 0x8001u

/* The only errors that may go over the wire. */
enum {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108
};

#define NBD_NAME_MAX 4096u              /* bytes of any string */
#define NBD_PAYLOAD_MAX (32u << 20)     /* bytes of data in one request or reply */
#define NBD_REQUEST_SIZE 28u
#define NBD_EXTENDED_REQUEST_SIZE 32u
#define NBD_BASE_ALLOCATION "base:allocation"
#define NBD_BASE_ALLOCATION_ID 1u

static inline uint16_t nbd_get16(const void *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return be16toh(value);
}

static inline uint32_t nbd_get32(const void *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return be32toh(value);
}

static inline uint64_t nbd_get64(const void *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return be64toh(value);
}

/* Each returns where the next field goes. */
static inline unsigned char *nbd_put16(unsigned char *at, uint16_t value)
{
    value = htobe16(value);
    return (unsigned char *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

static inline unsigned char *nbd_put32(unsigned char *at, uint32_t value)
{
    value = htobe32(value);
    return (unsigned char *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

static inline unsigned char *nbd_put64(unsigned char *at, uint64_t value)
{
    value = htobe64(value);
    return (unsigned char *)memcpy(at, &value, sizeof(value)) + sizeof(value);
}

#endif
