/*
 * See world.h.
 */
#include "tests/engine/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void world_init(struct world *world)
{
    *world = (struct world){.fail_code = -EIO};
}

void world_forget(struct world *world)
{
    for (size_t i = 0; i < world->count; i++)
        free(world->records[i].data);
    world->count = 0;
}

void world_destroy(struct world *world)
{
    world_forget(world);
    free(world->records);
    free(world->data);
    free(world->bytes);
}

static void record_add(struct world *world, enum record_kind kind, enum format_file file, uint64_t offset,
                       const void *data, size_t size)
{
    if (!world->recording)
        return;
    if (world->count == world->records_room) {
        world->records_room = world->records_room ? 2 * world->records_room : 256;
        world->records = realloc(world->records, world->records_room * sizeof(*world->records));
        must(world->records);
    }
    struct record *record = &world->records[world->count++];

    *record = (struct record){.kind = kind, .file = file, .offset = offset, .size = size};
    if (data) {
        record->data = malloc(size);
        must(record->data);
        memcpy(record->data, data, size);
    }
}

void world_record(struct world *world, enum record_kind kind, uint64_t offset, const void *data, size_t size)
{
    record_add(world, kind, FORMAT_FILE_IMAGE, offset, data, size);
}

static void file_resize(unsigned char **bytes, uint64_t *old, uint64_t *room, uint64_t size)
{
    must(size <= WORLD_FILE_MAX);
    if (size > *room) {
        *bytes = realloc(*bytes, size);
        must(*bytes);
        *room = size;
    }
    if (size > *old)
        memset(*bytes + *old, 0, size - *old);
    *old = size;
}

void world_resize_file(struct world *world, enum format_file file, uint64_t size)
{
    if (file == FORMAT_FILE_DATA)
        file_resize(&world->data, &world->data_size, &world->data_room, size);
    else
        file_resize(&world->bytes, &world->size, &world->room, size);
}

void world_resize(struct world *world, uint64_t size)
{
    world_resize_file(world, FORMAT_FILE_IMAGE, size);
}

unsigned char *world_bytes(const struct world *world, enum format_file file)
{
    return file == FORMAT_FILE_DATA ? world->data : world->bytes;
}

uint64_t world_file_size(const struct world *world, enum format_file file)
{
    return file == FORMAT_FILE_DATA ? world->data_size : world->size;
}

static int world_counts(struct world *world)
{
    world->calls++;
    if (!world->fail_at || world->calls < world->fail_at)
        return 0;
    return world->calls == world->fail_at || world->fail_for_ever ? world->fail_code : 0;
}

static int world_fails(struct world *world)
{
    return world->memory_fails ? 0 : world_counts(world);
}

static int world_read(void *opaque, enum format_file file, uint64_t offset, void *buf, size_t size)
{
    struct world *world = opaque;
    int result = world_fails(world);

    if (result < 0)
        return result;
    uint64_t end = world_file_size(world, file);

    memset(buf, 0, size);
    if (offset < end)
        memcpy(buf, world_bytes(world, file) + offset, size < end - offset ? size : end - offset);
    return 0;
}

static int world_write(void *opaque, enum format_file file, uint64_t offset, const void *buf, size_t size)
{
    struct world *world = opaque;
    int result = world_fails(world);

    if (result < 0 && !world->fail_done)
        return result;
    if (offset > WORLD_FILE_MAX || size > WORLD_FILE_MAX - offset)
        return -ENOSPC;
    if (offset + size > world_file_size(world, file))
        world_resize_file(world, file, offset + size);
    memcpy(world_bytes(world, file) + offset, buf, size);
    record_add(world, RECORD_WRITE, file, offset, buf, size);
    return result;
}

static int world_flush(void *opaque, enum format_file file)
{
    struct world *world = opaque;
    int result = world_fails(world);

    if (result < 0 && !world->fail_done)
        return result;
    record_add(world, RECORD_FLUSH, file, 0, NULL, 0);
    /* What others do while this takes its time is not flushed by it. */
    if (world->meanwhile && !world->locked[FORMAT_LOCK_TABLES]) {
        void (*meanwhile)(struct world *) = world->meanwhile;

        world->meanwhile = NULL;
        meanwhile(world);
        world->meanwhile = meanwhile;
    }
    return result;
}

static int world_grow(void *opaque, enum format_file file, uint64_t size)
{
    struct world *world = opaque;
    int result = world_fails(world);

    if (result < 0 && !world->fail_done)
        return result;
    if (size > WORLD_FILE_MAX)
        return -ENOSPC;
    if (size > world_file_size(world, file)) {
        world_resize_file(world, file, size);
        record_add(world, RECORD_SIZE, file, size, NULL, 0);
    }
    return result;
}

static int world_truncate(void *opaque, enum format_file file, uint64_t size)
{
    struct world *world = opaque;

    world_resize_file(world, file, size);
    record_add(world, RECORD_SIZE, file, size, NULL, 0);
    return 0;
}

/* The content is gone at once: nobody may have relied on it. */
static void world_discard(void *opaque, enum format_file file, uint64_t offset, uint64_t length)
{
    struct world *world = opaque;
    unsigned char *junk = malloc(length);

    must(junk);
    memset(junk, 0xdd, length);
    if (offset + length <= world_file_size(world, file)) {
        memcpy(world_bytes(world, file) + offset, junk, length);
        record_add(world, RECORD_WRITE, file, offset, junk, length);
    }
    free(junk);
}

static uint64_t world_size(void *opaque, enum format_file file)
{
    return world_file_size(opaque, file);
}

static void *world_alloc(void *opaque, size_t size)
{
    struct world *world = opaque;

    if (world->memory_fails && world_counts(world) < 0)
        return NULL;
    return size > (UINT64_C(256) << 20) ? NULL : calloc(1, size ? size : 1);
}

static void world_release(void *opaque, void *memory)
{
    (void)opaque;
    free(memory);
}

static void world_lock(void *opaque, enum format_lock which)
{
    struct world *world = opaque;

    must(!world->locked[which]);
    /* Both are taken in one order. */
    must(which != FORMAT_LOCK_FLUSH || !world->locked[FORMAT_LOCK_TABLES]);
    world->locked[which] = true;
}

static void world_unlock(void *opaque, enum format_lock which)
{
    struct world *world = opaque;

    must(world->locked[which]);
    world->locked[which] = false;
}

static uint64_t world_grace_begin(void *opaque)
{
    (void)opaque;
    return 0;
}

static bool world_grace_over(void *opaque, uint64_t grace)
{
    (void)grace;
    return !((struct world *)opaque)->grace_held;
}

static void world_report(void *opaque, enum format_event event, uint64_t offset, uint64_t length, const char *text)
{
    struct world *world = opaque;

    (void)offset;
    (void)length;
    world->reports += event == FORMAT_CORRUPTED;
    snprintf(world->report, sizeof(world->report), "%s", text);
}

const struct format_io world_io = {
    .read = world_read,
    .write = world_write,
    .flush = world_flush,
    .grow = world_grow,
    .truncate = world_truncate,
    .discard = world_discard,
    .size = world_size,
    .alloc = world_alloc,
    .release = world_release,
    .lock = world_lock,
    .unlock = world_unlock,
    .grace_begin = world_grace_begin,
    .grace_over = world_grace_over,
    .report = world_report,
};

bool world_save(const struct world *world, enum format_file which, const char *path)
{
    const unsigned char *bytes = world_bytes(world, which);
    uint64_t size = world_file_size(world, which);
    FILE *file = fopen(path, "wb");

    if (!file)
        return false;
    /* The end is mostly empty. */
    while (size && bytes[size - 1] == 0)
        size--;
    bool written = !size || fwrite(bytes, 1, size, file) == size;

    return fclose(file) == 0 && written && truncate(path, (off_t)world_file_size(world, which)) == 0;
}
