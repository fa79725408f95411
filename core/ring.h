/*
 * The ring: how a loop starts asynchronous I/O. One table of functions with
 * three implementations: io_uring, a thread pool where io_uring is refused,
 * and the simulation of tests/sim. All have the same semantics:
 *
 *  - a submit function never fails and never completes from inside the call:
 *    the result arrives later through op->complete(), on the ring's own loop;
 *  - result is what the system call would return, or a negative errno. Reads
 *    and writes may be short; EINTR and EAGAIN are never seen;
 *  - op belongs to the ring from the call until complete() runs, iov and the
 *    buffers as well.
 */
#ifndef CORE_RING_H
#define CORE_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct event_base;
struct error;
struct ring;

/* One submission. Embedded by whoever submits. */
struct ring_op {
    void (*complete)(struct ring_op *op, int result);
};

/* Added to rw_flags of a write: it goes into the page cache, not past it. */
#define RING_CACHED (1 << 30)
/* Added to rw_flags: the ring may hold on to fd, since forget() is called on every loop before fd is closed. */
#define RING_KEPT (1 << 29)
#define RING_FLAGS (RING_CACHED | RING_KEPT)

struct ring_ops {
    const char *name;       /* "io_uring", "threads", "simulation" */

    /* rw_flags: RWF_* of preadv2(2), RING_*. iov is not copied. */
    void (*rw)(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov, unsigned count,
               uint64_t offset, int rw_flags);
    /* Lets go of fd (RING_KEPT). Nothing of it is in flight. NULL: this ring holds on to none. */
    void (*forget)(struct ring *ring, int fd);
    void (*fsync)(struct ring *ring, struct ring_op *op, int fd, bool data_only);
    void (*fallocate)(struct ring *ring, struct ring_op *op, int fd, int mode, uint64_t offset, uint64_t length);

    /* One shot; events and result are POLLIN ... of poll(2). */
    void (*poll)(struct ring *ring, struct ring_op *op, int fd, unsigned events);
    /* Ends a poll early: its op completes with -ECANCELED, unless it was just completing. */
    void (*cancel_poll)(struct ring *ring, struct ring_op *op);

    /* Runs fn(arg) on another thread, where it may block; the result is what fn returns. For
     * system calls that have no asynchronous form (SEEK_DATA, ioctl). */
    void (*call)(struct ring *ring, struct ring_op *op, int (*fn)(void *arg), void *arg);

    /* Submits, runs the completions that are there. Returns how many ran. */
    unsigned (*reap)(struct ring *ring);
    /* Submits and sleeps until a completion or wake() comes, at most timeout_ns (UINT64_MAX: no
     * limit); then as reap. Only on loops without an event base. */
    unsigned (*wait)(struct ring *ring, uint64_t timeout_ns);
    /* From any thread: ends the wait in progress or the next one. */
    void (*wake)(struct ring *ring);

    uint64_t (*now)(struct ring *ring);     /* monotonic nanoseconds; the simulation's is its own */
    void (*destroy)(struct ring *ring);     /* nothing may be in flight */
};

struct ring {
    const struct ring_ops *ops;
    uint64_t batch_max;     /* most operations that go to the kernel at once; 0: the ring's choice. Its loop's own */
};

/*
 * events is NULL for a loop that sleeps in the ring; otherwise the loop
 * sleeps in that libevent base, and the ring adds to it what must wake it.
 * Errors: -ENOSYS, -EPERM (refused by kernel, sysctl or seccomp), -ENOMEM.
 */
int ring_uring_create(struct ring **ret, struct event_base *events, struct error *err);
int ring_threads_create(struct ring **ret, struct event_base *events, struct error *err);

/* The system's monotonic clock, in nanoseconds. */
uint64_t ring_clock(void);

#endif
