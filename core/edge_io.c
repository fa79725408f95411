/*
 * I/O down an edge that waits: a request on the coroutine's own stack.
 */
#include <alloca.h>
#include <assert.h>

#include "core/coroutine.h"
#include "core/driver.h"
#include "core/edge.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/node.h"

struct edge_io {
    struct coroutine *waiter;   /* set once it has yielded */
    bool finished;
    struct request request;     /* last: scratch follows */
};

static void edge_io_done(struct request *req)
{
    struct edge_io *io = container_of(req, struct edge_io, request);

    io->finished = true;
    if (io->waiter)
        coroutine_wake(io->waiter);
}

static int edge_io(struct edge *edge, const struct request *what)
{
    unsigned scratch = edge->child->scratch_need;
    struct edge_io *io = alloca(sizeof(*io) + scratch);

    assert(coroutine_self());
    io->waiter = NULL;
    io->finished = false;
    io->request = *what;
    io->request.edge = edge;
    io->request.loop = loop_current();
    io->request.scratch_size = (uint16_t)scratch;
    io->request.done = edge_io_done;
    request_walk(&io->request, STEP_DOWN);
    if (!io->finished) {
        io->waiter = coroutine_self();
        coroutine_yield();
    }
    return io->request.result;
}

int edge_readv(struct edge *edge, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size)
{
    struct request what = {.op = REQ_READ, .offset = offset, .length = size, .iov = iov, .iov_count = (uint16_t)count};

    return edge_io(edge, &what);
}

int edge_writev(struct edge *edge, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t size,
                uint32_t flags)
{
    struct request what = {
        .op = REQ_WRITE, .flags = flags, .offset = offset, .length = size, .iov = iov, .iov_count = (uint16_t)count};

    return edge_io(edge, &what);
}

int edge_read(struct edge *edge, uint64_t offset, void *buf, size_t size)
{
    struct iovec iov = {.iov_base = buf, .iov_len = size};

    return edge_readv(edge, offset, &iov, 1, size);
}

int edge_write(struct edge *edge, uint64_t offset, const void *buf, size_t size, uint32_t flags)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = size};

    return edge_writev(edge, offset, &iov, 1, size, flags);
}

int edge_flush(struct edge *edge)
{
    struct request what = {.op = REQ_FLUSH};

    return edge_io(edge, &what);
}

int edge_discard(struct edge *edge, uint64_t offset, uint64_t length)
{
    struct request what = {.op = REQ_DISCARD, .offset = offset, .length = length};

    return edge_io(edge, &what);
}

int edge_write_zeroes(struct edge *edge, uint64_t offset, uint64_t length, uint32_t flags)
{
    struct request what = {.op = REQ_WRITE_ZEROES, .flags = flags, .offset = offset, .length = length};

    return edge_io(edge, &what);
}

int edge_status(struct edge *edge, uint64_t offset, uint64_t length, struct extent_list *extents)
{
    struct request what = {.op = REQ_STATUS, .offset = offset, .length = length, .extents = extents};

    return edge_io(edge, &what);
}

static struct node *edge_watcher(const struct edge *edge)
{
    while (edge && edge->child && !edge->child->driver->event)
        edge = node_child_by_role(edge->child, ROLE_PRIMARY);
    return edge ? edge->child : NULL;
}

void edge_event(const struct edge *edge, unsigned event)
{
    struct node *watcher = edge_watcher(edge);

    if (watcher)
        watcher->driver->event(watcher, event);
}

bool edge_is_watched(const struct edge *edge)
{
    return edge_watcher(edge) != NULL;
}
