/*
 * libFuzzer target: NBD negotiation. The first byte says in which pieces the
 * input arrives; with its highest bit set, the rest is a list of options
 * (number, length, data) that are given headers, else it is taken as it is.
 */
#include <event2/buffer.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/handshake.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct node node = {.size = 1 << 20};
static struct export exports[3];
static struct nbd_export nbd[3] = {
    {.export = &exports[0], .name = "d", .description = "the disk"},
    {.export = &exports[1], .name = "", .description = NULL},
    {.export = &exports[2], .name = "hidden", .hidden = true},
};
static struct nbd_server server = {.exports = LIST_INIT(server.exports)};

static void fuzz_world(void)
{
    if (!list_is_empty(&server.exports))
        return;
    for (unsigned i = 0; i < array_size(nbd); i++) {
        exports[i].consumer.edge.child = &node;
        exports[i].writable = i == 0;
        list_append(&server.exports, &nbd[i].in_server);
    }
}

/* One fuzzed byte of number, one of length, then data, as often as there is some. */
static void fuzz_options(struct evbuffer *out, const uint8_t *data, size_t size)
{
    unsigned char head[16];

    while (size >= 2) {
        size_t length = data[1] < size - 2 ? data[1] : size - 2;

        nbd_put32(nbd_put32(nbd_put64(head, NBD_OPTION_MAGIC), data[0] & 15), (uint32_t)length);
        evbuffer_add(out, head, sizeof(head));
        evbuffer_add(out, data + 2, length);
        data += 2 + length;
        size -= 2 + length;
    }
}

static void fuzz_check_replies(struct evbuffer *output)
{
    unsigned char *at = evbuffer_pullup(output, -1);
    size_t left = evbuffer_get_length(output) - 18;

    /* All but the answer to NBD_OPT_EXPORT_NAME, which is the last one, has a header. */
    for (at += 18; left && left != 10 && left != 134;) {
        uint32_t length;

        if (left < 20 || nbd_get64(at) != NBD_OPTION_REPLY_MAGIC || (length = nbd_get32(at + 16)) > left - 20)
            abort();
        at += 20 + length;
        left -= 20 + length;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t piece = data[0] & 127 ? data[0] & 127 : SIZE_MAX, there = 0, taken = 0;
    struct evbuffer *input = evbuffer_new(), *output = evbuffer_new();
    unsigned char flags[4] = {0, 0, 0, data[1]};
    struct nbd_handshake handshake;

    fuzz_world();
    if (data[0] & 128) {
        evbuffer_add(input, flags, sizeof(flags));
        fuzz_options(input, data + 2, size - 2);
    } else {
        evbuffer_add(input, data + 1, size - 1);
    }
    size = evbuffer_get_length(input);
    data = evbuffer_pullup(input, -1);
    nbd_handshake_start(&handshake, &server, output);
    while (there < size && handshake.state < NBD_HANDSHAKE_DONE) {
        size_t step;

        there += size - there < piece ? size - there : piece;
        do {
            step = nbd_handshake_input(&handshake, data + taken, there - taken);
            taken += step;
            if (taken > there)
                abort();
        } while (step);
        if (handshake.state < NBD_HANDSHAKE_DONE && there - taken >= NBD_HANDSHAKE_INPUT_MAX)
            abort();
    }
    if ((handshake.state == NBD_HANDSHAKE_DONE) != (handshake.export != NULL) ||
        (handshake.export && handshake.export->hidden))
        abort();
    fuzz_check_replies(output);
    evbuffer_free(input);
    evbuffer_free(output);
    return 0;
}
