/*
 * New qcow2 images: see qcow2_create.h. The engine does plain system calls on
 * a file that nobody else knows, on a thread of the pool.
 */
#include "drivers/format/qcow2_create.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "drivers/format/qcow2.h"
#include "generated/options.h"

#define CREATE_CLUSTER_BITS 16
#define CREATE_REFCOUNT_ORDER 4

struct creation {
    char *path;
    const char *backing_path, *backing_format;
    uint64_t size;
    int fd;
    struct error *err;
};

/* The world of the engine */

static int create_read(void *world, enum format_file file, uint64_t offset, void *buf, size_t size)
{
    const struct creation *creation = world;
    ssize_t done = pread(creation->fd, buf, size, (off_t)offset);

    (void)file;
    if (done < 0)
        return -errno;
    memset((char *)buf + done, 0, size - (size_t)done);
    return 0;
}

static int create_write(void *world, enum format_file file, uint64_t offset, const void *buf, size_t size)
{
    const struct creation *creation = world;

    (void)file;
    while (size) {
        ssize_t done = pwrite(creation->fd, buf, size, (off_t)offset);

        if (done < 0)
            return -errno;
        if (done == 0)
            return -ENOSPC;
        buf = (const char *)buf + done;
        offset += (uint64_t)done;
        size -= (size_t)done;
    }
    return 0;
}

static int create_flush(void *world, enum format_file file)
{
    const struct creation *creation = world;

    (void)file;
    return fsync(creation->fd) < 0 ? -errno : 0;
}

static int create_truncate(void *world, enum format_file file, uint64_t size)
{
    const struct creation *creation = world;

    (void)file;
    return ftruncate(creation->fd, (off_t)size) < 0 ? -errno : 0;
}

static uint64_t create_size(void *world, enum format_file file)
{
    const struct creation *creation = world;
    struct stat st;

    (void)file;
    return fstat(creation->fd, &st) < 0 ? 0 : (uint64_t)st.st_size;
}

static void create_discard(void *world, enum format_file file, uint64_t offset, uint64_t length)
{
    (void)world;
    (void)file;
    (void)offset;
    (void)length;
}

static void *create_alloc(void *world, size_t size)
{
    (void)world;
    return calloc(1, size);
}

static void create_release(void *world, void *memory)
{
    (void)world;
    free(memory);
}

static void create_lock(void *world, enum format_lock which)
{
    (void)which;
    (void)world;
}

static uint64_t create_grace_begin(void *world)
{
    (void)world;
    return 0;
}

static bool create_grace_over(void *world, uint64_t grace)
{
    (void)world;
    (void)grace;
    return true;
}

static void create_report(void *world, enum format_event event, uint64_t offset, uint64_t length, const char *text)
{
    (void)world;
    (void)event;
    (void)offset;
    (void)length;
    (void)text;
}

static const struct format_io create_io = {
    .read = create_read,
    .write = create_write,
    .flush = create_flush,
    .grow = create_truncate,
    .truncate = create_truncate,
    .discard = create_discard,
    .size = create_size,
    .alloc = create_alloc,
    .release = create_release,
    .lock = create_lock,
    .unlock = create_lock,
    .grace_begin = create_grace_begin,
    .grace_over = create_grace_over,
    .report = create_report,
};

/* The file's name is as durable as what is in it. */
static int create_sync_folder(const char *path)
{
    AUTO_FREE char *copy = memory_string(path);
    AUTO_CLOSE int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int create_image(struct creation *creation, const char *backing)
{
    struct qcow2_create_options options = {
        .size = (creation->size + 511) & ~UINT64_C(511),
        .version = 3,
        .cluster_bits = CREATE_CLUSTER_BITS,
        .refcount_order = CREATE_REFCOUNT_ORDER,
        .backing_name = backing,
        .backing_format = backing ? creation->backing_format : NULL,
    };
    char text[256] = "";
    int result = qcow2_create(&create_io, creation, &options, text);

    if (result == 0)
        result = create_flush(creation, FORMAT_FILE_IMAGE);
    if (result == 0)
        result = create_sync_folder(creation->path);
    return result < 0 ? error_set(creation->err, result, "Could not create '%s': %s", creation->path,
                                  *text ? text : strerror(-result))
                      : 0;
}

static int create_blocking(void *arg)
{
    struct creation *creation = arg;
    AUTO_FREE char *backing = creation->backing_path ? realpath(creation->backing_path, NULL) : NULL;

    if (creation->backing_path && !backing)
        return error_set(creation->err, -errno, "Could not find '%s': %s", creation->backing_path, strerror(errno));
    creation->fd = open(creation->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0644);
    if (creation->fd < 0)
        return error_set(creation->err, -errno, "Could not create '%s': %s", creation->path, strerror(errno));
    int result = create_image(creation, backing);

    close(creation->fd);
    if (result < 0)
        unlink(creation->path);
    return result;
}

/* The action */

static int create_unlink(void *arg)
{
    const struct creation *creation = arg;

    return unlink(creation->path) < 0 ? -errno : 0;
}

static void create_abort(void *action)
{
    coroutine_call(create_unlink, action);
}

static void create_clean(void *action)
{
    free(((struct creation *)action)->path);
}

static const struct change_type create_type = {.name = "create image", .abort = create_abort, .clean = create_clean};

/* What the header says about the layer; nothing where a file and a format do not say it all. */
static void create_name_backing(struct creation *creation, struct node *layer)
{
    const struct raw_options *raw = layer->options->driver == NODE_DRIVER_RAW ? node_driver_options(layer) : NULL;

    if (raw && (raw->offset || raw->has_size))
        return;
    creation->backing_format = layer->options->driver == NODE_DRIVER_QCOW2 ? "qcow2" : "raw";
    creation->backing_path = disk_image_name(layer);
}

int qcow2_create_overlay(struct change *change, const char *path, struct node *layer, struct error *err)
{
    struct creation creation = {.path = (char *)(uintptr_t)path, .size = layer->size, .err = err};

    create_name_backing(&creation, layer);
    int result = coroutine_call(create_blocking, &creation);

    if (result < 0)
        return result;
    struct creation *made = change_add(change, &create_type, sizeof(*made));

    made->path = memory_string(path);
    return 0;
}
