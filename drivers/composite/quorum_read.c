/*
 * quorum: reads by vote: see quorum.h.
 */
#include <errno.h>
#include <string.h>

#include "core/iov.h"
#include "core/loop_buffer.h"
#include "core/memory.h"
#include "drivers/composite/quorum.h"

/* Memory for what all children say of one piece. */
#define QUORUM_VOTE_BYTES (4u << 20)

struct quorum_vote {
    struct node *node;
    const struct request *req;
    struct quorum_task tasks[QUORUM_CHILDREN_MAX];
    unsigned votes[QUORUM_CHILDREN_MAX];    /* for what this child says, counted at the first one that says it */
    unsigned good, winner;
    bool enough;                        /* votes for the winner */
    struct request piece;               /* the range that is voted on, for reports; ends in its scratch */
};

static int vote_read_one(struct fan_task *fan_task)
{
    struct quorum_task *task = container_of(fan_task, struct quorum_task, task);

    task->result = quorum_child_has(task->node->state, task->child, task->offset, task->length)
                       ? edge_read(quorum_task_edge(task), task->offset, task->buf, task->length)
                       : -EIO;
    return 0;
}

static int vote_write_one(struct fan_task *fan_task)
{
    struct quorum_task *task = container_of(fan_task, struct quorum_task, task);

    task->result = quorum_reach(task->node, task->child, task->offset, task->length);
    if (task->result == 0)
        task->result = edge_write(quorum_task_edge(task), task->offset, task->buf, task->length, 0);
    return 0;
}

/* sound: what somebody says who has missed nothing. */
static void vote_decide(struct quorum_vote *vote, unsigned count, uint32_t sound)
{
    const struct quorum *quorum = vote->node->state;

    vote->winner = 0;
    vote->enough = false;
    for (unsigned i = 0; i < count; i++) {
        bool enough = vote->votes[i] >= quorum->threshold && (sound & 1u << i || !quorum_is_lenient(quorum));

        if (enough < vote->enough || (enough == vote->enough && vote->votes[i] <= vote->votes[vote->winner]))
            continue;
        vote->winner = i;
        vote->enough = enough;
    }
}

static void vote_count(struct quorum_vote *vote, unsigned count)
{
    const struct quorum *quorum = vote->node->state;
    uint32_t missed = atomic_load_explicit(&quorum->missed, memory_order_acquire), sound = 0;

    memset(vote->votes, 0, sizeof(vote->votes));
    for (unsigned i = 0; i < count; i++) {
        const struct quorum_task *task = &vote->tasks[i];
        unsigned first = 0;

        if (task->result < 0)
            continue;
        while (vote->tasks[first].result < 0 || memcmp(vote->tasks[first].buf, task->buf, task->length) != 0)
            first++;
        vote->votes[first]++;
        sound |= missed & 1u << i ? 0 : 1u << first;
    }
    vote_decide(vote, count, sound);
}

static void vote_read(struct quorum_vote *vote, unsigned char *buf)
{
    struct quorum *quorum = vote->node->state;
    const struct request *piece = &vote->piece;

    for (unsigned i = 0; i < quorum->count; i++)
        vote->tasks[i] = (struct quorum_task){.node = vote->node,
                                              .child = i,
                                              .offset = piece->offset,
                                              .length = piece->length,
                                              .buf = buf + i * piece->length};
    vote->good = quorum_run(vote->tasks, quorum->count, vote_read_one);
    vote_count(vote, quorum->count);
}

static bool vote_agrees(const struct quorum_vote *vote, unsigned child)
{
    const struct quorum_task *winner = &vote->tasks[vote->winner], *task = &vote->tasks[child];

    return task->result == 0 && memcmp(task->buf, winner->buf, winner->length) == 0;
}

/* With the lock held: children that failed or say something else get what the others say. */
static void vote_rewrite(struct quorum_vote *vote)
{
    struct quorum *quorum = vote->node->state;
    struct quorum_task tasks[QUORUM_CHILDREN_MAX];
    unsigned count = 0;

    for (unsigned i = 0; i < quorum->count; i++) {
        if (vote_agrees(vote, i))
            continue;
        tasks[count] = vote->tasks[i];
        tasks[count++].buf = vote->tasks[vote->winner].buf;
    }
    quorum_run(tasks, count, vote_write_one);
    for (unsigned i = 0; i < count; i++) {
        if (tasks[i].result < 0)
            quorum_report_bad(vote->node, tasks[i].child, QUORUM_REPORT_BAD_TYPE_WRITE, &vote->piece, tasks[i].result);
    }
}

/* What the vote says goes to the client. */
static int vote_end(struct quorum_vote *vote)
{
    struct quorum *quorum = vote->node->state;
    const struct request *req = vote->req, *piece = &vote->piece;

    for (unsigned i = 0; i < quorum->count; i++) {
        if (!vote_agrees(vote, i))
            quorum_report_bad(vote->node, i, QUORUM_REPORT_BAD_TYPE_READ, piece, vote->tasks[i].result);
    }
    if (!vote->enough) {
        quorum_report_failure(vote->node, piece);
        return vote->good < quorum->threshold ? quorum_first_error(vote->tasks, quorum->count) : -EIO;
    }
    iov_from_buffer(req->iov, req->iov_count, piece->offset - req->offset, vote->tasks[vote->winner].buf,
                    piece->length);
    return 0;
}

static int quorum_read_piece(struct quorum_vote *vote, unsigned char *buf)
{
    struct quorum *quorum = vote->node->state;
    struct range_hold hold;

    vote_read(vote, buf);
    bool differ = vote->votes[vote->winner] != vote->good;
    bool again = differ || (quorum->rewrites && vote->good < quorum->count);

    if (!again)
        return vote_end(vote);
    range_lock_take(&quorum->lock, &hold, vote->piece.offset, vote->piece.length);
    vote_read(vote, buf);
    int result = vote_end(vote);

    if (result == 0 && quorum->rewrites && vote->votes[vote->winner] < quorum->count)
        vote_rewrite(vote);
    range_lock_release(&quorum->lock, &hold);
    return result;
}

int quorum_read(struct node *node, const struct request *req)
{
    const struct quorum *quorum = node->state;
    uint64_t most = QUORUM_VOTE_BYTES / quorum->count, done = 0;
    uint64_t size = req->length < most ? req->length : most;
    AUTO_LOOP_BUFFER struct loop_buffer buf = loop_buffer_take(size * quorum->count);
    struct quorum_vote vote;
    int result = buf.data ? 0 : -ENOMEM;

    vote.node = node;
    vote.req = req;
    while (done < req->length && result == 0) {
        uint64_t left = req->length - done;

        vote.piece =
            (struct request){.offset = req->offset + done, .length = left < size ? left : size, .loop = req->loop};
        result = quorum_read_piece(&vote, buf.data);
        done += vote.piece.length;
    }
    return result;
}
