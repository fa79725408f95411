/*
 * The front end's memory, as far as it shares it: a table of regions, each
 * mapped from a file descriptor that the front end sent.
 *
 * Tables are changed by the main loop while no queue runs, and read by the
 * queues' loops while they do. Mappings are gone only when no request is in
 * flight that could refer to them, since queues are stopped before.
 *
 * A front end may shorten the file below a mapping (unless it has sealed it).
 * Touching what is gone then raises SIGBUS. The handler here puts anonymous
 * memory in the place of the whole mapping, marks it as lost, and lets the
 * thread go on; the queues look at the mark and stop the device. In system
 * calls the kernel reports EFAULT instead, and the request fails.
 */
#ifndef DAEMON_VHOST_USER_MEMORY_H
#define DAEMON_VHOST_USER_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/vhost_user/proto.h"

#define VHOST_REGIONS_MAX 256u

struct error;

/* A shared mapping that survives the shortening of its file. */
struct vhost_mapping {
    unsigned char *start;       /* where the wanted bytes begin */
    void *base;                 /* of the mapping: whole pages */
    size_t length;              /* of the mapping */
    unsigned guard;             /* its place among what the handler knows */
};

/*
 * Maps size bytes of fd, from offset on. fd stays the caller's. Errors: -EINVAL (no size, or beyond
 * what can be addressed, or the file is shorter: it says so), -ENOSPC (too many mappings in the
 * daemon), those of mmap(2). lost is set by the handler, from any thread, when bytes have vanished;
 * it must live as long as the mapping.
 */
int vhost_mapping_create(struct vhost_mapping *mapping, int fd, uint64_t offset, uint64_t size, _Atomic bool *lost,
                         struct error *err);
void vhost_mapping_destroy(struct vhost_mapping *mapping);

struct vhost_region {
    uint64_t guest, size;       /* addresses that the guest uses: hot */
    unsigned char *host;        /* where guest is mapped here */
    uint64_t user;              /* the same in the front end's address space */
    struct vhost_mapping mapping;
};

struct vhost_memory {
    struct vhost_region *regions;       /* by guest address */
    unsigned count;
    _Atomic bool *lost;                 /* set when bytes of a region have vanished */
};

/* Unmaps all. */
void vhost_memory_clear(struct vhost_memory *memory);

/* Maps one more region. fd stays the caller's. -EINVAL, -EEXIST (overlap), -ENOSPC. */
int vhost_memory_add(struct vhost_memory *memory, const struct vhost_region_desc *desc, int fd, struct error *err);

/* The region with this guest address, user address and size goes. -ENOENT. */
int vhost_memory_remove(struct vhost_memory *memory, const struct vhost_region_desc *desc, struct error *err);

/* The region that holds guest, or NULL. Any loop. */
const struct vhost_region *vhost_memory_find(const struct vhost_memory *memory, uint64_t guest);

/* Where `size` bytes at an address of the front end are mapped, inside of one region; NULL if they are not. */
void *vhost_memory_user(const struct vhost_memory *memory, uint64_t user, uint64_t size);

/* Copies bytes of the guest's, from any number of regions. False when some of them are in none. */
bool vhost_memory_read(const struct vhost_memory *memory, uint64_t guest, void *to, size_t size);

#endif
