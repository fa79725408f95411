/*
 * Messages on a vhost-user socket: one header, a payload, and file
 * descriptors. Main loop, in the session's coroutine.
 */
#ifndef DAEMON_VHOST_USER_MESSAGE_H
#define DAEMON_VHOST_USER_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/vhost_user/proto.h"

struct error;

struct vhost_message {
    struct vhost_header header;
    union vhost_payload payload;
    int fds[VHOST_FDS_MAX];         /* -1: taken */
    unsigned fd_count;
    size_t received;                /* bytes of header and payload */
};

void vhost_message_init(struct vhost_message *message);

/* Closes the fds that were not taken. */
void vhost_message_drop_fds(struct vhost_message *message);

/* Forgets it, and closes its fds. */
void vhost_message_reset(struct vhost_message *message);

/*
 * Receives more of it. 1: it is complete; 0: the other side has closed, between two messages;
 * -EAGAIN: wait for more. Errors: -EPROTO for what is no message (payload too long, wrong version,
 * too many fds), -ECONNRESET when the other side is gone in the middle.
 */
int vhost_message_receive(struct vhost_message *message, int fd, struct error *err);

/* Sends the reply to message: size bytes of its payload, and fd unless it is -1. 0, -EAGAIN (nothing
 * was sent), or what sendmsg(2) says. */
int vhost_message_reply(const struct vhost_message *message, int fd, uint32_t size, int attached);

#endif
