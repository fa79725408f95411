/*
 * See systemd.h.
 */
#include "daemon/systemd.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/memory.h"

#define SYSTEMD_FIRST_FD 3
#define SYSTEMD_SOCKETS_MAX 64

unsigned systemd_sockets_take(struct systemd_socket **ret)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS"), *names = getenv("LISTEN_FDNAMES");
    unsigned long count = fds ? strtoul(fds, NULL, 10) : 0;

    *ret = NULL;
    if (!pid || strtol(pid, NULL, 10) != (long)getpid() || count > SYSTEMD_SOCKETS_MAX)
        count = 0;
    AUTO_FREE char *copy = memory_string(names ? names : "");
    char *rest = copy;
    struct systemd_socket *sockets = memory_array(count + 1, sizeof(*sockets));
    for (unsigned long i = 0; i < count; i++) {
        const char *name = strsep(&rest, ":");
        sockets[i].fd = SYSTEMD_FIRST_FD + (int)i;
        sockets[i].name = memory_string(name ? name : "");
        fcntl(sockets[i].fd, F_SETFD, FD_CLOEXEC);
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    *ret = sockets;
    return (unsigned)count;
}

void systemd_sockets_free(struct systemd_socket *sockets, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (sockets[i].fd >= 0)
            close(sockets[i].fd);
        free(sockets[i].name);
    }
    free(sockets);
}

void systemd_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = path ? strlen(path) : 0;

    if (length < 2 || length > sizeof(address.sun_path) || (path[0] != '/' && path[0] != '@'))
        return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
}
