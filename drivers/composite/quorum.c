/*
 * quorum: writes, flushes, status and what the disk is as a whole: see
 * quorum.h.
 */
#include "drivers/composite/quorum.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/event.h"
#include "core/memory.h"

#define QUORUM_SECTOR 512u
#define QUORUM_REPORT_NS 100000000u
#define QUORUM_EXTENTS 16u

/* Events */

static bool quorum_may_report(struct quorum *quorum, unsigned index, uint64_t now_ns)
{
    uint64_t last = atomic_load(&quorum->reported_ns[index]);

    if (last && now_ns - last < QUORUM_REPORT_NS)
        return false;
    return atomic_compare_exchange_strong(&quorum->reported_ns[index], &last, now_ns);
}

void quorum_report_bad(struct node *node, unsigned child, enum quorum_report_bad_type type, const struct request *req,
                       int error)
{
    struct quorum *quorum = node->state;
    uint64_t end = req->offset + req->length;

    if (!quorum_may_report(quorum, child, req->loop->now_ns))
        return;
    struct quorum_report_bad_event event = {
        .type = type,
        .error = error ? strerror(-error) : NULL,
        .node_name = quorum->children[child]->child->name,
        .sector_num = req->offset / QUORUM_SECTOR,
        .sectors_count = (end + QUORUM_SECTOR - 1) / QUORUM_SECTOR - req->offset / QUORUM_SECTOR,
    };

    event_emit("QUORUM_REPORT_BAD", &quorum_report_bad_event_type, &event);
}

void quorum_report_failure(struct node *node, const struct request *req)
{
    struct quorum *quorum = node->state;
    uint64_t end = req->offset + req->length;

    if (!quorum_may_report(quorum, QUORUM_CHILDREN_MAX, req->loop->now_ns))
        return;
    struct quorum_failure_event event = {
        .reference = node->name,
        .sector_num = req->offset / QUORUM_SECTOR,
        .sectors_count = (end + QUORUM_SECTOR - 1) / QUORUM_SECTOR - req->offset / QUORUM_SECTOR,
    };

    event_emit("QUORUM_FAILURE", &quorum_failure_event_type, &event);
}

/* Tasks */

unsigned quorum_run(struct quorum_task *tasks, unsigned count, int (*run)(struct fan_task *task))
{
    struct fan fan = {0};
    unsigned good = 0;

    for (unsigned i = 0; i < count; i++) {
        tasks[i].task.run = run;
        fan_start(&fan, &tasks[i].task);
    }
    fan_wait(&fan);
    for (unsigned i = 0; i < count; i++)
        good += tasks[i].result == 0;
    return good;
}

int quorum_first_error(const struct quorum_task *tasks, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (tasks[i].result < 0)
            return tasks[i].result;
    }
    return -EIO;
}

/*
 * A discard leaves in each child what it likes, but the children must say the
 * same afterwards.
 */
static int quorum_change_one(struct fan_task *fan_task)
{
    struct quorum_task *task = container_of(fan_task, struct quorum_task, task);
    const struct request *req = task->req;

    if (req->op == REQ_FLUSH)
        task->result = edge_flush(task->edge);
    else if (req->op == REQ_WRITE)
        task->result = edge_writev(task->edge, req->offset, req->iov, req->iov_count, req->length, req->flags);
    else
        task->result = edge_write_zeroes(task->edge, req->offset, req->length,
                                         req->flags | (req->op == REQ_DISCARD ? REQ_MAY_UNMAP : 0));
    return 0;
}

static int quorum_change(struct node *node, const struct request *req)
{
    struct quorum *quorum = node->state;
    struct quorum_task tasks[QUORUM_CHILDREN_MAX];
    enum quorum_report_bad_type type =
        req->op == REQ_FLUSH ? QUORUM_REPORT_BAD_TYPE_FLUSH : QUORUM_REPORT_BAD_TYPE_WRITE;
    struct range_hold hold;

    for (unsigned i = 0; i < quorum->count; i++)
        tasks[i] = (struct quorum_task){.edge = quorum->children[i], .req = req};
    if (req->op != REQ_FLUSH)
        range_lock_take(&quorum->lock, &hold, req->offset, req->length);
    unsigned good = quorum_run(tasks, quorum->count, quorum_change_one);

    if (req->op != REQ_FLUSH)
        range_lock_release(&quorum->lock, &hold);
    for (unsigned i = 0; i < quorum->count && good < quorum->count; i++) {
        if (tasks[i].result < 0)
            quorum_report_bad(node, i, type, req, tasks[i].result);
    }
    if (good >= quorum->threshold)
        return 0;
    quorum_report_failure(node, req);
    return quorum_first_error(tasks, quorum->count);
}

/*
 * Status: zero, or a hole, is what enough children say is, if a read would then return what these say: by vote they are
 * more than the others, and who is asked in order may be any.
 */

struct quorum_status {
    struct quorum_task task;        /* first */
    struct extent extents[QUORUM_EXTENTS];
    struct extent_list list;
    unsigned at;
};

static int quorum_ask_one(struct fan_task *fan_task)
{
    struct quorum_status *status = container_of(fan_task, struct quorum_status, task.task);

    status->list = (struct extent_list){.limit = QUORUM_EXTENTS, .extents = status->extents};
    return edge_status(status->task.edge, status->task.req->offset, status->task.req->length, &status->list);
}

static bool quorum_wins(const struct quorum *quorum, unsigned votes)
{
    return votes >= quorum->threshold && (quorum->fifo ? votes == quorum->count : 2 * votes > quorum->count);
}

/* The next extent that the answers make together; false when one of them is at its end. */
static bool quorum_next_extent(const struct quorum *quorum, struct quorum_status *all, struct extent *ret)
{
    unsigned zero = 0, hole = 0;

    ret->length = UINT64_MAX;
    for (unsigned i = 0; i < quorum->count; i++) {
        const struct extent *extent = &all[i].list.extents[all[i].at];

        if (all[i].at >= all[i].list.count)
            return false;
        zero += (extent->flags & EXTENT_ZERO) != 0;
        hole += (extent->flags & EXTENT_HOLE) != 0;
        ret->length = extent->length < ret->length ? extent->length : ret->length;
    }
    ret->flags = (quorum_wins(quorum, zero) ? EXTENT_ZERO : 0) | (quorum_wins(quorum, hole) ? EXTENT_HOLE : 0);
    for (unsigned i = 0; i < quorum->count; i++) {
        struct extent *extent = &all[i].list.extents[all[i].at];

        extent->length -= ret->length;
        all[i].at += extent->length == 0;
    }
    return true;
}

static int quorum_status(struct node *node, const struct request *req)
{
    struct quorum *quorum = node->state;
    AUTO_FREE struct quorum_status *all = buffer_alloc(quorum->count * sizeof(*all));
    struct fan fan = {0};
    struct extent extent;

    if (!all)
        return -ENOMEM;
    for (unsigned i = 0; i < quorum->count; i++) {
        all[i].task = (struct quorum_task){.task.run = quorum_ask_one, .edge = quorum->children[i], .req = req};
        fan_start(&fan, &all[i].task.task);
    }
    fan_wait(&fan);
    for (unsigned i = 0; i < quorum->count; i++) {
        /* Who does not know has data. */
        if (all[i].list.count == 0)
            extent_add(&all[i].list, req->length, 0);
    }
    while (quorum_next_extent(quorum, all, &extent)) {
        if (!extent_add(req->extents, extent.length, extent.flags))
            break;
    }
    return 0;
}

/* The walk */

/* In order, each child after the one before it failed. */
static enum step quorum_read_next(struct node *node, struct request *req, struct quorum_frame *frame)
{
    struct quorum *quorum = node->state;

    req->op = frame->op;
    req->flags = frame->flags;
    req->offset = frame->offset;
    req->length = frame->length;
    return request_down(req, quorum->children[frame->child]);
}

enum step quorum_map(struct node *node, struct request *req)
{
    const struct quorum *quorum = node->state;

    if (req->op == REQ_PREFETCH)
        return request_down(req, quorum->children[0]);
    if (req->op != REQ_READ || !quorum->fifo)
        return STEP_SLOW;
    struct quorum_frame *frame = request_frame(req, node);

    *frame = (struct quorum_frame){.offset = req->offset, .length = req->length, .flags = req->flags, .op = req->op};
    return quorum_read_next(node, req, frame);
}

enum step quorum_after(struct node *node, struct request *req, void *scratch)
{
    const struct quorum *quorum = node->state;
    struct quorum_frame *frame = scratch;
    struct request asked = {.offset = frame->offset, .length = frame->length, .loop = req->loop};

    if (req->result >= 0)
        return STEP_UP;
    quorum_report_bad(node, frame->child, QUORUM_REPORT_BAD_TYPE_READ, &asked, req->result);
    return ++frame->child < quorum->count ? quorum_read_next(node, req, frame) : STEP_UP;
}

enum step quorum_slow(struct node *node, struct request *req)
{
    if (req->op == REQ_READ)
        return request_up(req, quorum_read(node, req));
    if (req->op == REQ_STATUS)
        return request_up(req, quorum_status(node, req));
    return request_up(req, quorum_change(node, req));
}

/* The disk as a whole */

int quorum_open_children(struct node *node, unsigned threshold, struct error *err)
{
    struct quorum *quorum = node->state;

    for (unsigned i = 0; i < node->child_count; i++) {
        struct edge *edge = node->children[i], *first = node->children[0];

        if (edge->child->size != first->child->size)
            return error_set(err, -EINVAL, "%s (node '%s') has %" PRIu64 " bytes, but %s (node '%s') has %" PRIu64,
                             edge->name, edge->child->name, edge->child->size, first->name, first->child->name,
                             first->child->size);
        quorum->children[quorum->count++] = edge;
    }
    quorum->threshold = threshold;
    node->size = node->children[0]->child->size;
    range_lock_init(&quorum->lock);
    return 0;
}

void quorum_close(struct node *node)
{
    struct quorum *quorum = node->state;

    range_lock_destroy(&quorum->lock);
}

/* While drained. All children, or none. */
int quorum_resize(struct node *node, uint64_t size, struct error *err)
{
    struct quorum *quorum = node->state;
    uint64_t before = node->size;
    int result = 0;

    for (unsigned i = 0; i < quorum->count && result == 0; i++) {
        result = edge_resize(quorum->children[i], size, err);
        /* Smaller ones have lost what was there, so that size is the one that is left. */
        for (unsigned done = 0; result < 0 && size > before && done < i; done++)
            edge_resize(quorum->children[done], before, NULL);
        if (result < 0 && size < before && i > 0)
            node->size = size;
    }
    if (result == 0)
        node->size = size;
    return result;
}

int quorum_grow(struct node *node, uint64_t size)
{
    struct quorum *quorum = node->state;

    for (unsigned i = 0; i < quorum->count; i++) {
        int result = edge_grow(quorum->children[i], size);

        if (result < 0)
            return result;
    }
    if (size > node->size)
        node_grown(node, size);
    return 0;
}

/* What all of them have. */
void quorum_child_resized(struct node *node, struct edge *edge)
{
    const struct quorum *quorum = node->state;
    uint64_t size = edge->child->size;

    for (unsigned i = 0; i < quorum->count; i++) {
        if (quorum->children[i]->child->size < size)
            size = quorum->children[i]->child->size;
    }
    node->size = size;
}

void quorum_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    const struct quorum_options *options = node_driver_options(node);

    (void)edge;
    if (node->driver == driver_table[NODE_DRIVER_QUORUM] && options->rewrite_corrupted)
        io->taken |= PERM_WRITE;
    io->shared &= ~(uint32_t)(PERM_WRITE | PERM_RESIZE);
}

static int quorum_check(const struct node *node, const struct quorum_options *options, struct error *err)
{
    if (node->child_count == 0)
        return error_set(err, -EINVAL, "children of node '%s' must be at least one", node->name);
    if (options->vote_threshold > node->child_count)
        return error_set(err, -EINVAL, "vote-threshold=%" PRIu64 " is more than the %u children of node '%s'",
                         options->vote_threshold, node->child_count, node->name);
    if (options->blkverify && (node->child_count != 2 || options->vote_threshold != 2))
        return error_set(err, -EINVAL, "blkverify=on needs two children and vote-threshold=2");
    if (options->blkverify && options->rewrite_corrupted)
        return error_set(err, -EINVAL, "rewrite-corrupted=on does not go with blkverify=on");
    if (options->read_pattern == QUORUM_READ_PATTERN_FIFO && (options->blkverify || options->rewrite_corrupted))
        return error_set(err, -EINVAL, "read-pattern=fifo compares nothing: it does not go with %s=on",
                         options->blkverify ? "blkverify" : "rewrite-corrupted");
    return 0;
}

static int quorum_open(struct node *node, const void *opaque, struct error *err)
{
    const struct quorum_options *options = opaque;
    struct quorum *quorum = node->state;
    int result = quorum_check(node, options, err);

    quorum->fifo = options->read_pattern == QUORUM_READ_PATTERN_FIFO;
    quorum->rewrites = options->rewrite_corrupted;
    return result < 0 ? result : quorum_open_children(node, (unsigned)options->vote_threshold, err);
}

/* Said before anybody is disturbed. */
static int quorum_reopen(struct node *node, struct node *next, struct change *change, struct error *err)
{
    int result = quorum_check(next, node_driver_options(next), err);

    (void)node;
    (void)change;
    return result < 0 ? result : REOPEN_AGAIN;
}

const struct driver quorum_driver = {
    .name = "quorum",
    .kind = DRIVER_COMPOSITE,
    .ops = QUORUM_OPS,
    .request_flags = QUORUM_FLAGS,
    .state_size = sizeof(struct quorum),
    .scratch_size = sizeof(struct quorum_frame),
    .open = quorum_open,
    .close = quorum_close,
    .reopen = quorum_reopen,
    .resize = quorum_resize,
    .grow = quorum_grow,
    .child_resized = quorum_child_resized,
    .permissions = quorum_permissions,
    .map = quorum_map,
    .slow = quorum_slow,
    .after = quorum_after,
};
