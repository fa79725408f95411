/*
 * Operations of the nbd driver. Where one goes:
 *
 *   nbd_submit  -> issued on the loop's own connection
 *               -> held there, while it is away and reconnect-delay allows it
 *               -> posted to the home's loop, which issues or holds it
 *   libnbd's callbacks put it among the connection's finished operations;
 *   nbd_settle  -> done(), on its own loop
 *               -> held, if it was lost with the connection: it is done again
 *                  as a whole. Its client has had no answer, so a write that
 *                  reached the disk before may be written once more.
 *
 * libnbd's callbacks run inside of its functions, with the handle locked:
 * they only write down what happened.
 */
#include <errno.h>
#include <string.h>

#include "core/coroutine.h"
#include "drivers/protocol/nbd.h"

/* Most bytes of an operation without data: a multiple of all blocks, within the protocol's 32 bits. */
#define NBD_RANGE_MAX (UINT32_C(1) << 30)

/* Ends. */

static void nbd_told(struct loop_message *message)
{
    struct nbd_operation *operation = container_of(message, struct nbd_operation, message);

    operation->done(operation);
}

static void nbd_finish(struct nbd_operation *operation, int result)
{
    /* What the protocol says about its own end is an I/O error to everybody else. */
    operation->result = result == -ENOTCONN || result == -ESHUTDOWN ? -EIO : result;
    if (operation->loop == loop_current()) {
        operation->done(operation);
        return;
    }
    operation->message.run = nbd_told;
    loop_post(operation->loop, &operation->message);
}

static void nbd_put(struct nbd_queue *queue, struct nbd_operation *operation)
{
    operation->next = NULL;
    *queue->tail = operation;
    queue->tail = &operation->next;
}

/* All of it: the first, the rest by next. */
static struct nbd_operation *nbd_take_all(struct nbd_queue *queue)
{
    queue->tail = &queue->first;
    return take_ptr(&queue->first);
}

static void nbd_hold(struct nbd_connection *connection, struct nbd_operation *operation)
{
    nbd_put(&connection->held, operation);
    if (!connection->limit.heap_index)
        nbd_limit(connection);
}

static bool nbd_holds(const struct nbd_connection *connection)
{
    return connection->held_until_ns > connection->loop->now_ns;
}

void nbd_release(struct nbd_connection *connection, int result)
{
    struct nbd_operation *operation = nbd_take_all(&connection->held);

    while (operation) {
        struct nbd_operation *next = operation->next;

        if (result < 0)
            nbd_finish(operation, result);
        else
            nbd_issue(connection, operation);
        operation = next;
    }
}

static bool nbd_is_lost(const struct nbd_connection *connection)
{
    return nbd_aio_is_dead(connection->handle) || nbd_aio_is_closed(connection->handle);
}

/* A server that is about to end says so to what is in flight: that is as good as gone. */
static bool nbd_says_goodbye(const struct nbd_connection *connection)
{
    for (const struct nbd_operation *operation = connection->finished.first; operation; operation = operation->next) {
        if (operation->result == -ESHUTDOWN)
            return true;
    }
    return false;
}

static void nbd_lose(struct nbd_connection *connection)
{
    struct nbd *nbd = connection->nbd;
    uint64_t delay_ns = nbd->options->reconnect_delay * UINT64_C(1000000000);

    connection->state = NBD_BROKEN;
    connection->held_until_ns = delay_ns ? connection->loop->now_ns + delay_ns : 0;
    atomic_fetch_sub(&nbd->connected, 1);
    nbd_wake(connection);
}

bool nbd_settle(struct nbd_connection *connection)
{
    bool any = false;

    if (!connection->handle)
        return false;
    if (connection->state == NBD_READY && (nbd_is_lost(connection) || nbd_says_goodbye(connection)))
        nbd_lose(connection);
    else if (connection->state == NBD_CONNECTING && !nbd_aio_is_connecting(connection->handle))
        nbd_wake(connection);
    struct nbd_operation *operation = nbd_take_all(&connection->finished);

    while (operation) {
        struct nbd_operation *next = operation->next;
        bool lost = operation->result == -ENOTCONN || operation->result == -ESHUTDOWN;

        any = true;
        connection->in_flight--;
        if (lost && !operation->impatient && connection->state != NBD_READY && nbd_holds(connection))
            nbd_hold(connection, operation);
        else
            nbd_finish(operation, operation->result);
        operation = next;
    }
    return any;
}

/* Issue. */

static void nbd_piece_end(struct nbd_operation *operation)
{
    if (--operation->pieces == 0)
        nbd_put(&operation->connection->finished, operation);
}

static void nbd_fail(struct nbd_operation *operation, int code)
{
    if (operation->result == 0)
        operation->result = code > 0 ? -code : -EIO;
}

static int nbd_piece_done(void *opaque, int *error)
{
    struct nbd_operation *operation = opaque;

    if (*error)
        nbd_fail(operation, *error);
    nbd_piece_end(operation);
    return 1;
}

#define NBD_COMPLETION(operation)                            \
    (nbd_completion_callback)                                \
    {                                                        \
        .callback = nbd_piece_done, .user_data = (operation) \
    }

/* After a call that starts a piece. One that could not start has no completion. */
static bool nbd_piece_began(struct nbd_operation *operation, int64_t cookie)
{
    if (cookie >= 0)
        return true;
    nbd_fail(operation, nbd_is_lost(operation->connection) ? ENOTCONN : nbd_get_errno());
    operation->pieces--;
    return false;
}

static void nbd_issue_data(struct nbd_connection *connection, struct nbd_operation *operation)
{
    uint32_t flags = operation->flags & REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0;
    uint64_t offset = operation->offset;

    for (unsigned i = 0; i < operation->iov_count; i++) {
        char *base = operation->iov[i].iov_base;

        for (size_t left = operation->iov[i].iov_len; left;) {
            size_t part = left < connection->nbd->traits.transfer ? left : connection->nbd->traits.transfer;
            int64_t cookie;

            operation->pieces++;
            if (operation->op == REQ_READ)
                cookie = nbd_aio_pread(connection->handle, base, part, offset, NBD_COMPLETION(operation), 0);
            else
                cookie = nbd_aio_pwrite(connection->handle, base, part, offset, NBD_COMPLETION(operation), flags);
            if (!nbd_piece_began(operation, cookie))
                return;
            base += part;
            offset += part;
            left -= part;
        }
    }
}

static int64_t nbd_issue_piece(struct nbd_connection *connection, struct nbd_operation *operation, uint64_t offset,
                               uint64_t length)
{
    struct nbd_handle *handle = connection->handle;
    uint32_t flags = operation->flags & REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0;

    switch (operation->op) {
    case REQ_DISCARD:
        return nbd_aio_trim(handle, length, offset, NBD_COMPLETION(operation), flags);
    case REQ_PREFETCH:
        return nbd_aio_cache(handle, length, offset, NBD_COMPLETION(operation), 0);
    default:
        flags |= operation->flags & REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
        flags |= operation->flags & REQ_FAST_ONLY ? LIBNBD_CMD_FLAG_FAST_ZERO : 0;
        return nbd_aio_zero(handle, length, offset, NBD_COMPLETION(operation), flags);
    }
}

/* A hint may cover more, to whole blocks. */
static void nbd_issue_range(struct nbd_connection *connection, struct nbd_operation *operation)
{
    const struct nbd_traits *traits = &connection->nbd->traits;
    uint64_t block = operation->op == REQ_PREFETCH ? traits->block : 1;
    uint64_t offset = operation->offset & ~(block - 1);
    uint64_t end = (operation->offset + operation->length + block - 1) & ~(block - 1);

    while (offset < end) {
        uint64_t part = end - offset < NBD_RANGE_MAX ? end - offset : NBD_RANGE_MAX;

        operation->pieces++;
        if (!nbd_piece_began(operation, nbd_issue_piece(connection, operation, offset, part)))
            return;
        offset += part;
    }
}

/* Extents begin at offset, which may lie before the operation's, and may go beyond its end. */
static int nbd_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t count, int *error)
{
    struct nbd_operation *operation = opaque;
    uint64_t end = operation->offset + operation->length, at = operation->offset;

    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) || *error || operation->extents->count)
        return 0;
    for (size_t i = 0; i + 1 < count && at < end; i += 2) {
        uint64_t stop = offset + entries[i];

        offset = stop;
        if (stop > end)
            stop = end;
        if (stop <= at)
            continue;
        if (!extent_add(operation->extents, stop - at, entries[i + 1] & (EXTENT_HOLE | EXTENT_ZERO)))
            break;
        at = stop;
    }
    return 0;
}

static int nbd_status_done(void *opaque, int *error)
{
    struct nbd_operation *operation = opaque;

    if (*error == 0 && operation->extents->count == 0)
        nbd_fail(operation, EIO);
    return nbd_piece_done(opaque, error);
}

static void nbd_issue_status(struct nbd_connection *connection, struct nbd_operation *operation)
{
    uint64_t block = connection->nbd->traits.block;
    uint64_t start = operation->offset & ~(block - 1);
    uint64_t length = operation->offset + operation->length - start;

    operation->extents->count = 0;
    length = length < NBD_RANGE_MAX ? (length + block - 1) & ~(block - 1) : NBD_RANGE_MAX;
    operation->pieces++;
    nbd_piece_began(operation, nbd_aio_block_status(
                                   connection->handle, length, start,
                                   (nbd_extent_callback){.callback = nbd_extents, .user_data = operation},
                                   (nbd_completion_callback){.callback = nbd_status_done, .user_data = operation}, 0));
}

void nbd_issue(struct nbd_connection *connection, struct nbd_operation *operation)
{
    operation->connection = connection;
    operation->result = 0;
    operation->pieces = 1;
    connection->in_flight++;
    switch (operation->op) {
    case REQ_READ:
    case REQ_WRITE:
        nbd_issue_data(connection, operation);
        break;
    case REQ_STATUS:
        nbd_issue_status(connection, operation);
        break;
    case REQ_FLUSH:
        operation->pieces++;
        nbd_piece_began(operation, nbd_aio_flush(connection->handle, NBD_COMPLETION(operation), 0));
        break;
    default:
        nbd_issue_range(connection, operation);
    }
    nbd_piece_end(operation);
    nbd_watch_writing(connection);
    if (unlikely(connection->finished.first != NULL))
        loop_hook_queue(connection->loop, &connection->hook);
}

/* Ways. */

/* At the connection's own loop. */
static int nbd_take(struct nbd_connection *connection, struct nbd_operation *operation)
{
    if (connection->state == NBD_READY)
        nbd_issue(connection, operation);
    else if (nbd_holds(connection) && !operation->impatient)
        nbd_hold(connection, operation);
    else
        return -EIO;
    return 0;
}

static void nbd_arrive(struct loop_message *message);

static void nbd_send_home(struct nbd_operation *operation)
{
    struct nbd *nbd = operation->nbd;

    operation->message.run = nbd_arrive;
    pthread_mutex_lock(&nbd->guard);
    loop_post(nbd->home->loop, &operation->message);
    pthread_mutex_unlock(&nbd->guard);
}

static void nbd_arrive(struct loop_message *message)
{
    struct nbd_operation *operation = container_of(message, struct nbd_operation, message);
    struct nbd *nbd = operation->nbd;
    struct nbd_connection *home = nbd->local[loop_current()->index];

    /* It has moved meanwhile. */
    if (home != nbd->home) {
        nbd_send_home(operation);
        return;
    }
    if (home->loop == loop_main && operation->loop != loop_main && !home->target) {
        home->target = operation->loop;
        nbd_wake(home);
    }
    int result = nbd_take(home, operation);

    if (result < 0)
        nbd_finish(operation, result);
}

/* Not while the home may still come here. */
static bool nbd_wants_further(struct nbd *nbd, const struct loop *loop)
{
    if (!nbd->traits.multi || loop == loop_main || nbd->tried[loop->index])
        return false;
    pthread_mutex_lock(&nbd->guard);
    bool settled = nbd->home->loop != loop_main && nbd->home->loop != loop;
    pthread_mutex_unlock(&nbd->guard);
    return settled;
}

static int nbd_submit_elsewhere(struct nbd_operation *operation)
{
    struct nbd *nbd = operation->nbd;
    struct nbd_connection *local = nbd->local[operation->loop->index];

    if (local && local->used)
        return nbd_take(local, operation);
    if (nbd_wants_further(nbd, operation->loop))
        nbd_connection_add(nbd);
    nbd_send_home(operation);
    return 0;
}

int nbd_submit(struct nbd_operation *operation)
{
    struct nbd_connection *connection = operation->nbd->local[operation->loop->index];

    if (unlikely(!connection || connection->state != NBD_READY))
        return nbd_submit_elsewhere(operation);
    nbd_issue(connection, operation);
    return 0;
}

struct nbd_waiting {
    struct nbd_operation operation;
    struct coroutine *waiter;
};

static void nbd_waited(struct nbd_operation *operation)
{
    coroutine_wake(container_of(operation, struct nbd_waiting, operation)->waiter);
}

int nbd_do(struct nbd *nbd, struct nbd_operation *operation)
{
    struct nbd_waiting waiting = {.operation = *operation, .waiter = coroutine_self()};

    waiting.operation.nbd = nbd;
    waiting.operation.loop = loop_current();
    waiting.operation.done = nbd_waited;
    int result = nbd_submit(&waiting.operation);

    if (result < 0)
        return result;
    coroutine_yield();
    return waiting.operation.result;
}
