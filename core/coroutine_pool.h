/*
 * The loop's side of coroutines: their stacks and the ready phase.
 */
#ifndef CORE_COROUTINE_POOL_H
#define CORE_COROUTINE_POOL_H

#include <stdbool.h>

struct coroutine_pool;
struct loop;

struct coroutine_pool *coroutine_pool_new(void);
void coroutine_pool_free(struct coroutine_pool *pool);      /* NULL is fine; no coroutine runs */

/* Resumes the coroutines that are ready now; true if there were any. */
bool coroutine_run_ready(struct loop *loop);

#endif
