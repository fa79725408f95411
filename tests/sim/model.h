/*
 * What tests of the graph compare with: disks as arrays of bytes, and clients
 * that read and write them through consumers on several loops, at random, in
 * a simulated world.
 *
 * A client never lets a write overlap another request that is in flight, of
 * any client. So each byte has one right value at any time, and every read is
 * checked in full. What a failed write or a discard leaves is unknown until
 * it is written again.
 */
#ifndef TESTS_SIM_MODEL_H
#define TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/consumer.h"
#include "core/request.h"

#define MODEL_DISKS 3
#define MODEL_CLIENTS 6
#define MODEL_LOOPS 4
#define MODEL_SLOTS 4           /* requests of a client on a loop */
#define MODEL_DISK_MAX (256u * 1024)
#define MODEL_REQUEST_MAX (16u * 1024)
#define MODEL_SCRATCH 1024u

struct model;
struct sim;

struct model_disk {
    char node[16];              /* name of the node that has it */
    char path[32];
    int fd;                     /* -1: null-co, all zeroes for ever */
    bool unmaps;                /* discards are not ignored */
    bool faulty;                /* errors are to be expected */
    unsigned char bytes[MODEL_DISK_MAX], unknown[MODEL_DISK_MAX];
};

struct model_slot {
    struct model_client *client;
    bool busy;
    bool parked;                /* was submitted during a pause */
    bool waiting;               /* ... which is not over */
    uint8_t op;
    uint32_t flags;
    uint64_t offset, length;    /* as the client sees the disk */
    uint64_t generation;        /* requests so far */
    unsigned char *data;
    struct iovec iov[3];
    struct extent extents[4];
    struct extent_list list;
    struct request *request;
};

struct model_client {
    struct model *model;
    struct consumer consumer;
    char name[16];
    bool attached, writes;
    unsigned loops;             /* bits: where it sends requests */
    struct model_disk *disk;
    uint64_t offset;            /* of its first byte in the disk */
    struct model_slot slots[MODEL_LOOPS][MODEL_SLOTS];
};

struct model {
    struct sim *sim;
    unsigned loop_count;
    bool stopped;               /* clients send nothing new */
    unsigned refuse_scratch;    /* permille: clients that cannot have larger requests */
    uint64_t requests;          /* ended */
    struct model_disk disks[MODEL_DISKS];
    struct model_client clients[MODEL_CLIENTS];
};

struct model *model_new(struct sim *sim, unsigned loop_count);
void model_free(struct model *model);       /* clients detached */

/* For sim_step(): clients of this loop submit. */
bool model_work(struct loop *loop, void *model);

/* The disk has size bytes now; what was beyond is gone. */
void model_resized(struct model_disk *disk, uint64_t size);

/* Clients that reach node, directly or through others. */
bool model_reaches(const struct model_client *client, const struct node *node);
/* Nothing of the client is inside the graph, in any loop. */
void model_assert_quiet(const struct model_client *client);
bool model_is_idle(const struct model_client *client);
/* The files hold what they should. Idle, no faults. */
void model_assert_content(const struct model *model);

#endif
