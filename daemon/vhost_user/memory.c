/*
 * The front end's memory: see memory.h.
 */
#include "daemon/vhost_user/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "core/error.h"
#include "core/memory.h"

/* The handler. It reads what the main loop writes; a guard is changed only while nobody touches its mapping. */

#define GUARDS_MAX 4096u

struct guard {
    _Atomic uintptr_t base;             /* 0: free */
    _Atomic size_t length;
    _Atomic(_Atomic bool *) lost;
};

static struct guard guards[GUARDS_MAX];
static _Atomic unsigned guards_used;    /* none at or above it */
static struct sigaction guard_previous;

static struct guard *guard_find(uintptr_t address)
{
    unsigned used = atomic_load(&guards_used);

    for (unsigned i = 0; i < used; i++) {
        uintptr_t base = atomic_load(&guards[i].base);

        if (base && address >= base && address - base < atomic_load(&guards[i].length))
            return &guards[i];
    }
    return NULL;
}

static void guard_fault(int number, siginfo_t *info, void *context)
{
    struct guard *guard = info->si_code > 0 ? guard_find((uintptr_t)info->si_addr) : NULL;
    int saved = errno;

    (void)context;
    if (guard && mmap((void *)atomic_load(&guard->base), atomic_load(&guard->length), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED) {
        atomic_store(atomic_load(&guard->lost), true);
        errno = saved;
        return;
    }
    /* Not ours: the instruction faults again, and what was there before deals with it. */
    sigaction(number, &guard_previous, NULL);
}

static void guard_install(void)
{
    struct sigaction action = {.sa_sigaction = guard_fault, .sa_flags = SA_SIGINFO};

    sigaction(SIGBUS, &action, &guard_previous);
}

/* The index, or GUARDS_MAX. Main loop only. */
static unsigned guard_add(void *base, size_t length, _Atomic bool *lost)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    unsigned index = 0;

    pthread_once(&once, guard_install);
    while (index < GUARDS_MAX && atomic_load(&guards[index].base))
        index++;
    if (index == GUARDS_MAX)
        return index;
    atomic_store(&guards[index].length, length);
    atomic_store(&guards[index].lost, lost);
    atomic_store(&guards[index].base, (uintptr_t)base);
    if (index >= atomic_load(&guards_used))
        atomic_store(&guards_used, index + 1);
    return index;
}

/* Mappings. */

static int mapping_page(int fd, uint64_t *page, struct error *err)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) < 0)
        return error_set(err, -errno, "the memory's file descriptor cannot be examined: %s", strerror(errno));
    /* Its pages come from a program, which may let the one who touches them wait for ever. */
    if (fs.f_type == FUSE_SUPER_MAGIC)
        return error_set(err, -EINVAL, "memory on a FUSE file system is not trusted");
    *page = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : (uint64_t)sysconf(_SC_PAGESIZE);
    return 0;
}

static int mapping_check(int fd, uint64_t offset, uint64_t size, struct error *err)
{
    struct stat st;

    if (size == 0 || size > SIZE_MAX / 4 || offset > INT64_MAX - size)
        return error_set(err, -EINVAL, "%" PRIu64 " bytes at offset %" PRIu64 " of a file cannot be mapped", size,
                         offset);
    if (fstat(fd, &st) < 0)
        return error_set(err, -errno, "the memory's file descriptor cannot be examined: %s", strerror(errno));
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < offset + size)
        return error_set(err, -EINVAL, "%" PRIu64 " bytes at offset %" PRIu64 " do not fit a file of %" PRIu64, size,
                         offset, (uint64_t)st.st_size);
    return 0;
}

int vhost_mapping_create(struct vhost_mapping *mapping, int fd, uint64_t offset, uint64_t size, _Atomic bool *lost,
                         struct error *err)
{
    uint64_t page = 0;
    int result = mapping_check(fd, offset, size, err);

    if (result == 0)
        result = mapping_page(fd, &page, err);
    if (result < 0)
        return result;
    uint64_t skip = offset & (page - 1);
    size_t length = (size_t)((skip + size + page - 1) & ~(page - 1));
    void *base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)(offset - skip));

    if (base == MAP_FAILED)
        return error_set(err, -errno, "%" PRIu64 " bytes of shared memory cannot be mapped: %s", size, strerror(errno));
    unsigned guard = guard_add(base, length, lost);

    if (guard == GUARDS_MAX) {
        munmap(base, length);
        return error_set(err, -ENOSPC, "more than %u regions of shared memory are in use", GUARDS_MAX);
    }
    madvise(base, length, MADV_DONTDUMP);
    *mapping =
        (struct vhost_mapping){.start = (unsigned char *)base + skip, .base = base, .length = length, .guard = guard};
    return 0;
}

void vhost_mapping_destroy(struct vhost_mapping *mapping)
{
    if (!mapping->base)
        return;
    munmap(mapping->base, mapping->length);
    atomic_store(&guards[mapping->guard].base, 0);
    *mapping = (struct vhost_mapping){0};
}

/* Tables. */

void vhost_memory_clear(struct vhost_memory *memory)
{
    for (unsigned i = 0; i < memory->count; i++)
        vhost_mapping_destroy(&memory->regions[i].mapping);
    free(take_ptr(&memory->regions));
    memory->count = 0;
}

static bool region_overlaps(const struct vhost_region *region, const struct vhost_region_desc *desc)
{
    return desc->guest_address < region->guest + region->size && region->guest < desc->guest_address + desc->size;
}

int vhost_memory_add(struct vhost_memory *memory, const struct vhost_region_desc *desc, int fd, struct error *err)
{
    unsigned at = 0;

    if (memory->count == VHOST_REGIONS_MAX)
        return error_set(err, -ENOSPC, "more than %u memory regions", VHOST_REGIONS_MAX);
    if (desc->guest_address > UINT64_MAX - desc->size || desc->user_address > UINT64_MAX - desc->size)
        return error_set(err, -EINVAL, "a memory region of %" PRIu64 " bytes at 0x%" PRIx64 " wraps around", desc->size,
                         desc->guest_address);
    for (unsigned i = 0; i < memory->count; i++) {
        if (region_overlaps(&memory->regions[i], desc))
            return error_set(err, -EEXIST, "memory regions at 0x%" PRIx64 " and 0x%" PRIx64 " overlap",
                             memory->regions[i].guest, desc->guest_address);
        at += memory->regions[i].guest < desc->guest_address;
    }
    struct vhost_region region = {.guest = desc->guest_address, .size = desc->size, .user = desc->user_address};
    int result = vhost_mapping_create(&region.mapping, fd, desc->mmap_offset, desc->size, memory->lost, err);

    if (result < 0)
        return result;
    region.host = region.mapping.start;
    memory->regions = memory_grow(memory->regions, memory->count + 1, sizeof(region));
    memmove(&memory->regions[at + 1], &memory->regions[at], (memory->count - at) * sizeof(region));
    memory->regions[at] = region;
    memory->count++;
    return 0;
}

int vhost_memory_remove(struct vhost_memory *memory, const struct vhost_region_desc *desc, struct error *err)
{
    for (unsigned i = 0; i < memory->count; i++) {
        struct vhost_region *region = &memory->regions[i];

        if (region->guest != desc->guest_address || region->size != desc->size || region->user != desc->user_address)
            continue;
        vhost_mapping_destroy(&region->mapping);
        memory->count--;
        memmove(region, region + 1, (memory->count - i) * sizeof(*region));
        return 0;
    }
    return error_set(err, -ENOENT, "there is no memory region of %" PRIu64 " bytes at 0x%" PRIx64, desc->size,
                     desc->guest_address);
}

const struct vhost_region *vhost_memory_find(const struct vhost_memory *memory, uint64_t guest)
{
    unsigned low = 0, high = memory->count;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        const struct vhost_region *region = &memory->regions[middle];

        if (guest < region->guest)
            high = middle;
        else if (guest - region->guest >= region->size)
            low = middle + 1;
        else
            return region;
    }
    return NULL;
}

void *vhost_memory_user(const struct vhost_memory *memory, uint64_t user, uint64_t size)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct vhost_region *region = &memory->regions[i];

        if (user >= region->user && user - region->user < region->size && size <= region->size - (user - region->user))
            return region->host + (user - region->user);
    }
    return NULL;
}

bool vhost_memory_read(const struct vhost_memory *memory, uint64_t guest, void *to, size_t size)
{
    unsigned char *at = to;

    while (size) {
        const struct vhost_region *region = vhost_memory_find(memory, guest);

        if (!region)
            return false;
        uint64_t inside = guest - region->guest;
        size_t part = size < region->size - inside ? size : (size_t)(region->size - inside);

        memcpy(at, region->host + inside, part);
        at += part;
        guest += part;
        size -= part;
    }
    return true;
}
