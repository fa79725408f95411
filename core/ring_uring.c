/*
 * The ring on io_uring. An I/O loop sleeps inside io_uring_enter(); the main
 * loop sleeps in libevent, which watches the ring's file descriptor. Created
 * by the main thread but disabled, and enabled by the loop's own thread, so
 * that the kernel may assume a single issuer.
 */
#include <errno.h>
#include <event2/event.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>

#include "core/error.h"
#include "core/iov.h"
#include "core/memory.h"
#include "core/ring.h"
#include "core/ring_writer.h"
#include "core/thread_pool.h"

#define URING_ENTRIES 512u
#define URING_COMPLETIONS 4096u
#define URING_BATCH 64u
/* Submissions that go to the kernel together, unless told: the disk begins while the rest is prepared. */
#define URING_SUBMIT 8u
/* Larger transfers are cut short, which callers handle anyway. */
#define URING_LENGTH_MAX (1u << 30)

/* Larger cached writes are worth a kernel worker each. */
#define URING_CACHED_MAX (64u << 10)
#define URING_CACHED_IOVS 8u
/* Of several reads that large from the page cache, one is copied here and the others by kernel workers meanwhile. */
#define URING_COPY (128u << 10)

/* Files that a ring can hold on to; their descriptors are below URING_FDS. */
#define URING_FILES 128u
#define URING_FDS 4096

struct uring_files {
    unsigned count, used;               /* places; 0 if the kernel has no table of ours */
    bool taken[URING_FILES + 1];
    uint8_t place[URING_FDS];           /* by descriptor; 0: not kept */
};

struct uring_result {
    struct ring_op *op;
    int result;
};

struct uring {
    struct ring ring;
    struct io_uring io;
    bool enabled;
    int wake_fd;
    uint64_t wake_value;
    struct ring_op wake_op;
    struct event *ring_event, *wake_event;      /* only with an event base */
    struct ring_writer *writer;
    struct uring_files files;
    unsigned copies;                            /* such reads since the last submission */
    /* Completions taken out of a full completion queue during a submission. */
    struct uring_result *stash;
    unsigned stash_count, stash_room;
};

static struct uring *uring_of(struct ring *ring)
{
    return container_of(ring, struct uring, ring);
}

static void uring_stash(struct uring *uring)
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&uring->io, &cqe) == 0) {
        struct ring_op *op = io_uring_cqe_get_data(cqe);

        if (op) {
            if (uring->stash_count == uring->stash_room) {
                uring->stash_room = uring->stash_room ? 2 * uring->stash_room : URING_BATCH;
                uring->stash = memory_grow(uring->stash, uring->stash_room, sizeof(*uring->stash));
            }
            uring->stash[uring->stash_count++] = (struct uring_result){op, cqe->res};
        }
        io_uring_cqe_seen(&uring->io, cqe);
    }
}

/* liburing 2.3 declares functions for it and does not export all. */
static int uring_register(const struct io_uring *io, unsigned opcode, const void *arg, unsigned count)
{
    return syscall(SYS_io_uring_register, io->ring_fd, opcode, arg, count) < 0 ? -errno : 0;
}

static void uring_enable(struct uring *uring)
{
    if (uring->enabled)
        return;
    uring->enabled = true;
    if (uring->io.flags & IORING_SETUP_R_DISABLED)
        uring_register(&uring->io, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    if (!uring->wake_event)
        uring->wake_op.complete(&uring->wake_op, 0);
}

static void uring_submit(struct uring *uring)
{
    uring_enable(uring);
    uring->copies = 0;
    int result = io_uring_submit(&uring->io);

    /* The kernel takes no more while completions wait: make room for it. */
    if (result == -EBUSY || result == -EAGAIN) {
        io_uring_get_events(&uring->io);
        uring_stash(uring);
    }
}

static struct io_uring_sqe *uring_sqe(struct uring *uring, struct ring_op *op)
{
    uint64_t batch_max = uring->ring.batch_max ? uring->ring.batch_max : URING_SUBMIT;
    struct io_uring_sqe *sqe;

    if (unlikely(io_uring_sq_ready(&uring->io) >= batch_max))
        uring_submit(uring);
    while (!(sqe = io_uring_get_sqe(&uring->io)))
        uring_submit(uring);
    io_uring_sqe_set_data(sqe, op);
    return sqe;
}

/* Files that the kernel need not look up: their places in its table begin with 0, in ours with 1. */

static int uring_set_file(struct uring *uring, unsigned place, int fd)
{
    struct io_uring_files_update update = {.offset = place - 1, .fds = (uintptr_t)&fd};

    return uring_register(&uring->io, IORING_REGISTER_FILES_UPDATE, &update, 1);
}

static unsigned uring_keep(struct uring *uring, int fd)
{
    struct uring_files *files = &uring->files;

    unsigned place = 1;

    if (files->used == files->count)
        return 0;
    while (files->taken[place])
        place++;
    if (uring_set_file(uring, place, fd) < 0)
        return 0;
    files->taken[place] = true;
    files->used++;
    return files->place[fd] = (uint8_t)place;
}

static void uring_use_kept(struct uring *uring, struct io_uring_sqe *sqe, int fd)
{
    unsigned place = fd < URING_FDS ? uring->files.place[fd] : 0;

    if (unlikely(!place && fd < URING_FDS))
        place = uring_keep(uring, fd);
    if (place) {
        sqe->fd = (int)place - 1;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

static void uring_forget(struct ring *ring, int fd)
{
    struct uring *uring = uring_of(ring);
    unsigned place = fd < URING_FDS ? uring->files.place[fd] : 0;

    if (!place)
        return;
    uring_set_file(uring, place, -1);
    uring->files.taken[place] = false;
    uring->files.used--;
    uring->files.place[fd] = 0;
}

static void uring_rw(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov, unsigned count,
                     uint64_t offset, int rw_flags)
{
    bool cached = rw_flags & RING_CACHED, kept = rw_flags & RING_KEPT;

    rw_flags &= ~RING_FLAGS;
    if (cached && write && count <= URING_CACHED_IOVS && iov_size(iov, count) <= URING_CACHED_MAX) {
        ring_writer_submit(uring_of(ring)->writer, op, fd, iov, count, offset, rw_flags);
        return;
    }
    struct io_uring_sqe *sqe = uring_sqe(uring_of(ring), op);

    if (count == 1) {
        unsigned length = iov->iov_len < URING_LENGTH_MAX ? (unsigned)iov->iov_len : URING_LENGTH_MAX;

        if (write)
            io_uring_prep_write(sqe, fd, iov->iov_base, length, offset);
        else
            io_uring_prep_read(sqe, fd, iov->iov_base, length, offset);
    } else if (write) {
        io_uring_prep_writev(sqe, fd, iov, count, offset);
    } else {
        io_uring_prep_readv(sqe, fd, iov, count, offset);
    }
    sqe->rw_flags = rw_flags;
    if (cached && !write && iov_size(iov, count) >= URING_COPY && uring_of(ring)->copies++)
        sqe->flags |= IOSQE_ASYNC;
    if (kept)
        uring_use_kept(uring_of(ring), sqe, fd);
    io_uring_sqe_set_data(sqe, op);
}

static void uring_fsync(struct ring *ring, struct ring_op *op, int fd, bool data_only)
{
    struct io_uring_sqe *sqe = uring_sqe(uring_of(ring), op);

    io_uring_prep_fsync(sqe, fd, data_only ? IORING_FSYNC_DATASYNC : 0);
    io_uring_sqe_set_data(sqe, op);
}

static void uring_fallocate(struct ring *ring, struct ring_op *op, int fd, int mode, uint64_t offset, uint64_t length)
{
    struct io_uring_sqe *sqe = uring_sqe(uring_of(ring), op);

    io_uring_prep_fallocate(sqe, fd, mode, (off_t)offset, (off_t)length);
    io_uring_sqe_set_data(sqe, op);
}

static void uring_poll(struct ring *ring, struct ring_op *op, int fd, unsigned events)
{
    struct io_uring_sqe *sqe = uring_sqe(uring_of(ring), op);

    io_uring_prep_poll_add(sqe, fd, events);
    io_uring_sqe_set_data(sqe, op);
}

static void uring_cancel_poll(struct ring *ring, struct ring_op *op)
{
    struct io_uring_sqe *sqe = uring_sqe(uring_of(ring), NULL);

    io_uring_prep_poll_remove(sqe, (uintptr_t)op);
    io_uring_sqe_set_data(sqe, NULL);
}

static void uring_call(struct ring *ring, struct ring_op *op, int (*fn)(void *arg), void *arg)
{
    (void)ring;
    thread_pool_call(op, fn, arg);
}

static unsigned uring_complete_stash(struct uring *uring)
{
    unsigned count = uring->stash_count;
    AUTO_FREE struct uring_result *stash = take_ptr(&uring->stash);

    uring->stash_count = uring->stash_room = 0;
    for (unsigned i = 0; i < count; i++)
        stash[i].op->complete(stash[i].op, stash[i].result);
    return count;
}

/* Takes completions out in batches before any of them runs: what they do may fill the ring again. */
static unsigned uring_complete(struct uring *uring)
{
    struct io_uring_cqe *cqes[URING_BATCH];
    struct uring_result results[URING_BATCH];
    unsigned total = unlikely(uring->stash_count) ? uring_complete_stash(uring) : 0;
    unsigned count;

    do {
        count = io_uring_peek_batch_cqe(&uring->io, cqes, URING_BATCH);
        for (unsigned i = 0; i < count; i++)
            results[i] = (struct uring_result){io_uring_cqe_get_data(cqes[i]), cqes[i]->res};
        io_uring_cq_advance(&uring->io, count);
        for (unsigned i = 0; i < count; i++) {
            if (results[i].op)
                results[i].op->complete(results[i].op, results[i].result);
        }
        total += count;
    } while (count == URING_BATCH);
    return total;
}

static unsigned uring_reap(struct ring *ring)
{
    struct uring *uring = uring_of(ring);

    uring_enable(uring);
    uring->copies = 0;
    if (io_uring_sq_ready(&uring->io))
        io_uring_submit_and_get_events(&uring->io);
    else if (__atomic_load_n(uring->io.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
        io_uring_get_events(&uring->io);
    return uring_complete(uring);
}

static unsigned uring_wait(struct ring *ring, uint64_t timeout_ns)
{
    struct uring *uring = uring_of(ring);
    struct io_uring_cqe *cqe;

    uring_enable(uring);
    uring->copies = 0;
    if (timeout_ns == UINT64_MAX) {
        io_uring_submit_and_wait(&uring->io, 1);
    } else {
        struct __kernel_timespec limit = {
            .tv_sec = (long long)(timeout_ns / 1000000000u),
            .tv_nsec = (long long)(timeout_ns % 1000000000u),
        };

        io_uring_submit_and_wait_timeout(&uring->io, &cqe, 1, &limit, NULL);
    }
    return uring_complete(uring);
}

static void uring_wake(struct ring *ring)
{
    eventfd_write(uring_of(ring)->wake_fd, 1);
}

/* Arms the read of the wake eventfd again; what a wake means, the loop's inbox tells. */
static void uring_woken(struct ring_op *op, int result)
{
    struct uring *uring = container_of(op, struct uring, wake_op);
    struct io_uring_sqe *sqe;

    (void)result;
    sqe = uring_sqe(uring, op);
    io_uring_prep_read(sqe, uring->wake_fd, &uring->wake_value, sizeof(uring->wake_value), 0);
    io_uring_sqe_set_data(sqe, op);
}

static void uring_wake_event(evutil_socket_t fd, short what, void *arg)
{
    eventfd_t value;

    (void)what;
    (void)arg;
    eventfd_read((int)fd, &value);
}

static void uring_ring_event(evutil_socket_t fd, short what, void *arg)
{
    /* Only ends libevent's sleep; the loop's turn reaps. */
    (void)fd;
    (void)what;
    (void)arg;
}

uint64_t ring_clock(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t uring_now(struct ring *ring)
{
    (void)ring;
    return ring_clock();
}

static void uring_destroy(struct ring *ring)
{
    struct uring *uring = uring_of(ring);

    if (uring->ring_event)
        event_free(uring->ring_event);
    if (uring->wake_event)
        event_free(uring->wake_event);
    io_uring_queue_exit(&uring->io);
    close(uring->wake_fd);
    ring_writer_free(uring->writer);
    free(uring->stash);
    free(uring);
}

static const struct ring_ops uring_ops = {
    .name = "io_uring",
    .rw = uring_rw,
    .forget = uring_forget,
    .fsync = uring_fsync,
    .fallocate = uring_fallocate,
    .poll = uring_poll,
    .cancel_poll = uring_cancel_poll,
    .call = uring_call,
    .reap = uring_reap,
    .wait = uring_wait,
    .wake = uring_wake,
    .now = uring_now,
    .destroy = uring_destroy,
};

static void uring_make_files(struct uring *uring)
{
    int fds[URING_FILES];

    for (unsigned i = 0; i < URING_FILES; i++)
        fds[i] = -1;
    if (uring_register(&uring->io, IORING_REGISTER_FILES, fds, URING_FILES) == 0)
        uring->files.count = URING_FILES;
}

/* The operations above, and no others: a ring is a way around seccomp. A kernel that cannot do it runs us as well. */
static void uring_restrict(struct io_uring *io)
{
    static const uint8_t operations[] = {
        IORING_OP_READ,  IORING_OP_WRITE,     IORING_OP_READV,    IORING_OP_WRITEV,
        IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE,
    };
    struct io_uring_restriction restrictions[array_size(operations) + 2] = {0};
    struct io_uring_restriction *flags = &restrictions[array_size(operations)], *files = flags + 1;

    for (unsigned i = 0; i < array_size(operations); i++) {
        restrictions[i].opcode = IORING_RESTRICTION_SQE_OP;
        restrictions[i].sqe_op = operations[i];
    }
    flags->opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    flags->sqe_flags = IOSQE_FIXED_FILE | IOSQE_ASYNC;
    files->opcode = IORING_RESTRICTION_REGISTER_OP;
    files->register_op = IORING_REGISTER_FILES_UPDATE;
    uring_register(io, IORING_REGISTER_RESTRICTIONS, restrictions, array_size(restrictions));
}

/* The best set of features that this kernel has. libevent polls the ring's descriptor, which
 * deferred task work would not make readable. */
static int uring_setup(struct io_uring *io, bool polled)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED,
        IORING_SETUP_R_DISABLED,
        0,
    };
    int result = -ENOSYS;

    for (unsigned i = polled ? 2 : 0; i < array_size(flags); i++) {
        struct io_uring_params params = {.flags = flags[i] | IORING_SETUP_CQSIZE, .cq_entries = URING_COMPLETIONS};

        result = io_uring_queue_init_params(URING_ENTRIES, io, &params);
        if (result != -EINVAL)
            break;
    }
    return result;
}

int ring_uring_create(struct ring **ret, struct event_base *events, struct error *err)
{
    AUTO_FREE struct uring *uring = memory_new(struct uring);
    int result = uring_setup(&uring->io, events != NULL);

    if (result < 0)
        return error_set(err, result, "io_uring is not available: %s", strerror(-result));
    uring_make_files(uring);
    if (uring->io.flags & IORING_SETUP_R_DISABLED)
        uring_restrict(&uring->io);
    uring->ring.ops = &uring_ops;
    uring->writer = ring_writer_new();
    uring->wake_op.complete = uring_woken;
    /* Blocking where the ring reads it, or the read would end at once with -EAGAIN. */
    uring->wake_fd = eventfd(0, EFD_CLOEXEC | (events ? EFD_NONBLOCK : 0));
    if (uring->wake_fd < 0) {
        result = -errno;
        ring_writer_free(uring->writer);
        io_uring_queue_exit(&uring->io);
        return error_set(err, result, "Cannot create an eventfd: %s", strerror(-result));
    }
    if (events) {
        uring->ring_event = event_new(events, uring->io.ring_fd, EV_READ | EV_PERSIST, uring_ring_event, NULL);
        uring->wake_event = event_new(events, uring->wake_fd, EV_READ | EV_PERSIST, uring_wake_event, NULL);
        if (!uring->ring_event || !uring->wake_event || event_add(uring->ring_event, NULL) ||
            event_add(uring->wake_event, NULL)) {
            uring_destroy(&take_ptr(&uring)->ring);
            return error_set(err, -ENOMEM, "Cannot watch the ring in the event loop");
        }
    }
    *ret = &take_ptr(&uring)->ring;
    return 0;
}
