/*
 * What a loss of power would leave of a file in the simulation: all that was
 * there when the last fsync began that has ended well, and of what came later
 * any choice of sectors. Sits between the loops and their simulated rings.
 */
#ifndef TESTS_SIM_POWER_H
#define TESTS_SIM_POWER_H

#include <stdbool.h>
#include <stdint.h>

struct sim;

#define POWER_FILES 2u

/* Watches the file behind fd under this number; after all loops are made. What is there now is durable. */
void power_watch(struct sim *sim, unsigned number, int fd);
void power_forget(void); /* all */

/* What is left of a file after a loss of power now; the caller frees *bytes. */
void power_fail(unsigned number, unsigned char **bytes, uint64_t *size);

#endif
