/*
 * A function on every loop, one call each: for what loops look at without a
 * lock and the main loop changes.
 */
#ifndef CORE_LOOP_EACH_H
#define CORE_LOOP_EACH_H

struct loop;

/*
 * Runs run(loop, arg) on each loop that exists, as a message, and waits for all. Afterwards nobody uses what was
 * replaced before the call, but for requests that keep it across a wait. Main loop coroutine, while no loop comes or
 * goes: with a change in hand.
 */
void loop_each(void (*run)(struct loop *loop, void *arg), void *arg);

#endif
