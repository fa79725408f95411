/*
 * libFuzzer target: NBD transmission on a socket pair, with a null node, one
 * loop that is stepped, and all that a client can do about it. Byte 0: what
 * was negotiated; byte 1: how the client behaves. Then come requests, as they
 * are or (FUZZ_BUILT) as records of 8 bytes that are given headers.
 *
 * After each input the connection must be gone. Replies to clients that know
 * structured ones are checked for their form.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "core/change.h"
#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/handshake.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"
#include "generated/options.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    FUZZ_STRUCTURED = 1,
    FUZZ_EXTENDED = 2,
    FUZZ_CONTEXT = 4,
    FUZZ_READ_ONLY = 8,
    FUZZ_LATENCY = 16,
    FUZZ_BUILT = 32,
    FUZZ_EARLY = 64
};
enum { FUZZ_DEAF = 1, FUZZ_PAUSE = 2, FUZZ_STOP = 4, FUZZ_VANISH = 8, FUZZ_PIECES = 16, FUZZ_GROW = 32 };

#define FUZZ_TURNS 100000
#define FUZZ_EARLY_BYTES 100u

static struct loop *loop;
static struct export exports[2];        /* fast, slow */
static struct nbd_export nbd[2];
static struct nbd_server_options server_options;
static struct nbd_server server = {.options = &server_options, .exports = LIST_INIT(server.exports)};
static struct export_options export_options;

/* The world. */

static const char *fuzz_name(const struct consumer *consumer)
{
    (void)consumer;
    return "fuzz";
}

static void fuzz_resumed(struct consumer *consumer, struct loop *where)
{
    struct nbd_connection *connection;

    list_for_each(connection, &nbd[consumer == &exports[1].consumer].by_loop[where->index], in_loop)
        nbd_connection_resumed(connection);
}

static const struct consumer_ops fuzz_consumer_ops = {.kind = "export", .name = fuzz_name, .resumed = fuzz_resumed};

static void fuzz_check(int result, const struct error *err)
{
    if (result == 0)
        return;
    fprintf(stderr, "%s\n", err->text);
    abort();
}

static void fuzz_export(unsigned i)
{
    static const char *const names[] = {"fast", "slow"};
    AUTO_ERROR struct error err = {0};
    struct node_options options = {.driver = NODE_DRIVER_NULL_CO,
                                   .node_name = memory_string(names[i]),
                                   .u.null_co = {.size = 64u << 20, .latency_ns = i * 1000u, .read_zeroes = true}};
    struct export *export = &exports[i];
    struct node *node;
    struct change *change = change_new();

    fuzz_check(node_add(change, &options, &node, &err), &err);
    fuzz_check(change_apply(change, &err), &err);
    free(options.node_name);
    consumer_init(&export->consumer, &fuzz_consumer_ops, export,
                  (struct permission){.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL});
    change = change_new();
    fuzz_check(consumer_attach(change, &export->consumer, names[i], &err), &err);
    fuzz_check(change_apply(change, &err), &err);
    export->loops = &loop;
    export->loop_count = 1;
    export->options = &export_options;
    nbd[i] = (struct nbd_export){.export = export, .server = &server, .name = names[i]};
    list_init(&nbd[i].connections);
    for (unsigned l = 0; l < LOOP_MAX; l++)
        list_init(&nbd[i].by_loop[l]);
}

static void fuzz_world(void *ready)
{
    fuzz_export(0);
    fuzz_export(1);
    *(bool *)ready = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    AUTO_ERROR struct error err = {0};
    bool ready = false;

    (void)argc;
    (void)argv;
    loop_set_ring(LOOP_RING_THREADS);
    fuzz_check(loop_create(&loop, "main", NULL, &err), &err);
    loop_set_current(loop);
    coroutine_start(loop, fuzz_world, &ready);
    while (!ready)
        loop_turn(loop);
    return 0;
}

/* The client. */

struct fuzz_client {
    int fd;
    uint8_t mode, manner;
    unsigned char *input;
    size_t size, sent, piece;
    unsigned char head[64];     /* of the reply that comes */
    size_t head_size;
    uint64_t skip;              /* bytes of it that follow */
};

static void client_add(struct fuzz_client *client, const void *data, size_t size)
{
    client->input = memory_grow(client->input, client->size + size + 1, 1);
    if (data)
        memcpy(client->input + client->size, data, size);
    else
        memset(client->input + client->size, 0x5a, size);
    client->size += size;
}

/* Records: command, flags, offset in units of 512 bytes (2 bytes), length in bytes or, with the command's highest
 * bit, units of 512 (2 bytes), something to disturb offset and length with (2 bytes). */
static void client_build(struct fuzz_client *client, const uint8_t *data, size_t size)
{
    bool extended = client->mode & FUZZ_EXTENDED;
    uint64_t cookie = 0;

    for (; size >= 8 && client->size < 32u << 20; data += 8, size -= 8) {
        unsigned char head[NBD_EXTENDED_REQUEST_SIZE], *at = head;
        uint64_t length = (uint64_t)(data[4] << 8 | data[5]) << (data[0] & 0x80 ? 9 : 0);
        uint64_t offset = ((uint64_t)(data[2] << 8 | data[3]) << 9) ^ (uint64_t)data[6] << (data[7] & 63);

        at = nbd_put32(at, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
        at = nbd_put16(at, data[1] & 63);
        at = nbd_put16(at, data[0] & 15);
        at = nbd_put64(at, ++cookie);
        at = nbd_put64(at, offset);
        at = extended ? nbd_put64(at, length) : nbd_put32(at, (uint32_t)length);
        client_add(client, head, (size_t)(at - head));
        if ((data[0] & 15) == NBD_CMD_BLOCK_STATUS && extended && data[1] & NBD_CMD_FLAG_PAYLOAD_LEN) {
            nbd_put32(nbd_put64(head, length << 4), data[7] & 3);
            client_add(client, head, length < 12 ? length : 12);
            length -= length < 12 ? length : 12;
        } else if ((data[0] & 15) != NBD_CMD_WRITE && !(extended && data[1] & NBD_CMD_FLAG_PAYLOAD_LEN)) {
            length = 0;
        }
        client_add(client, NULL, length);
    }
}

/* Bytes that follow the header in client->head, or UINT64_MAX if that is not complete. */
static uint64_t client_reply_size(const struct fuzz_client *client)
{
    const unsigned char *head = client->head;
    bool extended = client->mode & FUZZ_EXTENDED;

    if (client->head_size < 16)
        return UINT64_MAX;
    if (nbd_get32(head) == NBD_SIMPLE_REPLY_MAGIC && !extended)
        return 0;
    if (nbd_get32(head) != (extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC) ||
        nbd_get16(head + 4) != NBD_REPLY_FLAG_DONE)
        abort();
    if (client->head_size < (extended ? 32 : 20))
        return UINT64_MAX;
    uint64_t size = extended ? nbd_get64(head + 24) : nbd_get32(head + 16);

    switch (nbd_get16(head + 6)) {
    case NBD_REPLY_NONE:
        if (size != 0)
            abort();
        break;
    case NBD_REPLY_OFFSET_DATA:
        if (size < 9 || size > 8 + NBD_PAYLOAD_MAX)
            abort();
        break;
    case NBD_REPLY_BLOCK_STATUS:
        if (extended || size < 12 || (size - 4) % 8)
            abort();
        break;
    case NBD_REPLY_BLOCK_STATUS_EXT:
        if (!extended || size < 24 || (size - 8) % 16)
            abort();
        break;
    case NBD_REPLY_ERROR:
        if (size < 6 || size > 6 + 4096)
            abort();
        break;
    default:
        abort();
    }
    return size;
}

static void client_check(struct fuzz_client *client, const unsigned char *data, size_t size)
{
    if (!(client->mode & (FUZZ_STRUCTURED | FUZZ_EXTENDED)))
        return;     /* simple replies to reads do not say how long they are */
    while (size) {
        size_t skip = size < client->skip ? size : client->skip;
        uint64_t follows;

        client->skip -= skip;
        data += skip;
        size -= skip;
        if (size == 0)
            return;
        client->head[client->head_size++] = *data++;
        size--;
        follows = client_reply_size(client);
        if (follows != UINT64_MAX) {
            client->skip = follows;
            client->head_size = 0;
        }
    }
}

static void client_read(struct fuzz_client *client)
{
    static unsigned char buf[1 << 20];
    ssize_t got;

    while ((got = recv(client->fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0)
        client_check(client, buf, (size_t)got);
}

static void client_write(struct fuzz_client *client)
{
    size_t left = client->size - client->sent, piece = left < client->piece ? left : client->piece;
    ssize_t sent = send(client->fd, client->input + client->sent, piece, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent > 0)
        client->sent += (size_t)sent;
    else if (sent < 0 && errno != EAGAIN)
        client->sent = client->size;
}

static void client_end(struct fuzz_client *client, struct nbd_export *export)
{
    struct nbd_connection *connection = list_first(&export->connections, struct nbd_connection, in_export);

    if (client->manner & FUZZ_STOP && connection)
        nbd_connection_stop(connection);
    if (client->manner & FUZZ_VANISH) {
        close(client->fd);
        client->fd = -1;
    } else {
        shutdown(client->fd, SHUT_WR);
    }
}

static void fuzz_run(struct fuzz_client *client, struct nbd_export *export)
{
    struct consumer *consumer = &export->export->consumer;
    bool ended = false;

    consumer->loops[loop->index].paused = client->manner & FUZZ_PAUSE;
    for (unsigned turn = 0; export->connection_count; turn++) {
        if (turn == FUZZ_TURNS)
            abort();
        if (client->sent < client->size)
            client_write(client);
        if (turn == 40 && client->manner & FUZZ_PAUSE) {
            atomic_store(&export->scratch, client->manner & FUZZ_GROW ? 256 : 0);
            consumer_resume_loop(consumer, loop);
        }
        if (!ended && (client->sent == client->size || turn > FUZZ_TURNS / 2)) {
            ended = true;
            client_end(client, export);
        }
        if (client->fd >= 0 && (ended || !(client->manner & FUZZ_DEAF)))
            client_read(client);
        loop_turn(loop);
    }
    if (consumer->loops[loop->index].paused)
        consumer_resume_loop(consumer, loop);
    if (consumer->loops[loop->index].inflight)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2];

    if (size < 2 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return 0;
    struct fuzz_client client = {
        .fd = fds[1], .mode = data[0], .manner = data[1], .piece = data[1] & FUZZ_PIECES ? 37 : 1 << 18};
    struct nbd_export *export = &nbd[client.mode & FUZZ_LATENCY ? 1 : 0];
    struct nbd_handshake handshake = {.export = export,
                                      .context = client.mode & FUZZ_CONTEXT ? export : NULL,
                                      .structured = client.mode & (FUZZ_STRUCTURED | FUZZ_EXTENDED),
                                      .extended = client.mode & FUZZ_EXTENDED};

    if (client.mode & FUZZ_BUILT)
        client_build(&client, data + 2, size - 2);
    else
        client_add(&client, data + 2, size - 2);
    if (client.mode & FUZZ_EARLY)
        client.sent = client.size < FUZZ_EARLY_BYTES ? client.size : FUZZ_EARLY_BYTES;
    if (client.size > 1u << 20)
        client.piece = 1 << 18;
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    atomic_store(&export->scratch, 0);
    export->export->writable = !(client.mode & FUZZ_READ_ONLY);
    server.connections = 1;
    if (nbd_connection_start(&handshake, fds[0], client.input, client.sent) < 0)
        abort();
    fuzz_run(&client, export);
    if (client.fd >= 0)
        close(client.fd);
    free(client.input);
    return 0;
}
