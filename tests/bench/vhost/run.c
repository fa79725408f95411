/*
 * bench_run() of bench.h: the control thread while there is load. It waits for
 * what is due next: a step of the plan (measure, restart, end), news of the
 * threads, or of the server.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "core/memory.h"
#include "tests/bench/vhost/bench.h"

#define RUN_NEVER UINT64_MAX
#define RUN_RETRY_NS 20000000u              /* between attempts to connect */
#define RUN_RESTART_NS 50000000u            /* between restarts when the end is not known */

struct run {
    struct bench *bench;
    uint64_t begin, end, restart, give_up;  /* when each of these is due; RUN_NEVER: not at all */
    uint64_t restart_every, counted_from;
    uint64_t resumed_at;                    /* the load began, or goes on after it was interrupted */
    double own_cpu, server_cpu;
    int signals;                            /* SIGINT and SIGTERM end the load early */
};

static uint64_t run_ns(double seconds)
{
    return (uint64_t)(seconds * 1e9);
}

static void run_begin(struct run *run)
{
    run->begin = RUN_NEVER;
    run->counted_from = measure_now();
    run->own_cpu = measure_cpu(0);
    run->server_cpu = run->bench->options.pid ? measure_cpu(run->bench->options.pid) : 0;
    run->bench->load.counting = true;
}

/* When the number of requests is given, time ends with the last of them; the threads have then ended. */
static void run_stop_counting(struct run *run)
{
    struct bench *bench = run->bench;

    if (!bench->load.counting)
        return;
    bench->load.counting = false;
    uint64_t end = 0;
    for (unsigned i = 0; i < bench->options.queues && bench->options.count; i++)
        if (bench->jobs[i].result.ended_at > end)
            end = bench->jobs[i].result.ended_at;
    bench->seconds = (double)((end ? end : measure_now()) - run->counted_from) / 1e9;
    bench->own_cpu = measure_cpu(0) - run->own_cpu;
    bench->server_cpu = bench->options.pid ? measure_cpu(bench->options.pid) - run->server_cpu : 0;
}

static void run_plan(struct run *run)
{
    const struct bench_options *options = &run->bench->options;
    uint64_t now = measure_now(), length = run_ns(options->warmup + options->seconds);

    run->begin = run->end = run->restart = run->give_up = RUN_NEVER;
    run->resumed_at = now;
    if (options->count) {
        run_begin(run);
        run->restart_every = RUN_RESTART_NS;
    } else {
        run->begin = now + run_ns(options->warmup);
        run->end = now + length;
        run->restart_every = length / (options->restarts + 1);
    }
    if (options->restarts)
        run->restart = now + run->restart_every;
}

/* The threads are parked: what came back before the device stopped is taken, and where it goes on is known. */
static int run_reap(struct bench *bench, uint32_t *bases, struct error *err)
{
    const struct job_turn turn = {.counting = bench->load.counting};

    for (unsigned i = 0; i < bench->options.queues; i++) {
        int rc = job_run(&bench->jobs[i], &turn, err);
        if (rc < 0)
            return rc;
        if (bases)
            bases[i] = front_queue_base(&bench->queues[i]);
    }
    return 0;
}

/* As a guest that is reset, but for its rings: they go on where they were. */
static int run_restart(struct run *run, struct error *err)
{
    struct bench *bench = run->bench;
    uint32_t bases[BENCH_QUEUES_MAX];

    load_park(&bench->load);
    int rc = front_stop(&bench->front, bases, err);
    if (rc == 0)
        rc = run_reap(bench, NULL, err);
    if (rc == 0)
        rc = front_reset(&bench->front, err);
    if (rc == 0)
        rc = front_replug_memory(&bench->front, err);
    if (rc == 0)
        rc = front_start(&bench->front, bases, err);
    if (rc < 0)
        return rc;
    load_resume(&bench->load);
    run->resumed_at = measure_now();
    run->restart = ++bench->events.restarts < bench->options.restarts ? measure_now() + run->restart_every : RUN_NEVER;
    return 0;
}

static int run_attempt(struct bench *bench, const uint32_t *bases, struct error *err)
{
    uint64_t features = bench->front.features;

    front_disconnect(&bench->front);
    int rc = front_connect(&bench->front, bench->options.path, err);
    if (rc == 0)
        rc = front_negotiate(&bench->front, features, err);
    bench->front.features = features;
    if (rc == 0 && (bench->front.offered & features) != features)
        return error_set(err, -ENOTSUP, "the server does not offer what it offered before");
    return rc < 0 ? rc : front_start(&bench->front, bases, err);
}

/* The server is gone, by what `gone` says. Goes on with the next one, in which requests in flight are found again. */
static int run_reconnect(struct run *run, struct error *gone, struct error *err)
{
    struct bench *bench = run->bench;
    uint64_t until = measure_now() + bench->options.reconnect * 1000000000ull;
    uint32_t bases[BENCH_QUEUES_MAX];
    int rc;

    if (!bench->options.reconnect) {
        rc = gone->code;
        error_move(err, gone);
        return rc;
    }
    error_clear(gone);
    load_park(&bench->load);
    rc = run_reap(bench, bases, err);
    if (rc < 0)
        return rc;
    for (;;) {
        AUTO_ERROR struct error why = {0};
        const struct timespec pause = {.tv_nsec = RUN_RETRY_NS};

        rc = run_attempt(bench, bases, &why);
        if (rc == 0)
            break;
        if (rc == -ENOTSUP || measure_now() > until) {
            error_move(err, &why);
            return rc;
        }
        nanosleep(&pause, NULL);
    }
    bench->events.reconnects++;
    load_resume(&bench->load);
    run->resumed_at = measure_now();
    return 0;
}

/* Something is to be read from the server, or it is gone. */
static int run_hear(struct run *run, const struct pollfd *ready, struct error *err)
{
    struct bench *bench = run->bench;
    AUTO_ERROR struct error gone = {0};
    int rc = 0;

    if (ready[2].revents)
        return error_set(err, -EIO, "the server says that a queue is broken");
    if (ready[1].revents)
        rc = front_serve_backend(&bench->front, &gone);
    if (rc > 0) {
        bench->events.config_changes++;
        rc = front_read_config(&bench->front, &gone);
    }
    if (rc == 0 && ready[0].revents)
        rc = error_set(&gone, -ECONNRESET, "the server closed the connection");
    return rc < 0 ? run_reconnect(run, &gone, err) : 0;
}

/* When to give up a load whose end is not known: the timeout after the last answer. */
static uint64_t run_limit(const struct run *run)
{
    const struct bench *bench = run->bench;
    uint64_t heard = run->resumed_at;

    if (!bench->options.count || bench->load.ending)
        return RUN_NEVER;
    for (unsigned i = 0; i < bench->options.queues; i++) {
        uint64_t at = atomic_load_explicit(&bench->jobs[i].heard_at, memory_order_relaxed);

        heard = at > heard ? at : heard;
    }
    return heard + bench->options.timeout * 1000000000ull;
}

/* Does what is due. */
static int run_step(struct run *run, uint64_t now, struct error *err)
{
    struct bench *bench = run->bench;

    if (now >= run->begin)
        run_begin(run);
    if (now >= run->end) {
        run_stop_counting(run);
        load_end(&bench->load);
        run->end = run->restart = RUN_NEVER;
        run->give_up = now + bench->options.timeout * 1000000000ull + run_ns(bench->options.verify ? 600 : 0);
    }
    if (now >= run->give_up || now >= run_limit(run))
        return error_set(err, -ETIMEDOUT, "requests are not answered");
    if (now >= run->restart) {
        AUTO_ERROR struct error gone = {0};

        int rc = run_restart(run, &gone);
        if (rc == -ECONNRESET)
            return run_reconnect(run, &gone, err);
        error_move(err, &gone);
        return rc;
    }
    return 0;
}

static uint64_t run_due(const struct run *run)
{
    uint64_t due = run->begin < run->end ? run->begin : run->end;

    due = run->restart < due ? run->restart : due;
    due = run->give_up < due ? run->give_up : due;
    uint64_t limit = run_limit(run);

    return limit < due ? limit : due;
}

static int run_wait(struct run *run, struct error *err)
{
    struct bench *bench = run->bench;
    uint64_t now = measure_now(), due = run_due(run);
    uint64_t left = due == RUN_NEVER ? UINT64_MAX : due > now ? due - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
    struct signalfd_siginfo information;
    struct pollfd ready[] = {{.fd = bench->front.fd, .events = POLLIN},
                             {.fd = bench->front.backend, .events = POLLIN},
                             {.fd = bench->front.broken, .events = POLLIN},
                             {.fd = bench->load.news, .events = POLLIN},
                             {.fd = run->signals, .events = POLLIN}};

    if (ppoll(ready, array_size(ready), due == RUN_NEVER ? NULL : &timeout, NULL) < 0)
        return errno == EINTR ? 0 : error_set(err, -errno, "poll: %s", strerror(errno));
    uint64_t news;
    if (ready[3].revents && read(bench->load.news, &news, sizeof(news)) < 0 && errno != EAGAIN)
        return error_set(err, -errno, "eventfd: %s", strerror(errno));
    if (ready[4].revents && read(run->signals, &information, sizeof(information)) > 0 && !bench->load.ending)
        run->end = now;
    if (ready[0].revents || ready[1].revents || ready[2].revents)
        return run_hear(run, ready, err);
    return 0;
}

/* Before there are threads, for they are not to be interrupted either. */
static int run_take_signals(struct run *run, struct error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    run->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return run->signals < 0 ? error_set(err, -errno, "signalfd: %s", strerror(errno)) : 0;
}

int bench_run(struct bench *bench, struct error *err)
{
    uint32_t bases[BENCH_QUEUES_MAX];
    struct run run = {.bench = bench, .signals = -1};
    int rc = load_create(&bench->load, &bench->options, bench->jobs, err);

    if (rc == 0)
        rc = run_take_signals(&run, err);
    /* First, or what comes back at once would not be counted. */
    run_plan(&run);
    if (rc == 0)
        rc = load_start(&bench->load, err);
    while (rc == 0 && !load_is_over(&bench->load, &rc, err)) {
        rc = run_wait(&run, err);
        if (rc == 0)
            rc = run_step(&run, measure_now(), err);
    }
    load_destroy(&bench->load);
    close(run.signals);
    run_stop_counting(&run);
    return rc < 0 ? rc : front_stop(&bench->front, bases, err);
}
