/*
 * See loop_each.h.
 */
#include "core/loop_each.h"

#include "core/coroutine.h"
#include "core/loop.h"
#include "core/memory.h"

struct loop_each;

struct loop_each_call {
    struct loop_message ask, answer;
    struct loop_each *each;
    struct loop *loop;
};

struct loop_each {
    void (*run)(struct loop *loop, void *arg);
    void *arg;
    unsigned count, missing;
    struct coroutine *waiter;
    struct loop_each_call calls[LOOP_MAX];
};

static void loop_each_ask(struct loop_message *message)
{
    struct loop_each_call *call = container_of(message, struct loop_each_call, ask);

    call->each->run(call->loop, call->each->arg);
    loop_post(loop_main, &call->answer);
}

static void loop_each_answer(struct loop_message *message)
{
    struct loop_each *each = container_of(message, struct loop_each_call, answer)->each;

    if (--each->missing == 0)
        coroutine_wake(each->waiter);
}

void loop_each(void (*run)(struct loop *loop, void *arg), void *arg)
{
    struct loop_each *each = memory_new(struct loop_each);

    *each = (struct loop_each){.run = run, .arg = arg, .waiter = coroutine_self()};
    for (unsigned i = 0; i < LOOP_MAX; i++) {
        if (loop_by_index[i])
            each->calls[each->count++] = (struct loop_each_call){
                .ask.run = loop_each_ask, .answer.run = loop_each_answer, .each = each, .loop = loop_by_index[i]};
    }
    each->missing = each->count;
    for (unsigned i = 0; i < each->count; i++)
        loop_post(each->calls[i].loop, &each->calls[i].ask);
    coroutine_yield();
    free(each);
}
