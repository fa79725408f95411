/*
 * Parts of one job in coroutines of their own, and one coroutine that waits
 * for all of them. Everything stays on one loop; tasks live with the waiter.
 */
#ifndef CORE_FAN_H
#define CORE_FAN_H

struct coroutine;

struct fan {
    struct coroutine *waiter;
    unsigned running;
    int result;                 /* of the first task that failed, else 0 */
};

struct fan_task {
    struct fan *fan;
    int (*run)(struct fan_task *task);      /* may wait; 0 or -errno */
};

/* Starts task->run(), until its first wait, or its end if there are too many coroutines already. The fan is zeroed before
 * its first use. */
void fan_start(struct fan *fan, struct fan_task *task);

/* Waits until all have ended. Only inside a coroutine. The fan can be used again. */
int fan_wait(struct fan *fan);

#endif
