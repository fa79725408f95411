/*
 * The tests of coroutines with the context switch of machines that have none
 * of our own: what is linked here comes before what is in the library.
 */
#define CAIRN_UCONTEXT
#include "core/coroutine_ucontext.c"
#include "tests/unit/test_coroutine.c"
