/*
 * The QMP server: see server.h. Here are the listening sockets; what happens
 * with a client is in connection.c.
 */
#include "qmp/server.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/error.h"
#include "core/list.h"
#include "core/log.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/socket.h"
#include "qmp/connection.h"
#include "qmp/dispatch.h"
#include "qmp/event.h"

struct listener {
    struct list_link link;
    struct evconnlistener *events;
    struct event *retry; /* after accept() failed */
    char *path;          /* owned: socket file to remove at the end, or NULL */
    bool pretty;
};

static struct list listeners = LIST_INIT(listeners);

void (*qmp_shutdown)(const char *reason);

void qmp_start(void)
{
    qmp_event_start();
}

static void listener_free(struct listener *listener)
{
    list_remove(&listener->link);
    if (listener->events)
        evconnlistener_free(listener->events);
    if (listener->retry)
        event_free(listener->retry);
    if (listener->path)
        unlink(listener->path);
    free(listener->path);
    free(listener);
}

static void listener_accepted(struct evconnlistener *events, evutil_socket_t fd, struct sockaddr *address, int size,
                              void *arg)
{
    struct listener *listener = arg;
    AUTO_ERROR struct error err = {0};
    int on = 1;

    (void)events;
    (void)size;
    if (address->sa_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (qmp_connection_start(fd, fd, listener->pretty, &err))
        log_warning("%s", err.text);
}

/* Out of file descriptors, mostly: asking again at once would only burn the CPU. */
static void listener_failed(struct evconnlistener *events, void *arg)
{
    struct listener *listener = arg;

    log_warning("Cannot accept a QMP client: %s", strerror(errno));
    evconnlistener_disable(events);
    evtimer_add(listener->retry, &(struct timeval){.tv_usec = 200000});
}

static void listener_retry(evutil_socket_t fd, short what, void *arg)
{
    struct listener *listener = arg;

    (void)fd;
    (void)what;
    evconnlistener_enable(listener->events);
}

/* Takes fd. path: see struct listener. */
static int listener_add(int fd, const char *path, bool pretty, struct error *err)
{
    struct listener *listener = memory_new(struct listener);

    listener->pretty = pretty;
    list_append(&listeners, &listener->link);
    /* The daemon may change its directory before it removes the file. */
    listener->path = path ? realpath(path, NULL) : NULL;
    listener->retry = evtimer_new(loop_main->events, listener_retry, listener);
    listener->events = evconnlistener_new(loop_main->events, listener_accepted, listener,
                                          LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
    if (!listener->events)
        close(fd);
    if (!listener->events || !listener->retry) {
        listener_free(listener);
        return error_set(err, -ENOMEM, "Cannot listen for QMP clients: not enough memory");
    }
    evconnlistener_set_error_cb(listener->events, listener_failed);
    return 0;
}

int qmp_listen_fd(int fd, bool pretty, struct error *err)
{
    evutil_make_socket_nonblocking(fd);
    return listener_add(fd, NULL, pretty, err);
}

/* The file name of a bound UNIX socket, or NULL. */
static const char *socket_file(int fd, struct sockaddr_un *address)
{
    socklen_t size = sizeof(*address);

    memset(address, 0, sizeof(*address));
    if (getsockname(fd, (struct sockaddr *)address, &size) || address->sun_family != AF_UNIX || !address->sun_path[0])
        return NULL;
    return address->sun_path;
}

int qmp_listen(const struct socket_address *address, bool pretty, struct error *err)
{
    int fds[SOCKET_LISTEN_MAX];
    int count = socket_listen(address, fds, err);
    int result = count < 0 ? count : 0;

    for (int i = 0; i < count; i++) {
        struct sockaddr_un file;

        if (result)
            close(fds[i]);
        else
            result = listener_add(fds[i], socket_file(fds[i], &file), pretty, err);
    }
    return result;
}

int qmp_serve_fd(int fd, bool pretty, struct error *err)
{
    return qmp_connection_start(fd, fd, pretty, err);
}

int qmp_connect(const struct socket_address *address, bool pretty, struct error *err)
{
    int fd = socket_connect(address, err);

    return fd < 0 ? fd : qmp_serve_fd(fd, pretty, err);
}

/* A duplicate of fd whose flags are its own where that is possible: others may share stdin and
 * stdout, and would be surprised to find them non-blocking. */
static int stdio_reopen(int fd, int flags)
{
    struct stat status;
    AUTO_FREE char *path = memory_format("/proc/self/fd/%d", fd);

    if (fstat(fd, &status) == 0 && (S_ISFIFO(status.st_mode) || isatty(fd))) {
        int result = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

        if (result >= 0)
            return result;
    }
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

int qmp_stdio(bool pretty, struct error *err)
{
    AUTO_CLOSE int in = stdio_reopen(STDIN_FILENO, O_RDONLY);
    AUTO_CLOSE int out = stdio_reopen(STDOUT_FILENO, O_WRONLY);

    if (in < 0 || out < 0)
        return error_set(err, -errno, "Cannot use stdin and stdout for QMP: %s", strerror(errno));
    return qmp_connection_start(take_fd(&in), take_fd(&out), pretty, err);
}

int qmp_execute(struct json_object *request, struct json_object **reply, struct error *err)
{
    struct qmp_client client = {.negotiated = true};
    struct json_object *answer = qmp_dispatch(&client, request), *failure, *text;
    int result = 0;

    if (json_object_object_get_ex(answer, "error", &failure) && json_object_object_get_ex(failure, "desc", &text))
        result = error_set(err, -EINVAL, "%s", json_object_get_string(text));
    if (reply)
        *reply = answer;
    else
        json_object_put(answer);
    if (client.quit && qmp_shutdown)
        qmp_shutdown("host-qmp-quit");
    return result;
}

void qmp_stop_commands(void)
{
    struct listener *listener, *after;

    list_for_each_safe(listener, after, &listeners, link)
        listener_free(listener);
    qmp_connection_stop_commands();
}

void qmp_stop_all(void)
{
    qmp_stop_commands();
    qmp_connection_close_all();
    qmp_event_stop();
}
