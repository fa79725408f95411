/*
 * Everything that a format engine may ask of the world: the only header that
 * an engine includes besides libc and codecs. In the daemon these functions
 * wait in a coroutine, in tools they are system calls, in tests an array or a
 * log. Engines are plain blocking code and do metadata only: guest data never
 * passes through them.
 *
 * Results are 0 or a negative errno. Transfers are never short; reads past
 * the end of a file give zeroes.
 */
#ifndef FORMAT_IO_H
#define FORMAT_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum format_file {
    FORMAT_FILE_IMAGE, /* the image file: metadata, and data unless there is a data file */
    FORMAT_FILE_DATA,  /* an external data file */
    FORMAT_FILE_COUNT
};

enum format_event {
    FORMAT_CORRUPTED, /* from now on no step changes the image; text says why */
    FORMAT_NOTE       /* worth a line in the log */
};

/* What tests want to let fail or wait. */
enum format_step {
    FORMAT_L1_UPDATE,
    FORMAT_L2_LOAD,
    FORMAT_L2_UPDATE,
    FORMAT_L2_ALLOC_WRITE,
    FORMAT_REFTABLE_UPDATE,
    FORMAT_REFBLOCK_LOAD,
    FORMAT_REFBLOCK_UPDATE,
    FORMAT_REFBLOCK_ALLOC_WRITE,
    FORMAT_CLUSTER_ALLOC,
    FORMAT_CLUSTER_FREE,
    FORMAT_STEP_COUNT
};

enum format_lock { /* of one engine; who takes both takes them in this order */
                   FORMAT_LOCK_FLUSH,
                   FORMAT_LOCK_TABLES,
                   FORMAT_LOCK_COUNT
};

struct format_io {
    int (*read)(void *world, enum format_file file, uint64_t offset, void *buf, size_t size);
    int (*write)(void *world, enum format_file file, uint64_t offset, const void *buf, size_t size);
    int (*flush)(void *world, enum format_file file);
    /* The file reaches at least to size from now on, and what is new reads as zeroes. -ENOSPC if it cannot. */
    int (*grow)(void *world, enum format_file file, uint64_t size);
    /* Sets the size; only from engines' finish and resize calls. */
    int (*truncate)(void *world, enum format_file file, uint64_t size);
    /* The range's content is not needed any more; a hint. */
    void (*discard)(void *world, enum format_file file, uint64_t offset, uint64_t length);
    uint64_t (*size)(void *world, enum format_file file);

    void *(*alloc)(void *world, size_t size);   /* zeroed, for any use; NULL when there is no memory */
    void (*release)(void *world, void *memory); /* NULL is fine */
    /* The content of this memory is not needed now: the system may have it back. It stays allocated. NULL: nothing. */
    void (*idle)(void *world, void *memory, size_t size);
    void (*lock)(void *world, enum format_lock which); /* held across the calls above */
    void (*unlock)(void *world, enum format_lock which);

    /* Grace periods: begin() names one, over() says whether all requests that were under way then have
     * ended. A single user begins 0 and all are over. */
    uint64_t (*grace_begin)(void *world);
    bool (*grace_over)(void *world, uint64_t grace);

    /* Runs fn(arg), which computes for long and asks nothing of the world, where nobody else has to wait for it; its
     * result. NULL: the engine runs it itself. */
    int (*compute)(void *world, int (*fn)(void *arg), void *arg);

    /* This is about to happen; with the lock held or not, and may take as long as I/O. NULL: nobody wants to know. */
    void (*step)(void *world, enum format_step step);

    void (*report)(void *world, enum format_event event, uint64_t offset, uint64_t length, const char *text);
};

#endif
