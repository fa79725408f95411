/*
 * vhost-user-blk exports: a listening socket, and at most one front end.
 * Main loop, but for by_loop.
 */
#ifndef DAEMON_VHOST_USER_EXPORT_H
#define DAEMON_VHOST_USER_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/colock.h"
#include "core/export.h"
#include "core/list.h"
#include "core/loop.h"
#include "daemon/vhost_user/queue.h"

struct event;
struct vhost_session;
struct vhost_user_blk_export_options;

struct vhost_export {
    struct export *export;
    const struct vhost_user_blk_export_options *options;
    struct vhost_disk disk;
    struct event *listener, *retry;
    struct vhost_session *session;      /* the front end, or NULL */
    struct loop **loops;                /* of each queue */
    struct comutex lock;                /* held while the device is being changed */
    int waiting;                        /* the next front end, while the last one is being taken leave of; -1 */
    bool stopping;
    struct list by_loop[LOOP_MAX];      /* running queues: struct vhost_queue, by in_loop; each list its loop's */
};

/* By the session, at its end. */
void vhost_export_left(struct vhost_export *export);

#endif
