/*
 * A layer for tests: shows what a raw node shows, and on the way waits, holds
 * requests, looks at completions and repeats requests, as a seed decides.
 * Takes over a raw node of a change that is not applied yet.
 */
#ifndef TESTS_SIM_TAP_H
#define TESTS_SIM_TAP_H

struct node;
struct sim;

void tap_take_over(struct node *node, struct sim *sim);

#endif
