/*
 * Other settings for an image that is open: prepared, then made or dropped.
 * What tables are in memory stays there as far as there is room for it.
 */
#include "drivers/format/engine/qcow2_internal.h"

struct qcow2_change {
    struct qcow2_settings settings;
    struct cache l2, refcounts;
    bool caches; /* they get other sizes */
};

static int change_caches(struct qcow2 *q, struct qcow2_change *change, char text[256])
{
    if (change->settings.l2_cache == q->settings.l2_cache &&
        change->settings.refcount_cache == q->settings.refcount_cache)
        return 0;
    change->caches = true;
    int result = caches_make(q, &change->settings, &change->l2, &change->refcounts);

    return result < 0 ? text_fail(text, result, "Could not allocate memory for the caches") : 0;
}

int qcow2_change_prepare(struct qcow2 *q, const struct qcow2_settings *settings, struct qcow2_change **ret,
                         char text[256])
{
    struct qcow2_change *change = q->io->alloc(q->world, sizeof(*change));

    if (!change)
        return text_fail(text, -ENOMEM, "Could not allocate memory for the settings");
    change->settings = *settings;
    int result = settings_check(q, settings, text);

    if (result == 0)
        result = change_caches(q, change, text);
    if (result == 0 && settings->overlap_check & ~q->settings.overlap_check & QCOW2_OVERLAP_INACTIVE_L2) {
        tables_lock(q);
        result = overlap_note_snapshots(q, true);
        tables_unlock(q);
        if (result < 0)
            text_fail(text, result, "Could not read the tables of internal snapshots: %s", strerror(-result));
    }
    /* No table waits to be written, and a dirty bit that nobody would clear is not set. */
    if (result == 0 && (change->caches || q->lazy) && (result = qcow2_finish(q)) < 0)
        text_fail(text, result, "Could not write the tables of the image: %s", strerror(-result));
    if (result < 0)
        qcow2_change_abort(q, change);
    else
        *ret = change;
    return result;
}

void qcow2_change_commit(struct qcow2 *q, struct qcow2_change *change)
{
    bool read_only = q->settings.read_only;

    tables_lock(q);
    q->settings = change->settings;
    q->settings.read_only = read_only;
    q->lazy = settings_lazy(q);
    if (change->caches) {
        cache_move(q, &q->l2, &change->l2);
        cache_move(q, &q->refcounts, &change->refcounts);
    }
    tables_unlock(q);
    q->io->release(q->world, change);
}

void qcow2_change_abort(struct qcow2 *q, struct qcow2_change *change)
{
    if (!change)
        return;
    cache_destroy(q, &change->l2);
    cache_destroy(q, &change->refcounts);
    q->io->release(q->world, change);
}
