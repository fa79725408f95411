/*
 * Clients that keep a graph busy: each always has so many requests under way
 * on each of its loops. In a simulated world; the control coroutine adds and
 * stops them.
 */
#ifndef TESTS_SIM_LOAD_H
#define TESTS_SIM_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/consumer.h"
#include "core/loop.h"

#define LOAD_MAX 4
#define LOAD_DEPTH_MAX 64
#define LOAD_LOOPS 4
#define LOAD_SIZE_MAX 65536u        /* bytes of reads and writes */

struct load {
    struct consumer consumer;
    char name[16];
    unsigned loops, depth;          /* bits; 0: sends nothing new */
    uint8_t op;
    uint64_t size, done, failed;    /* bytes; requests */
    unsigned second;                /* so many of depth are of another client of this consumer */
    uint64_t done_second;           /* of done, its requests */
    struct load_slot {
        struct load *load;
        bool busy;
        struct iovec iov;
        struct request *request;
    } slots[LOAD_LOOPS][LOAD_DEPTH_MAX];
};

/* Attached to the node; lives until load_free(). All requests begin at 0. */
struct load *load_add(const char *node, unsigned loops, unsigned depth, uint8_t op, uint64_t size);
/* For sim_step(). */
bool load_work(struct loop *loop, void *arg);
/* Detaches all, and sees to it that everything has come back well. */
void load_stop(void);
void load_free(void);

/* All nodes, and then all objects, which nobody may use any more. */
void load_remove_nodes(void);

#endif
