/*
 * Negotiation: see handshake.h and "Fixed newstyle negotiation" of proto.md.
 * Every option is answered, in sync, whatever it says; only a client that
 * does not speak the protocol at all is cut off.
 */
#include "daemon/nbd/handshake.h"

#include <event2/buffer.h>
#include <string.h>

#include "daemon/nbd/export.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"

#define NBD_BLOCK_MINIMUM 1u
#define NBD_BLOCK_PREFERRED 4096u
/* Bytes of an option that is too big, above which the client is cut off. */
#define HANDSHAKE_SKIP_MAX (32u << 20)

/* A view into an option's data that fails instead of running past the end. */
struct reader {
    const unsigned char *at;
    size_t left;
    bool bad;
};

static const unsigned char *reader_bytes(struct reader *reader, size_t size)
{
    const unsigned char *at = reader->at;

    if (reader->bad || size > reader->left) {
        reader->bad = true;
        return NULL;
    }
    reader->at += size;
    reader->left -= size;
    return at;
}

static uint16_t reader_16(struct reader *reader)
{
    const unsigned char *at = reader_bytes(reader, 2);

    return at ? nbd_get16(at) : 0;
}

static uint32_t reader_32(struct reader *reader)
{
    const unsigned char *at = reader_bytes(reader, 4);

    return at ? nbd_get32(at) : 0;
}

/* A string with its length before it, into buf (NBD_NAME_MAX + 1 bytes), with a NUL at its end. */
static void reader_string(struct reader *reader, char *buf)
{
    uint32_t length = reader_32(reader);
    const unsigned char *at = length <= NBD_NAME_MAX ? reader_bytes(reader, length) : NULL;

    buf[0] = '\0';
    if (!at || memchr(at, '\0', length)) {
        reader->bad = true;
        return;
    }
    memcpy(buf, at, length);
    buf[length] = '\0';
}

static void handshake_reply(struct nbd_handshake *handshake, uint32_t option, uint32_t type, const void *data,
                            size_t size)
{
    unsigned char header[20], *at = header;

    at = nbd_put64(at, NBD_OPTION_REPLY_MAGIC);
    at = nbd_put32(at, option);
    at = nbd_put32(at, type);
    nbd_put32(at, (uint32_t)size);
    evbuffer_add(handshake->output, header, sizeof(header));
    evbuffer_add(handshake->output, data, size);
}

static void handshake_ack(struct nbd_handshake *handshake, uint32_t option)
{
    handshake_reply(handshake, option, NBD_REP_ACK, NULL, 0);
}

/* text is for people; clients that do not want it ignore it. */
static void handshake_error(struct nbd_handshake *handshake, uint32_t option, uint32_t type, const char *text)
{
    handshake_reply(handshake, option, type, text, strlen(text));
}

static struct nbd_export *handshake_find(const struct nbd_handshake *handshake, const char *name)
{
    struct nbd_export *export = nbd_server_export(handshake->server, name);

    return export && !export->hidden ? export : NULL;
}

/* Transmission flags; asking: before the client has chosen its metadata contexts. */
static uint16_t handshake_flags(const struct nbd_handshake *handshake, const struct nbd_export *export, bool asking)
{
    uint16_t flags = nbd_export_flags(export);

    if (handshake->structured)
        flags |= NBD_FLAG_SEND_DF;
    if (handshake->extended && (asking || handshake->context == export))
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return flags;
}

static void handshake_list(struct nbd_handshake *handshake, struct reader *reader)
{
    struct nbd_export *export;

    if (reader->left) {
        handshake_error(handshake, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "NBD_OPT_LIST has no data");
        return;
    }
    list_for_each(export, &handshake->server->exports, in_server) {
        if (export->hidden)
            continue;
        unsigned char data[4 + 2 * NBD_NAME_MAX];
        size_t name = strlen(export->name), text = export->description ? strlen(export->description) : 0;
        unsigned char *at = nbd_put32(data, (uint32_t)name);

        memcpy(at, export->name, name);
        if (text)
            memcpy(at + name, export->description, text);
        handshake_reply(handshake, NBD_OPT_LIST, NBD_REP_SERVER, data, 4 + name + text);
    }
    handshake_ack(handshake, NBD_OPT_LIST);
}

/* The oldest way in: no reply header, and no way to say no but to hang up. */
static void handshake_export_name(struct nbd_handshake *handshake, const unsigned char *data, size_t size)
{
    char name[NBD_NAME_MAX + 1];
    unsigned char reply[8 + 2 + 124] = {0};

    handshake->state = NBD_HANDSHAKE_CLOSE;
    if (size > NBD_NAME_MAX || memchr(data, '\0', size))
        return;
    memcpy(name, data, size);
    name[size] = '\0';
    struct nbd_export *export = handshake_find(handshake, name);

    /* Those who know extended headers know NBD_OPT_GO. */
    if (!export || handshake->extended)
        return;
    nbd_put16(nbd_put64(reply, consumer_size(&export->export->consumer)), handshake_flags(handshake, export, false));
    evbuffer_add(handshake->output, reply, handshake->no_zeroes ? 10 : sizeof(reply));
    handshake->export = export;
    handshake->state = NBD_HANDSHAKE_DONE;
}

static void handshake_info_text(struct nbd_handshake *handshake, uint32_t option, uint16_t type, const char *text)
{
    unsigned char data[2 + NBD_NAME_MAX];
    size_t size = strlen(text);

    nbd_put16(data, type);
    memcpy(data + 2, text, size);
    handshake_reply(handshake, option, NBD_REP_INFO, data, 2 + size);
}

static void handshake_info_block_size(struct nbd_handshake *handshake, uint32_t option)
{
    unsigned char data[14], *at = nbd_put16(data, NBD_INFO_BLOCK_SIZE);

    at = nbd_put32(at, NBD_BLOCK_MINIMUM);
    at = nbd_put32(at, NBD_BLOCK_PREFERRED);
    nbd_put32(at, NBD_PAYLOAD_MAX);
    handshake_reply(handshake, option, NBD_REP_INFO, data, sizeof(data));
}

static void handshake_info_export(struct nbd_handshake *handshake, uint32_t option, const struct nbd_export *export)
{
    unsigned char data[12], *at = nbd_put16(data, NBD_INFO_EXPORT);

    at = nbd_put64(at, consumer_size(&export->export->consumer));
    nbd_put16(at, handshake_flags(handshake, export, option == NBD_OPT_INFO));
    handshake_reply(handshake, option, NBD_REP_INFO, data, sizeof(data));
}

/* NBD_OPT_INFO and NBD_OPT_GO: a name, then the kinds of information that are wanted. */
static void handshake_info(struct nbd_handshake *handshake, uint32_t option, struct reader *reader)
{
    char name[NBD_NAME_MAX + 1];
    bool wants[4] = {false};

    reader_string(reader, name);
    for (uint16_t count = reader_16(reader); count && !reader->bad; count--) {
        uint16_t kind = reader_16(reader);

        if (kind < sizeof(wants))
            wants[kind] = true;
    }
    if (reader->bad || reader->left) {
        handshake_error(handshake, option, NBD_REP_ERR_INVALID, "the lengths in the option do not fit its size");
        return;
    }
    struct nbd_export *export = handshake_find(handshake, name);

    if (!export) {
        handshake_error(handshake, option, NBD_REP_ERR_UNKNOWN, "there is no export of this name");
        return;
    }
    if (wants[NBD_INFO_NAME])
        handshake_info_text(handshake, option, NBD_INFO_NAME, export->name);
    if (wants[NBD_INFO_DESCRIPTION] && export->description)
        handshake_info_text(handshake, option, NBD_INFO_DESCRIPTION, export->description);
    if (wants[NBD_INFO_BLOCK_SIZE])
        handshake_info_block_size(handshake, option);
    handshake_info_export(handshake, option, export);
    handshake_ack(handshake, option);
    if (option == NBD_OPT_GO) {
        handshake->export = export;
        handshake->state = NBD_HANDSHAKE_DONE;
    }
}

/* "base:" asks for all of that namespace, when listing. */
static bool query_matches(const char *query, bool listing)
{
    return strcmp(query, NBD_BASE_ALLOCATION) == 0 || (listing && strcmp(query, "base:") == 0);
}

static void handshake_meta_context(struct nbd_handshake *handshake, uint32_t option, struct reader *reader)
{
    char name[NBD_NAME_MAX + 1], query[NBD_NAME_MAX + 1];
    bool listing = option == NBD_OPT_LIST_META_CONTEXT, match;
    unsigned char data[4 + sizeof(NBD_BASE_ALLOCATION) - 1];

    if (!listing)
        handshake->context = NULL;
    if (!handshake->structured) {
        handshake_error(handshake, option, NBD_REP_ERR_INVALID, "structured replies must be negotiated first");
        return;
    }
    reader_string(reader, name);
    uint32_t count = reader_32(reader);

    match = listing && count == 0;
    for (; count && !reader->bad; count--) {
        reader_string(reader, query);
        match |= !reader->bad && query_matches(query, listing);
    }
    if (reader->bad || reader->left) {
        handshake_error(handshake, option, NBD_REP_ERR_INVALID, "the lengths in the option do not fit its size");
        return;
    }
    struct nbd_export *export = handshake_find(handshake, name);

    if (!export) {
        handshake_error(handshake, option, NBD_REP_ERR_UNKNOWN, "there is no export of this name");
        return;
    }
    if (match) {
        nbd_put32(data, listing ? 0 : NBD_BASE_ALLOCATION_ID);
        memcpy(data + 4, NBD_BASE_ALLOCATION, sizeof(NBD_BASE_ALLOCATION) - 1);
        handshake_reply(handshake, option, NBD_REP_META_CONTEXT, data, sizeof(data));
        if (!listing)
            handshake->context = export;
    }
    handshake_ack(handshake, option);
}

/* Options that only switch something on. */
static void handshake_switch(struct nbd_handshake *handshake, uint32_t option, struct reader *reader)
{
    if (reader->left) {
        handshake_error(handshake, option, NBD_REP_ERR_INVALID, "this option has no data");
    } else if (option == NBD_OPT_STRUCTURED_REPLY && handshake->extended) {
        handshake_error(handshake, option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are negotiated already");
    } else {
        handshake->structured = true;
        handshake->extended |= option == NBD_OPT_EXTENDED_HEADERS;
        handshake_ack(handshake, option);
    }
}

static void handshake_option(struct nbd_handshake *handshake, uint32_t option, const unsigned char *data, size_t size)
{
    struct reader reader = {.at = data, .left = size};

    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        handshake_export_name(handshake, data, size);
        break;
    case NBD_OPT_ABORT:
        handshake_ack(handshake, option);
        handshake->state = NBD_HANDSHAKE_CLOSE;
        break;
    case NBD_OPT_LIST:
        handshake_list(handshake, &reader);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        handshake_info(handshake, option, &reader);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
        handshake_switch(handshake, option, &reader);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        handshake_meta_context(handshake, option, &reader);
        break;
    case NBD_OPT_STARTTLS:
        handshake_error(handshake, option, NBD_REP_ERR_UNSUP, "this server has no TLS");
        break;
    default:
        handshake_error(handshake, option, NBD_REP_ERR_UNSUP, "this server does not know the option");
        break;
    }
}

static size_t handshake_take_flags(struct nbd_handshake *handshake, const unsigned char *data, size_t size)
{
    if (size < 4)
        return 0;
    uint32_t flags = nbd_get32(data);

    handshake->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    handshake->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    /* Unknown flags change the protocol in ways that we do not know. */
    handshake->state =
        flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) ? NBD_HANDSHAKE_CLOSE : NBD_HANDSHAKE_OPTION;
    return 4;
}

static size_t handshake_take_option(struct nbd_handshake *handshake, const unsigned char *data, size_t size)
{
    if (size >= 8 && nbd_get64(data) != NBD_OPTION_MAGIC) {
        handshake->state = NBD_HANDSHAKE_CLOSE;
        return size;
    }
    if (size < 16)
        return 0;
    uint32_t option = nbd_get32(data + 8), length = nbd_get32(data + 12);

    /* Clients that are not "fixed" know one option only, and no replies. */
    if (!handshake->fixed && option != NBD_OPT_EXPORT_NAME) {
        handshake->state = NBD_HANDSHAKE_CLOSE;
        return size;
    }
    if (length > NBD_HANDSHAKE_DATA_MAX) {
        /* That one has no reply that could say so; and there is a limit to what is read away. */
        if (option == NBD_OPT_EXPORT_NAME || length > HANDSHAKE_SKIP_MAX) {
            handshake->state = NBD_HANDSHAKE_CLOSE;
            return size;
        }
        handshake->skip = length;
        handshake->state = NBD_HANDSHAKE_SKIP;
        handshake_error(handshake, option, NBD_REP_ERR_TOO_BIG, "the option is too big");
        return 16;
    }
    if (size - 16 < length)
        return 0;
    handshake_option(handshake, option, data + 16, length);
    return 16u + length;
}

static size_t handshake_take_skip(struct nbd_handshake *handshake, size_t size)
{
    size_t skip = size < handshake->skip ? size : (size_t)handshake->skip;

    handshake->skip -= skip;
    if (handshake->skip == 0)
        handshake->state = NBD_HANDSHAKE_OPTION;
    return skip;
}

size_t nbd_handshake_input(struct nbd_handshake *handshake, const void *data, size_t size)
{
    switch (handshake->state) {
    case NBD_HANDSHAKE_FLAGS:
        return handshake_take_flags(handshake, data, size);
    case NBD_HANDSHAKE_OPTION:
        return handshake_take_option(handshake, data, size);
    case NBD_HANDSHAKE_SKIP:
        return handshake_take_skip(handshake, size);
    default:
        return 0;
    }
}

void nbd_handshake_start(struct nbd_handshake *handshake, struct nbd_server *server, struct evbuffer *output)
{
    unsigned char greeting[18], *at = greeting;

    *handshake = (struct nbd_handshake){.server = server, .output = output};
    at = nbd_put64(at, NBD_MAGIC);
    at = nbd_put64(at, NBD_OPTION_MAGIC);
    nbd_put16(at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    evbuffer_add(output, greeting, sizeof(greeting));
}
