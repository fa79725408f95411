/*
 * The simulated ring: a world of loops that one thread steps, with a clock of
 * its own, where everything that chance decides comes from one seed. The same
 * seed gives the same run, to the byte.
 *
 * Files are real descriptors, best of memfd_create(2): opening, locks, holes
 * and sizes are the kernel's, and drivers run as they are. What the ring
 * decides is when an operation takes effect and when that is told, in which
 * order, in how many pieces, how much of it, and whether at all: a write is
 * torn into pieces that reach the file at different times, a transfer may be
 * short, faults give errors or never come back.
 */
#ifndef TESTS_SIM_RING_SIM_H
#define TESTS_SIM_RING_SIM_H

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct sim;

/* As ck_assert(), which costs a system call even when all is well. */
#define ENSURE(what) ((what) ? (void)0 : ck_abort_msg("%s", #what))

enum sim_kind { SIM_READ = 1, SIM_WRITE = 2, SIM_FSYNC = 4, SIM_FALLOCATE = 8, SIM_CALL = 16, SIM_POLL = 32 };

/* The result of an operation that does not come back before sim_release(). */
#define SIM_NEVER 1

/* Gives operations that fit another result. What is 0 does not restrict, but for fd. */
struct sim_fault {
    unsigned kinds;         /* SIM_* */
    int fd;                 /* the same file counts, by any descriptor; -1 = any */
    uint64_t start, end;    /* bytes that it must touch */
    unsigned permille;      /* chance; 0 = always */
    unsigned count;         /* at most so many */
    int result;             /* negative errno, or SIM_NEVER */
};

/* How the ring behaves; may be changed at any time. */
struct sim_manner {
    uint64_t delay_max_ns;      /* from submission to the end */
    unsigned short_permille;    /* transfers that end early */
    unsigned torn_permille;     /* transfers that happen in pieces */
};

struct sim *sim_new(uint64_t seed);
/* Destroys the loops; nothing may be in flight. */
void sim_free(struct sim *sim);

/* A loop of this world; the first one is the main loop. */
struct loop *sim_loop(struct sim *sim, const char *name);
struct sim_manner *sim_manner(struct sim *sim);

/*
 * One turn of one loop; before it work(loop, arg) may submit there, as a
 * poller would. When all loops are idle, the clock jumps to the next event.
 * False if nothing happened in any loop and nothing will.
 */
bool sim_step(struct sim *sim, bool (*work)(struct loop *loop, void *arg), void *arg);

uint64_t sim_now(const struct sim *sim);        /* ns */
uint64_t sim_random(struct sim *sim, uint64_t below);
/* True in so many of 1000 cases. */
bool sim_chance(struct sim *sim, unsigned permille);

/* Copied; stays in force until sim_forget_faults(). The first that fits wins. At most 8. */
void sim_fault(struct sim *sim, const struct sim_fault *fault);
void sim_forget_faults(struct sim *sim);
/* What never came back does so now, as if nothing had happened; returns how many. */
unsigned sim_release(struct sim *sim);

/* Operations on the file behind fd that have not completed, or of all with fd -1. */
unsigned sim_inflight(const struct sim *sim, int fd);
unsigned sim_held(const struct sim *sim);       /* those of SIM_NEVER */

/* A poll of fd completes from now on, until it is taken back. Polls see nothing but this. */
void sim_set_ready(struct sim *sim, int fd, bool ready);

/* A digest of all that happened so far: what, when, with which result. */
uint64_t sim_digest(const struct sim *sim);

#endif
