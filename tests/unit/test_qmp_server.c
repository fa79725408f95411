/*
 * QMP clients on real sockets: order of replies, events, clients that vanish,
 * that never read, that ask for the end. The test steps the main loop by hand
 * and plays the clients' part between steps.
 */
#include <check.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/event.h"
#include "core/loop.h"
#include "core/memory.h"
#include "generated/options.h"
#include "qmp/connection.h"
#include "qmp/server.h"

#define STEP_LIMIT_NS 10000000000ull

struct peer {
    int fd;
    char *text; /* what came so far */
    size_t size, room;
    unsigned lines; /* that are complete */
    bool closed;
};

static const char negotiate[] = "{\"execute\":\"qmp_capabilities\"}\n";
static const char *shutdown_reason;

static void setup(void)
{
    AUTO_ERROR struct error err = {0};

    signal(SIGPIPE, SIG_IGN);
    if (loop_create(&loop_main, "main", NULL, &err))
        ck_abort_msg("%s", err.text);
    loop_set_current(loop_main);
    qmp_start();
}

static void step(void)
{
    event_base_loop(loop_main->events, EVLOOP_NONBLOCK);
    if (!loop_turn(loop_main))
        usleep(200);
}

static void peer_read(struct peer *peer)
{
    char data[65536];
    ssize_t got;

    while ((got = read(peer->fd, data, sizeof(data))) > 0) {
        if (peer->size + (size_t)got + 1 > peer->room) {
            peer->room = (peer->size + (size_t)got) * 2 + 1;
            peer->text = memory_grow(peer->text, peer->room, 1);
        }
        memcpy(peer->text + peer->size, data, (size_t)got);
        /* JSON text has no line feed but at its end. */
        for (ssize_t i = 0; i < got; i++)
            peer->lines += data[i] == '\n';
        peer->size += (size_t)got;
        peer->text[peer->size] = 0;
    }
    peer->closed = got == 0 || errno != EAGAIN;
}

/* Until so many lines came, or the connection is closed. */
static void peer_wait_lines(struct peer *peer, unsigned lines)
{
    uint64_t limit = ring_clock() + STEP_LIMIT_NS;

    while (peer->lines < lines && !peer->closed && ring_clock() < limit) {
        step();
        peer_read(peer);
    }
    ck_assert_uint_ge(peer->lines, lines);
}

static void peer_wait_closed(struct peer *peer)
{
    uint64_t limit = ring_clock() + STEP_LIMIT_NS;

    while (!peer->closed && ring_clock() < limit) {
        step();
        peer_read(peer);
    }
    ck_assert(peer->closed);
}

static void peer_send(struct peer *peer, const char *text)
{
    size_t size = strlen(text);

    while (size) {
        ssize_t sent = write(peer->fd, text, size);

        if (sent < 0)
            step();
        else
            text += sent, size -= (size_t)sent;
    }
}

static void peer_forget(struct peer *peer)
{
    peer->size = 0;
    peer->lines = 0;
    if (peer->text)
        peer->text[0] = 0;
}

static struct peer peer_open(bool negotiated)
{
    int fds[2];
    AUTO_ERROR struct error err = {0};

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    ck_assert_int_eq(qmp_serve_fd(fds[1], false, &err), 0);
    struct peer peer = {.fd = fds[0]};

    peer_wait_lines(&peer, 1);
    ck_assert_int_eq(strncmp(peer.text, "{\"QMP\": {\"version\": {\"qemu\": {", 29), 0);
    if (negotiated) {
        peer_send(&peer, negotiate);
        peer_wait_lines(&peer, 2);
        ck_assert_ptr_nonnull(strstr(peer.text, "{\"return\": {}}\r\n"));
        peer_forget(&peer);
    }
    return peer;
}

static void peer_close(struct peer *peer)
{
    close(peer->fd);
    free(peer->text);
}

static void stop_entry(void *arg)
{
    qmp_stop_all();
    *(bool *)arg = true;
}

/* Ends as the daemon does. */
static void stop(void)
{
    bool done = false;

    coroutine_start(loop_main, stop_entry, &done);
    while (!done)
        step();
    for (unsigned i = 0; i < 10; i++)
        step();
}

START_TEST(test_server_order)
{
    struct peer peer = peer_open(true);

    for (unsigned i = 0; i < 300; i++) {
        static const char *const requests[] = {"{\"execute\":\"query-commands\",\"id\":%u}",
                                               "{\"execute\":\"query-named-block-nodes\",\"id\":%u}",
                                               "{\"execute\":\"nope\",\"id\":%u}"};
        char text[100];

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(text, sizeof(text), requests[i % 3], i);
#pragma GCC diagnostic pop
        peer_send(&peer, text);
    }
    peer_wait_lines(&peer, 300);
    const char *at = peer.text;

    for (unsigned i = 0; i < 300; i++) {
        char id[20];

        snprintf(id, sizeof(id), "\"id\": %u}\r\n", i);
        at = strstr(at, id);
        ck_assert_ptr_nonnull(at);
    }
    peer_close(&peer);
    stop();
}
END_TEST

START_TEST(test_server_bytes)
{
    struct peer peer = peer_open(true);
    static const char text[] =
        "{\"execute\": \"query-sources\", \"id\": \"\xc3\xa9\"} [] {\"a\" # {\"execute\":'query-sources'}";

    for (size_t i = 0; i + 1 < sizeof(text); i++) {
        char one[2] = {text[i]};

        peer_send(&peer, one);
        step();
    }
    peer_wait_lines(&peer, 4);
    ck_assert_str_eq(peer.text,
                     "{\"return\": [], \"id\": \"\\u00E9\"}\r\n"
                     "{\"error\": {\"class\": \"GenericError\", \"desc\": \"QMP input must be a JSON object\"}}\r\n"
                     "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '#'\"}}\r\n"
                     "{\"return\": []}\r\n");
    peer_close(&peer);
    stop();
}
END_TEST

START_TEST(test_server_two_clients)
{
    struct peer a = peer_open(true), b = peer_open(true);

    for (unsigned i = 0; i < 50; i++) {
        peer_send(&a, "{\"execute\":\"query-named-block-nodes\"}");
        peer_send(&b, "{\"execute\":\"query-version\"}");
    }
    peer_wait_lines(&b, 50);
    peer_wait_lines(&a, 50);
    peer_close(&a);
    peer_send(&b, "{\"execute\":\"query-version\"}");
    peer_wait_lines(&b, 51);
    stop();
    peer_wait_closed(&b);
    peer_close(&b);
}
END_TEST

START_TEST(test_server_events)
{
    struct peer ready = peer_open(true), silent = peer_open(false);
    struct block_export_deleted_event event = {.id = (char *)"e0"};

    peer_forget(&silent);
    event_emit("BLOCK_EXPORT_DELETED", &block_export_deleted_event_type, &event);
    peer_wait_lines(&ready, 1);
    ck_assert_ptr_nonnull(strstr(ready.text, "{\"timestamp\": {\"seconds\": "));
    ck_assert_ptr_nonnull(strstr(ready.text, ", \"event\": \"BLOCK_EXPORT_DELETED\", \"data\": {\"id\": \"e0\"}}\r\n"));
    peer_read(&silent);
    ck_assert_uint_eq(silent.size, 0);
    peer_close(&ready);
    peer_close(&silent);
    stop();
}
END_TEST

/* A flood for one subject: the first and the last one, a second apart. */
START_TEST(test_server_event_limit)
{
    struct peer peer = peer_open(true);

    for (unsigned i = 0; i < 1000; i++) {
        AUTO_FREE char *reason = memory_format("error %u", i);
        struct block_io_error_event event = {
            .device = (char *)"e0", .node_name = (char *)(i % 2 ? "a" : "b"), .reason = reason};

        event_emit("BLOCK_IO_ERROR", &block_io_error_event_type, &event);
    }
    peer_wait_lines(&peer, 4);
    ck_assert_ptr_nonnull(strstr(peer.text, "error 0\""));
    ck_assert_ptr_nonnull(strstr(peer.text, "error 1\""));
    ck_assert_ptr_nonnull(strstr(peer.text, "error 998\""));
    ck_assert_ptr_nonnull(strstr(peer.text, "error 999\""));
    ck_assert_uint_eq(peer.lines, 4);
    peer_close(&peer);
    stop();
}
END_TEST

/* Sends and sends: its requests wait, and in the end it is cut off; another client does not notice. */
START_TEST(test_server_never_reads)
{
    struct peer deaf = peer_open(true), other = peer_open(true);
    static const char request[] = "{\"execute\":\"query-qmp-schema\"}\n";
    uint64_t limit = ring_clock() + QMP_STALL_NS + STEP_LIMIT_NS;
    size_t total = 0;
    ssize_t sent = 0;

    while ((sent >= 0 || errno == EAGAIN) && ring_clock() < limit) {
        sent = write(deaf.fd, request, sizeof(request) - 1);
        total += sent > 0 ? (size_t)sent : 0;
        step();
    }
    ck_assert(errno == EPIPE || errno == ECONNRESET);
    ck_assert_uint_lt(total, 1u << 20);
    peer_send(&other, "{\"execute\":\"query-sources\"}");
    peer_wait_lines(&other, 1);
    peer_close(&deaf);
    peer_close(&other);
    stop();
}
END_TEST

/* Answers of many MiB to a client that sends all its requests before it reads. */
START_TEST(test_server_reads_late)
{
    struct peer peer = peer_open(true);

    for (unsigned i = 0; i < 200; i++)
        peer_send(&peer, "{\"execute\":\"query-qmp-schema\"}");
    for (unsigned i = 0; i < 500; i++)
        step();
    peer_wait_lines(&peer, 200);
    ck_assert_uint_gt(peer.size, 4 * QMP_OUTPUT_BUSY);
    peer_close(&peer);
    stop();
}
END_TEST

/* Events cannot wait: who does not read them is cut off. */
START_TEST(test_server_reads_no_events)
{
    struct peer deaf = peer_open(true), other = peer_open(true);
    AUTO_FREE char *message = memory_zero(1u << 20);
    struct block_image_corrupted_event event = {.device = (char *)"", .msg = message};

    memset(message, 'x', (1u << 20) - 1);
    for (unsigned i = 0; i < 40; i++) {
        event_emit("BLOCK_IMAGE_CORRUPTED", &block_image_corrupted_event_type, &event);
        peer_wait_lines(&other, 1);
        peer_forget(&other);
    }
    peer_wait_closed(&deaf);
    ck_assert_uint_lt(deaf.size, 32u << 20);
    peer_close(&deaf);
    peer_close(&other);
    stop();
}
END_TEST

/* Requests that were sent before the end of input are answered, then the connection is closed. */
START_TEST(test_server_half_closed)
{
    struct peer peer = peer_open(true);

    for (unsigned i = 0; i < 20; i++)
        peer_send(&peer, "{\"execute\":\"query-named-block-nodes\"}");
    shutdown(peer.fd, SHUT_WR);
    peer_wait_closed(&peer);
    ck_assert_uint_eq(peer.lines, 20);
    peer_close(&peer);
    stop();
}
END_TEST

START_TEST(test_server_vanishes)
{
    for (unsigned i = 0; i < 50; i++) {
        struct peer peer = peer_open(true);

        for (unsigned j = 0; j < i; j++)
            peer_send(&peer, "{\"execute\":\"query-named-block-nodes\"}");
        peer_send(&peer, "{\"execute\":");
        for (unsigned j = 0; j < i % 4; j++)
            step();
        peer_close(&peer);
        step();
    }
    stop();
}
END_TEST

static void shutdown_called(const char *reason)
{
    shutdown_reason = reason;
}

START_TEST(test_server_quit)
{
    struct peer peer = peer_open(true), other = peer_open(true);

    qmp_shutdown = shutdown_called;
    peer_send(&peer, "{\"execute\":\"quit\",\"id\":1}{\"execute\":\"query-sources\",\"id\":2}");
    peer_wait_lines(&peer, 1);
    ck_assert_str_eq(peer.text, "{\"return\": {}, \"id\": 1}\r\n");
    ck_assert_str_eq(shutdown_reason, "host-qmp-quit");
    peer_send(&other, "{\"execute\":\"query-sources\"}");
    for (unsigned i = 0; i < 20; i++)
        step();
    stop();
    peer_wait_closed(&peer);
    peer_wait_closed(&other);
    ck_assert_uint_eq(peer.lines, 1);
    ck_assert_uint_eq(other.lines, 0);
    peer_close(&peer);
    peer_close(&other);
}
END_TEST

/* A script in a file, answers to a file: neither can be polled. */
START_TEST(test_server_files)
{
    char in_name[] = "/tmp/cairn_qmp_in_XXXXXX", out_name[] = "/tmp/cairn_qmp_out_XXXXXX";
    int in = mkstemp(in_name), out = mkstemp(out_name);
    AUTO_ERROR struct error err = {0};

    ck_assert_int_eq(write(in, negotiate, sizeof(negotiate) - 1), sizeof(negotiate) - 1);
    for (unsigned i = 0; i < 5000; i++)
        ck_assert_int_gt(write(in, "{\"execute\":\"query-sources\"} ", 28), 0);
    lseek(in, 0, SEEK_SET);
    ck_assert_int_eq(qmp_connection_start(in, out, true, &err), 0);
    struct peer reader = {.fd = open(out_name, O_RDONLY)};
    uint64_t limit = ring_clock() + STEP_LIMIT_NS;

    while (fcntl(in, F_GETFD) >= 0 && ring_clock() < limit)
        step();
    peer_read(&reader);
    const char *at = reader.text;

    for (unsigned i = 0; i < 5000; i++) {
        at = strstr(at, "{\r\n    \"return\": [\r\n    ]\r\n}\r\n");
        ck_assert_ptr_nonnull(at);
        at++;
    }
    peer_close(&reader);
    unlink(in_name);
    unlink(out_name);
    stop();
}
END_TEST

START_TEST(test_server_listen)
{
    char directory[] = "/tmp/cairn_qmp_XXXXXX";
    AUTO_ERROR struct error err = {0};

    ck_assert_ptr_nonnull(mkdtemp(directory));
    AUTO_FREE char *path = memory_format("%s/sock", directory);
    struct socket_address address = {.type = SOCKET_ADDRESS_TYPE_UNIX, .u.unix_.path = path};

    ck_assert_int_eq(qmp_listen(&address, false, &err), 0);
    ck_assert_int_eq(qmp_listen(&address, false, &err), -EADDRINUSE);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    ck_assert_int_eq(access(path, F_OK), 0);
    stop();
    ck_assert_int_ne(access(path, F_OK), 0);
    rmdir(directory);
}
END_TEST

START_TEST(test_server_bad_addresses)
{
    char long_path[200];
    AUTO_ERROR struct error err = {0};

    memset(long_path, 'a', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = 0;
    struct socket_address bad[] = {
        {.type = SOCKET_ADDRESS_TYPE_UNIX, .u.unix_.path = long_path},
        {.type = SOCKET_ADDRESS_TYPE_UNIX, .u.unix_.path = (char *)""},
        {.type = SOCKET_ADDRESS_TYPE_UNIX, .u.unix_.path = (char *)"/nonexistent/sock"},
        {.type = SOCKET_ADDRESS_TYPE_UNIX, .u.unix_.path = (char *)"/dev/null"},
        {.type = SOCKET_ADDRESS_TYPE_FD, .u.fd.str = (char *)"x"},
        {.type = SOCKET_ADDRESS_TYPE_FD, .u.fd.str = (char *)"0x1"},
        {.type = SOCKET_ADDRESS_TYPE_FD, .u.fd.str = (char *)"99999"},
        {.type = SOCKET_ADDRESS_TYPE_INET, .u.inet = {.host = (char *)"127.0.0.1", .port = (char *)"nope"}},
        {.type = SOCKET_ADDRESS_TYPE_INET,
         .u.inet = {.host = (char *)"127.0.0.1", .port = (char *)"0", .has_ipv4 = true, .has_ipv6 = true}},
    };

    for (unsigned i = 0; i < array_size(bad); i++) {
        ck_assert_int_lt(qmp_listen(&bad[i], false, &err), 0);
        ck_assert_ptr_nonnull(err.text);
        ck_assert_int_lt(qmp_connect(&bad[i], false, &err), 0);
        ck_assert_ptr_nonnull(err.text);
    }
    stop();
}
END_TEST

int main(void)
{
    const TTest *const all[] = {
        test_server_order,       test_server_bytes,           test_server_two_clients, test_server_events,
        test_server_event_limit, test_server_never_reads,     test_server_half_closed, test_server_vanishes,
        test_server_quit,        test_server_files,           test_server_listen,      test_server_bad_addresses,
        test_server_reads_late,  test_server_reads_no_events,
    };
    Suite *suite = suite_create("qmp_server");
    TCase *tests = tcase_create("qmp_server");

    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, NULL);
    for (unsigned i = 0; i < array_size(all); i++)
        tcase_add_test(tests, all[i]);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
