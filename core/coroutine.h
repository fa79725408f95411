/*
 * Stackful coroutines: straight-line code that waits. A coroutine is started
 * on a loop and never leaves it, so thread-local values stay valid across a
 * wait. Stacks (128 KiB and a guard page) are pooled per loop.
 */
#ifndef CORE_COROUTINE_H
#define CORE_COROUTINE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ring.h"

struct coroutine;
struct loop;

/* Runs entry(arg) in a new coroutine of the calling thread's loop, at once, until its first
 * wait; then returns. Callable from inside another coroutine. */
void coroutine_start(struct loop *loop, void (*entry)(void *arg), void *arg);

/* The same for what clients can have as much of as they like: false, and nothing is started, if there are more than
 * coroutine_limit already, or no memory. */
bool coroutine_try_start(struct loop *loop, void (*entry)(void *arg), void *arg);

/* Of all loops. A stack takes two of the kernel's vm.max_map_count mappings: less than half of the usual 65530. */
extern unsigned coroutine_limit;

/* The running coroutine, or NULL outside of one. */
struct coroutine *coroutine_self(void);

/* Waits until somebody calls coroutine_wake(). Only inside a coroutine. */
void coroutine_yield(void);

/* Lets co go on, in its own loop, in the next coroutine phase. From any thread; exactly one wake
 * for each yield (a wake that comes before the yield is not lost on the same loop: see .c). */
void coroutine_wake(struct coroutine *co);

/* Waits; the only wake is the clock's. */
void coroutine_sleep(uint64_t ns);

/* A slot of the running coroutine for the epoch of its unit of work: consumer_enter(), consumer_leave(). */
void coroutine_set_epoch(uint8_t epoch);
uint8_t coroutine_epoch(void);

/* Ring operations that wait for their result (see ring.h for results). Only inside a coroutine. */
int coroutine_rw(bool write, int fd, const struct iovec *iov, unsigned count, uint64_t offset, int rw_flags);
int coroutine_fsync(int fd, bool data_only);
int coroutine_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
int coroutine_call(int (*fn)(void *arg), void *arg);

#endif
