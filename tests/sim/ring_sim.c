/*
 * The simulated ring: see ring_sim.h. Each operation is a list of pieces with
 * times at which they take effect, and a time at which it completes. Effects
 * happen as the clock passes them, whichever loop runs; completions when the
 * ring that submitted is reaped.
 */
#include "tests/sim/ring_sim.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/iov.h"
#include "core/list.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/ring.h"
#include "core/timer.h"

#define SIM_PIECES 4u
#define SIM_FAULTS 8u
#define SIM_READY 16u

struct sim_piece {
    uint64_t when_ns;
    uint64_t start, length;     /* in the op */
    int64_t result;
    bool happened;
};

struct sim_op {
    struct list_link link;      /* in sim->ops */
    struct ring_op *op;
    struct sim_ring *ring;
    enum sim_kind kind;
    int fd, flags, fixed;       /* fixed: result of a fault, 0 if there is none */
    dev_t dev;
    ino_t ino;                  /* 0: no file */
    const struct iovec *iov;
    unsigned iov_count;
    uint64_t offset, length;
    int (*fn)(void *arg);
    void *arg;
    struct sim_piece pieces[SIM_PIECES];
    unsigned piece_count;
    uint64_t done_ns;           /* UINT64_MAX: never */
};

struct sim_ring {
    struct ring ring;
    struct sim *sim;
};

struct sim {
    uint64_t random, now_ns, digest;
    struct sim_manner manner;
    struct list ops;            /* of all rings, in order of submission */
    struct loop *loops[LOOP_MAX];
    unsigned loop_count;
    uint64_t idle;              /* bits of loops that did nothing since something happened */
    struct sim_fault faults[SIM_FAULTS];
    unsigned fault_count;
    int ready[SIM_READY];
    unsigned ready_count;
};

static struct sim *sim_of(struct ring *ring)
{
    return container_of(ring, struct sim_ring, ring)->sim;
}

/* splitmix64 */
static uint64_t sim_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t sim_random(struct sim *sim, uint64_t below)
{
    sim->random += 0x9e3779b97f4a7c15u;
    return below ? sim_mix(sim->random) % below : 0;
}

bool sim_chance(struct sim *sim, unsigned permille)
{
    return sim_random(sim, 1000) < permille;
}

static void sim_note(struct sim *sim, uint64_t what)
{
    sim->digest = sim_mix(sim->digest + 0x9e3779b97f4a7c15u + what);
}

uint64_t sim_digest(const struct sim *sim)
{
    return sim->digest;
}

uint64_t sim_now(const struct sim *sim)
{
    return sim->now_ns;
}

struct sim_manner *sim_manner(struct sim *sim)
{
    return &sim->manner;
}

void sim_fault(struct sim *sim, const struct sim_fault *fault)
{
    assert(sim->fault_count < SIM_FAULTS);
    sim->faults[sim->fault_count++] = *fault;
}

void sim_forget_faults(struct sim *sim)
{
    sim->fault_count = 0;
}

static bool sim_same_file(const struct sim_op *op, int fd)
{
    struct stat st;

    return op->ino && fstat(fd, &st) == 0 && st.st_dev == op->dev && st.st_ino == op->ino;
}

unsigned sim_inflight(const struct sim *sim, int fd)
{
    const struct sim_op *op;
    unsigned count = 0;

    list_for_each(op, &sim->ops, link)
        count += fd < 0 || sim_same_file(op, fd);
    return count;
}

unsigned sim_held(const struct sim *sim)
{
    const struct sim_op *op;
    unsigned count = 0;

    list_for_each(op, &sim->ops, link)
        count += op->fixed == SIM_NEVER;
    return count;
}

static int sim_fault_for(struct sim *sim, const struct sim_op *op)
{
    for (unsigned i = 0; i < sim->fault_count; i++) {
        struct sim_fault *fault = &sim->faults[i];
        uint64_t end = fault->end ? fault->end : UINT64_MAX;

        if (!(fault->kinds & op->kind) || (fault->fd >= 0 && !sim_same_file(op, fault->fd)))
            continue;
        if (op->offset >= end || op->offset + op->length < fault->start)
            continue;
        if (fault->permille && !sim_chance(sim, fault->permille))
            continue;
        int result = fault->result;

        if (fault->count && --fault->count == 0)
            *fault = sim->faults[--sim->fault_count];
        return result;
    }
    return 0;
}

/* Submission. */

static struct sim_op *sim_submit(struct ring *ring, struct ring_op *op, enum sim_kind kind, int fd)
{
    struct sim *sim = sim_of(ring);
    struct sim_op *new = memory_new(struct sim_op);
    struct stat st;

    assert(loop_current() && loop_current()->ring == ring);
    *new = (struct sim_op){
        .op = op, .ring = container_of(ring, struct sim_ring, ring), .kind = kind, .fd = fd, .piece_count = 1};
    if (fd >= 0 && fstat(fd, &st) == 0) {
        new->dev = st.st_dev;
        new->ino = st.st_ino;
    }
    list_append(&sim->ops, &new->link);
    return new;
}

/* Cuts a transfer into pieces, one after the other in the file. */
static void sim_tear(struct sim *sim, struct sim_op *op)
{
    uint64_t length = op->length, start = 0;

    if (length > 1 && sim_chance(sim, sim->manner.short_permille))
        length = 1 + sim_random(sim, length - 1);
    op->piece_count = 1;
    if (length >= SIM_PIECES && sim_chance(sim, sim->manner.torn_permille))
        op->piece_count = 2 + (unsigned)sim_random(sim, SIM_PIECES - 1);
    for (unsigned i = 0; i < op->piece_count; i++) {
        uint64_t left = length - start, rest = op->piece_count - i;
        uint64_t part = rest == 1 ? left : 1 + sim_random(sim, left - rest + 1);

        op->pieces[i].start = start;
        op->pieces[i].length = part;
        start += part;
    }
}

static uint64_t sim_delay(struct sim *sim)
{
    /* Mostly short, sometimes very long beside others. */
    uint64_t limit = sim_chance(sim, 100) ? sim->manner.delay_max_ns : sim->manner.delay_max_ns / 16 + 1;

    return 1 + sim_random(sim, limit);
}

/* With all of the op set: what becomes of it, and when. */
static void sim_schedule(struct sim_op *op)
{
    struct sim *sim = op->ring->sim;

    op->fixed = sim_fault_for(sim, op);
    uint64_t delay = sim_delay(sim);

    op->done_ns = op->fixed == SIM_NEVER ? UINT64_MAX : sim->now_ns + delay;
    for (unsigned i = 0; i < op->piece_count; i++)
        op->pieces[i].when_ns = sim->now_ns + 1 + sim_random(sim, delay);
    sim_note(sim, op->kind ^ op->offset << 8 ^ op->length << 32 ^ delay << 40);
}

static void sim_rw(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov, unsigned count,
                   uint64_t offset, int rw_flags)
{
    struct sim_op *new = sim_submit(ring, op, write ? SIM_WRITE : SIM_READ, fd);

    new->iov = iov;
    new->iov_count = count;
    new->offset = offset;
    new->length = iov_size(iov, count);
    new->flags = rw_flags & ~RING_FLAGS;
    sim_tear(sim_of(ring), new);
    sim_schedule(new);
}

static void sim_fsync(struct ring *ring, struct ring_op *op, int fd, bool data_only)
{
    struct sim_op *new = sim_submit(ring, op, SIM_FSYNC, fd);

    new->flags = data_only;
    sim_schedule(new);
}

static void sim_fallocate(struct ring *ring, struct ring_op *op, int fd, int mode, uint64_t offset, uint64_t length)
{
    struct sim_op *new = sim_submit(ring, op, SIM_FALLOCATE, fd);

    new->flags = mode;
    new->offset = offset;
    new->length = length;
    sim_schedule(new);
}

static void sim_call(struct ring *ring, struct ring_op *op, int (*fn)(void *arg), void *arg)
{
    struct sim_op *new = sim_submit(ring, op, SIM_CALL, -1);

    new->fn = fn;
    new->arg = arg;
    sim_schedule(new);
}

/* Polls wait for sim_set_ready(). */

static bool sim_is_ready(const struct sim *sim, int fd)
{
    for (unsigned i = 0; i < sim->ready_count; i++) {
        if (sim->ready[i] == fd)
            return true;
    }
    return false;
}

static void sim_poll(struct ring *ring, struct ring_op *op, int fd, unsigned events)
{
    struct sim *sim = sim_of(ring);
    struct sim_op *new = sim_submit(ring, op, SIM_POLL, fd);

    new->flags = (int)events;
    new->piece_count = 0;
    new->done_ns = sim_is_ready(sim, fd) ? sim->now_ns + sim_delay(sim) : UINT64_MAX;
}

void sim_set_ready(struct sim *sim, int fd, bool ready)
{
    struct sim_op *op;

    for (unsigned i = 0; i < sim->ready_count; i++) {
        if (sim->ready[i] == fd)
            sim->ready[i--] = sim->ready[--sim->ready_count];
    }
    if (!ready)
        return;
    assert(sim->ready_count < SIM_READY);
    sim->ready[sim->ready_count++] = fd;
    list_for_each(op, &sim->ops, link) {
        if (op->kind == SIM_POLL && op->fd == fd && op->done_ns == UINT64_MAX)
            op->done_ns = sim->now_ns + sim_delay(sim);
    }
}

static void sim_cancel_poll(struct ring *ring, struct ring_op *what)
{
    struct sim *sim = sim_of(ring);
    struct sim_op *op;

    list_for_each(op, &sim->ops, link) {
        if (op->op == what && op->kind == SIM_POLL && op->done_ns > sim->now_ns) {
            op->fixed = -ECANCELED;
            op->done_ns = sim->now_ns + 1;
        }
    }
}

unsigned sim_release(struct sim *sim)
{
    struct sim_op *op;
    unsigned count = 0;

    list_for_each(op, &sim->ops, link) {
        if (op->fixed == SIM_NEVER) {
            op->fixed = 0;
            op->done_ns = sim->now_ns + sim_delay(sim);
            count++;
        }
    }
    return count;
}

/* Effects. */

static int64_t sim_transfer(const struct sim_op *op, const struct sim_piece *piece)
{
    AUTO_FREE struct iovec *iov = memory_array(op->iov_count, sizeof(*iov));
    uint64_t done = 0;

    while (done < piece->length) {
        unsigned count = iov_slice(op->iov, op->iov_count, piece->start + done, piece->length - done, iov);
        off_t offset = (off_t)(op->offset + piece->start + done);
        ssize_t part = op->kind == SIM_WRITE ? pwritev2(op->fd, iov, (int)count, offset, op->flags)
                                             : preadv2(op->fd, iov, (int)count, offset, op->flags);

        if (part < 0)
            return done ? (int64_t)done : -errno;
        if (part == 0)
            break;
        done += (uint64_t)part;
    }
    return (int64_t)done;
}

static int sim_call_elsewhere(const struct sim_op *op)
{
    struct loop *loop = loop_current();

    loop_set_current(NULL);
    int result = op->fn(op->arg);
    loop_set_current(loop);
    return result;
}

static void sim_happen(struct sim_op *op, struct sim_piece *piece)
{
    int result = 0;

    piece->happened = true;
    /* What failed may still have changed something. */
    if (op->fixed < 0 && (!(op->kind & (SIM_WRITE | SIM_FALLOCATE)) || sim_chance(op->ring->sim, 500)))
        return;
    switch (op->kind) {
    case SIM_READ:
    case SIM_WRITE:
        piece->result = sim_transfer(op, piece);
        return;
    case SIM_FSYNC:
        result = fcntl(op->fd, F_GETFD) < 0 ? -1 : 0;
        break;
    case SIM_FALLOCATE:
        result = fallocate(op->fd, op->flags, (off_t)op->offset, (off_t)op->length);
        break;
    case SIM_CALL:
        piece->result = sim_call_elsewhere(op);
        return;
    case SIM_POLL:
        return;
    }
    piece->result = result < 0 ? -errno : 0;
}

/* The next piece that is due at limit or before, the oldest first. */
static struct sim_piece *sim_next_piece(struct sim *sim, uint64_t limit, struct sim_op **ret)
{
    struct sim_piece *next = NULL;
    struct sim_op *op;

    list_for_each(op, &sim->ops, link) {
        if (op->fixed == SIM_NEVER)
            continue;
        for (unsigned i = 0; i < op->piece_count; i++) {
            struct sim_piece *piece = &op->pieces[i];

            if (!piece->happened && piece->when_ns <= limit && (!next || piece->when_ns < next->when_ns)) {
                next = piece;
                *ret = op;
            }
        }
    }
    return next;
}

static void sim_advance(struct sim *sim, uint64_t to_ns)
{
    struct sim_piece *piece;
    struct sim_op *op = NULL;

    while ((piece = sim_next_piece(sim, to_ns, &op)))
        sim_happen(op, piece);
    sim->now_ns = to_ns;
}

/* Completions. */

/* Of a transfer: what arrived without a gap. */
static int sim_result(const struct sim_op *op)
{
    int64_t total = 0;

    if (op->fixed)
        return op->fixed;
    if (op->kind == SIM_POLL)
        return op->flags;
    for (unsigned i = 0; i < op->piece_count; i++) {
        const struct sim_piece *piece = &op->pieces[i];

        if (piece->result < 0)
            return total ? (int)total : (int)piece->result;
        total += piece->result;
        if ((uint64_t)piece->result < piece->length)
            break;
    }
    return (int)total;
}

static struct sim_op *sim_next_done(struct sim *sim, const struct ring *ring)
{
    struct sim_op *op, *chosen = NULL;
    unsigned count = 0;

    /* Each of those that are due with the same chance. */
    list_for_each(op, &sim->ops, link) {
        if (&op->ring->ring == ring && op->done_ns <= sim->now_ns && sim_random(sim, ++count) == 0)
            chosen = op;
    }
    return chosen;
}

static unsigned sim_reap(struct ring *ring)
{
    struct sim *sim = sim_of(ring);
    struct sim_op *done;
    unsigned count = 0;

    while ((done = sim_next_done(sim, ring))) {
        struct ring_op *op = done->op;
        int result = sim_result(done);

        sim_note(sim, sim->now_ns ^ (uint64_t)(uint32_t)result << 32);
        list_remove(&done->link);
        free(done);
        op->complete(op, result);
        count++;
    }
    return count;
}

static void sim_wake(struct ring *ring)
{
    (void)ring;     /* nobody sleeps here */
}

static uint64_t sim_ring_now(struct ring *ring)
{
    return sim_of(ring)->now_ns;
}

static void sim_destroy(struct ring *ring)
{
    struct sim_op *op;

    list_for_each(op, &sim_of(ring)->ops, link)
        assert(&op->ring->ring != ring);
    free(container_of(ring, struct sim_ring, ring));
}

static const struct ring_ops sim_ops = {
    .name = "simulation",
    .rw = sim_rw,
    .fsync = sim_fsync,
    .fallocate = sim_fallocate,
    .poll = sim_poll,
    .cancel_poll = sim_cancel_poll,
    .call = sim_call,
    .reap = sim_reap,
    .wake = sim_wake,
    .now = sim_ring_now,
    .destroy = sim_destroy,
};

/* The world. */

struct sim *sim_new(uint64_t seed)
{
    struct sim *sim = memory_new(struct sim);

    *sim = (struct sim){
        .random = sim_mix(seed + 1),
        .now_ns = 1000000000,
        .manner = {.delay_max_ns = 1000000, .short_permille = 50, .torn_permille = 300},
    };
    list_init(&sim->ops);
    return sim;
}

struct loop *sim_loop(struct sim *sim, const char *name)
{
    struct sim_ring *ring = memory_new(struct sim_ring);

    *ring = (struct sim_ring){.ring.ops = &sim_ops, .sim = sim};
    if (loop_create(&sim->loops[sim->loop_count], name, &ring->ring, NULL) < 0)
        abort();
    return sim->loops[sim->loop_count++];
}

void sim_free(struct sim *sim)
{
    while (sim->loop_count)
        loop_destroy(sim->loops[--sim->loop_count]);
    free(sim);
}

/* When the next thing happens that nobody has to do; UINT64_MAX: nothing will. */
static uint64_t sim_next_event(struct sim *sim)
{
    uint64_t next = UINT64_MAX;
    struct sim_op *op;

    list_for_each(op, &sim->ops, link) {
        if (op->done_ns < next)
            next = op->done_ns;
    }
    for (unsigned i = 0; i < sim->loop_count; i++) {
        uint64_t deadline = timer_next(sim->loops[i]);

        if (deadline < next)
            next = deadline;
    }
    return next;
}

bool sim_step(struct sim *sim, bool (*work)(struct loop *loop, void *arg), void *arg)
{
    unsigned chosen = (unsigned)sim_random(sim, sim->loop_count);
    struct loop *loop = sim->loops[chosen];

    sim_advance(sim, sim->now_ns + 1 + sim_random(sim, 2000));
    loop_set_current(loop);
    loop->now_ns = sim->now_ns;
    bool any = work && work(loop, arg);

    if (loop_turn(loop) || any) {
        sim->idle = 0;
        return true;
    }
    sim->idle |= (uint64_t)1 << chosen;
    if (sim->idle != UINT64_MAX >> (LOOP_MAX - sim->loop_count))
        return true;
    uint64_t next = sim_next_event(sim);

    sim->idle = 0;
    if (next == UINT64_MAX)
        return false;
    if (next > sim->now_ns)
        sim_advance(sim, next);
    return true;
}
