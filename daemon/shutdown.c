/*
 * See shutdown.h. Order: no new commands; the SHUTDOWN event; exports and NBD
 * servers, so that nothing enters the graph; sources; nodes, parents before
 * their children; I/O threads; at last the QMP clients, who have then seen
 * every event.
 */
#include "daemon/shutdown.h"

#include "core/change.h"
#include "core/error.h"
#include "core/event.h"
#include "core/export.h"
#include "core/iothread.h"
#include "core/list.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/source.h"
#include "daemon/nbd/server.h"
#include "generated/options.h"
#include "qmp/server.h"

static void shutdown_announce(const char *reason)
{
    AUTO_FREE char *copy = memory_string(reason);
    struct shutdown_event event = {.guest = false, .reason = copy};

    event_emit("SHUTDOWN", &shutdown_event_type, &event);
}

static int shutdown_change(struct change *change, int rc, struct error *err)
{
    if (rc == 0)
        return change_apply(change, err);
    change_abort(change);
    return rc;
}

static void shutdown_sources(void)
{
    struct source *source, *after;

    list_for_each_safe(source, after, &source_registry, in_registry) {
        AUTO_ERROR struct error err = {0};
        struct change *change = change_new();
        int rc = source_remove(change, source, &err);

        if (shutdown_change(change, rc, &err) < 0)
            log_error("cannot remove source '%s': %s", source->id, err.text);
    }
}

/* Closes the nodes that nobody uses. False when there are none left, or it failed. */
static bool shutdown_unused_nodes(void)
{
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();
    struct node *node;
    unsigned count = 0;
    int rc = 0;

    list_for_each(node, &node_registry, in_registry) {
        if (rc < 0 || !list_is_empty(&node->parents))
            continue;
        rc = node_remove(change, node, &err);
        count++;
    }
    if (shutdown_change(change, rc, &err) < 0) {
        log_error("cannot close all nodes: %s", err.text);
        return false;
    }
    return count > 0;
}

bool shutdown_run(const char *reason)
{
    AUTO_ERROR struct error err = {0};

    qmp_stop_commands();
    shutdown_announce(reason);
    bool quiet = export_stop_all(&err) == 0;
    if (!quiet)
        log_error("cannot stop all exports: %s", err.text);
    nbd_server_stop_all();
    shutdown_sources();
    while (shutdown_unused_nodes())
        ;
    if (quiet)
        iothread_stop_all();
    qmp_stop_all();
    return quiet;
}
