/*
 * Images for simulations, made by qemu-img once for all runs and copied into
 * files in memory.
 */
#ifndef TESTS_SIM_IMAGES_H
#define TESTS_SIM_IMAGES_H

#include <stdbool.h>
#include <stdint.h>

#define IMAGE_SIZE (900u * 1024 + 7 * 512)   /* bytes of the disks */
#define BACKING_SIZE (700u * 1024 + 3 * 512) /* and of what may lie below: content is guest_backing() */

enum image_fill { IMAGE_EMPTY, IMAGE_FILLED, IMAGE_COMPRESSED };

struct image {
    const char *options; /* of qemu-img */
    enum image_fill fill;
    bool snapshot; /* has an internal one: it cannot be resized */
    bool data_file;
    unsigned char *bytes;
    uint64_t size;
};

/* Disks, by number; and what lies below disks. */
extern struct image images[];
extern const unsigned image_count;
extern struct image image_base, image_middle;

/* Makes all; false without qemu-img. */
bool images_make(void);
void images_free(void);

/* A new file in memory with these bytes; the descriptor, and a path to it that other programs can open. */
int image_file(const void *bytes, uint64_t size, char path[64]);

/* The content of filled images. */
void image_pattern(unsigned char *bytes, uint64_t size);

/* The exit status of a command in the folder of images; its output goes to `said`. */
int image_tool(char said[4096], const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
