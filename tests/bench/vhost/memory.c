/* See memory.h. */
#include "tests/bench/vhost/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRONT_PAGE 4096u

static size_t front_memory_pages(size_t size)
{
    return (size + FRONT_PAGE - 1) & ~(size_t)(FRONT_PAGE - 1);
}

static int front_memory_region(struct front_memory *memory, size_t start, size_t size, struct error *err)
{
    struct front_memory_region *region = &memory->region[memory->regions];
    int fd = memfd_create("cairn-vhost-bench", MFD_CLOEXEC);

    if (fd < 0)
        return error_set(err, -errno, "memfd_create: %s", strerror(errno));
    *region = (struct front_memory_region){fd, start, size};
    memory->regions++;
    if (ftruncate(fd, (off_t)size) < 0 || mmap(memory->base + start, size, PROT_READ | PROT_WRITE,
                                               MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED)
        return error_set(err, -errno, "cannot map %zu bytes of shared memory: %s", size, strerror(errno));
    return 0;
}

int front_memory_create(struct front_memory *memory, size_t first, size_t rest, unsigned regions, struct error *err)
{
    int rc = 0;

    first = front_memory_pages(first);
    rest = front_memory_pages(rest);
    *memory = (struct front_memory){.size = first + rest};
    if (regions < 1 || regions > FRONT_REGIONS_MAX || (regions > 1 && rest / FRONT_PAGE < regions - 1))
        return error_set(err, -EINVAL, "%u memory regions cannot be made of %zu bytes", regions, first + rest);
    memory->base = mmap(NULL, memory->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory->base == MAP_FAILED) {
        memory->base = NULL;
        return error_set(err, -errno, "no room for %zu bytes of memory: %s", memory->size, strerror(errno));
    }
    if (regions == 1)
        rc = front_memory_region(memory, 0, memory->size, err);
    else
        rc = front_memory_region(memory, 0, first, err);
    for (unsigned i = 1; i < regions && rc == 0; i++) {
        size_t pages = rest / FRONT_PAGE, start = first + pages * (i - 1) / (regions - 1) * FRONT_PAGE;
        size_t end = first + pages * i / (regions - 1) * FRONT_PAGE;

        rc = front_memory_region(memory, start, end - start, err);
    }
    if (rc < 0)
        front_memory_destroy(memory);
    return rc;
}

void front_memory_destroy(struct front_memory *memory)
{
    for (unsigned i = 0; i < memory->regions; i++)
        close(memory->region[i].fd);
    if (memory->base)
        munmap(memory->base, memory->size);
    *memory = (struct front_memory){0};
}

void *front_memory_take(struct front_memory *memory, size_t size, size_t align)
{
    size_t at = (memory->used + align - 1) & ~(align - 1);

    if (at > memory->size || size > memory->size - at)
        abort();
    memory->used = at + size;
    return memory->base + at;
}
