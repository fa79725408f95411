/* One vhost-user message, there and back: front_send() and front_receive() of front.h. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/bench/vhost/front.h"

union message_control {
    char bytes[CMSG_SPACE(FRONT_FDS_MAX * sizeof(int))];
    struct cmsghdr align;
};

/* Without the bytes that are done. */
static void message_advance(struct msghdr *message, size_t done)
{
    while (message->msg_iovlen && done >= message->msg_iov->iov_len) {
        done -= message->msg_iov->iov_len;
        message->msg_iov++;
        message->msg_iovlen--;
    }
    if (message->msg_iovlen) {
        message->msg_iov->iov_base = (char *)message->msg_iov->iov_base + done;
        message->msg_iov->iov_len -= done;
    }
}

int front_send(int fd, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
               unsigned fd_count, struct error *err)
{
    struct front_header header = {request, flags, size};
    struct iovec parts[] = {{&header, sizeof(header)}, {(void *)payload, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    union message_control control;

    if (fd_count) {
        memset(&control, 0, sizeof(control));
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        *CMSG_FIRSTHDR(&message) = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(fd_count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, fd_count * sizeof(int));
    }
    while (message.msg_iovlen) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return error_set(err, errno == EPIPE ? -ECONNRESET : -errno, "message %u cannot be sent: %s", request,
                             strerror(errno));
        message.msg_control = NULL;
        message.msg_controllen = 0;
        message_advance(&message, (size_t)sent);
    }
    return 0;
}

/* The first fd goes to *keep if that is not NULL and holds none; the others are closed. */
static void message_take_fds(struct msghdr *message, int *keep)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = CMSG_LEN(0); at + sizeof(int) <= part->cmsg_len; at += sizeof(int)) {
            int fd;

            memcpy(&fd, (char *)part + at, sizeof(fd));
            if (keep && *keep < 0)
                *keep = fd;
            else
                close(fd);
        }
    }
}

static int message_receive(int fd, void *data, size_t size, int *keep, struct error *err)
{
    union message_control control;

    while (size) {
        struct iovec part = {data, size};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return error_set(err, -ETIMEDOUT, "the server does not answer");
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            return error_set(err, -ECONNRESET, "the server closed the connection");
        if (got < 0)
            return error_set(err, -errno, "cannot receive: %s", strerror(errno));
        message_take_fds(&message, keep);
        data = (char *)data + got;
        size -= (size_t)got;
    }
    return 0;
}

int front_receive(int fd, struct front_header *header, void *payload, uint32_t *size, int *received_fd,
                  struct error *err)
{
    if (received_fd)
        *received_fd = -1;
    int rc = message_receive(fd, header, sizeof(*header), received_fd, err);
    if (rc == 0 && header->size > *size)
        rc = error_set(err, -EPROTO, "a message of %u bytes where at most %u were due", header->size, *size);
    if (rc == 0)
        rc = message_receive(fd, payload, header->size, received_fd, err);
    if (rc < 0 && received_fd && *received_fd >= 0) {
        close(*received_fd);
        *received_fd = -1;
    }
    *size = rc < 0 ? 0 : header->size;
    return rc;
}
