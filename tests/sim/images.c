/*
 * Images: see images.h.
 */
#include "tests/sim/images.h"

#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/memory.h"
#include "tests/engine/world.h"
#include "tests/sim/ring_sim.h"

struct image images[] = {
    {.options = "cluster_size=512"},
    {.options = "cluster_size=512,compat=0.10"},
    {.options = "cluster_size=512,refcount_bits=64,lazy_refcounts=on"},
    {.options = "cluster_size=1k,refcount_bits=1"},
    {.options = "cluster_size=4k,lazy_refcounts=on"},
    {.options = "cluster_size=4k,refcount_bits=64"},
    {.options = "cluster_size=16k,extended_l2=on"},
    {.options = "cluster_size=64k,extended_l2=on"},
    {.options = "cluster_size=64k"},
    {.options = "cluster_size=4k,preallocation=metadata"},
    {.options = "cluster_size=512", .fill = IMAGE_FILLED},
    {.options = "cluster_size=16k,extended_l2=on", .fill = IMAGE_FILLED},
    {.options = "cluster_size=512,compression_type=zstd", .fill = IMAGE_COMPRESSED},
    {.options = "cluster_size=4k", .fill = IMAGE_COMPRESSED},
    {.options = "cluster_size=4k,compat=0.10", .fill = IMAGE_COMPRESSED},
    {.options = "cluster_size=64k,extended_l2=on,compression_type=zstd", .fill = IMAGE_COMPRESSED},
    {.options = "cluster_size=512", .fill = IMAGE_FILLED, .snapshot = true},
    {.options = "cluster_size=16k,extended_l2=on", .fill = IMAGE_FILLED, .snapshot = true},
    {.options = "cluster_size=4k", .fill = IMAGE_COMPRESSED, .snapshot = true},
    {.options = "cluster_size=4k,data_file=data", .data_file = true},
    {.options = "cluster_size=16k,extended_l2=on,data_file=data,data_file_raw=on", .data_file = true},
};
const unsigned image_count = array_size(images);
struct image image_base = {.options = "cluster_size=4k", .fill = IMAGE_COMPRESSED};
struct image image_middle = {.options = "cluster_size=16k,extended_l2=on"};

static char folder[] = "/tmp/cairn-crowd-XXXXXX";

int image_tool(char said[4096], const char *format, ...)
{
    char tool[1024], command[1200];
    va_list args;

    va_start(args, format);
    vsnprintf(tool, sizeof(tool), format, args);
    va_end(args);
    snprintf(command, sizeof(command), "cd %s && { %s; } 2>&1 </dev/null", folder, tool);
    FILE *pipe = popen(command, "r");

    if (!pipe)
        return -1;
    size_t size = fread(said, 1, 4095, pipe);

    said[size] = 0;
    int status = pclose(pipe);

    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void image_pattern(unsigned char *bytes, uint64_t size)
{
    guest_backing(0, bytes, size);
    for (uint64_t at = 0; at < size; at++) {
        if (at / 12288 % 3 == 2)
            bytes[at] = 0;
    }
}

static bool image_load(const char *name, unsigned char **bytes, uint64_t *size)
{
    AUTO_FREE char *path = memory_format("%s/%s", folder, name);
    FILE *file = fopen(path, "rb");

    if (!file)
        return false;
    fseek(file, 0, SEEK_END);
    *size = (uint64_t)ftell(file);
    *bytes = memory_zero(*size + 1);
    rewind(file);
    bool all = fread(*bytes, 1, *size, file) == *size;

    fclose(file);
    return all;
}

static bool source_save(const char *name, const unsigned char *bytes, uint64_t size)
{
    AUTO_FREE char *path = memory_format("%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    bool all = file && fwrite(bytes, 1, size, file) == size;

    return file && fclose(file) == 0 && all;
}

static bool image_make(struct image *image, const char *source, unsigned size)
{
    char said[4096];
    int code;

    if (image->fill == IMAGE_EMPTY)
        code = image_tool(said, "qemu-img create -q -f qcow2 -o %s image %u", image->options, size);
    else
        code = image_tool(said, "qemu-img convert -q -f raw -O qcow2 %s -o %s %s image",
                          image->fill == IMAGE_COMPRESSED ? "-c" : "", image->options, source);
    if (code == 0 && image->snapshot)
        code = image_tool(said, "qemu-img snapshot -q -c s image");
    if (code)
        fprintf(stderr, "qemu-img with %s: %s\n", image->options, said);
    return code == 0 && image_load("image", &image->bytes, &image->size);
}

bool images_make(void)
{
    AUTO_FREE unsigned char *bytes = memory_zero(IMAGE_SIZE);

    if (!mkdtemp(folder))
        return false;
    guest_backing(0, bytes, BACKING_SIZE);
    bool ok = source_save("base", bytes, BACKING_SIZE);

    image_pattern(bytes, IMAGE_SIZE);
    ok = ok && source_save("source", bytes, IMAGE_SIZE) && image_make(&image_base, "base", BACKING_SIZE) &&
         image_make(&image_middle, "", BACKING_SIZE);
    for (unsigned i = 0; i < image_count && ok; i++)
        ok = image_make(&images[i], "source", IMAGE_SIZE);
    return ok;
}

void images_free(void)
{
    AUTO_FREE char *command = memory_format("rm -r %s", folder);

    for (unsigned i = 0; i < image_count; i++)
        free(images[i].bytes);
    free(image_base.bytes);
    free(image_middle.bytes);
    if (system(command))
        fprintf(stderr, "cannot remove %s\n", folder);
}

int image_file(const void *bytes, uint64_t size, char path[64])
{
    int fd = memfd_create("image", MFD_CLOEXEC);

    ENSURE(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    ENSURE(!bytes || pwrite(fd, bytes, size, 0) == (ssize_t)size);
    snprintf(path, 64, "/proc/%d/fd/%d", (int)getpid(), fd);
    return fd;
}
