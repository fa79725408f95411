/*
 * The stage of a crowd: a qcow2 disk of one of the images, over files in a
 * simulation with three loops, and the end of the play, where the image must
 * be whole.
 */
#ifndef TESTS_SIM_STAGE_H
#define TESTS_SIM_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/driver.h"
#include "tests/sim/crowd.h"
#include "tests/sim/images.h"

struct node_options;

enum stage_below { BELOW_NOTHING, BELOW_RAW, BELOW_BASE, BELOW_MIDDLE, BELOW_COUNT };

struct stage_file {
    int fd; /* -1: not there */
    char path[64];
};

struct stage {
    struct sim *sim;
    struct crowd *crowd;
    const struct image *image;
    enum stage_below below;
    bool by_slow; /* map() answers STEP_SLOW always */
    bool faulty, done;
    bool no_flush;     /* perhaps: after the first that failed all do, and tables cannot leave memory */
    uint64_t size_low; /* of the disk: the least that it may be just now */
    uint64_t size;     /* at the end */
    unsigned crashes;
    struct stage_file file, data, base, middle;
    struct driver slow_driver; /* qcow2 without map() */
};

extern struct stage stage;

uint64_t stage_random(uint64_t below);

/* Loops, files and crowd; nodes come later. image NULL: by chance, with something below it or not. */
void stage_begin(uint64_t seed, bool by_slow, const struct image *image);
/* Looks at the image, with qemu-img too if asked, and frees all. */
void stage_end(bool with_tools);

/* In a coroutine of the main loop. The crowd is attached to node "disk". options by chance, or plain. */
void stage_add_nodes(bool by_chance);
void stage_remove_nodes(void);
/* Reads everything: after that all is known. */
void stage_read_all(void);
void stage_wait_for_crowd(void);

#endif
