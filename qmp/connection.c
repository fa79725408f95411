/*
 * One QMP client: see connection.h.
 *
 * Input and output are libevent's bufferevents. Files and devices that cannot
 * be polled (stdin from a script, stdout to a file) do without: they are read
 * by a timer that is always due, and written at once.
 *
 * Whoever calls connection_go_on() must not touch the connection afterwards:
 * it may be gone.
 */
#include "qmp/connection.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

#include "core/colock.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/list.h"
#include "core/log.h"
#include "core/loop.h"
#include "core/memory.h"
#include "qmp/dispatch.h"
#include "qmp/json_stream.h"
#include "qmp/json_write.h"
#include "qmp/server.h"

#define READ_SIZE 65536u
#define CLOSE_LIMIT_NS 1000000000ull

struct connection {
    struct list_link link;
    struct qmp_client client;
    struct json_stream *stream;
    struct json_item queue[QMP_QUEUE_MAX]; /* a ring, from queue_first on */
    unsigned queue_first, queue_count;
    size_t queue_size;                   /* bytes of input that are queued */
    int in, out;                         /* owned; may be the same */
    struct bufferevent *reader, *writer; /* NULL: that fd cannot be polled; may be the same */
    struct evbuffer *input, *output;     /* of the bufferevents, else our own */
    struct event *turn;                  /* without reader: reads the next piece */
    struct coroutine *waiter;            /* the coroutine, while it waits for room in output */
    struct timer stall;
    uint64_t answered; /* bytes that ever went to output */
    bool pretty;
    bool running;     /* the coroutine is there */
    bool input_ended; /* what is queued is still answered */
    bool broken;      /* nothing is read or written any more */
};

static struct list connections = LIST_INIT(connections);
static bool connections_stopped;
static struct coqueue connections_idle; /* whoever waits for running coroutines to end */
static bool connections_idle_ready;

/* libevent frees it a little later: until then it must have no use for the fd. */
static void connection_free_buffer(struct bufferevent *buffer)
{
    bufferevent_disable(buffer, EV_READ | EV_WRITE);
    bufferevent_free(buffer);
}

static void connection_free(struct connection *connection)
{
    list_remove(&connection->link);
    for (unsigned i = 0; i < QMP_QUEUE_MAX; i++)
        json_item_clear(&connection->queue[i]);
    json_stream_free(connection->stream);
    if (!connection->reader && connection->input)
        evbuffer_free(connection->input);
    if (!connection->writer && connection->output)
        evbuffer_free(connection->output);
    if (connection->writer && connection->writer != connection->reader)
        connection_free_buffer(connection->writer);
    if (connection->reader)
        connection_free_buffer(connection->reader);
    if (connection->turn)
        event_free(connection->turn);
    close(connection->in);
    if (connection->out != connection->in)
        close(connection->out);
    free(connection);
}

/* Output. */

static void connection_wake(struct connection *connection)
{
    timer_cancel(&connection->stall);
    if (connection->waiter)
        coroutine_wake(take_ptr(&connection->waiter));
}

static void connection_stalled(struct timer *timer)
{
    connection_wake(container_of(timer, struct connection, stall));
}

static void connection_break(struct connection *connection)
{
    connection->broken = true;
    connection_wake(connection);
    if (connection->reader)
        bufferevent_disable(connection->reader, EV_READ);
}

/* A file that cannot be polled takes everything at once, or is full. */
static void connection_write_file(struct connection *connection)
{
    while (!connection->broken && evbuffer_get_length(connection->output) > 0)
        if (evbuffer_write(connection->output, connection->out) < 0 && errno != EINTR)
            connection_break(connection);
}

static void connection_send(struct connection *connection, struct json_object *value)
{
    struct json_text text = {.limit = QMP_OUTPUT_MAX};

    if (connection->broken)
        return;
    json_write(&text, value, connection->pretty);
    json_text_append(&text, "\r\n", 2);
    if (text.failed || evbuffer_add(connection->output, text.data, text.size) ||
        evbuffer_get_length(connection->output) > QMP_OUTPUT_MAX) {
        log_warning("A QMP client does not read its answers: disconnected");
        connection_break(connection);
    }
    connection->answered += text.size;
    json_text_clear(&text);
    if (!connection->writer)
        connection_write_file(connection);
}

/* Bytes that left us. */
static uint64_t connection_taken(const struct connection *connection)
{
    return connection->answered - evbuffer_get_length(connection->output);
}

/* Waits until the client has read some of its answers. In the coroutine. */
static void connection_wait_room(struct connection *connection)
{
    while (!connection->broken && !connections_stopped && evbuffer_get_length(connection->output) > QMP_OUTPUT_BUSY) {
        uint64_t before = connection_taken(connection);

        connection->waiter = coroutine_self();
        timer_set(&connection->stall, loop_main, loop_main->now_ns + QMP_STALL_NS);
        coroutine_yield();
        if (!connection->broken && !connections_stopped && connection_taken(connection) == before) {
            log_warning("A QMP client does not read its answers: disconnected");
            connection_break(connection);
        }
    }
}

/* Requests. */

static void connection_run_item(struct connection *connection, struct json_item *item)
{
    struct json_object *reply;

    if (item->kind == JSON_ITEM_ERROR) {
        AUTO_ERROR struct error err = {0};

        error_set(&err, -EINVAL, "%s", item->error);
        reply = qmp_error_reply(&err);
    } else {
        reply = qmp_dispatch(&connection->client, item->value);
    }
    connection_send(connection, reply);
    json_object_put(reply);
}

static bool connection_has_room(const struct connection *connection)
{
    return connection->queue_count < QMP_QUEUE_MAX && connection->queue_size < QMP_QUEUE_SIZE;
}

/* Reads requests out of the input while there is room for them. */
static void connection_fill_queue(struct connection *connection)
{
    size_t size;

    while (connection_has_room(connection) && !connection->broken &&
           (size = evbuffer_get_contiguous_space(connection->input)) > 0) {
        unsigned last = (connection->queue_first + connection->queue_count) % QMP_QUEUE_MAX;
        const char *data = (const char *)evbuffer_pullup(connection->input, (ev_ssize_t)size);
        size_t used = json_stream_feed(connection->stream, data, size, &connection->queue[last]);

        evbuffer_drain(connection->input, used);
        if (connection->queue[last].kind != JSON_ITEM_NONE) {
            connection->queue_count++;
            connection->queue_size += connection->queue[last].size;
        }
    }
    bool wanted = connection_has_room(connection) && !connection->broken && !connection->input_ended;

    if (connection->turn && wanted)
        event_add(connection->turn, &(struct timeval){.tv_sec = 0});
    else if (connection->reader && wanted)
        bufferevent_enable(connection->reader, EV_READ);
    else if (connection->reader)
        bufferevent_disable(connection->reader, EV_READ);
}

/* Frees the connection if there is nothing more to do for it. */
static void connection_settle(struct connection *connection)
{
    bool served = connection->input_ended && !connection->queue_count && !evbuffer_get_length(connection->output);

    if (!connection->running && (connection->broken || served))
        connection_free(connection);
}

/* The coroutine. */
static void connection_run(void *arg)
{
    struct connection *connection = arg;

    while (connection->queue_count && !connection->broken && !connections_stopped && !connection->client.quit) {
        struct json_item item = connection->queue[connection->queue_first];

        connection->queue[connection->queue_first] = (struct json_item){0};
        connection->queue_first = (connection->queue_first + 1) % QMP_QUEUE_MAX;
        connection->queue_count--;
        connection->queue_size -= item.size;
        connection_fill_queue(connection);
        connection_run_item(connection, &item);
        json_item_clear(&item);
        connection_wait_room(connection);
    }
    bool quit = connection->client.quit && !connections_stopped;

    connection->running = false;
    connection_settle(connection);
    if (connections_idle_ready)
        coqueue_wake_all(&connections_idle);
    if (quit) {
        connections_stopped = true;
        if (qmp_shutdown)
            qmp_shutdown("host-qmp-quit");
    }
}

static void connection_go_on(struct connection *connection)
{
    connection_fill_queue(connection);
    if (connection->queue_count && !connection->running && !connection->broken && !connections_stopped) {
        connection->running = true;
        coroutine_start(loop_main, connection_run, connection);
    } else {
        connection_settle(connection);
    }
}

/* What libevent calls. */

static void connection_readable(struct bufferevent *buffer, void *arg)
{
    (void)buffer;
    connection_go_on(arg);
}

/* At most half of QMP_OUTPUT_BUSY is left to write. */
static void connection_written(struct bufferevent *buffer, void *arg)
{
    struct connection *connection = arg;

    (void)buffer;
    connection_wake(connection);
    connection_settle(connection);
}

static void connection_ended(struct bufferevent *buffer, short what, void *arg)
{
    struct connection *connection = arg;

    (void)buffer;
    if ((what & BEV_EVENT_EOF) && (what & BEV_EVENT_READING))
        connection->input_ended = true;
    else
        connection_break(connection);
    connection_go_on(connection);
}

static void connection_read_file(evutil_socket_t fd, short what, void *arg)
{
    struct connection *connection = arg;
    int result = evbuffer_read(connection->input, connection->in, READ_SIZE);

    (void)fd;
    (void)what;
    if (result < 0 && errno != EINTR)
        connection_break(connection);
    else if (result == 0)
        connection->input_ended = true;
    connection_go_on(connection);
}

/* Start. */

static bool fd_can_be_polled(int fd)
{
    struct epoll_event event = {.events = 0};
    AUTO_CLOSE int epoll = epoll_create1(EPOLL_CLOEXEC);

    return epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 || errno != EPERM;
}

static bool connection_open_reader(struct connection *connection)
{
    if (fd_can_be_polled(connection->in)) {
        evutil_make_socket_nonblocking(connection->in);
        connection->reader = bufferevent_socket_new(loop_main->events, connection->in, 0);
        if (!connection->reader)
            return false;
        connection->input = bufferevent_get_input(connection->reader);
        bufferevent_setwatermark(connection->reader, EV_READ, 0, READ_SIZE);
        return true;
    }
    connection->input = evbuffer_new();
    connection->turn = evtimer_new(loop_main->events, connection_read_file, connection);
    return connection->input && connection->turn;
}

static bool connection_open_writer(struct connection *connection)
{
    if (connection->out == connection->in && connection->reader) {
        connection->writer = connection->reader;
    } else if (fd_can_be_polled(connection->out)) {
        evutil_make_socket_nonblocking(connection->out);
        connection->writer = bufferevent_socket_new(loop_main->events, connection->out, 0);
        if (!connection->writer)
            return false;
    } else {
        connection->output = evbuffer_new();
        return connection->output;
    }
    connection->output = bufferevent_get_output(connection->writer);
    return true;
}

static void connection_set_callbacks(struct connection *connection)
{
    if (connection->writer && connection->writer != connection->reader)
        bufferevent_setcb(connection->writer, NULL, connection_written, connection_ended, connection);
    if (connection->reader)
        bufferevent_setcb(connection->reader, connection_readable,
                          connection->writer == connection->reader ? connection_written : NULL, connection_ended,
                          connection);
    if (connection->writer) {
        bufferevent_setwatermark(connection->writer, EV_WRITE, QMP_OUTPUT_BUSY / 2, 0);
        bufferevent_enable(connection->writer, EV_WRITE);
    }
    if (connection->writer != connection->reader && connection->reader)
        bufferevent_disable(connection->reader, EV_WRITE);
}

int qmp_connection_start(int in, int out, bool pretty, struct error *err)
{
    struct connection *connection = memory_new(struct connection);

    connection->in = in;
    connection->out = out;
    connection->pretty = pretty;
    connection->stall.expired = connection_stalled;
    connection->stream = json_stream_new();
    list_append(&connections, &connection->link);
    if (!connection_open_reader(connection) || !connection_open_writer(connection)) {
        connection_free(connection);
        return error_set(err, -ENOMEM, "Cannot serve a QMP client: not enough memory");
    }
    connection_set_callbacks(connection);
    struct json_object *greeting = qmp_greeting();

    connection_send(connection, greeting);
    json_object_put(greeting);
    connection_go_on(connection);
    return 0;
}

/* All. */

void qmp_connection_broadcast(struct json_object *event)
{
    struct connection *connection, *after;

    list_for_each_safe(connection, after, &connections, link) {
        if (connection->client.negotiated) {
            connection_send(connection, event);
            connection_settle(connection);
        }
    }
}

static bool connections_are_idle(void)
{
    struct connection *connection;

    list_for_each(connection, &connections, link)
        if (connection->running)
            return false;
    return true;
}

static void connection_flush(struct connection *connection, uint64_t deadline_ns)
{
    struct pollfd ready = {.fd = connection->out, .events = POLLOUT};

    while (!connection->broken && evbuffer_get_length(connection->output) > 0) {
        uint64_t now = ring_clock();

        if (now >= deadline_ns || poll(&ready, 1, (int)((deadline_ns - now) / 1000000 + 1)) <= 0)
            return;
        /* Only the bufferevent itself may take from its output; it will not any more. */
        evbuffer_unfreeze(connection->output, 1);
        if (evbuffer_write(connection->output, connection->out) < 0 && errno != EAGAIN && errno != EINTR)
            return;
    }
}

void qmp_connection_stop_commands(void)
{
    struct connection *connection;

    connections_stopped = true;
    list_for_each(connection, &connections, link)
        connection_wake(connection);
    if (!coroutine_self() || connections_idle_ready)
        return;
    coqueue_init(&connections_idle);
    connections_idle_ready = true;
    while (!connections_are_idle())
        coqueue_wait(&connections_idle, NULL);
    connections_idle_ready = false;
    coqueue_destroy(&connections_idle);
}

void qmp_connection_close_all(void)
{
    struct connection *connection, *after;

    qmp_connection_stop_commands();
    uint64_t deadline_ns = ring_clock() + CLOSE_LIMIT_NS;

    list_for_each_safe(connection, after, &connections, link) {
        connection_flush(connection, deadline_ns);
        if (!connection->running)
            connection_free(connection);
    }
}
