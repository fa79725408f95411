/*
 * What a part of a disk should hold. Every written block carries a stamp: whose
 * it is, which block of the disk it belongs to and which write it comes from,
 * and the rest of it follows from these. So a block that was not written, was
 * written elsewhere, is of an older write or is half of one is told apart.
 *
 * A block is claimed while a request on it is in flight, and requests that
 * overlap are not sent, because their outcome would be anybody's guess. Each
 * part belongs to one thread.
 */
#ifndef TESTS_BENCH_VHOST_VERIFY_H
#define TESTS_BENCH_VHOST_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"

#define VERIFY_UNKNOWN 0u       /* never written by us, or discarded */
#define VERIFY_ZERO 1u
#define VERIFY_FIRST 2u         /* the lowest number of a write */
#define VERIFY_CLAIMED (1u << 31)

struct verify {
    uint32_t *blocks;           /* one of the above for each block, or the number of its last write */
    uint64_t first, count;      /* which blocks of the disk they are */
    uint32_t block_size;        /* in bytes, a multiple of 512 */
    uint32_t last_write;
    uint64_t run;               /* tells our stamps from those of an earlier run */
};

void verify_create(struct verify *verify, uint64_t first, uint64_t count, uint32_t block_size, uint64_t run);
void verify_destroy(struct verify *verify);

/* Blocks are numbered from the beginning of the disk in all of these. */
bool verify_claim(struct verify *verify, uint64_t block, uint64_t count);
void verify_release(struct verify *verify, uint64_t block, uint64_t count);
void verify_release_as(struct verify *verify, uint64_t block, uint64_t count, uint32_t state);

/* The number for a new write. */
uint32_t verify_next(struct verify *verify);

/* Stamps count blocks at data for the given write. */
void verify_fill(const struct verify *verify, uint64_t block, uint64_t count, uint32_t write, void *data);

/* Does data hold what the blocks should? -EILSEQ, and which block has what, if not. */
int verify_check(const struct verify *verify, uint64_t block, uint64_t count, const void *data, struct error *err);

/* The next blocks whose content is known, from *block on: at most `most`; 0 when there are no more. */
uint64_t verify_known(const struct verify *verify, uint64_t *block, uint64_t most);

#endif
