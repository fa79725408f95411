/*
 * cairnd: the storage daemon. One coroutine of the main loop is its life:
 * start, wait for a reason to end, end.
 */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/log.h"
#include "core/loop.h"
#include "core/memory.h"
#include "daemon/command_line.h"
#include "daemon/daemonize.h"
#include "daemon/help.h"
#include "daemon/pidfile.h"
#include "daemon/shutdown.h"
#include "daemon/startup.h"
#include "daemon/systemd.h"
#include "generated/introspect.h"
#include "qmp/server.h"

static struct life {
    struct command_line line;
    struct systemd_socket *sockets;
    unsigned socket_count;
    struct coroutine *waiting;      /* the life itself, while it waits for its end */
    const char *reason;             /* of the end; NULL: go on */
    int status;                     /* exit status */
} life;

static void life_end(const char *reason)
{
    if (life.reason)
        return;
    life.reason = reason;
    if (life.waiting)
        coroutine_wake(life.waiting);
}

static void life_signal(evutil_socket_t number, short what, void *arg)
{
    (void)what;
    (void)arg;
    log_debug("signal %d: stopping", (int)number);
    life_end("host-signal");
}

/* One line, whatever stands in the text: files and options may have put anything there. */
static int life_fail(const struct error *err)
{
    fputs("cairnd: ", stderr);
    for (const char *at = err->text; *at; at++)
        fputc((unsigned char)*at < 0x20 || *at == 0x7f ? ' ' : *at, stderr);
    fputc('\n', stderr);
    return EXIT_FAILURE;
}

static int life_start(struct error *err)
{
    int rc = startup_sockets(life.sockets, life.socket_count, err);

    if (rc == 0)
        rc = startup_run(&life.line, err);
    if (rc == 0)
        rc = pidfile_write(err);
    return rc;
}

static void life_run(void *arg)
{
    AUTO_ERROR struct error err = {0};

    (void)arg;
    qmp_shutdown = life_end;
    qmp_start();
    if (life_start(&err) < 0) {
        life.status = life_fail(&err);
        life.reason = "host-error";
    } else {
        daemonize_ready();
        systemd_notify("READY=1");
    }
    if (!life.reason) {
        life.waiting = coroutine_self();
        coroutine_yield();
        life.waiting = NULL;
    }
    systemd_notify("STOPPING=1");
    if (!shutdown_run(life.reason)) {
        pidfile_remove();
        _exit(EXIT_FAILURE);
    }
    atomic_store(&loop_main->stop, true);
}

/* Who starts us without them must not find log lines in the file that is opened next. */
static void life_open_standard_files(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

/* As many clients as the hard limit of file descriptors permits. */
static void life_raise_limits(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int life_loop(void)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    struct event *events[array_size(signals)];
    AUTO_ERROR struct error err = {0};
    struct loop *loop;

    loop_set_ring(life.line.ring);
    if (loop_create(&loop, "main", NULL, &err) < 0)
        return life_fail(&err);
    for (unsigned i = 0; i < array_size(signals); i++) {
        events[i] = evsignal_new(loop->events, signals[i], life_signal, NULL);
        if (!events[i] || event_add(events[i], NULL) < 0) {
            error_set(&err, -ENOMEM, "cannot watch signals");
            return life_fail(&err);
        }
    }
    loop_set_current(loop);
    coroutine_start(loop, life_run, NULL);
    loop_run(loop);
    for (unsigned i = 0; i < array_size(signals); i++)
        event_free(events[i]);
    loop_destroy(loop);
    return life.status;
}

/* The process itself: what must happen before there is any thread. */
static int life_process(void)
{
    AUTO_ERROR struct error err = {0};

    life_open_standard_files();
    log_set_level(life.line.log_level);
    signal(SIGPIPE, SIG_IGN);
    /* A file size limit fails the write, it does not end the daemon. */
    signal(SIGXFSZ, SIG_IGN);
    life_raise_limits();
    life.socket_count = systemd_sockets_take(&life.sockets);
    if (life.line.daemonize && daemonize_begin(&err) < 0)
        return life_fail(&err);
    if (life.line.pidfile && pidfile_lock(life.line.pidfile, &err) < 0)
        return life_fail(&err);
    int status = life_loop();
    pidfile_remove();
    systemd_sockets_free(life.sockets, life.socket_count);
    return status;
}

/* Output that was asked for; EXIT_FAILURE if it could not be written. */
static int life_finish_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return EXIT_SUCCESS;
    fputs("cairnd: cannot write to standard output\n", stderr);
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    AUTO_ERROR struct error err = {0};
    int status = EXIT_FAILURE, rc = command_line_parse(&life.line, argc, argv, &err);

    if (rc == 0 && life.line.help_of_step) {
        const struct command_line_step *step = &life.line.steps[life.line.step_count - 1];
        rc = help_show(step->kind, step->value, &err);
    } else if (rc == 0 && life.line.help) {
        command_line_help();
    } else if (rc == 0 && life.line.version) {
        puts("cairnd " CAIRN_VERSION);
    } else if (rc == 0 && life.line.schema) {
        fputs(schema_json, stdout);
    } else if (rc == 0) {
        status = life_process();
        command_line_clear(&life.line);
        return status;
    }
    status = rc < 0 ? life_fail(&err) : life_finish_output();
    command_line_clear(&life.line);
    return status;
}
