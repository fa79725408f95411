/*
 * qcow2: other options for an image in use. Main loop.
 *
 * Nearly all change in place: tables stay in memory, counters go on. Where
 * the file becomes another one, not only one with filters more or less in
 * between, or writing begins or ends, the engine opens the image anew; what it
 * had was written before (finish).
 */
#include <errno.h>
#include <string.h>

#include "core/change.h"
#include "core/memory.h"
#include "drivers/format/qcow2.h"
#include "generated/options.h"

#define REOPEN_FILTERS_MAX 1024u

/* What an edge leads to in the next graph, filters left aside. */
static struct node *reopen_storage(const struct node *next, const char *name)
{
    const struct edge *edge = node_child_by_name(next, name);
    struct node *node = edge ? edge->next_child : NULL;

    /* Several nodes that are reopened at once may form a loop so far. */
    for (unsigned depth = 0; node && node_next(node)->filtered && depth < REOPEN_FILTERS_MAX; depth++)
        node = node_next(node)->filtered->next_child;
    return node;
}

/* The same as the graph is now. */
static struct node *reopen_storage_now(const struct node *node, const char *name)
{
    const struct edge *edge = node_child_by_name(node, name);
    struct node *below = edge ? edge->child : NULL;

    while (below && below->filtered)
        below = below->filtered->child;
    return below;
}

static bool reopen_same_storage(const struct node *node, const struct node *next, const char *name)
{
    return reopen_storage_now(node, name) == reopen_storage(next, name);
}

/* The action of what changes in place */

struct disk_reopening {
    struct disk *disk;
    struct node *next;              /* the action is void if the node was reopened once more after it */
    struct qcow2_settings settings;
    struct qcow2_change *change;
    uint64_t clean_seconds;
    bool settled;
};

static int disk_reopen_settle(void *action, struct error *err)
{
    struct disk_reopening *reopening = action;
    struct disk *disk = reopening->disk;
    char text[256] = "";

    if (node_next(disk->node) != reopening->next)
        return 0;
    disk_begin_alone(disk);
    int result = qcow2_change_prepare(disk->engine, &reopening->settings, &reopening->change, text);

    disk_end_alone(disk);
    reopening->settled = result == 0;
    return result < 0 ? error_set(err, result, "Could not reopen node '%s': %s", disk->node->name,
                                  *text ? text : strerror(-result))
                      : 0;
}

static void disk_reopen_commit(void *action)
{
    struct disk_reopening *reopening = action;
    struct disk *disk = reopening->disk;

    if (!reopening->settled)
        return;
    qcow2_change_commit(disk->engine, reopening->change);
    disk_set_cleaning(disk, reopening->clean_seconds);
}

static void disk_reopen_abort(void *action)
{
    struct disk_reopening *reopening = action;

    if (reopening->settled)
        qcow2_change_abort(reopening->disk->engine, reopening->change);
}

static const struct change_type disk_reopen_type = {
    .name = "reopen qcow2", .settle = disk_reopen_settle, .commit = disk_reopen_commit, .abort = disk_reopen_abort};

static int reopen_check_backing(const struct disk *disk, const struct node *next, bool other_file, struct error *err)
{
    const struct qcow2_options *is = node_driver_options(disk->node), *wanted = node_driver_options(next);
    bool by_image = !wanted->backing && (node_child_by_role(next, ROLE_BACKING) || qcow2_backing_name(disk->engine));

    /* What an image names is opened when the node is added. */
    if (!wanted->backing && ((other_file && by_image) || (is->backing && qcow2_backing_name(disk->engine))))
        return error_set(err, -EINVAL, "backing is missing for '%s'", next->name);
    return 0;
}

static int reopen_check_data_file(const struct disk *disk, const struct node *next, struct error *err)
{
    bool wanted = qcow2_wants_data_file(disk->engine), given = node_child_by_name(next, "data-file") != NULL;

    if (wanted && !given)
        return error_set(err, -EINVAL, "'data-file' is required for this image");
    if (!wanted && given)
        return error_set(err, -EINVAL, "'data-file' can only be set for images with an external data file");
    return 0;
}

int disk_reopen(struct node *node, struct node *next, struct change *change, struct error *err)
{
    struct disk *disk = node->state;
    const struct qcow2_options *options = node_driver_options(next);
    bool other_file = !reopen_same_storage(node, next, "file");
    struct qcow2_settings settings;
    int result = disk_settings(next, &settings, err);

    if (result == 0)
        result = reopen_check_backing(disk, next, other_file, err);
    if (result < 0)
        return result;
    if (other_file || node->flags & NODE_CORRUPTED || node->options->read_only != next->options->read_only)
        return REOPEN_AGAIN;
    result = reopen_check_data_file(disk, next, err);
    if (result < 0)
        return result;
    if (!reopen_same_storage(node, next, "data-file"))
        return REOPEN_AGAIN;
    struct disk_reopening *reopening = change_add(change, &disk_reopen_type, sizeof(*reopening));

    *reopening = (struct disk_reopening){
        .disk = disk, .next = next, .settings = settings, .clean_seconds = options->cache_clean_interval};
    return REOPEN_KEPT;
}

/* Opened anew: what was counted is still true. */
void disk_adopt(struct node *node, const void *before)
{
    const struct disk *was = before;
    struct disk *disk = node->state;

    for (unsigned i = 0; i < LOOP_MAX; i++)
        disk->loops[i].hits = was->loops[i].hits;
}
