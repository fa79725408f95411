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

/* Watches the file behind fd (one at a time); after all loops are made. What is there now is durable. */
void power_watch(struct sim *sim, int fd);
void power_forget(void);

/* What is left after a loss of power now; the caller frees *bytes. */
void power_fail(unsigned char **bytes, uint64_t *size);

#endif
