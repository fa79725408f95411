/*
 * vhost-user-blk exports: the export type "vhost-user-blk". Main loop, save
 * resumed().
 */
#include "daemon/vhost_user/export.h"

#include <errno.h>
#include <event2/event.h>
#include <sys/socket.h>

#include "core/change.h"
#include "core/error.h"
#include "core/iothread.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/socket.h"
#include "daemon/vhost_user/session.h"
#include "generated/commands.h"
#include "generated/options.h"

#define ACCEPT_RETRY_MS 100

static struct vhost_export *vhost_export_of(const struct export *export)
{
    return export->state;
}

/* Front ends: one at a time. One that comes while the last one is being taken leave of waits, unless it has gone away
 * again when the next one comes; others are refused. */

static void vhost_export_take(struct vhost_export *vhost, int fd)
{
    if (vhost->waiting >= 0 && vhost_hung_up(vhost->waiting))
        close(take_fd(&vhost->waiting));
    if (!vhost->session) {
        vhost_session_start(vhost, fd);
    } else if (vhost->waiting < 0 && vhost_session_is_ending(vhost->session)) {
        vhost->waiting = fd;
    } else {
        log_info("vhost-user export '%s': it has a front end, another one is refused", vhost->export->id);
        close(fd);
    }
}

void vhost_export_left(struct vhost_export *vhost)
{
    int next = take_fd(&vhost->waiting);

    vhost->session = NULL;
    if (vhost->stopping) {
        if (next >= 0)
            close(next);
        export_stopped(vhost->export);
    } else if (next >= 0) {
        vhost_session_start(vhost, next);
    }
}

static void vhost_export_acceptable(evutil_socket_t listener, short what, void *arg)
{
    static const struct timeval retry = {.tv_usec = ACCEPT_RETRY_MS * 1000};
    struct vhost_export *vhost = arg;

    (void)what;
    for (;;) {
        int fd = accept4((int)listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            vhost_export_take(vhost, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* It stays in the queue: to look again at once would only spin. */
            event_del(vhost->listener);
            evtimer_add(vhost->retry, &retry);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

static void vhost_export_retry(evutil_socket_t fd, short what, void *arg)
{
    struct vhost_export *vhost = arg;

    (void)fd;
    (void)what;
    event_add(vhost->listener, NULL);
}

/* The export type. */

static int vhost_export_check(const struct vhost_user_blk_export_options *options, struct error *err)
{
    if (options->logical_block_size & (options->logical_block_size - 1))
        return error_set(err, -EINVAL, "logical-block-size %llu is not a power of two",
                         (unsigned long long)options->logical_block_size);
    if (options->addr->type == SOCKET_ADDRESS_TYPE_INET)
        return error_set(err, -EINVAL, "addr must be a UNIX socket or a file descriptor: vhost-user shares memory");
    return 0;
}

static int vhost_export_prepare(struct export *export, const void *opaque, struct error *err)
{
    const struct vhost_user_blk_export_options *options = opaque;
    struct vhost_export *vhost = vhost_export_of(export);
    int fds[SOCKET_LISTEN_MAX];
    int result = vhost_export_check(options, err);

    if (result < 0)
        return result;
    result = socket_listen(options->addr, fds, err);
    if (result < 0)
        return result;
    vhost->export = export;
    vhost->options = options;
    vhost->waiting = -1;
    vhost->disk.id = export->id;
    vhost->disk.block_mask = options->logical_block_size - 1;
    vhost->disk.read_only = !export->writable;
    for (unsigned i = 0; i < LOOP_MAX; i++)
        list_init(&vhost->by_loop[i]);
    vhost->loops = memory_array(options->num_queues, sizeof(*vhost->loops));
    for (unsigned i = 0; i < options->num_queues; i++)
        vhost->loops[i] = export->loops[i % export->loop_count];
    comutex_init(&vhost->lock);
    vhost->listener = event_new(loop_main->events, fds[0], EV_READ | EV_PERSIST, vhost_export_acceptable, vhost);
    vhost->retry = evtimer_new(loop_main->events, vhost_export_retry, vhost);
    return 0;
}

static void vhost_export_start(struct export *export)
{
    struct vhost_export *vhost = vhost_export_of(export);
    unsigned scratch = consumer_scratch(&export->consumer);

    if (vhost->disk.scratch < scratch)
        vhost->disk.scratch = scratch;
    event_add(vhost->listener, NULL);
}

static void vhost_export_stop_listening(struct vhost_export *vhost)
{
    const struct socket_address *address = vhost->options->addr;

    if (!vhost->listener)
        return;
    int fd = event_get_fd(vhost->listener);

    event_free(take_ptr(&vhost->listener));
    event_free(take_ptr(&vhost->retry));
    close(fd);
    if (address->type == SOCKET_ADDRESS_TYPE_UNIX)
        unlink(address->u.unix_.path);
}

static void vhost_export_destroy(struct export *export)
{
    struct vhost_export *vhost = vhost_export_of(export);

    vhost_export_stop_listening(vhost);
    comutex_destroy(&vhost->lock);
    free(vhost->loops);
}

static void vhost_export_stop(struct export *export)
{
    struct vhost_export *vhost = vhost_export_of(export);

    vhost->stopping = true;
    vhost_export_stop_listening(vhost);
    if (vhost->session)
        vhost_session_stop(vhost->session);
    else
        export_stopped(export);
}

static unsigned vhost_export_client_count(const struct export *export)
{
    return vhost_export_of(export)->session != NULL;
}

static void vhost_export_resized(struct export *export, uint64_t size)
{
    struct vhost_export *vhost = vhost_export_of(export);

    (void)size;
    if (vhost->session)
        vhost_session_resized(vhost->session);
}

static void vhost_export_resumed(struct export *export, struct loop *loop)
{
    struct vhost_queue *queue;

    list_for_each(queue, &vhost_export_of(export)->by_loop[loop->index], in_loop)
        vhost_queue_resumed(queue);
}

static int vhost_export_scratch(struct export *export, unsigned scratch, struct error *err)
{
    struct vhost_export *vhost = vhost_export_of(export);
    unsigned count = vhost->session ? vhost->session->queue_count : 0;

    for (unsigned i = 0; i < count; i++) {
        if (vhost_queue_scratch(&vhost->session->queues[i], scratch) < 0)
            return error_set(err, -ENOMEM, "no memory for the requests of export '%s'", export->id);
    }
    if (vhost->disk.scratch < scratch)
        vhost->disk.scratch = scratch;
    return 0;
}

const struct export_type vhost_user_blk_export_type = {
    .name = "vhost-user-blk",
    .state_size = sizeof(struct vhost_export),
    .prepare = vhost_export_prepare,
    .start = vhost_export_start,
    .destroy = vhost_export_destroy,
    .stop = vhost_export_stop,
    .client_count = vhost_export_client_count,
    .resized = vhost_export_resized,
    .resumed = vhost_export_resumed,
    .scratch = vhost_export_scratch,
};

/* The command vhost-queue-move. */

static int vhost_export_move(struct vhost_export *vhost, const struct vhost_queue_move_args *args, struct error *err)
{
    unsigned first = args->has_queue ? (unsigned)args->queue : 0;
    unsigned end = args->has_queue ? first + 1 : (unsigned)vhost->options->num_queues;
    struct loop *loops[LOOP_MAX];

    if (args->iothreads.count == 0)
        return error_set(err, -EINVAL, "iothreads must name at least one");
    if (end > vhost->options->num_queues)
        return error_set(err, -EINVAL, "export '%s' has no queue %u", args->id, first);
    /* All or none: who is joined stays in use. */
    for (size_t i = 0; i < args->iothreads.count; i++) {
        if (!iothread_get(args->iothreads.items[i], err))
            return -ENOENT;
    }
    for (size_t i = 0; i < args->iothreads.count; i++) {
        int result = export_use_iothread(vhost->export, args->iothreads.items[i], &loops[i], err);

        if (result < 0)
            return result;
    }
    comutex_lock(&vhost->lock);
    for (unsigned i = first; i < end; i++) {
        vhost->loops[i] = loops[(i - first) % args->iothreads.count];
        if (vhost->session)
            vhost_session_move_queue(vhost->session, i, vhost->loops[i]);
    }
    comutex_unlock(&vhost->lock);
    return 0;
}

int qmp_vhost_queue_move(struct qmp_client *client, const struct vhost_queue_move_args *args, struct json_object **ret,
                         struct error *err)
{
    /* While it lasts no export is removed. */
    struct change *change = change_new();
    struct export *export = export_find(args->id);
    int result;

    (void)client;
    (void)ret;
    if (!export)
        result = error_set(err, -ENOENT, "Export '%s' is not found", args->id);
    else if (export->type != &vhost_user_blk_export_type || export->stopping)
        result = error_set(err, -EINVAL, "Export '%s' is %s", args->id,
                           export->stopping ? "shutting down" : "not of type vhost-user-blk");
    else
        result = vhost_export_move(vhost_export_of(export), args, err);
    change_abort(change);
    return result;
}
