/*
 * Loss of power: see power.h.
 */
#include "tests/sim/power.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/iov.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/ring.h"
#include "tests/sim/ring_sim.h"

#define POWER_SECTOR 512u

struct power_copy {
    unsigned char *bytes;
    uint64_t size;
};

/* An fsync or durable write under way. */
struct power_op {
    struct ring_op op, *outer;
    uint64_t number;        /* fsyncs: in order of beginning */
    struct power_copy copy; /* fsyncs: the file when it began, and what durable writes put there since */
    struct power_op *next;  /* fsyncs under way */
    uint64_t offset;        /* writes */
};

static struct power {
    struct sim *sim;
    int fd;
    ino_t inode;
    struct power_copy durable;
    uint64_t begun, ended; /* fsyncs; the last that counts */
    struct power_op *syncs;
    const struct ring_ops *inner;
    struct ring_ops ops;
} power;

static struct power_copy power_read(void)
{
    struct power_copy copy = {0};
    struct stat st;

    ENSURE(fstat(power.fd, &st) == 0);
    copy.size = (uint64_t)st.st_size;
    copy.bytes = memory_zero(copy.size + 1);
    ENSURE(pread(power.fd, copy.bytes, copy.size, 0) == st.st_size);
    return copy;
}

static bool power_is_watched(int fd)
{
    struct stat st;

    return power.sim && fstat(fd, &st) == 0 && st.st_ino == power.inode;
}

static void power_synced(struct ring_op *op, int result)
{
    struct power_op *sync = container_of(op, struct power_op, op);
    struct ring_op *outer = sync->outer;
    struct power_op **link = &power.syncs;

    while (*link != sync)
        link = &(*link)->next;
    *link = sync->next;
    if (result == 0 && sync->number > power.ended) {
        struct power_copy old = power.durable;

        power.durable = sync->copy;
        power.ended = sync->number;
        sync->copy = old;
    }
    free(sync->copy.bytes);
    free(sync);
    outer->complete(outer, result);
}

static void power_fsync(struct ring *ring, struct ring_op *op, int fd, bool data_only)
{
    if (power_is_watched(fd)) {
        struct power_op *sync = memory_new(struct power_op);

        *sync =
            (struct power_op){.op.complete = power_synced, .outer = op, .number = ++power.begun, .copy = power_read()};
        sync->next = power.syncs;
        power.syncs = sync;
        op = &sync->op;
    }
    power.inner->fsync(ring, op, fd, data_only);
}

/* The copy has what the file has in [offset, end). */
static void power_renew(struct power_copy *copy, uint64_t offset, uint64_t end)
{
    if (end > copy->size) {
        copy->bytes = memory_grow(copy->bytes, end, 1);
        memset(copy->bytes + copy->size, 0, end - copy->size);
        copy->size = end;
    }
    ENSURE(pread(power.fd, copy->bytes + offset, end - offset, (off_t)offset) == (ssize_t)(end - offset));
}

static void power_written(struct ring_op *op, int result)
{
    struct power_op *write = container_of(op, struct power_op, op);
    struct ring_op *outer = write->outer;

    if (result > 0) {
        power_renew(&power.durable, write->offset, write->offset + (uint64_t)result);
        for (struct power_op *sync = power.syncs; sync; sync = sync->next)
            power_renew(&sync->copy, write->offset, write->offset + (uint64_t)result);
    }
    free(write);
    outer->complete(outer, result);
}

static void power_rw(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov, unsigned count,
                     uint64_t offset, int rw_flags)
{
    if (write && rw_flags & RWF_DSYNC && !(rw_flags & RING_CACHED) && power_is_watched(fd)) {
        struct power_op *own = memory_new(struct power_op);

        *own = (struct power_op){.op.complete = power_written, .outer = op, .offset = offset};
        op = &own->op;
    }
    power.inner->rw(ring, op, write, fd, iov, count, offset, rw_flags);
}

void power_watch(struct sim *sim, int fd)
{
    struct stat st;

    ENSURE(!power.sim && fstat(fd, &st) == 0);
    power.sim = sim;
    power.fd = fd;
    power.inode = st.st_ino;
    power.durable = power_read();
    for (unsigned i = 0; i < LOOP_MAX && loop_by_index[i]; i++) {
        power.inner = loop_by_index[i]->ring->ops;
        power.ops = *power.inner;
        power.ops.fsync = power_fsync;
        power.ops.rw = power_rw;
    }
    for (unsigned i = 0; i < LOOP_MAX && loop_by_index[i]; i++)
        loop_by_index[i]->ring->ops = &power.ops;
}

void power_forget(void)
{
    for (unsigned i = 0; i < LOOP_MAX && loop_by_index[i]; i++)
        loop_by_index[i]->ring->ops = power.inner;
    free(power.durable.bytes);
    power = (struct power){0};
}

void power_fail(unsigned char **bytes, uint64_t *size)
{
    static const unsigned chances[] = {0, 100, 500, 900, 1000};
    unsigned kept = chances[sim_random(power.sim, array_size(chances))];
    uint64_t unit = sim_chance(power.sim, 500) ? POWER_SECTOR : 8 * POWER_SECTOR;
    struct power_copy now = power_read();

    for (uint64_t at = 0; at < now.size; at += unit) {
        uint64_t part = now.size - at < unit ? now.size - at : unit;
        uint64_t old = at < power.durable.size ? power.durable.size - at : 0;

        if (sim_chance(power.sim, kept))
            continue;
        old = old < part ? old : part;
        memcpy(now.bytes + at, power.durable.bytes + at, old);
        memset(now.bytes + at + old, 0, part - old);
    }
    *bytes = now.bytes;
    *size = now.size;
}
