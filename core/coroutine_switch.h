/*
 * The context switch: coroutine_switch.S for x86-64 and aarch64,
 * coroutine_ucontext.c elsewhere (or with -DCAIRN_UCONTEXT).
 */
#ifndef CORE_COROUTINE_SWITCH_H
#define CORE_COROUTINE_SWITCH_H

#include <stddef.h>

/* Lays out a fresh stack so that the first switch to it calls entry(), which never returns. */
void *coroutine_stack_prepare(void *stack, size_t size, void (*entry)(void));

/* Saves where we are in *from and goes to where to was saved; returns when somebody comes back. */
void coroutine_switch(void **from, void *to);

#endif
