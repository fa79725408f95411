/*
 * A vhost-user front end: the socket, what is negotiated over it, and the
 * device's life (vhost-user.rst; virtio 1.2, section 3.1 and 5.2).
 *
 *   front_connect() -> front_negotiate() -> front_start() -> ... -> front_stop() -> front_disconnect()
 *
 * After the back end died, front_disconnect() and the same again: the in-flight
 * region and the queues stay, and what was negotiated must be offered again.
 *
 * Used by one thread. What the back end sends is believed as far as it was
 * asked for; calls wait for a reply as long as `patience` says.
 */
#ifndef TESTS_BENCH_VHOST_FRONT_H
#define TESTS_BENCH_VHOST_FRONT_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "tests/bench/vhost/memory.h"
#include "tests/bench/vhost/proto.h"
#include "tests/bench/vhost/queue.h"

#define FRONT_FDS_MAX 8u
#define FRONT_BIT(bit) (1ull << (bit))

struct front {
    int fd;                     /* -1 while not connected */
    int backend;                /* our end of the back-end channel; -1 without one */
    int broken;                 /* eventfd by which the back end says that a ring is broken */
    unsigned patience;          /* seconds to wait for a reply */
    uint64_t offered, features;
    uint64_t protocol_offered, protocol;
    uint64_t queues_max, slots_max;
    struct virtio_blk_config config;
    const struct front_memory *memory;
    bool memory_shared;         /* the back end knows it */
    struct front_queue *queues;
    unsigned queue_count;
    struct front_inflight inflight;
    int inflight_fd;            /* -1 before the back end gave one */
};

/* Nothing is connected yet; front_disconnect() and front_destroy() work from here on. */
int front_create(struct front *front, unsigned patience, struct error *err);
void front_destroy(struct front *front);

int front_connect(struct front *front, const char *path, struct error *err);
void front_disconnect(struct front *front);

/* Takes what is offered of the wanted feature bits (virtio) and of all protocol features that are known here, and
 * reads the configuration. -ENOTSUP when VIRTIO_F_VERSION_1 or the protocol features are not offered. */
int front_negotiate(struct front *front, uint64_t wanted, struct error *err);

/* Tells memory and queues, and lets the device go. bases: one for each queue, as front_stop() or front_queue_base()
 * gave it; NULL for new rings. Memory goes in one table, or region by region if the back end can take that, and only
 * once in a connection. */
int front_start(struct front *front, const uint32_t *bases, struct error *err);

/* Stops the queues. When it returns, the device has ended or given up every request that it took; bases is filled. */
int front_stop(struct front *front, uint32_t *bases, struct error *err);

/* RESET_DEVICE, if the back end can; then the device must be started again. It still knows the memory. */
int front_reset(struct front *front, struct error *err);

/* Takes the last region of several away and gives it back (CONFIGURE_MEM_SLOTS); the queues are stopped. */
int front_replug_memory(struct front *front, struct error *err);

int front_read_config(struct front *front, struct error *err);
int front_write_config(struct front *front, uint32_t offset, const void *data, uint32_t size, struct error *err);

/* Answers what came on the back-end channel. 1: the configuration changed; 0: nothing of interest. */
int front_serve_backend(struct front *front, struct error *err);

static inline bool front_has(const struct front *front, unsigned protocol_bit)
{
    return front->protocol & FRONT_BIT(protocol_bit);
}

/* One message as it is, for tests that send what should not be sent. */
int front_send(int fd, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
               unsigned fd_count, struct error *err);

/* One message; at most *size bytes of payload, and one fd if fd is not NULL (-1 when none came; others are closed).
 * -ECONNRESET when the other side is gone, -ETIMEDOUT when it is silent for too long. */
int front_receive(int fd, struct front_header *header, void *payload, uint32_t *size, int *received_fd,
                  struct error *err);

#endif
