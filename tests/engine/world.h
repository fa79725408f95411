/*
 * A world for format engines: files are arrays, each call can be recorded and
 * be made to fail. And a guest of a qcow2 image in it, which does what a host
 * program does around the engine, with a model of what it must read.
 */
#ifndef TESTS_ENGINE_WORLD_H
#define TESTS_ENGINE_WORLD_H

#include <stdio.h>
#include <stdlib.h>

#include "drivers/format/engine/qcow2.h"

/* As ck_assert(), which costs a system call even when all is well. */
#define ensure_msg(what, ...) ((what) ? (void)0 : ck_abort_msg(__VA_ARGS__))
#define ensure(what) ensure_msg(what, "%s", #what)

/* Ends the program, a test as well as a fuzzer. */
#define must(condition) \
    ((condition) ? (void)0 : (fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition), abort()))

#define WORLD_FILE_MAX (UINT64_C(64) << 20)

enum record_kind {
    RECORD_WRITE,
    RECORD_FLUSH, /* what was written before is durable */
    RECORD_SIZE,  /* the file's size was set to offset */
    RECORD_TOUCH, /* the guest begins to change [offset, offset + size) of the disk, perhaps to data; NULL: to anything */
    RECORD_PROMISE /* a guest's flush has returned: data is a copy of the model when it began, after `offset` records */
};

struct record {
    enum record_kind kind;
    enum format_file file; /* of writes, flushes and sizes */
    uint64_t offset;
    size_t size;
    unsigned char *data;
};

struct world {
    unsigned char *bytes; /* the image */
    uint64_t size, room;
    unsigned char *data; /* the data file */
    uint64_t data_size, data_room;
    bool recording;
    struct record *records;
    size_t count, records_room;
    uint64_t calls, fail_at; /* numbers of read, write, flush and grow calls; 0: none fails */
    bool memory_fails;       /* not they, but allocations are counted and fail */
    int fail_code;
    bool fail_for_ever;
    bool fail_done; /* what fails was done nevertheless: only the answer got lost */
    bool locked[FORMAT_LOCK_COUNT];
    /* Called by each flush that lets others go on: what happens in it happens at the same time. NULL: nothing. */
    void (*meanwhile)(struct world *world);
    bool grace_held;   /* grace periods do not end */
    bool small_caches; /* guests have as little memory for tables as there can be */
    uint64_t reports;  /* FORMAT_CORRUPTED */
    char report[256];
};

extern const struct format_io world_io;

void world_init(struct world *world);
void world_destroy(struct world *world);
void world_forget(struct world *world); /* what was recorded */
void world_record(struct world *world, enum record_kind kind, uint64_t offset, const void *data, size_t size);
void world_resize(struct world *world, uint64_t size); /* the image */
void world_resize_file(struct world *world, enum format_file file, uint64_t size);
/* A file of the world becomes a real one. */
bool world_save(const struct world *world, enum format_file which, const char *path);
unsigned char *world_bytes(const struct world *world, enum format_file file);
uint64_t world_file_size(const struct world *world, enum format_file file);

#define SECTOR 512u

struct guest {
    struct world *world;
    struct qcow2 *q;
    unsigned char *model; /* what it must read */
    bool *unsure;         /* [sector] a change of it failed: old or new */
    uint64_t size;
    uint64_t writes; /* makes content unique */
    bool backed;
    bool raw;              /* the data file is the disk for others as well */
    uint64_t backing_size; /* bytes; no end unless the caller sets it */
};

enum guest_data { DATA_IN_IMAGE, DATA_APART, DATA_RAW };

/* An image of size bytes, opened; ends the test if that fails. */
void guest_create(struct guest *guest, struct world *world, const struct qcow2_create_options *options);
/* The same, whose data is in a file of its own. */
void guest_create_data_file(struct guest *guest, struct world *world, const struct qcow2_create_options *options,
                            enum guest_data data);
/* The image in the world; 0 or an error. The model is the caller's to set. */
int guest_open(struct guest *guest, struct world *world, bool backed);
/* The same for an image with a data file. */
int guest_open_data_file(struct guest *guest, struct world *world, bool backed, bool has_data_file);
void guest_close(struct guest *guest); /* finishes too; a failure of that is ignored */
void guest_drop(struct guest *guest);  /* as if killed */

int guest_write(struct guest *guest, uint64_t offset, uint64_t length);
/* Whole clusters, compressed if that makes them smaller. */
int guest_compress(struct guest *guest, uint64_t offset, uint64_t length);
int guest_zero(struct guest *guest, uint64_t offset, uint64_t length, bool unmap);
int guest_discard(struct guest *guest, uint64_t offset, uint64_t length);
int guest_flush(struct guest *guest);
int guest_resize(struct guest *guest, uint64_t size);
int guest_read(struct guest *guest, uint64_t offset, void *buf, uint64_t length);
/* What a backing file has there. */
void guest_backing(uint64_t offset, unsigned char *buf, uint64_t length);
/* Reads all and compares with the model where it is sure; the first sector that differs, or UINT64_MAX. */
uint64_t guest_compare(struct guest *guest);

#endif
