/*
 * The stage: see stage.h.
 */
#include "tests/sim/stage.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/node.h"
#include "generated/options.h"
#include "tests/engine/world.h"
#include "tests/sim/power.h"
#include "tests/sim/ring_sim.h"

struct stage stage;

uint64_t stage_random(uint64_t below)
{
    return sim_random(stage.sim, below);
}

/* Nodes */

static enum step slow_map(struct node *node, struct request *req)
{
    (void)node;
    (void)req;
    return STEP_SLOW;
}

/* All nodes have the same driver, or a chain would not know its layers. */
static void take_map(struct node *node)
{
    stage.slow_driver = *driver_table[NODE_DRIVER_QCOW2];
    stage.slow_driver.map = slow_map;
    node->driver = &stage.slow_driver;
    node->map = slow_map;
}

static int add_file(struct change *change, const char *name, struct stage_file *part, bool read_only)
{
    struct node_options options = {
        .driver = NODE_DRIVER_FILE,
        .node_name = (char *)(uintptr_t)name,
        .read_only = read_only,
        .discard = NODE_DISCARD_UNMAP,
        .u.file = {.filename = part->path},
    };
    struct node *node;

    return part->fd < 0 ? 0 : node_add(change, &options, &node, NULL);
}

static void qcow2_by_chance(struct node_options *options)
{
    struct qcow2_options *own = &options->u.qcow2;

    options->discard = stage_random(8) ? NODE_DISCARD_UNMAP : NODE_DISCARD_IGNORE;
    if (options->discard == NODE_DISCARD_UNMAP && stage_random(4) == 0)
        options->detect_zeroes = NODE_DETECT_ZEROES_UNMAP;
    own->has_l2_cache_size = own->has_refcount_cache_size = stage_random(3) > 0;
    own->l2_cache_size = stage_random(2) * 16384;
    own->refcount_cache_size = stage_random(2) * 8192;
    own->discard_no_unref = stage_random(8) == 0;
    own->pass_discard_other = stage_random(2);
    own->cache_clean_interval = stage_random(4) == 0;
}

static int add_qcow2(struct change *change, const char *name, const char *file, const char *backing, bool read_only,
                     bool by_chance)
{
    AUTO_ERROR struct error err = {0};
    struct node_ref below = {.name = (char *)(uintptr_t)backing}, image = {.name = (char *)(uintptr_t)file};
    struct node_ref data = {.name = (char *)(uintptr_t) "data"};
    struct node_options options = {
        .driver = NODE_DRIVER_QCOW2,
        .node_name = (char *)(uintptr_t)name,
        .read_only = read_only,
        .u.qcow2 = {.file = &image, .backing = backing ? &below : NULL},
    };
    struct node *node;

    if (!read_only) {
        options.discard = NODE_DISCARD_UNMAP;
        if (by_chance)
            qcow2_by_chance(&options);
        options.u.qcow2.data_file = stage.image->data_file ? &data : NULL;
    }
    int result = node_add(change, &options, &node, &err);

    ck_assert_msg(result == 0, "%s: %s", name, err.text);
    if (stage.by_slow)
        take_map(node);
    return 0;
}

static void apply(struct change *change, int result)
{
    AUTO_ERROR struct error err = {0};

    if (result < 0)
        change_abort(change);
    else
        result = change_apply(change, &err);
    ck_assert_msg(result == 0, "a change failed: %s", err.text ? err.text : strerror(-result));
}

void stage_add_nodes(bool by_chance)
{
    struct change *change = change_new();
    const char *backing = NULL;
    int result = add_file(change, "file", &stage.file, false);

    if (result == 0)
        result = add_file(change, "data", &stage.data, false);
    if (result == 0)
        result = add_file(change, "base-file", &stage.base, true);
    if (result == 0)
        result = add_file(change, "middle-file", &stage.middle, true);
    if (stage.below == BELOW_RAW)
        backing = "base-file";
    if (result == 0 && stage.below > BELOW_RAW)
        result = add_qcow2(change, backing = "base", "base-file", NULL, true, false);
    if (result == 0 && stage.below > BELOW_BASE)
        result = add_qcow2(change, backing = "middle", "middle-file", "base", true, false);
    if (result == 0)
        result = add_qcow2(change, "disk", "file", backing, false, by_chance);
    if (result == 0)
        result = consumer_attach(change, &stage.crowd->consumer, "disk", NULL);
    apply(change, result);
    stage.size_low = consumer_size(&stage.crowd->consumer);
}

void stage_remove_nodes(void)
{
    static const char *const names[] = {"disk", "middle", "base", "middle-file", "base-file", "data", "file"};
    struct change *change = change_new();
    int result = 0;

    consumer_detach(change, &stage.crowd->consumer);
    for (unsigned i = 0; i < array_size(names) && result == 0; i++) {
        if (node_find(names[i]))
            result = node_remove(change, node_find(names[i]), NULL);
    }
    apply(change, result);
}

void stage_wait_for_crowd(void)
{
    while (!crowd_is_idle(stage.crowd))
        coroutine_sleep(1000000);
}

/* Reads everything: after that all is known. */
void stage_read_all(void)
{
    uint64_t size = consumer_size(&stage.crowd->consumer);

    for (uint64_t at = 0; at < size;) {
        uint64_t part = size - at < CROWD_REQUEST_MAX ? size - at : CROWD_REQUEST_MAX;
        struct crowd_slot *slot = crowd_submit(stage.crowd, REQ_READ, 0, at, part);

        while (slot->busy)
            coroutine_sleep(100000);
        ck_assert_msg(slot->result == 0 || stage.no_flush, "cannot read at the end: %s", strerror(-slot->result));
        at += part;
    }
}

/* The end: the image is whole by our own check, and by that of stock tools. */

static void look_with_tools(uint64_t size)
{
    char said[4096], model[64], below[320] = "";
    int fd = image_file(stage.crowd->bytes, size, model);
    int code = image_tool(said, "qemu-img check -f qcow2 %s", stage.file.path);

    ck_assert_msg(code == 0 || (code == 3 && stage.faulty), "qemu-img check: %d: %s", code, said);
    if (stage.below == BELOW_RAW)
        snprintf(below, sizeof(below), ",backing.driver=raw,backing.file.driver=file,backing.file.filename=%s",
                 stage.base.path);
    else if (stage.below == BELOW_BASE)
        snprintf(below, sizeof(below), ",backing.driver=qcow2,backing.file.driver=file,backing.file.filename=%s",
                 stage.base.path);
    else if (stage.below == BELOW_MIDDLE)
        snprintf(below, sizeof(below),
                 ",backing.driver=qcow2,backing.file.driver=file,backing.file.filename=%s,backing.backing.driver=qcow2,"
                 "backing.backing.file.driver=file,backing.backing.file.filename=%s",
                 stage.middle.path, stage.base.path);
    code = image_tool(said,
                      "qemu-img compare --image-opts driver=qcow2,file.driver=file,file.filename=%s%s%s%s "
                      "driver=raw,file.driver=file,file.filename=%s",
                      stage.file.path, stage.image->data_file ? ",data-file.driver=file,data-file.filename=" : "",
                      stage.image->data_file ? stage.data.path : "", below, model);
    ck_assert_msg(code == 0, "qemu-img compare: %d: %s", code, said);
    close(fd);
}

static void look_at_end(uint64_t size, bool with_tools)
{
    struct world world;
    struct guest guest;
    struct qcow2_check_result check;

    world_init(&world);
    off_t end = lseek(stage.file.fd, 0, SEEK_END);

    world_resize(&world, (uint64_t)end);
    ck_assert_int_eq(pread(stage.file.fd, world.bytes, world.size, 0), end);
    int result = guest_open_data_file(&guest, &world, stage.below != BELOW_NOTHING, stage.image->data_file);

    ck_assert_msg(result == 0 || (stage.faulty && result == -EACCES), "does not open again: %d", result);
    if (result == 0) {
        ck_assert_int_eq(qcow2_check(guest.q, false, &check), 0);
        ck_assert_msg(check.corruptions == 0, "%lu corruptions at the end", (unsigned long)check.corruptions);
        ck_assert_msg(check.leaks == 0 || stage.faulty, "%lu leaks at the end", (unsigned long)check.leaks);
        guest_drop(&guest);
        if (with_tools && !stage.no_flush)
            look_with_tools(size);
    }
    world_destroy(&world);
}

/* Life */

static struct stage_file part_of(const void *bytes, uint64_t size)
{
    struct stage_file part;

    part.fd = image_file(bytes, size, part.path);
    return part;
}

void stage_begin(uint64_t seed, bool by_slow, const struct image *image)
{
    AUTO_FREE unsigned char *backing = memory_zero(BACKING_SIZE);

    stage = (struct stage){.sim = sim_new(seed), .by_slow = by_slow};
    stage.image = image ? image : &images[stage_random(image_count)];
    for (unsigned l = 0; l < CROWD_LOOPS; l++)
        sim_loop(stage.sim, l ? "io" : "main");
    stage.crowd = crowd_new(stage.sim);
    stage.file = part_of(stage.image->bytes, stage.image->size);
    stage.data = stage.base = stage.middle = (struct stage_file){.fd = -1};
    /* What is compressed has no place in a data file. */
    if (stage.image->data_file)
        stage.crowd->compressed = 0;
    if (stage.image->data_file)
        stage.data = part_of(NULL, IMAGE_SIZE);
    if (stage.image->fill != IMAGE_EMPTY)
        image_pattern(stage.crowd->bytes, IMAGE_SIZE);
    guest_backing(0, backing, BACKING_SIZE);
    if (!stage.image->data_file && stage.image->fill == IMAGE_EMPTY && !strstr(stage.image->options, "prealloc"))
        stage.below = (enum stage_below)stage_random(BELOW_COUNT);
    if (stage.below)
        memcpy(stage.crowd->bytes, backing, BACKING_SIZE);
    if (stage.below == BELOW_RAW)
        stage.base = part_of(backing, BACKING_SIZE);
    else if (stage.below)
        stage.base = part_of(image_base.bytes, image_base.size);
    if (stage.below == BELOW_MIDDLE)
        stage.middle = part_of(image_middle.bytes, image_middle.size);
    sim_manner(stage.sim)->delay_max_ns = 1000 << stage_random(11);
    power_watch(stage.sim, 0, stage.file.fd);
    if (stage.data.fd >= 0)
        power_watch(stage.sim, 1, stage.data.fd);
    loop_set_current(loop_main);
}

void stage_end(bool with_tools)
{
    struct stage_file *parts[] = {&stage.file, &stage.data, &stage.base, &stage.middle};

    ck_assert_msg(stage.done, "everything waits, after %lu requests", (unsigned long)stage.crowd->ended_count);
    ck_assert_uint_eq(sim_inflight(stage.sim, -1), 0);
    look_at_end(stage.size, with_tools);
    power_forget();
    for (unsigned i = 0; i < array_size(parts); i++) {
        if (parts[i]->fd >= 0)
            close(parts[i]->fd);
    }
    crowd_free(stage.crowd);
    sim_free(stage.sim);
}
