/*
 * Opening, locks and sizes: files, block devices, null-co and raw windows.
 * Each test runs on io_uring and on the thread ring. The one for host_device
 * needs a loop device, hence root, and is left out where there is none.
 */
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include "core/driver.h"
#include "tests/unit/node_harness.h"

static void resizing(void)
{
    AUTO_ERROR struct error err = {0};
    struct edge edge = {0};
    unsigned char byte = 1;

    make_file(4096);
    edge.child = open_node("a", false);
    ck_assert_int_eq(node_resize(edge.child, 10000, &err), 0);
    ck_assert_uint_eq(edge.child->size, 10000);
    ck_assert_uint_eq(size_on_disk(), 10000);
    ck_assert_int_eq(edge_read(&edge, 9999, &byte, 1), 0);
    ck_assert_uint_eq(byte, 0);
    ck_assert_int_eq(node_resize(edge.child, 100, &err), 0);
    ck_assert_uint_eq(size_on_disk(), 100);
    ck_assert_int_lt(node_resize(edge.child, UINT64_MAX, &err), 0);
    ck_assert_uint_eq(size_on_disk(), 100);
    close_node(edge.child);
}

/* What open() refuses. */

static void refused(const char *path, const char *text)
{
    struct node_options options = options_of(path, false);
    AUTO_ERROR struct error err = {0};
    struct node *node;

    ck_assert_int_lt(try_open("a", &options, &node, &err), 0);
    ck_assert_msg(strstr(err.text, text), "%s", err.text);
}

static void refusals(void)
{
    AUTO_FREE char *fifo = memory_format("%s.fifo", test_path);

    make_file(0);
    refused("", "requires a file name");
    refused("/nonexistent/file", "Could not open '/nonexistent/file': No such file or directory");
    refused("/dev/null", "'file' driver requires '/dev/null' to be a regular file");
    refused("/", "Could not open '/': Is a directory");
    ck_assert_int_eq(mkfifo(fifo, 0600), 0);
    refused(fifo, "to be a regular file");
    unlink(fifo);
    struct node_options options = options_of(test_path, false);
    AUTO_ERROR struct error err = {0};
    struct node *node;

    options.driver = NODE_DRIVER_HOST_DEVICE;
    ck_assert_int_lt(try_open("a", &options, &node, &err), 0);
    ck_assert_msg(strstr(err.text, "to be a block device"), "%s", err.text);
}

/* Locks: two nodes on one file are two programs to each other. */

static int claim(struct node *node, uint32_t taken, uint32_t shared, bool commit, struct error *err)
{
    struct permission total = {.taken = taken, .shared = shared};

    error_clear(err);
    return node->driver->claim(node, &total, commit, err);
}

static void locks(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *a, *b;

    make_file(MIB);
    a = open_node("a", false);
    b = open_node("b", false);
    uint32_t both = PERM_READ | PERM_WRITE;

    /* Both may write while both share. */
    ck_assert_int_eq(claim(a, both, PERM_ALL, false, &err), 0);
    ck_assert_int_eq(claim(b, both, PERM_ALL, false, &err), 0);
    ck_assert_int_lt(claim(b, both, PERM_READ, false, &err), 0);
    ck_assert_msg(strstr(err.text, "Failed to get shared \"write\" lock"), "%s", err.text);
    ck_assert_msg(strstr(err.text, "Is another process using the image"), "%s", err.text);
    /* What failed left nothing behind. */
    ck_assert_int_eq(claim(a, both | PERM_RESIZE, PERM_ALL, false, &err), 0);
    /* Given up only by a commit. */
    ck_assert_int_eq(claim(a, PERM_READ, PERM_ALL, false, &err), 0);
    ck_assert_int_lt(claim(b, both, PERM_READ, false, &err), 0);
    ck_assert_int_eq(claim(a, PERM_READ, PERM_ALL, true, NULL), 0);
    ck_assert_int_eq(claim(b, both, PERM_READ, false, &err), 0);
    ck_assert_int_eq(claim(b, both, PERM_READ, true, NULL), 0);
    ck_assert_int_lt(claim(a, both, PERM_ALL, false, &err), 0);
    ck_assert_msg(strstr(err.text, "Failed to get \"write\" lock"), "%s", err.text);
    /* A node that nobody uses may not be resized against somebody else's will either. */
    ck_assert_int_lt(node_resize(a, 4096, &err), 0);
    ck_assert_uint_eq(size_on_disk(), MIB);
    close_node(b);
    ck_assert_int_eq(claim(a, both, PERM_ALL, false, &err), 0);
    close_node(a);
}

/* raw and null-co. */

static struct node_options raw_options_of(const char *file, uint64_t offset, int64_t size)
{
    static struct node_ref ref;

    ref = (struct node_ref){.name = (char *)(uintptr_t)file};
    return (struct node_options){
        .driver = NODE_DRIVER_RAW,
        .discard = NODE_DISCARD_UNMAP,
        .u.raw = {.offset = offset, .has_size = size >= 0, .size = size >= 0 ? (uint64_t)size : 0, .file = &ref},
    };
}

static struct node *open_raw(const char *name, uint64_t offset, int64_t size)
{
    struct node_options options = raw_options_of("a", offset, size);
    AUTO_ERROR struct error err = {0};
    struct node *node = NULL;
    int result = try_open(name, &options, &node, &err);

    ck_assert_msg(result == 0, "%s", err.text);
    return node;
}

static void raw_refused(uint64_t offset, int64_t size, const char *text)
{
    struct node_options options = raw_options_of("a", offset, size);
    AUTO_ERROR struct error err = {0};
    struct node *node;

    ck_assert_int_lt(try_open("r", &options, &node, &err), 0);
    ck_assert_msg(strstr(err.text, text), "%s", err.text);
}

static void raw_windows(void)
{
    struct edge edge = {0}, below = {0};
    AUTO_ERROR struct error err = {0};
    unsigned char bytes[2048];

    make_file(MIB);
    below.child = open_node("a", false);
    raw_refused(MIB + 1, -1, "cannot be greater than size of the containing file (1048576)");
    raw_refused(512, MIB, "has to be smaller or equal to the actual size");
    raw_refused(INT64_MAX, INT64_MAX, "cannot be greater");
    raw_refused(1, INT64_MAX, "has to be smaller or equal");
    raw_refused(0, 1000, "is not multiple of 512");
    edge.child = open_raw("r", 1000, 1024);
    ck_assert_uint_eq(edge.child->size, 1024);
    memset(bytes, 5, sizeof(bytes));
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 1024, 0), 0);
    ck_assert_int_eq(edge_write_zeroes(&edge, 100, 10, REQ_MAY_UNMAP), 0);
    ck_assert_int_eq(edge_flush(&edge), 0);
    ck_assert_int_eq(edge_read(&below, 990, bytes, 1044), 0);
    ck_assert_uint_eq(bytes[9], 0);
    ck_assert_uint_eq(bytes[10], 5);
    ck_assert_uint_eq(bytes[110], 0);
    ck_assert_uint_eq(bytes[120], 5);
    ck_assert_uint_eq(bytes[1033], 5);
    ck_assert_uint_eq(bytes[1034], 0);
    /* What lies outside is not for a layer above, whatever it was told by an image. */
    ck_assert_int_eq(edge_write(&edge, 1000, bytes, 100, 0), -ENOSPC);
    ck_assert_int_eq(edge_write_zeroes(&edge, 1024, 1, 0), -ENOSPC);
    ck_assert_int_eq(edge_discard(&edge, UINT64_MAX, 1), -ENOSPC);
    ck_assert_int_eq(edge_read(&edge, 1024, bytes, 1), -EIO);
    ck_assert_int_eq(edge_read(&edge, 1000, bytes, 25), -EIO);
    ck_assert_int_eq(edge_flush(&edge), 0);
    /* A window of a fixed size keeps the file as it is. */
    ck_assert_int_lt(node_resize(edge.child, 2048, &err), 0);
    ck_assert_int_lt(node_resize(below.child, 512, &err), 0);
    ck_assert_uint_eq(below.child->size, MIB);
    close_node(edge.child);
    close_node(below.child);
}

static void raw_follows(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *file, *raw;

    make_file(MIB);
    file = open_node("a", false);
    raw = open_raw("r", 4096, -1);
    ck_assert_uint_eq(raw->size, MIB - 4096);
    ck_assert_int_eq(node_resize(file, 8192, &err), 0);
    ck_assert_uint_eq(raw->size, 4096);
    ck_assert_int_eq(node_resize(raw, 10000, &err), 0);
    ck_assert_uint_eq(file->size, 14096);
    ck_assert_uint_eq(size_on_disk(), 14096);
    ck_assert_int_eq(node_resize(file, 100, &err), 0);
    ck_assert_uint_eq(raw->size, 0);
    ck_assert_int_lt(node_resize(raw, UINT64_MAX - 100, &err), 0);
    close_node(raw);
    close_node(file);
}

static void null_disks(void)
{
    struct node_options options = {.driver = NODE_DRIVER_NULL_CO,
                                   .u.null_co = {.size = INT64_MAX, .read_zeroes = true}};
    struct extent extent;
    struct extent_list list = {.limit = 1, .extents = &extent};
    AUTO_ERROR struct error err = {0};
    unsigned char bytes[100];
    struct edge edge = {0};

    ck_assert_int_eq(try_open("n", &options, &edge.child, &err), 0);
    memset(bytes, 1, sizeof(bytes));
    ck_assert_int_eq(edge_read(&edge, INT64_MAX - 100, bytes, 100), 0);
    ck_assert_uint_eq(bytes[0] | bytes[99], 0);
    ck_assert_int_eq(edge_status(&edge, 0, INT64_MAX, &list), 0);
    ck_assert_uint_eq(extent.length, INT64_MAX);
    ck_assert_uint_eq(extent.flags, EXTENT_ZERO);
    close_node(edge.child);
    options.u.null_co = (struct null_co_options){.size = 1000, .latency_ns = 3000000};
    ck_assert_int_eq(try_open("n", &options, &edge.child, &err), 0);
    uint64_t before = ring_clock();

    memset(bytes, 1, sizeof(bytes));
    ck_assert_int_eq(edge_read(&edge, 0, bytes, 100), 0);
    ck_assert_uint_eq(bytes[50], 1);
    ck_assert_int_eq(edge_write(&edge, 0, bytes, 100, REQ_FUA), 0);
    ck_assert_int_eq(edge_flush(&edge), 0);
    ck_assert_uint_ge(ring_clock() - before, 9000000);
    close_node(edge.child);
}

/* host_device, on a loop device over the test's file. */

static char device_path[64];

static bool device_attach(void)
{
    AUTO_CLOSE int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);

    snprintf(device_path, sizeof(device_path), "/dev/loop%d", number);
    AUTO_CLOSE int device = number < 0 ? -1 : open(device_path, O_RDWR | O_CLOEXEC);
    AUTO_CLOSE int file = open(test_path, O_RDWR | O_CLOEXEC);

    return device >= 0 && ioctl(device, LOOP_SET_FD, file) == 0;
}

static void device_detach(void)
{
    AUTO_CLOSE int device = open(device_path, O_RDWR | O_CLOEXEC);

    ck_assert_int_eq(ioctl(device, LOOP_CLR_FD), 0);
}

static void device_load(struct edge *edge)
{
    static unsigned char bytes[65536], model[65536];

    memset(model, 0, sizeof(model));
    for (unsigned i = 0; i < 300; i++) {
        uint64_t offset = (uint64_t)rand() % 60000, size = (uint64_t)rand() % 5000;

        memset(bytes, (int)i, size);
        switch (rand() % 4) {
        case 0:
            ck_assert_int_eq(edge_write_zeroes(edge, offset, size, rand() % 2 ? REQ_MAY_UNMAP : 0), 0);
            memset(model + offset, 0, size);
            break;
        case 1:
            ck_assert_int_eq(edge_discard(edge, offset, size), 0);
            ck_assert_int_eq(edge_write(edge, offset, bytes, size, 0), 0);
            memcpy(model + offset, bytes, size);
            break;
        default:
            ck_assert_int_eq(edge_write(edge, offset, bytes, size, rand() % 8 ? 0 : REQ_FUA), 0);
            memcpy(model + offset, bytes, size);
        }
    }
    ck_assert_int_eq(edge_flush(edge), 0);
    ck_assert_int_eq(edge_read(edge, 0, bytes, 65536), 0);
    ck_assert_mem_eq(bytes, model, 65536);
}

static void devices(void)
{
    AUTO_ERROR struct error err = {0};
    struct edge edge = {0};

    for (unsigned direct = 0; direct < 2; direct++) {
        make_file(MIB);
        if (!device_attach())
            return;
        struct node_options options = options_of(device_path, direct);

        options.driver = NODE_DRIVER_HOST_DEVICE;
        int result = try_open("a", &options, &edge.child, &err);

        ck_assert_msg(result == 0, "%s", err.text);
        ck_assert_uint_eq(edge.child->size, MIB);
        device_load(&edge);
        ck_assert_int_lt(node_resize(edge.child, MIB + 512, &err), 0);
        ck_assert_msg(strstr(err.text, "Cannot grow device"), "%s", err.text);
        error_clear(&err);
        ck_assert_int_eq(node_resize(edge.child, MIB / 2, &err), 0);
        ck_assert_uint_eq(edge.child->size, MIB / 2);
        close_node(edge.child);
        device_detach();
    }
}

/* A device that refuses writes by itself, whatever it was opened for. */
static void read_only_devices(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = NULL;
    int on = 1;

    make_file(MIB);
    if (!device_attach())
        return;
    AUTO_CLOSE int device = open(device_path, O_RDWR | O_CLOEXEC);
    struct node_options options = options_of(device_path, false);

    options.driver = NODE_DRIVER_HOST_DEVICE;
    ck_assert_int_eq(ioctl(device, BLKROSET, &on), 0);
    ck_assert_int_eq(try_open("a", &options, &node, &err), -EACCES);
    error_clear(&err);
    options.auto_read_only = true;
    ck_assert_msg(try_open("a", &options, &node, &err) == 0, "%s", err.text);
    ck_assert_uint_ne(node->flags & NODE_READ_ONLY, 0);
    close_node(node);
    /* It would stay so for who comes next. */
    on = 0;
    ck_assert_int_eq(ioctl(device, BLKROSET, &on), 0);
    close(take_fd(&device));
    device_detach();
}

BOTH_RINGS(resizing)
BOTH_RINGS(refusals)
BOTH_RINGS(locks)
BOTH_RINGS(raw_windows)
BOTH_RINGS(raw_follows)
BOTH_RINGS(null_disks)
BOTH_RINGS(devices)
BOTH_RINGS(read_only_devices)

int main(void)
{
    const TTest *const all[] = {test_resizing,    test_refusals,   test_locks,   test_raw_windows,
                                test_raw_follows, test_null_disks, test_devices, test_read_only_devices};

    return run_tests("drivers", all, array_size(all));
}
