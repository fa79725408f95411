/*
 * qcow2: the backing file that an image names. Main loop.
 *
 * Names in images are trusted as little as can be: a plain file name, opened
 * read-only, in the format that the image tells, which is qcow2 or raw; and
 * never a data file. The option `backing` overrides all of it.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"
#include "generated/options.h"

const char *disk_image_name(const struct node *node)
{
    while (node) {
        const struct edge *below = node->filtered ? node->filtered : node_child_by_role(node, ROLE_PRIMARY);

        if (node->options->driver == NODE_DRIVER_FILE)
            return ((const struct file_options *)node_driver_options(node))->filename;
        if (node->options->driver == NODE_DRIVER_HOST_DEVICE)
            return ((const struct host_device_options *)node_driver_options(node))->filename;
        node = below ? below->child : NULL;
    }
    return NULL;
}

/* A name with a colon before the first slash is somebody's protocol. */
static bool backing_has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static int backing_full_name(const struct disk *disk, const char *name, char **ret, struct error *err)
{
    const char *image = disk_image_name(disk->node);

    if (backing_has_protocol(name))
        return error_set(err, -EINVAL,
                         "Backing file '%s' of node '%s' is no plain file name; give the option 'backing'", name,
                         disk->node->name);
    if (name[0] == '/') {
        *ret = memory_string(name);
        return 0;
    }
    if (!image)
        return error_set(err, -EINVAL,
                         "Backing file '%s' of node '%s' is relative to an image that is no file; give the option "
                         "'backing'",
                         name, disk->node->name);
    const char *slash = strrchr(image, '/');

    *ret = slash ? memory_format("%.*s/%s", (int)(slash - image), image, name) : memory_string(name);
    return 0;
}

struct backing_look {
    const char *name, *image;
    bool is_device;
    struct disk_identity backing, own;
};

static int backing_look_blocking(void *arg)
{
    struct backing_look *look = arg;
    struct stat st;

    if (look->image && stat(look->image, &st) == 0)
        look->own = (struct disk_identity){.device = st.st_dev, .inode = st.st_ino};
    if (stat(look->name, &st) < 0)
        return -errno;
    look->backing = (struct disk_identity){.device = st.st_dev, .inode = st.st_ino};
    look->is_device = S_ISBLK(st.st_mode);
    return 0;
}

/* Whether the file is this image, or one that led here. */
static bool backing_is_above(const struct disk *disk, const struct disk_identity *file)
{
    for (; disk; disk = disk->identity.overlay) {
        if (disk->identity.inode == file->inode && disk->identity.device == file->device)
            return true;
    }
    return false;
}

static struct node_options *backing_options(char *name, bool is_device, bool is_qcow2)
{
    struct node_options *file = memory_new(struct node_options), *options = memory_new(struct node_options);
    struct node_ref *ref = memory_new(struct node_ref);

    file->driver = is_device ? NODE_DRIVER_HOST_DEVICE : NODE_DRIVER_FILE;
    if (is_device)
        file->u.host_device = (struct host_device_options){.filename = name};
    else
        file->u.file = (struct file_options){.filename = name};
    ref->node = file;
    options->read_only = true;
    options->driver = is_qcow2 ? NODE_DRIVER_QCOW2 : NODE_DRIVER_RAW;
    if (is_qcow2)
        options->u.qcow2.file = ref;
    else
        options->u.raw.file = ref;
    return options;
}

int disk_backing(struct node *node, struct node_options **ret, struct error *err)
{
    struct disk *disk = node->state;
    const struct qcow2_options *options = node_driver_options(node);
    const char *name = qcow2_backing_name(disk->engine), *format = qcow2_backing_format(disk->engine);
    AUTO_FREE char *path = NULL;

    if (options->backing || !name)
        return 0;
    if (!format)
        return error_set(err, -EINVAL,
                         "Node '%s' names backing file '%s' without a format, which is never guessed; give the option "
                         "'backing'",
                         node->name, name);
    bool is_qcow2 = strcmp(format, "qcow2") == 0;

    if (!is_qcow2 && strcmp(format, "raw") != 0)
        return error_set(err, -EINVAL,
                         "Node '%s' names backing file '%s' with format '%s', which is neither qcow2 nor raw; give the "
                         "option 'backing'",
                         node->name, name, format);
    int result = backing_full_name(disk, name, &path, err);

    if (result < 0)
        return result;
    struct backing_look look = {.name = path, .image = disk_image_name(node)};

    result = coroutine_call(backing_look_blocking, &look);
    disk->identity.device = look.own.device;
    disk->identity.inode = look.own.inode;
    if (result < 0)
        return error_set(err, result, "Could not open backing file '%s' of node '%s': %s", path, node->name,
                         strerror(-result));
    if (backing_is_above(disk, &look.backing))
        return error_set(err, -ELOOP, "Backing file '%s' of node '%s' is above it in its chain", path, node->name);
    *ret = backing_options(take_ptr(&path), look.is_device, is_qcow2);
    return 0;
}
