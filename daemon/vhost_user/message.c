/*
 * Messages on a vhost-user socket: see message.h.
 */
#include "daemon/vhost_user/message.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "core/error.h"
#include "core/memory.h"

union message_control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(VHOST_FDS_MAX * sizeof(int))];
};

void vhost_message_init(struct vhost_message *message)
{
    message->fd_count = 0;
    message->received = 0;
}

void vhost_message_drop_fds(struct vhost_message *message)
{
    for (unsigned i = 0; i < message->fd_count; i++) {
        if (message->fds[i] >= 0)
            close(message->fds[i]);
    }
    message->fd_count = 0;
}

void vhost_message_reset(struct vhost_message *message)
{
    vhost_message_drop_fds(message);
    vhost_message_init(message);
}

/* Keeps the fds that came along. False when there are more than a message may have. */
static bool message_take_fds(struct vhost_message *message, struct msghdr *received)
{
    bool fit = !(received->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *part = CMSG_FIRSTHDR(received); part; part = CMSG_NXTHDR(received, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(part) + i * sizeof(fd), sizeof(fd));
            if (message->fd_count < VHOST_FDS_MAX) {
                message->fds[message->fd_count++] = fd;
            } else {
                close(fd);
                fit = false;
            }
        }
    }
    return fit;
}

static int message_check(const struct vhost_header *header, struct error *err)
{
    if ((header->flags & VHOST_FLAGS_VERSION_MASK) != VHOST_FLAGS_VERSION || header->flags & VHOST_FLAGS_REPLY)
        return error_set(err, -EPROTO, "message %u has flags 0x%x", header->request, header->flags);
    if (header->size > sizeof(union vhost_payload))
        return error_set(err, -EPROTO, "message %u has a payload of %u bytes", header->request, header->size);
    return 0;
}

/* >0: bytes; 0: the other side has closed. */
static ssize_t message_receive_part(struct vhost_message *message, int fd, void *to, size_t size, struct error *err)
{
    union message_control control;
    struct iovec iov = {.iov_base = to, .iov_len = size};
    struct msghdr received;
    ssize_t got;

    do {
        received = (struct msghdr){
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        got = recvmsg(fd, &received, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        return -EAGAIN;
    if (got < 0)
        return error_set(err, -errno, "receiving failed: %s", strerror(errno));
    if (!message_take_fds(message, &received))
        return error_set(err, -EPROTO, "a message comes with more than %u file descriptors", VHOST_FDS_MAX);
    return got;
}

int vhost_message_receive(struct vhost_message *message, int fd, struct error *err)
{
    const size_t header = sizeof(message->header);

    for (;;) {
        bool in_header = message->received < header;
        size_t end = in_header ? header : header + message->header.size;
        unsigned char *to = in_header ? (unsigned char *)&message->header + message->received
                                      : message->payload.bytes + (message->received - header);

        if (message->received == end)
            return 1;
        ssize_t got = message_receive_part(message, fd, to, end - message->received, err);

        if (got < 0)
            return (int)got;
        if (got == 0 && message->received)
            return error_set(err, -ECONNRESET, "the front end has closed the connection in the middle of a message");
        if (got == 0)
            return 0;
        message->received += (size_t)got;
        if (message->received == header) {
            int result = message_check(&message->header, err);

            if (result < 0)
                return result;
        }
    }
}

int vhost_message_reply(const struct vhost_message *message, int fd, uint32_t size, int attached)
{
    struct vhost_header header = {
        .request = message->header.request, .flags = VHOST_FLAGS_VERSION | VHOST_FLAGS_REPLY, .size = size};
    union vhost_payload payload = message->payload;
    struct iovec iov[2] = {{.iov_base = &header, .iov_len = sizeof(header)}, {.iov_base = &payload, .iov_len = size}};
    union message_control control = {0};
    struct msghdr sent = {.msg_iov = iov, .msg_iovlen = 2};

    if (attached >= 0) {
        sent.msg_control = &control;
        sent.msg_controllen = CMSG_SPACE(sizeof(attached));
        struct cmsghdr *part = CMSG_FIRSTHDR(&sent);

        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(attached));
        memcpy(CMSG_DATA(part), &attached, sizeof(attached));
    }
    ssize_t done;

    do
        done = sendmsg(fd, &sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    if (done < 0)
        return -errno;
    /* A socket with room takes so little at once; what does not is no reader. */
    return (size_t)done == sizeof(header) + size ? 0 : -EPIPE;
}
