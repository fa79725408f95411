/*
 * The guest of an image: see world.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/world.h"

int guest_open(struct guest *guest, struct world *world, bool backed)
{
    return guest_open_data_file(guest, world, backed, false);
}

int guest_open_data_file(struct guest *guest, struct world *world, bool backed, bool has_data_file)
{
    struct qcow2_settings settings = {
        .discard_freed = true, .discard_other = true, .overlap_check = UINT32_MAX, .has_data_file = has_data_file};
    char text[256];

    settings.l2_cache = settings.refcount_cache = world->small_caches;
    *guest = (struct guest){.world = world, .backed = backed, .backing_size = UINT64_MAX};
    int result = qcow2_open(&guest->q, &world_io, world, &settings, text);

    if (result < 0)
        return result;
    qcow2_set_backing(guest->q, backed);
    guest->size = qcow2_size(guest->q);
    guest->raw = has_data_file && qcow2_wants_data_file(guest->q) && qcow2_data_file_raw(guest->q);
    guest->model = calloc(1, guest->size + 1);
    guest->unsure = calloc(guest->size / SECTOR + 1, sizeof(bool));
    must(guest->model && guest->unsure);
    return 0;
}

/* Bits of the header's fields, by the specification's "incompatible_features" and "autoclear_features". */
#define HEADER_INCOMPATIBLE 72u
#define HEADER_AUTOCLEAR 88u
#define INCOMPATIBLE_DATA_FILE 4u
#define AUTOCLEAR_DATA_RAW 2u

void guest_create_data_file(struct guest *guest, struct world *world, const struct qcow2_create_options *options,
                            enum guest_data data)
{
    char text[256] = "";

    must(qcow2_create(&world_io, world, options, text) == 0);
    if (data != DATA_IN_IMAGE)
        world->bytes[HEADER_INCOMPATIBLE + 7] |= INCOMPATIBLE_DATA_FILE;
    if (data == DATA_RAW) {
        world->bytes[HEADER_AUTOCLEAR + 7] |= AUTOCLEAR_DATA_RAW;
        world_resize_file(world, FORMAT_FILE_DATA, options->size);
    }
    must(guest_open_data_file(guest, world, options->backing_name != NULL, data != DATA_IN_IMAGE) == 0);
    if (guest->backed)
        guest_backing(0, guest->model, guest->size);
}

void guest_create(struct guest *guest, struct world *world, const struct qcow2_create_options *options)
{
    guest_create_data_file(guest, world, options, DATA_IN_IMAGE);
}

void guest_drop(struct guest *guest)
{
    qcow2_close(guest->q);
    free(guest->model);
    free(guest->unsure);
}

void guest_close(struct guest *guest)
{
    qcow2_finish(guest->q);
    guest_drop(guest);
}

void guest_backing(uint64_t offset, unsigned char *buf, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++)
        buf[i] = (unsigned char)(0xa0 + (offset + i) / SECTOR % 64);
}

static int guest_unpack(struct guest *guest, uint64_t offset, unsigned char *buf, uint64_t length)
{
    uint32_t size = qcow2_cluster_size(guest->q);
    unsigned char *cluster = malloc(size);

    must(cluster);
    int result = qcow2_read_compressed(guest->q, offset, cluster);

    if (result == 0)
        memcpy(buf, cluster + offset % size, length);
    free(cluster);
    return result;
}

static int guest_read_part(struct guest *guest, uint64_t offset, unsigned char *buf, uint64_t length, uint64_t *done)
{
    struct mapping mapping;
    int result = qcow2_lookup(guest->q, offset, length, &mapping);

    if (result == -EAGAIN)
        result = qcow2_load(guest->q, offset, length, &mapping);
    if (result < 0)
        return result;
    *done = mapping.length;
    if (mapping.kind == MAPPING_DATA)
        return world_io.read(guest->world, mapping.file, mapping.host, buf, mapping.length);
    if (mapping.kind == MAPPING_COMPRESSED)
        return guest_unpack(guest, offset, buf, mapping.length);
    memset(buf, 0, mapping.length);
    if (mapping.kind == MAPPING_UNALLOCATED && guest->backed && offset < guest->backing_size) {
        uint64_t inside = guest->backing_size - offset;

        guest_backing(offset, buf, inside < mapping.length ? inside : mapping.length);
    }
    return 0;
}

int guest_read(struct guest *guest, uint64_t offset, void *buf, uint64_t length)
{
    unsigned char *bytes = buf;

    while (length) {
        uint64_t done = 0;

        /* What is behind the end of the disk reads as zeroes. */
        if (offset >= guest->size) {
            memset(bytes, 0, length);
            return 0;
        }
        uint64_t part = length < guest->size - offset ? length : guest->size - offset;
        int result = guest_read_part(guest, offset, bytes, part, &done);

        if (result < 0)
            return result;
        offset += done;
        bytes += done;
        length -= done;
    }
    return 0;
}

static int guest_write_plan(struct guest *guest, const struct write_plan *plan, const unsigned char *data)
{
    uint64_t size = plan->head + plan->length + plan->tail;
    unsigned char *buf = malloc(size);

    must(buf);
    int result = guest_read(guest, plan->guest - plan->head, buf, plan->head);

    memcpy(buf + plan->head, data, plan->length);
    if (result == 0)
        result = guest_read(guest, plan->guest + plan->length, buf + plan->head + plan->length, plan->tail);
    if (result == 0)
        result = world_io.write(guest->world, plan->file, plan->host - plan->head, buf, size);
    free(buf);
    return result;
}

static void guest_unsure(struct guest *guest, uint64_t offset, uint64_t length, bool unsure)
{
    for (uint64_t at = offset / SECTOR; at * SECTOR < offset + length; at++)
        guest->unsure[at] = unsure;
}

static int guest_store(struct guest *guest, uint64_t offset, const unsigned char *data, uint64_t length)
{
    int result = 0;

    while (result == 0 && length) {
        struct write_plan plan;

        result = qcow2_write_begin(guest->q, offset, length, &plan);
        if (result < 0)
            break;
        result = qcow2_write_end(guest->q, &plan, guest_write_plan(guest, &plan, data));
        offset += plan.length;
        data += plan.length;
        length -= plan.length;
    }
    return result;
}

/* The end of an operation: the model follows if it went well; else old and new are both right. */
static int guest_ended(struct guest *guest, uint64_t offset, uint64_t length, const unsigned char *data, int result)
{
    guest_unsure(guest, offset, length, result < 0);
    memcpy(guest->model + offset, data, length);
    return result;
}

int guest_write(struct guest *guest, uint64_t offset, uint64_t length)
{
    unsigned char *data = malloc(length);

    must(data);
    guest->writes++;
    for (uint64_t i = 0; i < length; i++)
        data[i] = (unsigned char)(guest->writes * 7 + (offset + i) / SECTOR);
    world_record(guest->world, RECORD_TOUCH, offset, data, length);
    int result = guest_ended(guest, offset, length, data, guest_store(guest, offset, data, length));

    free(data);
    return result;
}

/* Some of the clusters get content that cannot be compressed. */
static void guest_fill(struct guest *guest, unsigned char *data, uint64_t length)
{
    uint64_t state = ++guest->writes * UINT64_C(0x9e3779b97f4a7c15);

    for (uint64_t i = 0; i < length; i++) {
        state = state * UINT64_C(6364136223846793005) + 1;
        data[i] = (unsigned char)(guest->writes % 3 ? guest->writes * 7 + i / 100 * 3 : state >> 56);
    }
}

int guest_compress(struct guest *guest, uint64_t offset, uint64_t length)
{
    uint64_t size = qcow2_cluster_size(guest->q), inside = guest->size - offset;
    unsigned char *data = calloc(1, length);
    int result = 0;

    must(data);
    inside = inside < length ? inside : length;
    guest_fill(guest, data, inside);
    world_record(guest->world, RECORD_TOUCH, offset, data, inside);
    for (uint64_t at = 0; at < length && result == 0; at += size) {
        result = qcow2_write_compressed(guest->q, offset + at, data + at);
        /* What does not get smaller, and what a data file has no place for, is written as it is. */
        if (result == -E2BIG || result == -ENOTSUP)
            result = guest_store(guest, offset + at, data + at, inside - at < size ? inside - at : size);
    }
    result = guest_ended(guest, offset, inside, data, result);
    free(data);
    return result;
}

/* What reads as zeroes is zeroes in a raw data file. */
static int guest_zero_raw(struct guest *guest, uint64_t offset, const unsigned char *zeroes, uint64_t length)
{
    return guest->raw ? world_io.write(guest->world, FORMAT_FILE_DATA, offset, zeroes, length) : 0;
}

int guest_zero(struct guest *guest, uint64_t offset, uint64_t length, bool unmap)
{
    unsigned char *data = calloc(1, length);

    must(data);
    world_record(guest->world, RECORD_TOUCH, offset, data, length);
    int result = guest_zero_raw(guest, offset, data, length);

    if (result == 0)
        result = qcow2_write_zeroes(guest->q, offset, length, unmap);
    if (result == -ENOTSUP)
        result = guest_store(guest, offset, data, length);
    result = guest_ended(guest, offset, length, data, result);
    free(data);
    return result;
}

/* Content is undefined afterwards (old, zeroes or the backing file's): the model takes what is there. */
int guest_discard(struct guest *guest, uint64_t offset, uint64_t length)
{
    unsigned char *data = calloc(1, length);

    must(data);
    world_record(guest->world, RECORD_TOUCH, offset, data, length);
    int result = guest_zero_raw(guest, offset, data, length);

    if (guest->backed) {
        guest_backing(offset, data, length);
        world_record(guest->world, RECORD_TOUCH, offset, data, length);
    }
    free(data);
    if (result == 0)
        result = qcow2_discard(guest->q, offset, length);
    if (guest_read(guest, offset, guest->model + offset, length) < 0 || result < 0)
        guest_unsure(guest, offset, length, true);
    return result;
}

int guest_flush(struct guest *guest)
{
    uint64_t begun = guest->world->count, size = guest->size;
    unsigned char *model = malloc(size + 1);

    must(model);
    memcpy(model, guest->model, size);
    int result = qcow2_flush(guest->q);

    if (result == 0)
        world_record(guest->world, RECORD_PROMISE, begun, model, size);
    free(model);
    return result;
}

/* New space is empty, whatever the backing file has there, or the cluster in which the disk ended. */
static int guest_clear(struct guest *guest, uint64_t from, uint64_t to)
{
    uint64_t rest = -from & (qcow2_cluster_size(guest->q) - 1);
    unsigned char *zeroes = calloc(1, rest + 1);
    int result = 0;

    must(zeroes);
    rest = rest < to - from ? rest : to - from;
    if (rest)
        result = guest_store(guest, from, zeroes, rest);
    free(zeroes);
    if (result == 0 && (guest->backed || guest->raw) && from + rest < to)
        result = guest_zero(guest, from + rest, to - from - rest, true);
    return result;
}

int guest_resize(struct guest *guest, uint64_t size)
{
    uint64_t old = guest->size;

    world_record(guest->world, RECORD_TOUCH, size < old ? size : old, NULL, size < old ? old - size : size - old);
    int result = guest->raw ? world_io.grow(guest->world, FORMAT_FILE_DATA, size) : 0;

    if (result == 0)
        result = qcow2_resize(guest->q, size);
    if (result == 0 && guest->raw && size < old)
        result = world_io.truncate(guest->world, FORMAT_FILE_DATA, size);
    if (result < 0)
        return result;
    guest->model = realloc(guest->model, size + 1);
    guest->unsure = realloc(guest->unsure, (size / SECTOR + 1) * sizeof(bool));
    must(guest->model && guest->unsure);
    guest->size = size;
    if (size > old) {
        memset(guest->model + old, 0, size - old);
        memset(guest->unsure + old / SECTOR, 0, ((size - old) / SECTOR) * sizeof(bool));
        return guest_clear(guest, old, size);
    }
    return 0;
}

uint64_t guest_compare(struct guest *guest)
{
    unsigned char buf[SECTOR];

    for (uint64_t at = 0; at < guest->size; at += SECTOR) {
        if (guest->unsure[at / SECTOR])
            continue;
        if (guest_read(guest, at, buf, SECTOR) < 0 || memcmp(buf, guest->model + at, SECTOR) != 0)
            return at / SECTOR;
    }
    return UINT64_MAX;
}
