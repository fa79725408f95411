/* See load.h. */
#include "tests/bench/vhost/load.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/memory.h"

static void load_signal(int fd)
{
    uint64_t one = 1;

    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
        continue;
}

static void load_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Parks while that is asked for; false when the thread should end. */
static bool load_obey(struct load *load)
{
    bool go;

    pthread_mutex_lock(&load->lock);
    load->parked++;
    pthread_cond_broadcast(&load->changed);
    while (load->phase == LOAD_PARK)
        pthread_cond_wait(&load->changed, &load->lock);
    load->parked--;
    go = load->phase == LOAD_RUN;
    pthread_mutex_unlock(&load->lock);
    return go;
}

/* Sleeps until one of the thread's queues calls or the control thread wakes it. */
static void load_sleep(struct load_thread *thread)
{
    struct load *load = thread->load;
    struct pollfd ready[BENCH_QUEUES_MAX + 1] = {{.fd = thread->wake, .events = POLLIN}};
    uint64_t value;
    nfds_t count = 1;
    bool idle = true;

    for (unsigned i = thread->index; i < load->job_count; i += load->thread_count) {
        idle &= front_queue_arm(load->jobs[i].queue);
        ready[count++] = (struct pollfd){.fd = load->jobs[i].queue->call, .events = POLLIN};
    }
    if (idle && poll(ready, count, -1) > 0)
        for (nfds_t i = 0; i < count; i++)
            if (ready[i].revents && read(ready[i].fd, &value, sizeof(value)) < 0)
                continue;
    for (unsigned i = thread->index; i < load->job_count; i += load->thread_count)
        front_queue_disarm(load->jobs[i].queue);
}

/* One turn over all queues of the thread. 1: something moved; 0: nothing did; -ECANCELED: all is done. */
static int load_turn(struct load_thread *thread, struct error *err)
{
    struct load *load = thread->load;
    struct job_turn turn = {.counting = atomic_load_explicit(&load->counting, memory_order_relaxed),
                            .sending = true,
                            .ending = atomic_load_explicit(&load->ending, memory_order_relaxed)};
    bool moved = false, over = true;

    for (unsigned i = thread->index; i < load->job_count; i += load->thread_count) {
        int rc = job_run(&load->jobs[i], &turn, err);

        if (rc < 0) {
            error_prefix(err, "queue %u: ", i);
            return rc;
        }
        moved |= rc > 0;
        over = over && !rc && job_is_over(&load->jobs[i], turn.ending);
    }
    return moved ? 1 : over ? -ECANCELED : 0;
}

static void *load_run(void *arg)
{
    struct load_thread *thread = arg;
    struct load *load = thread->load;
    AUTO_ERROR struct error err = {0};
    int rc = 0;

    while (rc >= 0) {
        if (atomic_load_explicit(&load->phase, memory_order_acquire) != LOAD_RUN && !load_obey(load))
            break;
        rc = load_turn(thread, &err);
        if (rc == 0 && !load->options->poll)
            load_sleep(thread);
        else if (rc == 0)
            load_relax();
    }
    pthread_mutex_lock(&load->lock);
    load->ended++;
    if (rc < 0 && rc != -ECANCELED && !load->failure.text)
        error_move(&load->failure, &err);
    pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
    load_signal(load->news);
    return NULL;
}

int load_create(struct load *load, const struct bench_options *options, struct job *jobs, struct error *err)
{
    *load = (struct load){.options = options,
                          .jobs = jobs,
                          .job_count = options->queues,
                          .thread_count = options->threads,
                          .lock = PTHREAD_MUTEX_INITIALIZER,
                          .changed = PTHREAD_COND_INITIALIZER};
    load->threads = memory_array(load->thread_count, sizeof(*load->threads));
    load->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < load->thread_count; i++)
        load->threads[i] =
            (struct load_thread){.load = load, .index = i, .wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    for (unsigned i = 0; i < load->thread_count; i++)
        if (load->news < 0 || load->threads[i].wake < 0)
            return error_set(err, -errno, "eventfd: %s", strerror(errno));
    return 0;
}

int load_start(struct load *load, struct error *err)
{
    for (unsigned i = 0; i < load->thread_count; i++) {
        struct load_thread *thread = &load->threads[i];

        int rc = pthread_create(&thread->thread, NULL, load_run, thread);
        if (rc != 0)
            return error_set(err, -rc, "cannot start a thread: %s", strerror(rc));
        thread->started = true;
    }
    return 0;
}

static void load_change(struct load *load, enum load_phase phase)
{
    pthread_mutex_lock(&load->lock);
    load->phase = phase;
    pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
    for (unsigned i = 0; i < load->thread_count; i++)
        load_signal(load->threads[i].wake);
}

void load_park(struct load *load)
{
    load_change(load, LOAD_PARK);
    pthread_mutex_lock(&load->lock);
    while (load->parked + load->ended < load->thread_count)
        pthread_cond_wait(&load->changed, &load->lock);
    pthread_mutex_unlock(&load->lock);
}

void load_resume(struct load *load)
{
    load_change(load, LOAD_RUN);
}

void load_end(struct load *load)
{
    load->ending = true;
    load_change(load, LOAD_RUN);
}

bool load_is_over(struct load *load, int *rc, struct error *err)
{
    bool failed, over;

    pthread_mutex_lock(&load->lock);
    failed = load->failure.text != NULL;
    over = load->ended == load->thread_count;
    if (failed) {
        *rc = load->failure.code;
        error_set(err, load->failure.code, "%s", load->failure.text);
    }
    pthread_mutex_unlock(&load->lock);
    return over || failed;
}

void load_destroy(struct load *load)
{
    load_change(load, LOAD_ABORT);
    for (unsigned i = 0; i < load->thread_count; i++) {
        if (load->threads[i].started)
            pthread_join(load->threads[i].thread, NULL);
        if (load->threads[i].wake >= 0)
            close(load->threads[i].wake);
    }
    if (load->news >= 0)
        close(load->news);
    free(load->threads);
    error_clear(&load->failure);
    pthread_cond_destroy(&load->changed);
    pthread_mutex_destroy(&load->lock);
}
