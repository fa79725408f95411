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
#include "core/loop_buffer.h"
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

/* Children that are short, or have missed something */

static int quorum_child_grow(struct quorum *quorum, unsigned child, uint64_t size)
{
    int result = edge_grow(quorum->children[child], size);
    uint64_t grown = atomic_load(&quorum->grown[child]);

    while (result == 0 && grown < size && !atomic_compare_exchange_weak(&quorum->grown[child], &grown, size))
        ;
    return result;
}

int quorum_reach(struct node *node, unsigned child, uint64_t offset, uint64_t length)
{
    struct quorum *quorum = node->state;
    uint64_t size = node->size;

    if (likely(quorum_child_has(quorum, child, offset, length)))
        return 0;
    if (!quorum->rewrites)
        return -EIO;
    return quorum_child_grow(quorum, child, offset + length > size ? offset + length : size);
}

/* The largest size that enough children have. */
static uint64_t quorum_size(const struct quorum *quorum)
{
    uint64_t best = 0;

    for (unsigned i = 0; i < quorum->count; i++) {
        uint64_t size = quorum_child_size(quorum, i);
        unsigned reach = 0;

        for (unsigned other = 0; other < quorum->count; other++)
            reach += quorum_child_size(quorum, other) >= size;
        if (reach >= quorum->threshold && size > best)
            best = size;
    }
    return best;
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
    struct edge *edge = quorum_task_edge(task);
    const struct request *req = task->req;

    task->result = req->op == REQ_FLUSH ? 0 : quorum_reach(task->node, task->child, req->offset, req->length);
    if (task->result < 0)
        return 0;
    if (req->op == REQ_FLUSH)
        task->result = edge_flush(edge);
    else if (req->op == REQ_WRITE)
        task->result = edge_writev(edge, req->offset, req->iov, req->iov_count, req->length, req->flags);
    else
        task->result = edge_write_zeroes(edge, req->offset, req->length,
                                         req->flags | (req->op == REQ_DISCARD ? REQ_MAY_UNMAP : 0));
    return 0;
}

static uint32_t quorum_all(const struct quorum *quorum)
{
    return UINT32_MAX >> (32 - quorum->count);
}

/* False if nobody would be left who has missed nothing, where that counts. */
static bool quorum_miss(struct quorum *quorum, uint32_t failed)
{
    uint32_t missed = atomic_load(&quorum->missed);

    do {
        if (quorum_is_lenient(quorum) && (missed | failed) == quorum_all(quorum))
            return false;
    } while (!atomic_compare_exchange_weak(&quorum->missed, &missed, missed | failed));
    return true;
}

/* What some of them did not do: said of each, and remembered if it was done all the same. */
static int quorum_changed(struct node *node, const struct quorum_task *tasks, unsigned good, const struct request *req)
{
    struct quorum *quorum = node->state;
    enum quorum_report_bad_type type =
        req->op == REQ_FLUSH ? QUORUM_REPORT_BAD_TYPE_FLUSH : QUORUM_REPORT_BAD_TYPE_WRITE;
    uint32_t failed = 0;

    for (unsigned i = 0; i < quorum->count; i++) {
        if (tasks[i].result == 0)
            continue;
        failed |= 1u << i;
        quorum_report_bad(node, i, type, req, tasks[i].result);
    }
    if (good >= quorum->threshold && quorum_miss(quorum, failed))
        return 0;
    quorum_report_failure(node, req);
    return quorum_first_error(tasks, quorum->count);
}

static int quorum_change(struct node *node, const struct request *req)
{
    struct quorum *quorum = node->state;
    struct quorum_task tasks[QUORUM_CHILDREN_MAX];
    struct range_hold hold;

    for (unsigned i = 0; i < quorum->count; i++)
        tasks[i] = (struct quorum_task){.node = node, .child = i, .req = req};
    if (req->op != REQ_FLUSH)
        range_lock_take(&quorum->lock, &hold, req->offset, req->length);
    unsigned good = quorum_run(tasks, quorum->count, quorum_change_one);

    if (req->op != REQ_FLUSH)
        range_lock_release(&quorum->lock, &hold);
    return likely(good == quorum->count) ? 0 : quorum_changed(node, tasks, good, req);
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
    const struct quorum_task *task = &status->task;
    const struct request *req = task->req;

    status->list = (struct extent_list){.limit = QUORUM_EXTENTS, .extents = status->extents};
    if (!quorum_child_has(task->node->state, task->child, req->offset, req->length))
        return -EIO;
    return edge_status(quorum_task_edge(task), req->offset, req->length, &status->list);
}

static bool quorum_wins(const struct quorum *quorum, unsigned votes)
{
    return votes >= quorum->threshold && (quorum->fifo ? votes == quorum->count : 2 * votes > quorum->count);
}

/* The next extent that the answers make together; false when one of them is at its end. By vote, who has missed
 * something may not know of data. */
static bool quorum_next_extent(const struct quorum *quorum, struct quorum_status *all, struct extent *ret)
{
    uint32_t missed = quorum->fifo ? 0 : atomic_load_explicit(&quorum->missed, memory_order_acquire);
    unsigned zero = 0, hole = 0;

    ret->length = UINT64_MAX;
    for (unsigned i = 0; i < quorum->count; i++) {
        const struct extent *extent = &all[i].list.extents[all[i].at];
        uint32_t flags = missed & 1u << i ? 0 : extent->flags;

        if (all[i].at >= all[i].list.count)
            return false;
        zero += (flags & EXTENT_ZERO) != 0;
        hole += (flags & EXTENT_HOLE) != 0;
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
    AUTO_LOOP_BUFFER struct loop_buffer buf = loop_buffer_take(quorum->count * sizeof(struct quorum_status));
    struct quorum_status *all = buf.data;
    struct fan fan = {0};
    struct extent extent;

    if (!all)
        return -ENOMEM;
    for (unsigned i = 0; i < quorum->count; i++) {
        all[i].at = 0;
        all[i].task = (struct quorum_task){.task.run = quorum_ask_one, .node = node, .child = i, .req = req};
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

/* In order, each child after the one before it failed. Who has missed something may say what once was. */
static enum step quorum_read_next(struct node *node, struct request *req, struct quorum_frame *frame)
{
    struct quorum *quorum = node->state;
    uint32_t missed = atomic_load_explicit(&quorum->missed, memory_order_acquire);

    while (frame->child < quorum->count &&
           (missed & 1u << frame->child || !quorum_child_has(quorum, frame->child, frame->offset, frame->length)))
        frame->child++;
    if (frame->child == quorum->count)
        return request_up(req, req->result < 0 ? req->result : -EIO);
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
        return quorum_child_has(quorum, 0, req->offset, req->length) ? request_down(req, quorum->children[0])
                                                                     : request_up(req, 0);
    if (req->op != REQ_READ || !quorum->fifo)
        return STEP_SLOW;
    struct quorum_frame *frame = request_frame(req, node);

    *frame = (struct quorum_frame){.offset = req->offset, .length = req->length, .flags = req->flags, .op = req->op};
    return quorum_read_next(node, req, frame);
}

enum step quorum_after(struct node *node, struct request *req, void *scratch)
{
    struct quorum_frame *frame = scratch;
    struct request asked = {.offset = frame->offset, .length = frame->length, .loop = req->loop};

    if (req->result >= 0)
        return STEP_UP;
    quorum_report_bad(node, frame->child, QUORUM_REPORT_BAD_TYPE_READ, &asked, req->result);
    frame->child++;
    return quorum_read_next(node, req, frame);
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

static bool quorum_can_repair(const struct node *node, const struct node *shorter)
{
    const struct quorum *quorum = node->state;
    const struct quorum_options *options = node_driver_options(node);

    if (node->driver != driver_table[NODE_DRIVER_QUORUM] || quorum->fifo || options->blkverify)
        return false;
    while (!shorter->driver->grow && shorter->filtered)
        shorter = shorter->filtered->child;
    return shorter->driver->grow != NULL;
}

/* All are of one size, unless one was left behind that can be made longer. */
static int quorum_check_size(const struct node *node, const struct edge *edge, struct error *err)
{
    const struct quorum *quorum = node->state;
    const struct edge *first = node->children[0];
    uint64_t size = edge->child->size, other = first->child->size;
    bool repairs = quorum_can_repair(node, size < other ? edge->child : first->child);

    if (size == other || (repairs && quorum->rewrites))
        return 0;
    return error_set(err, -EINVAL, "%s (node '%s') has %" PRIu64 " bytes, but %s (node '%s') has %" PRIu64 "%s",
                     edge->name, edge->child->name, size, first->name, first->child->name, other,
                     repairs ? ": with rewrite-corrupted=on the shorter one is repaired" : "");
}

int quorum_open_children(struct node *node, unsigned threshold, struct error *err)
{
    struct quorum *quorum = node->state;

    for (unsigned i = 0; i < node->child_count; i++) {
        int result = quorum_check_size(node, node->children[i], err);

        if (result < 0)
            return result;
        quorum->children[quorum->count++] = node->children[i];
    }
    quorum->threshold = threshold;
    node->size = quorum_size(quorum);
    for (unsigned i = 0; i < quorum->count; i++)
        quorum->missed |= quorum_child_has(quorum, i, 0, node->size) ? 0 : 1u << i;
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
        quorum->grown[i] = 0;
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

/* By vote, like a write. Who is short stays so, unless what is read there is repaired. */
int quorum_grow(struct node *node, uint64_t size)
{
    struct quorum *quorum = node->state;
    struct quorum_task tasks[QUORUM_CHILDREN_MAX];
    uint64_t before = node->size;
    struct request asked = {
        .op = REQ_WRITE, .offset = before, .length = size > before ? size - before : 0, .loop = loop_current()};
    unsigned good = 0;

    for (unsigned i = 0; i < quorum->count; i++) {
        bool stays = !quorum->rewrites && !quorum_child_has(quorum, i, 0, before);

        tasks[i] = (struct quorum_task){.result = stays ? -EIO : quorum_child_grow(quorum, i, size)};
        good += tasks[i].result == 0;
    }
    int result = good == quorum->count ? 0 : quorum_changed(node, tasks, good, &asked);

    if (result == 0 && size > node->size)
        node_grown(node, size);
    return result;
}

/* The children may be growing, and the quorum with them. */
void quorum_child_resized(struct node *node, struct edge *edge)
{
    const struct quorum *quorum = node->state;
    uint64_t before = node->size;

    (void)edge;
    while (!atomic_compare_exchange_weak(&node->size, &before, quorum_size(quorum)))
        ;
}

void quorum_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    const struct quorum_options *options = node_driver_options(node);

    (void)edge;
    if (node->driver == driver_table[NODE_DRIVER_QUORUM] && options->rewrite_corrupted)
        io->taken |= PERM_WRITE | PERM_RESIZE;
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

/* Whether other is node, or lies below it as what it shows: filters and overlays may come and go in between. */
static bool quorum_shows(const struct node *node, const struct node *other)
{
    while (node && node != other) {
        const struct edge *below = node->filtered ? node->filtered : node_child_by_role(node, ROLE_BACKING);

        node = below ? below->child : NULL;
    }
    return node != NULL;
}

/* What a child has missed it still misses, unless nobody is left who has not. */
static void quorum_adopt(struct node *node, const void *before)
{
    struct quorum *quorum = node->state;
    const struct quorum *was = before;

    for (unsigned i = 0; i < quorum->count; i++) {
        const struct node *child = quorum->children[i]->child;

        for (unsigned old = 0; old < was->count; old++) {
            const struct node *other = was->children[old]->child;

            if (was->missed & 1u << old && (quorum_shows(child, other) || quorum_shows(other, child)))
                quorum->missed |= 1u << i;
        }
    }
    if (quorum->missed == quorum_all(quorum))
        quorum->missed = 0;
}

/* Said before anybody is disturbed. */
static int quorum_reopen(struct node *node, struct node *next, struct change *change, struct error *err)
{
    int result = quorum_check(next, node_driver_options(next), err);

    (void)node;
    (void)change;
    return result < 0 ? result : REOPEN_AGAIN;
}

/* The edges of children that have missed something, with commas. */
static int quorum_get_missed(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct quorum *quorum = container_of(object, struct node, object)->state;
    uint32_t missed = atomic_load(&quorum->missed);
    char *text = memory_string("");

    (void)err;
    for (unsigned i = 0; i < quorum->count; i++) {
        char *more =
            missed & 1u << i ? memory_format("%s%s%s", text, *text ? "," : "", quorum->children[i]->name) : NULL;

        if (more) {
            free(text);
            text = more;
        }
    }
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = text};
    return 0;
}

static const struct object_property quorum_properties[] = {
    {"missed", "string", quorum_get_missed, NULL},
    {NULL, NULL, NULL, NULL},
};

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
    .adopt = quorum_adopt,
    .resize = quorum_resize,
    .grow = quorum_grow,
    .child_resized = quorum_child_resized,
    .permissions = quorum_permissions,
    .map = quorum_map,
    .slow = quorum_slow,
    .after = quorum_after,
    .properties = quorum_properties,
};
