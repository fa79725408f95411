/*
 * A crowd: requests on one disk from several loops at once, which overlap as
 * guests' requests may, and a model of what must be read.
 *
 * Each byte is known, or one of two values, or unknown; what overlapping
 * writes, failed writes and discards leave is found out by the next read and
 * must stay so. Reads are checked where no write was under way.
 *
 * The model also knows what flushes have promised: what an image must hold
 * after the power has failed.
 */
#ifndef TESTS_SIM_CROWD_H
#define TESTS_SIM_CROWD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/consumer.h"

#define CROWD_LOOPS 3u
#define CROWD_SLOTS 6u /* requests on a loop */
#define CROWD_DISK_MAX (1u << 20)
#define CROWD_REQUEST_MAX (96u * 1024)
#define CROWD_SCRATCH 1024u
#define CROWD_HOT 3u

struct sim;
struct crowd;

enum crowd_kind { CROWD_KNOWN, CROWD_OR_ZERO, CROWD_UNKNOWN };

struct crowd_slot {
    struct crowd *crowd;
    bool busy, parked;
    uint8_t op;
    uint32_t flags;
    uint64_t offset, length;
    uint32_t began; /* crowd->now */
    int result;
    unsigned char *data, *masked; /* masked: bytes of a read that a write was under way to */
    struct iovec iov[3];
    struct extent extents[8];
    struct extent_list list;
    struct request *request;
};

struct crowd {
    struct sim *sim;
    struct consumer consumer;
    bool stopped, faulty;
    unsigned discards, compressed; /* permille of requests, of writes */
    uint64_t hot[CROWD_HOT];       /* places that most requests go to */
    uint64_t wild, wild_end;       /* bytes whose content a resize may take away just now */
    uint64_t ended_count, limit;   /* requests that ended; after so many no new ones come */
    uint32_t now, promised;        /* numbers of beginnings and ends; all that ended before promised is durable */
    unsigned char *bytes, *kinds, *writers, *mixed; /* [byte of the disk] */
    uint32_t *ended;                                /* [byte]: when the last write to it did */
    struct crowd_slot slots[CROWD_LOOPS][CROWD_SLOTS];
};

struct crowd *crowd_new(struct sim *sim);
void crowd_free(struct crowd *crowd); /* detached */

/* For sim_step(). */
bool crowd_work(struct loop *loop, void *crowd);
bool crowd_is_idle(const struct crowd *crowd);

/* One request on the current loop, in a slot that is free; the slot tells when it has ended. */
struct crowd_slot *crowd_submit(struct crowd *crowd, uint8_t op, uint32_t flags, uint64_t offset, uint64_t length);

/* The disk will be resized; and it was, or was not. */
void crowd_resizing(struct crowd *crowd, uint64_t before, uint64_t size);
void crowd_resized(struct crowd *crowd, uint64_t before, uint64_t size, bool failed);

/* Whether the byte must have its value after a loss of power now. */
bool crowd_is_promised(const struct crowd *crowd, uint64_t at);

#endif
