/*
 * NBD exports: the export type "nbd". Main loop, save resumed().
 */
#include "daemon/nbd/export.h"

#include <errno.h>
#include <string.h>

#include "core/memory.h"
#include "daemon/nbd/connection.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"
#include "generated/options.h"

static struct nbd_export *nbd_export_of(const struct export *export)
{
    return export->state;
}

uint16_t nbd_export_flags(const struct nbd_export *export)
{
    /* All connections of an export end in the same nodes: what one has flushed, all have. */
    uint16_t flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;

    if (export->export->writable)
        return flags | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    return flags | NBD_FLAG_READ_ONLY;
}

static int nbd_export_prepare(struct export *export, const void *opaque, struct error *err)
{
    const struct nbd_export_options *options = opaque;
    struct nbd_export *nbd = nbd_export_of(export);
    const char *id = options->server ? options->server : "";

    nbd->export = export;
    /* Clients go on to know it by the name that it had at first, also when it goes to another node. */
    if (!options->name)
        export->options->u.nbd.name = memory_string(export->options->node_name);
    nbd->name = options->name;
    nbd->description = options->description;
    nbd->server = nbd_server_find(id);
    bool running = nbd->server && !nbd->server->stopping;

    if (!running && id[0])
        return error_set(err, -ENOENT, "NBD server '%s' is not running", id);
    if (!running)
        return error_set(err, -ENOENT, "NBD server not running");
    if (strlen(nbd->name) > NBD_NAME_MAX)
        return error_set(err, -EINVAL, "export name '%.32s...' is longer than %u bytes", nbd->name, NBD_NAME_MAX);
    if (nbd->description && strlen(nbd->description) > NBD_NAME_MAX)
        return error_set(err, -EINVAL, "description '%.32s...' is longer than %u bytes", nbd->description,
                         NBD_NAME_MAX);
    if (nbd_server_export(nbd->server, nbd->name))
        return error_set(err, -EEXIST, "NBD server already has export named '%s'", nbd->name);
    list_init(&nbd->connections);
    for (unsigned i = 0; i < LOOP_MAX; i++)
        list_init(&nbd->by_loop[i]);
    /* Takes the name at once: a second export of the same change must not. */
    nbd->hidden = true;
    list_append(&nbd->server->exports, &nbd->in_server);
    return 0;
}

static void nbd_export_start(struct export *export)
{
    struct nbd_export *nbd = nbd_export_of(export);

    atomic_store(&nbd->scratch, consumer_scratch(&export->consumer));
    nbd->hidden = false;
}

static void nbd_export_destroy(struct export *export)
{
    struct nbd_export *nbd = nbd_export_of(export);

    list_remove(&nbd->in_server);
    nbd_server_lost(nbd->server);
}

void nbd_export_left(struct nbd_export *export)
{
    struct nbd_server *server = export->server;

    export->connection_count--;
    if (export->stopping && export->connection_count == 0)
        export_stopped(export->export);
    nbd_server_left(server);
}

static void nbd_export_stop(struct export *export)
{
    struct nbd_export *nbd = nbd_export_of(export);
    struct nbd_connection *connection;

    nbd->stopping = true;
    nbd_server_forget(nbd->server, nbd);
    list_for_each(connection, &nbd->connections, in_export)
        nbd_connection_stop(connection);
    if (nbd->connection_count == 0)
        export_stopped(export);
}

static unsigned nbd_export_client_count(const struct export *export)
{
    return nbd_export_of(export)->connection_count;
}

static void nbd_export_resumed(struct export *export, struct loop *loop)
{
    struct nbd_connection *connection;

    list_for_each(connection, &nbd_export_of(export)->by_loop[loop->index], in_loop)
        nbd_connection_resumed(connection);
}

/* Slots are replaced as they are taken: see nbd_slot_get(). */
static int nbd_export_scratch(struct export *export, unsigned scratch, struct error *err)
{
    (void)err;
    atomic_store(&nbd_export_of(export)->scratch, scratch);
    return 0;
}

const struct export_type nbd_export_type = {
    .name = "nbd",
    .state_size = sizeof(struct nbd_export),
    .prepare = nbd_export_prepare,
    .start = nbd_export_start,
    .destroy = nbd_export_destroy,
    .stop = nbd_export_stop,
    .client_count = nbd_export_client_count,
    .resumed = nbd_export_resumed,
    .scratch = nbd_export_scratch,
};
