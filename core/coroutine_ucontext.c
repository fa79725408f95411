/*
 * How a fresh coroutine stack is laid out for coroutine_switch.S, and the
 * whole switch by ucontext on other machines.
 */
#include "core/coroutine_switch.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && !defined(CAIRN_UCONTEXT)

void *coroutine_stack_prepare(void *stack, size_t size, void (*entry)(void))
{
    uint64_t *top = (uint64_t *)((char *)stack + size);
    uint32_t mxcsr;
    uint16_t control;

    __asm__("stmxcsr %0" : "=m"(mxcsr));
    __asm__("fnstcw %0" : "=m"(control));
    *--top = 0;                         /* a return address for entry(), which it never uses: keeps alignment */
    *--top = (uint64_t)(uintptr_t)entry;
    for (int i = 0; i < 6; i++)
        *--top = 0;
    *--top = mxcsr | (uint64_t)control << 32;
    return top;
}

#elif defined(__aarch64__) && !defined(CAIRN_UCONTEXT)

void *coroutine_stack_prepare(void *stack, size_t size, void (*entry)(void))
{
    uint64_t *frame = (uint64_t *)((char *)stack + size - 160);

    memset(frame, 0, 160);
    frame[11] = (uint64_t)(uintptr_t)entry;     /* x30, where ret goes */
    return frame;
}

#else

#include <ucontext.h>

void *coroutine_stack_prepare(void *stack, size_t size, void (*entry)(void))
{
    /* The context itself sits at the top of the stack that it describes. */
    size_t room = (sizeof(ucontext_t) + 63) & ~(size_t)63;
    ucontext_t *context = (ucontext_t *)(void *)((char *)stack + size - room);

    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = size - room;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
    return context;
}

void coroutine_switch(void **from, void *to)
{
    ucontext_t here;    /* lives on the stack that it describes until somebody comes back */

    *from = &here;
    swapcontext(&here, to);
}

#endif
