/*
 * Loops. The main loop (libevent) does control: QMP, signals, timers, graph
 * changes; I/O loops serve exports, one thread each, asleep in their ring. A
 * request never leaves the loop in which it began; other loops are reached by
 * messages only.
 *
 * One turn, in this order:
 *   1. inbox       messages from other loops
 *   2. timers      those that are due
 *   3. pollers     take all new work from sockets and queues
 *   4. coroutines  those that were woken
 *   5. ring        submit all, run completions
 *   6. hooks       give the answers: one send per connection
 * then the next turn at once if anything happened, else a spin, else sleep.
 */
#ifndef CORE_LOOP_H
#define CORE_LOOP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/list.h"
#include "core/ring.h"

#define LOOP_MAX 64

struct coroutine;
struct coroutine_pool;
struct error;
struct event_base;
struct loop;
struct loop_buffers;
struct request;

/* Runs once on the loop that it was posted to. Belongs to the loop until run() is called. */
struct loop_message {
    struct loop_message *next;
    void (*run)(struct loop_message *message);
};

/* Runs once at the end of the turn in which it was queued, after which it may be queued again. */
struct loop_hook {
    struct list_link link;
    void (*run)(struct loop_hook *hook);
};

/* expired() runs on the timer's loop, once for each timer_set(). */
struct timer {
    uint64_t deadline_ns;
    void (*expired)(struct timer *timer);
    struct loop *loop;
    unsigned heap_index;    /* 1-based, 0 = not set */
};

/*
 * Somebody with things on a loop that outlive the loop's clients: leave() runs on the loop once its thread is to end,
 * and the thread does not end before loop_leave() was called for each.
 */
struct loop_leaver {
    struct list_link link;
    bool told;
    void (*leave)(struct loop_leaver *leaver);
};

/*
 * A source of new work behind a file descriptor (socket, eventfd). While hot
 * it is asked every turn; poll() takes all there is, and says whether there
 * was anything. Before the loop sleeps, each hot poller's fd is armed in the
 * ring and the poller goes cold; readiness makes it hot again.
 */
struct poller {
    struct list_link link;                      /* in loop->hot */
    struct loop *loop;
    int fd;
    bool armed;                                 /* op is in the ring */
    uint8_t empty;                              /* turns in a row without work */
    bool (*poll)(struct poller *poller);
    /* Optional, for work that shows up in memory: asks the other side to make fd ready from now on. False if there is
     * work already: then the poller stays hot. With it, to be asked is cheap: it stays hot as long as the loop is awake. */
    bool (*arm)(struct poller *poller);
    void (*removed)(struct poller *poller);     /* set while poller_remove() waits for op */
    struct ring_op op;
};

/* How long a loop looks for new work before it sleeps. Units: ns. */
struct loop_polling {
    uint64_t max_ns;            /* poll-max-ns; 0 = never spin */
    uint64_t grow, shrink;      /* factor and divisor of the window; 0: all of max_ns, none */
    uint64_t window_ns;         /* now: at most max_ns */
    uint64_t spin_started_ns;   /* 0 = not spinning */
    unsigned misses;            /* spins in a row that caught nothing */
    long preemptions;           /* involuntary switches at the last look: many mean that cores are short */
    uint64_t look_ns;           /* spun time at the last look */
    uint64_t penalty_until_ns;  /* no spinning before */
    _Atomic uint64_t spun_ns, hits, sleeps;     /* statistics; written by the loop, read by queries */
};

struct loop {
    unsigned index;                 /* below LOOP_MAX, its place in per-loop arrays */
    struct ring *ring;
    struct event_base *events;      /* main loop, and where the ring cannot sleep; else NULL */
    uint64_t now_ns;                /* read once a turn and after each sleep */

    uint32_t inflight[2];           /* units of work begun in each epoch: see grace.h */
    uint8_t epoch;

    struct list hot;                /* pollers asked each turn */
    struct list hooks;              /* struct loop_hook */
    struct coroutine *ready, **ready_tail;
    struct coroutine *running;
    struct coroutine_pool *stacks;
    struct loop_buffers *buffers;
    struct timer **timers;          /* binary heap, [1] is the next one */
    unsigned timer_count, timer_room;

    _Atomic(struct loop_message *) inbox;
    _Atomic unsigned posting;       /* threads inside loop_post() */
    _Atomic bool asleep;
    _Atomic bool stop;
    struct loop_polling polling;
    struct {
        pthread_t thread;
        long thread_id;             /* the system's; 0 before the thread runs */
        struct list leavers;        /* struct loop_leaver */
    };
    struct event *alarm;            /* next timer, for the sleep in libevent */
    void *grace;                    /* grace.c */
    char name[32];                  /* "main", "io0", or the iothread's id */
};

/* The loop of the calling thread, or NULL. */
struct loop *loop_current(void);

/* The loop that runs control code. Set by the first loop_create(). */
extern struct loop *loop_main;

/* All loops that exist, by index; a slot may be NULL. Main loop only. */
extern struct loop *loop_by_index[LOOP_MAX];

enum loop_ring { LOOP_RING_AUTO, LOOP_RING_URING, LOOP_RING_THREADS };

/* Which ring loop_create() makes: AUTO takes io_uring and falls back to threads. */
void loop_set_ring(enum loop_ring kind);

/*
 * Makes a loop that nobody runs yet. The first one is the main loop, which
 * sleeps in libevent; the others sleep in their ring if it can. ring may be
 * NULL, or given by a test (ownership passes). Errors: -EAGAIN when LOOP_MAX
 * loops exist, those of the ring.
 */
int loop_create(struct loop **ret, const char *name, struct ring *ring, struct error *err);

/* Starts, and stops and joins, the thread of an I/O loop. */
int loop_start_thread(struct loop *loop, struct error *err);
void loop_stop_thread(struct loop *loop);
void loop_destroy(struct loop *loop);           /* not running, nothing in flight */

/* Runs turns in the calling thread until loop->stop. */
void loop_run(struct loop *loop);
/* One turn without sleep, for tests that step loops by hand. True if anything happened. */
bool loop_turn(struct loop *loop);
/* Makes loop the calling thread's (tests that step several loops in one thread). */
void loop_set_current(struct loop *loop);

/* From any thread. Messages of one sender arrive in order. */
void loop_post(struct loop *loop, struct loop_message *message);

/* On the calling thread's own loop: */
void loop_hook_queue(struct loop *loop, struct loop_hook *hook);
void loop_stay(struct loop *loop, struct loop_leaver *leaver);
void loop_leave(struct loop_leaver *leaver);    /* may be called when it does not stay */
void timer_set(struct timer *timer, struct loop *loop, uint64_t deadline_ns);
void timer_cancel(struct timer *timer);         /* may be called when not set */
void poller_add(struct loop *loop, struct poller *poller);      /* becomes hot */
void poller_heat(struct poller *poller);        /* ask it next turn, whatever its fd says */
/* From poll(): do not ask, whatever the fd says, until poller_heat(). */
static inline void poller_rest(struct poller *poller)
{
    list_remove(&poller->link);
}
/* removed(poller) runs when nothing refers to it any more, perhaps at once. */
void poller_remove(struct poller *poller, void (*removed)(struct poller *poller));

#endif
