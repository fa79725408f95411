/*
 * What the fuzzers of vhost-user share: one loop, which is the main loop and
 * an I/O loop, on a ring with a clock of its own; null disks behind an export;
 * and a front end that holds the other end of the session's socket.
 */
#ifndef TESTS_FUZZ_VHOST_WORLD_H
#define TESTS_FUZZ_VHOST_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/vhost_user/export.h"
#include "daemon/vhost_user/proto.h"
#include "daemon/vhost_user/session.h"

/* Guest memory: three regions of this size, the last two side by side. User addresses are USER above. */
#define WORLD_REGION 0x10000u
#define WORLD_SECOND 0x20000u
#define WORLD_USER 0x1000000u
#define WORLD_MEMORY (3 * WORLD_REGION)
#define WORLD_QUEUES 2u
#define WORLD_QUEUE_SIZE 16u
/* Where good rings are, in each half of the first region. */
#define WORLD_QUEUE_OFFSET(queue) ((queue)*0x1000u)
#define WORLD_DESC 0x0u
#define WORLD_AVAIL 0x400u
#define WORLD_USED 0x600u

struct world_front {
    int fd, memory_fd, kick, call, broken;
    int channel[2];     /* the second one is for the back end */
    unsigned char *memory;
    bool packed;
};

void world_ensure(bool holds, const char *what);

/* Once. */
void world_create(const char *name);

/* A front end that is connected, over a disk that answers at once, or later (slow). */
void world_connect(struct world_front *front, bool slow);

/* Sends one message; fds: count of them. */
void world_send(struct world_front *front, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                const int *fds, unsigned count);

/* Negotiates, shares the memory and starts the queues. */
void world_set_up(struct world_front *front, uint64_t features, bool inflight);

/* Runs until nothing moves any more. */
void world_rest(struct world_front *front);

/* A drain begins, or ends. */
void world_pause(bool begin);

struct vhost_session *world_session(void);

/* Hangs up; everything must come to its end. */
void world_disconnect(struct world_front *front);

#endif
