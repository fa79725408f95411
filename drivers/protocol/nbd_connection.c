/*
 * The life of a connection. Its keeper, a coroutine of the connection's loop,
 * connects, waits for the connection to be lost, connects again; moves the
 * connection to another loop, or ends it. What it waits for wakes it: the
 * poller (handshake, loss), its clock, the node that is closed, the loop that
 * ends.
 */
#include <errno.h>
#include <sys/socket.h>

#include "core/coroutine.h"
#include "core/memory.h"
#include "drivers/protocol/nbd.h"

/* Between attempts: doubled up to the second. */
#define NBD_PAUSE_NS 50000000u
#define NBD_PAUSE_MAX_NS 2000000000u
#define NBD_FURTHER_PAUSE_NS 30000000000u

/* How long what is held may keep a drain waiting, which has a limit of its own. */
#define NBD_DRAIN_NS 3000000000u

static void nbd_clock(struct timer *timer)
{
    nbd_wake(container_of(timer, struct nbd_connection, clock));
}

static void nbd_limit_is_over(struct timer *timer)
{
    nbd_release(container_of(timer, struct nbd_connection, limit), -EIO);
}

void nbd_limit(struct nbd_connection *connection)
{
    uint64_t until = connection->held_until_ns, patience = connection->loop->now_ns + NBD_DRAIN_NS;

    timer_cancel(&connection->limit);
    if (!connection->held.first)
        return;
    if (atomic_load_explicit(&connection->nbd->quiesced, memory_order_relaxed) && until > patience)
        until = patience;
    timer_set(&connection->limit, connection->loop, until);
}

/* The keeper. */

static void nbd_hook(struct loop_hook *hook)
{
    nbd_settle(container_of(hook, struct nbd_connection, hook));
}

/* The loop's thread is to end. */
static void nbd_leave(struct loop_leaver *leaver)
{
    struct nbd_connection *connection = container_of(leaver, struct nbd_connection, leaver);

    connection->target = loop_main;
    nbd_wake(connection);
}

struct nbd_connection *nbd_connection_new(struct nbd *nbd, struct loop *loop)
{
    struct nbd_connection *connection = memory_new(struct nbd_connection);

    connection->nbd = nbd;
    connection->loop = loop;
    connection->held.tail = &connection->held.first;
    connection->finished.tail = &connection->finished.first;
    connection->hook.run = nbd_hook;
    connection->clock.expired = nbd_clock;
    connection->limit.expired = nbd_limit_is_over;
    connection->leaver.leave = nbd_leave;
    list_link_init(&connection->hook.link);
    list_link_init(&connection->leaver.link);
    pthread_mutex_lock(&nbd->guard);
    list_append(&nbd->connections, &connection->link);
    pthread_mutex_unlock(&nbd->guard);
    return connection;
}

void nbd_connection_free(struct nbd_connection *connection)
{
    list_remove(&connection->link);
    free(connection->reason);
    free(connection);
}

static void nbd_set_last_error(struct nbd *nbd, char *text)
{
    pthread_mutex_lock(&nbd->guard);
    free(nbd->last_error);
    nbd->last_error = text;
    pthread_mutex_unlock(&nbd->guard);
}

/* Again, or for the first time if this is a further connection. */
static void nbd_try(struct nbd_connection *connection, uint64_t *pause_ns)
{
    AUTO_ERROR struct error err = {0};
    bool again = connection->used;

    nbd_disconnect(connection);
    if (nbd_connect(connection, &err) == 0) {
        *pause_ns = NBD_PAUSE_NS;
        if (again)
            atomic_fetch_add(&connection->nbd->reconnects, 1);
        nbd_set_last_error(connection->nbd, NULL);
        timer_cancel(&connection->limit);
        nbd_release(connection, 0);
        return;
    }
    if (connection->stop || connection->target)
        return;
    nbd_set_last_error(connection->nbd, take_ptr(&err.text));
    /* While a server does not allow a further connection after all, the home serves this loop. */
    nbd_wait(connection, nbd_now(connection) + (again ? *pause_ns : NBD_FURTHER_PAUSE_NS));
    *pause_ns = *pause_ns < NBD_PAUSE_MAX_NS ? 2 * *pause_ns : *pause_ns;
}

static void nbd_gone(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, moved);
    struct nbd *nbd = connection->nbd;

    nbd_connection_free(connection);
    if (nbd->closer && --nbd->open == 0)
        coroutine_wake(nbd->closer);
}

/* The new loop's. */
static void nbd_arrived(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, moved);

    nbd_connection_keep(connection);
}

/* Only the main loop, where loops come and go, sends a connection to another one. */
static bool nbd_is_alive(const struct loop *loop)
{
    for (unsigned i = 0; i < LOOP_MAX && loop != loop_main; i++) {
        if (loop_by_index[i] == loop)
            return true;
    }
    return loop == loop_main;
}

/* What goes on elsewhere, or ends: a further connection is its loop's alone. */
static void nbd_hand_over(struct nbd_connection *connection, bool ends)
{
    struct nbd *nbd = connection->nbd;
    struct loop *loop = connection->loop, *target = ends ? loop_main : connection->target;

    timer_cancel(&connection->limit);
    list_remove(&connection->hook.link);
    loop_leave(&connection->leaver);
    if (nbd->local[loop->index] == connection)
        nbd->local[loop->index] = NULL;
    nbd->tried[loop->index] = false;
    connection->target = NULL;
    connection->moved.run = ends ? nbd_gone : nbd_arrived;
    pthread_mutex_lock(&nbd->guard);
    connection->loop = target;
    connection->ended = ends;
    loop_post(target, &connection->moved);
    pthread_mutex_unlock(&nbd->guard);
}

/* Leaves nothing on this loop; false if there is nowhere to go. */
static bool nbd_depart(struct nbd_connection *connection)
{
    bool ends = connection->stop || connection != connection->nbd->home;

    if (ends || connection->state != NBD_READY)
        nbd_disconnect(connection);
    else
        nbd_detach(connection);
    ends |= connection->stop;
    if (ends && connection->handle)
        nbd_disconnect(connection);
    if (!ends && !nbd_is_alive(connection->target)) {
        connection->target = NULL;
        if (connection->handle)
            nbd_attach(connection);
        return false;
    }
    nbd_hand_over(connection, ends);
    return true;
}

static void nbd_keep(void *arg)
{
    struct nbd_connection *connection = arg;
    uint64_t pause_ns = NBD_PAUSE_NS;

    do {
        while (!connection->stop && !connection->target) {
            if (connection->state == NBD_READY)
                nbd_wait(connection, UINT64_MAX);
            else
                nbd_try(connection, &pause_ns);
        }
    } while (!nbd_depart(connection));
}

void nbd_connection_keep(struct nbd_connection *connection)
{
    struct loop *loop = connection->loop;

    connection->nbd->local[loop->index] = connection;
    if (loop != loop_main)
        loop_stay(loop, &connection->leaver);
    if (connection->handle && !connection->attached)
        nbd_attach(connection);
    nbd_settle(connection);
    nbd_limit(connection);
    coroutine_start(loop, nbd_keep, connection);
}

void nbd_connection_add(struct nbd *nbd)
{
    struct loop *loop = loop_current();

    nbd->tried[loop->index] = true;
    nbd_connection_keep(nbd_connection_new(nbd, loop));
}

/* The connection may just be moving. */
static void nbd_stop(struct loop_message *message)
{
    struct nbd_connection *connection = container_of(message, struct nbd_connection, stopping);
    struct nbd *nbd = connection->nbd;

    pthread_mutex_lock(&nbd->guard);
    bool here = connection->loop == loop_current();

    if (!here)
        loop_post(connection->loop, message);
    pthread_mutex_unlock(&nbd->guard);
    if (!here)
        return;
    connection->stop = true;
    nbd_wake(connection);
}

static void nbd_break_here(struct loop_message *message)
{
    struct nbd *nbd = container_of(message, struct nbd, breaking);
    struct nbd_connection *connection = nbd->local[loop_current()->index];

    pthread_mutex_lock(&nbd->guard);
    nbd->breaks = false;
    pthread_mutex_unlock(&nbd->guard);
    if (connection && connection->attached)
        shutdown(connection->poller.fd, SHUT_RDWR);
}

void nbd_break(struct nbd *nbd)
{
    nbd->breaking.run = nbd_break_here;
    pthread_mutex_lock(&nbd->guard);
    if (!nbd->breaks)
        loop_post(nbd->home->loop, &nbd->breaking);
    nbd->breaks = true;
    pthread_mutex_unlock(&nbd->guard);
}

void nbd_connections_end(struct nbd *nbd)
{
    struct nbd_connection *connection;

    nbd->closer = coroutine_self();
    pthread_mutex_lock(&nbd->guard);
    list_for_each(connection, &nbd->connections, link) {
        nbd->open++;
        if (connection->ended)
            continue;
        connection->stopping.run = nbd_stop;
        loop_post(connection->loop, &connection->stopping);
    }
    pthread_mutex_unlock(&nbd->guard);
    if (nbd->open)
        coroutine_yield();
}
