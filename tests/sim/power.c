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

struct power_op;

struct power_copy {
    unsigned char *bytes;
    uint64_t size;
};

struct power_file {
    int fd;
    ino_t inode; /* 0: none is watched */
    struct power_copy durable;
    uint64_t begun, ended;  /* fsyncs; the last that counts */
    struct power_op *syncs; /* under way */
};

/* An fsync or durable write under way. */
struct power_op {
    struct ring_op op, *outer;
    struct power_file *file;
    uint64_t number;        /* fsyncs: in order of beginning */
    struct power_copy copy; /* fsyncs: the file when it began, and what durable writes put there since */
    struct power_op *next;  /* fsyncs under way */
    uint64_t offset;        /* writes */
};

static struct power {
    struct sim *sim;
    struct power_file files[POWER_FILES];
    const struct ring_ops *inner;
    struct ring_ops ops;
} power;

static struct power_copy power_read(const struct power_file *file)
{
    struct power_copy copy = {0};
    struct stat st;

    ENSURE(fstat(file->fd, &st) == 0);
    copy.size = (uint64_t)st.st_size;
    copy.bytes = memory_zero(copy.size + 1);
    ENSURE(pread(file->fd, copy.bytes, copy.size, 0) == st.st_size);
    return copy;
}

static struct power_file *power_find(int fd)
{
    struct stat st;

    for (unsigned i = 0; i < POWER_FILES; i++) {
        struct power_file *file = &power.files[i];

        if (file->inode && fstat(fd, &st) == 0 && st.st_ino == file->inode)
            return file;
    }
    return NULL;
}

static void power_synced(struct ring_op *op, int result)
{
    struct power_op *sync = container_of(op, struct power_op, op);
    struct ring_op *outer = sync->outer;
    struct power_op **link = &sync->file->syncs;

    while (*link != sync)
        link = &(*link)->next;
    *link = sync->next;
    struct power_file *file = sync->file;

    if (result == 0 && sync->number > file->ended) {
        struct power_copy old = file->durable;

        file->durable = sync->copy;
        file->ended = sync->number;
        sync->copy = old;
    }
    free(sync->copy.bytes);
    free(sync);
    outer->complete(outer, result);
}

static void power_fsync(struct ring *ring, struct ring_op *op, int fd, bool data_only)
{
    struct power_file *file = power_find(fd);

    if (file) {
        struct power_op *sync = memory_new(struct power_op);

        *sync = (struct power_op){
            .op.complete = power_synced, .outer = op, .file = file, .number = ++file->begun, .copy = power_read(file)};
        sync->next = file->syncs;
        file->syncs = sync;
        op = &sync->op;
    }
    power.inner->fsync(ring, op, fd, data_only);
}

/* The copy has what the file has in [offset, end). */
static void power_renew(int fd, struct power_copy *copy, uint64_t offset, uint64_t end)
{
    if (end > copy->size) {
        copy->bytes = memory_grow(copy->bytes, end, 1);
        memset(copy->bytes + copy->size, 0, end - copy->size);
        copy->size = end;
    }
    ENSURE(pread(fd, copy->bytes + offset, end - offset, (off_t)offset) == (ssize_t)(end - offset));
}

static void power_written(struct ring_op *op, int result)
{
    struct power_op *write = container_of(op, struct power_op, op);
    struct power_file *file = write->file;
    struct ring_op *outer = write->outer;

    if (result > 0) {
        power_renew(file->fd, &file->durable, write->offset, write->offset + (uint64_t)result);
        for (struct power_op *sync = file->syncs; sync; sync = sync->next)
            power_renew(file->fd, &sync->copy, write->offset, write->offset + (uint64_t)result);
    }
    free(write);
    outer->complete(outer, result);
}

static void power_rw(struct ring *ring, struct ring_op *op, bool write, int fd, const struct iovec *iov, unsigned count,
                     uint64_t offset, int rw_flags)
{
    struct power_file *file = write && rw_flags & RWF_DSYNC && !(rw_flags & RING_CACHED) ? power_find(fd) : NULL;

    if (file) {
        struct power_op *own = memory_new(struct power_op);

        *own = (struct power_op){.op.complete = power_written, .outer = op, .file = file, .offset = offset};
        op = &own->op;
    }
    power.inner->rw(ring, op, write, fd, iov, count, offset, rw_flags);
}

static void power_step_between(void)
{
    power.inner = loop_by_index[0]->ring->ops;
    power.ops = *power.inner;
    power.ops.fsync = power_fsync;
    power.ops.rw = power_rw;
    for (unsigned i = 0; i < LOOP_MAX && loop_by_index[i]; i++)
        loop_by_index[i]->ring->ops = &power.ops;
}

void power_watch(struct sim *sim, unsigned number, int fd)
{
    struct power_file *file = &power.files[number];
    struct stat st;

    ENSURE(!file->inode && fstat(fd, &st) == 0);
    if (!power.sim)
        power_step_between();
    power.sim = sim;
    file->fd = fd;
    file->inode = st.st_ino;
    file->durable = power_read(file);
}

void power_forget(void)
{
    for (unsigned i = 0; i < LOOP_MAX && loop_by_index[i]; i++)
        loop_by_index[i]->ring->ops = power.inner;
    for (unsigned i = 0; i < POWER_FILES; i++)
        free(power.files[i].durable.bytes);
    power = (struct power){0};
}

void power_fail(unsigned number, unsigned char **bytes, uint64_t *size)
{
    static const unsigned chances[] = {0, 100, 500, 900, 1000};
    unsigned kept = chances[sim_random(power.sim, array_size(chances))];
    uint64_t unit = sim_chance(power.sim, 500) ? POWER_SECTOR : 8 * POWER_SECTOR;
    struct power_file *file = &power.files[number];
    struct power_copy now = power_read(file), *durable = &file->durable;

    for (uint64_t at = 0; at < now.size; at += unit) {
        uint64_t part = now.size - at < unit ? now.size - at : unit;
        uint64_t old = at < durable->size ? durable->size - at : 0;

        if (sim_chance(power.sim, kept))
            continue;
        old = old < part ? old : part;
        memcpy(now.bytes + at, durable->bytes + at, old);
        memset(now.bytes + at + old, 0, part - old);
    }
    *bytes = now.bytes;
    *size = now.size;
}
