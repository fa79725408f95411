/*
 * A front end that is connected: a coroutine of the main loop, which reads its
 * messages one by one and carries them out. It may wait for queues to stop.
 *
 * A message that cannot be carried out changes nothing. If the front end asked
 * for an acknowledgement it is told so; else, and when it breaks the protocol,
 * the connection is closed. Why is logged, once for each connection.
 */
#ifndef DAEMON_VHOST_USER_SESSION_H
#define DAEMON_VHOST_USER_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/ring.h"
#include "daemon/vhost_user/memory.h"
#include "daemon/vhost_user/message.h"
#include "daemon/vhost_user/queue.h"

struct coroutine;
struct error;
struct loop;
struct vhost_export;

struct vhost_session {
    struct vhost_export *owner;
    int fd;
    int backend;                        /* the back-end channel; -1 */
    struct vhost_message message;
    int reply_fd;                       /* to be sent along with the reply; -1 */
    uint64_t features, protocol;        /* negotiated */
    uint64_t status;                    /* the device's */
    bool writeback;                     /* the driver's choice, if it has one */
    struct vhost_memory memory;
    struct vhost_inflight_desc inflight;
    struct vhost_mapping inflight_map;
    _Atomic bool memory_lost;           /* bytes of some mapping have vanished */
    struct vhost_queue *queues;
    struct vhost_queue_control *controls;
    unsigned queue_count;

    bool ending;                        /* asked to end, or the front end is gone */
    struct vhost_queue *broken;         /* the first one that is to be dealt with, unless it is reset before */
    bool complained;
    struct coroutine *waiter;           /* while it waits for the socket: */
    struct ring_op ready;
    bool nudged;
};

/* Takes fd, which does not block. */
void vhost_session_start(struct vhost_export *owner, int fd);

/* Ends it soon: vhost_export_left() follows. */
void vhost_session_stop(struct vhost_session *session);

/* Whether its front end has hung up, or it is being ended. */
bool vhost_session_is_ending(const struct vhost_session *session);

/* Whether the peer of a connection has closed it; what it sent before may still be there. */
bool vhost_hung_up(int fd);

/* The disk has another size. */
void vhost_session_resized(struct vhost_session *session);

/* Moves a queue to another loop, now or when it starts. In a main loop coroutine. */
void vhost_session_move_queue(struct vhost_session *session, unsigned index, struct loop *loop);

/* Inside of daemon/vhost_user/: */

/* Carries out session->message. Bytes of the answer, which is in the message's payload. handle.c */
int vhost_handle(struct vhost_session *session, struct error *err);
/* Whether the message has an answer of its own, and no acknowledgement. */
bool vhost_handle_answers(uint32_t request);
const char *vhost_handle_name(uint32_t request);

/* Starts and stops the queue as what is known of it asks for. device.c */
int vhost_device_update(struct vhost_session *session, struct vhost_queue *queue, struct error *err);
/* Stops all queues; vhost_device_resume() starts those again that should run. */
void vhost_device_pause(struct vhost_session *session);
int vhost_device_resume(struct vhost_session *session, struct error *err);
/* The device's state is as in the beginning; memory stays. */
void vhost_device_reset(struct vhost_session *session);
/* The same, but what the driver chose as cache mode stays, and where the queues were. */
void vhost_device_stop(struct vhost_session *session);
/* What depends on the features and on the driver's choice of a cache mode. */
void vhost_device_set_features(struct vhost_session *session, uint64_t features);
void vhost_device_set_writeback(struct vhost_session *session, bool writeback);
/* What the configuration says of it. */
bool vhost_device_writeback(const struct vhost_session *session);

#endif
