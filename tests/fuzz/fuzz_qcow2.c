/*
 * libFuzzer target: the qcow2 engine on damaged images. The first byte chooses
 * a layout, of which a small image is made, and the rest are patches to it,
 * four bytes of place and eight of content each; or, from FUZZ_WHOLE on, the
 * rest is an image. Then the image is used, and once more after that.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct qcow2_create_options fuzz_layouts[] = {
    {.size = 65536, .version = 3, .cluster_bits = 9, .refcount_order = 4},
    {.size = 262144,
     .version = 2,
     .cluster_bits = 12,
     .refcount_order = 4,
     .backing_name = "b",
     .backing_format = "raw"},
    {.size = 262144, .version = 3, .cluster_bits = 12, .refcount_order = 1, .lazy_refcounts = true},
    {.size = 262144, .version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true, .zstd = true},
};
#define FUZZ_LAYOUTS (sizeof(fuzz_layouts) / sizeof(fuzz_layouts[0]))
#define FUZZ_WHOLE 64 /* '@' */

/* New memory for each input would take most of the time. */
static unsigned char *fuzz_memory;
#define FUZZ_ROOM (UINT64_C(4) << 20)

static void fuzz_world_init(struct world *world)
{
    if (!fuzz_memory)
        fuzz_memory = malloc(FUZZ_ROOM);
    must(fuzz_memory);
    world_init(world);
    world->bytes = fuzz_memory;
    world->room = FUZZ_ROOM;
    world->small_caches = true;
}

static void fuzz_world_destroy(struct world *world)
{
    fuzz_memory = world->room == FUZZ_ROOM ? world->bytes : NULL;
    if (fuzz_memory)
        world->bytes = NULL;
    world_destroy(world);
}

static void fuzz_make(struct world *world, const struct qcow2_create_options *options)
{
    struct guest guest;

    fuzz_world_init(world);
    guest_create(&guest, world, options);
    for (uint64_t at = 0; at < 65536; at += 8192)
        guest_write(&guest, at, 4096);
    guest_close(&guest);
}

static void fuzz_use(struct guest *guest)
{
    static unsigned char buf[2 << 20];
    struct qcow2_check_result check;
    uint64_t part = guest->size < 1024 ? guest->size : 1024;

    for (unsigned i = 0; i < 2; i++) {
        for (uint64_t at = 0; at + 4096 <= guest->size && at < 262144; at += 4096 + 8192 * i) {
            guest_read(guest, at, buf, 4096);
            guest_write(guest, at, 1024);
        }
        guest_read(guest, 0, buf, part);
        if (part)
            guest_write(guest, guest->size - part, part);
        if (guest->size >= 65536) {
            guest_zero(guest, 0, 16384, i);
            guest_discard(guest, 32768, 16384);
            if (qcow2_cluster_size(guest->q) <= 16384)
                guest_compress(guest, 0, 16384);
        }
        qcow2_read_compressed(guest->q, 0, buf);
        guest_flush(guest);
        qcow2_clean_cache(guest->q);
    }
    qcow2_check(guest->q, false, &check);
    if (guest->size <= 1 << 20)
        guest_resize(guest, guest->size / SECTOR * SECTOR + 131072);
    guest_resize(guest, 32768);
    qcow2_finish(guest->q);
}

/* False if there is nothing to use. */
static bool fuzz_open(struct guest *guest, struct world *world, bool read_only)
{
    struct qcow2_settings settings = {.read_only = read_only, .overlap_check = UINT32_MAX, .has_data_file = true};
    char text[256] = "";

    /* It may be written only to be looked at first. */
    if (qcow2_open(&guest->q, &world_io, world, &settings, text) == 0)
        qcow2_close(guest->q);
    else
        must(text[0]);
    return guest_open(guest, world, false) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world world;
    struct guest guest;

    if (size < 1)
        return 0;
    if (data[0] >= FUZZ_WHOLE) {
        fuzz_world_init(&world);
        world_resize(&world, size - 1);
        memcpy(world.bytes, data + 1, size - 1);
    } else {
        fuzz_make(&world, &fuzz_layouts[data[0] % FUZZ_LAYOUTS]);
    }
    for (size_t at = 1; at + 12 <= size && data[0] < FUZZ_WHOLE; at += 12) {
        uint32_t place;

        memcpy(&place, data + at, sizeof(place));
        memcpy(world.bytes + place % (world.size - 8), data + at + 4, 8);
    }
    for (unsigned i = 0; i < 2 && fuzz_open(&guest, &world, i == 0); i++) {
        if (guest.size <= WORLD_FILE_MAX)
            fuzz_use(&guest);
        guest_drop(&guest);
    }
    fuzz_world_destroy(&world);
    return 0;
}
