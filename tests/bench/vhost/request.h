/*
 * One virtio-blk request (virtio 1.2, 5.2.6) and the shared memory it lives in.
 *
 * Plain: the header, the data in equal buffers that do not follow each other in
 * memory, the status. Cut: what the device reads and what it writes are two
 * strings of bytes, each cut anywhere, with gaps between the pieces that the
 * device must leave alone. A plain request whose kind is the one before is not
 * laid out again.
 */
#ifndef TESTS_BENCH_VHOST_REQUEST_H
#define TESTS_BENCH_VHOST_REQUEST_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/bench/vhost/options.h"
#include "tests/bench/vhost/queue.h"

struct bench_request {
    uint16_t slot;
    enum bench_op op;
    uint32_t size;                  /* bytes of the disk */
    uint32_t write;                 /* verify: the number of this write */
    uint64_t at;                    /* byte of the disk */
    uint64_t sent_at;
    struct virtio_blk_outhdr *header;
    uint8_t *status;
    unsigned char *data;            /* plain: room for the data; cut: for everything */
    size_t room;
    struct front_piece *pieces;
    uint16_t count, readable;       /* pieces, and how many of them the device reads */
    enum bench_op laid_op;          /* plain: what the chain was made for; size 0: nothing yet */
    uint32_t laid_size;
};

/* How requests of a queue are made; for all of them the same. */
struct bench_form {
    struct front_queue *queue;
    unsigned char *base;            /* of the shared memory */
    unsigned segments;
    bool cut;
    uint64_t random;
};

/* Buffers that a chain has at most, and shared memory that one request takes at most. */
unsigned bench_request_pieces(const struct bench_options *options);
size_t bench_request_bytes(const struct bench_options *options);

void bench_request_create(struct bench_request *request, uint16_t slot, struct front_memory *memory,
                          const struct bench_options *options);
void bench_request_destroy(struct bench_request *request);

/* Makes the chain of what request->op, at and size say, and sets it in the queue. */
void bench_request_lay_out(struct bench_request *request, struct bench_form *form);

/* Copies what the device reads behind the header, or what it writes before the status. */
void bench_request_put_data(const struct bench_request *request, const struct bench_form *form, const void *data);
void bench_request_get_data(const struct bench_request *request, const struct bench_form *form, void *data);

/* Cut: did the device write only where it may? */
bool bench_request_gaps_intact(const struct bench_request *request, const struct bench_form *form);

/* Bytes that the device writes if all goes well, and may write at most. */
uint32_t bench_request_writable(const struct bench_request *request);

/* Bytes of data, as opposed to bytes of the disk. */
uint32_t bench_request_data_size(const struct bench_request *request);

static inline uint64_t random_next(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return *random >> 32;
}

/* A number below limit, which is less than 2^32. */
static inline uint64_t random_below(uint64_t *random, uint64_t limit)
{
    return random_next(random) * limit >> 32;
}

#endif
