/*
 * Stream sockets from the addresses of the schema: see socket.h.
 */
#include "core/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "core/error.h"
#include "core/memory.h"
#include "generated/options.h"

#define LISTEN_BACKLOG 128

/* UNIX. */

static int socket_unix_address(const char *path, struct sockaddr_un *ret, struct error *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (!path[0])
        return error_set(err, -EINVAL, "UNIX socket path must not be empty");
    if (strlen(path) >= sizeof(ret->sun_path))
        return error_set(err, -ENAMETOOLONG, "UNIX socket path '%s' is too long: at most %zu bytes", path,
                         sizeof(ret->sun_path) - 1);
    strcpy(ret->sun_path, path);
    return 0;
}

/* Removes a socket whose owner is gone. Anything else stays, and bind() will say so. */
static void socket_unix_remove_stale(const struct sockaddr_un *address)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat status;

    if (fd < 0 || lstat(address->sun_path, &status) || !S_ISSOCK(status.st_mode))
        return;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) && errno == ECONNREFUSED)
        unlink(address->sun_path);
}

static int socket_unix_listen(const char *path, int fds[SOCKET_LISTEN_MAX], struct error *err)
{
    struct sockaddr_un address;
    int result = socket_unix_address(path, &address, err);

    if (result)
        return result;
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return error_set(err, -errno, "Failed to create socket: %s", strerror(errno));
    socket_unix_remove_stale(&address);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, LISTEN_BACKLOG))
        return error_set(err, -errno, "Failed to bind socket to '%s': %s", path, strerror(errno));
    fds[0] = take_fd(&fd);
    return 1;
}

static int socket_unix_connect(const char *path, struct error *err)
{
    struct sockaddr_un address;
    int result = socket_unix_address(path, &address, err);

    if (result)
        return result;
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
        return error_set(err, -errno, "Failed to connect to '%s': %s", path, strerror(errno));
    return take_fd(&fd);
}

/* TCP. */

static int inet_family(const struct inet_socket_address *address)
{
    bool ipv4 = address->has_ipv4 ? address->ipv4 : !(address->has_ipv6 && address->ipv6);
    bool ipv6 = address->has_ipv6 ? address->ipv6 : !(address->has_ipv4 && address->ipv4);

    return ipv4 && ipv6 ? AF_UNSPEC : ipv4 ? AF_INET : ipv6 ? AF_INET6 : -1;
}

/* Whether it is a service's name or a port that there is: getaddrinfo() takes larger numbers modulo 65536. */
static bool inet_port_exists(const char *port)
{
    char *end;
    unsigned long number = strtoul(port, &end, 10);

    return *end || number <= UINT16_MAX;
}

static int inet_lookup(const struct inet_socket_address *address, bool passive, struct addrinfo **ret,
                       struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = passive ? AI_PASSIVE : AI_ADDRCONFIG};

    hints.ai_family = inet_family(address);
    if (hints.ai_family < 0)
        return error_set(err, -EINVAL, "Parameters 'ipv4' and 'ipv6' must not both be off");
    if (!inet_port_exists(address->port))
        return error_set(err, -EINVAL, "Port '%s' is not in range [0, 65535]", address->port);
    int result = getaddrinfo(address->host[0] ? address->host : NULL, address->port, &hints, ret);

    return result ? error_set(err, -EADDRNOTAVAIL, "Address resolution failed for '%s:%s': %s", address->host,
                              address->port, gai_strerror(result))
                  : 0;
}

static uint16_t *inet_port(struct sockaddr *address)
{
    return address->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)address)->sin6_port
                                          : &((struct sockaddr_in *)address)->sin_port;
}

/* A listening socket, or a negative errno. */
static int inet_listen_at(const struct addrinfo *info, bool keep_alive)
{
    AUTO_CLOSE int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (info->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (keep_alive)
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    if (bind(fd, info->ai_addr, info->ai_addrlen) || listen(fd, LISTEN_BACKLOG))
        return -errno;
    return take_fd(&fd);
}

static uint16_t inet_bound_port(int fd)
{
    struct sockaddr_storage storage;
    socklen_t size = sizeof(storage);

    return getsockname(fd, (struct sockaddr *)&storage, &size) ? 0 : ntohs(*inet_port((struct sockaddr *)&storage));
}

static void close_all(int *fds, int count)
{
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

/* One port at all addresses; port 0 is chosen by the system once. A count, or a negative errno. */
static int inet_listen_port(const struct inet_socket_address *address, struct addrinfo *list, uint16_t port,
                            int fds[SOCKET_LISTEN_MAX])
{
    int count = 0, failure = -EADDRNOTAVAIL;

    for (struct addrinfo *info = list; info && count < SOCKET_LISTEN_MAX; info = info->ai_next) {
        *inet_port(info->ai_addr) = htons(port);
        int fd = inet_listen_at(info, address->keep_alive);

        if (fd >= 0) {
            fds[count++] = fd;
            port = port ? port : inet_bound_port(fd);
            continue;
        }
        failure = fd;
        /* A family that the host does not have is no failure; a port that is taken is one. */
        if (fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL) {
            close_all(fds, count);
            return fd;
        }
    }
    return count ? count : failure;
}

static int socket_inet_listen(const struct inet_socket_address *address, int fds[SOCKET_LISTEN_MAX], struct error *err)
{
    struct addrinfo *list;
    int result = inet_lookup(address, true, &list, err);

    if (result)
        return result;
    uint16_t first = ntohs(*inet_port(list->ai_addr));
    uint64_t last = address->has_to && address->to > first ? address->to : first;

    for (uint64_t port = first; port <= last; port++) {
        result = inet_listen_port(address, list, (uint16_t)port, fds);
        if (result != -EADDRINUSE)
            break;
    }
    freeaddrinfo(list);
    return result > 0 ? result
                      : error_set(err, result, "Failed to bind socket to '%s:%s': %s", address->host, address->port,
                                  strerror(-result));
}

static int socket_inet_connect(const struct inet_socket_address *address, struct error *err)
{
    struct addrinfo *list;
    int result = inet_lookup(address, false, &list, err);

    if (result)
        return result;
    int fd = -1;

    for (struct addrinfo *info = list; info && fd < 0; info = info->ai_next) {
        fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, info->ai_addr, info->ai_addrlen) == 0)
            break;
        result = -errno;
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd >= 0 ? fd
                   : error_set(err, result, "Failed to connect to '%s:%s': %s", address->host, address->port,
                               strerror(-result));
}

int socket_resolve(const struct socket_address *address, struct socket_target targets[SOCKET_TARGET_MAX],
                   struct error *err)
{
    struct addrinfo *list;
    int count = 0;

    if (address->type == SOCKET_ADDRESS_TYPE_UNIX) {
        struct sockaddr_un name;
        int result = socket_unix_address(address->u.unix_.path, &name, err);

        memcpy(&targets[0].address, &name, sizeof(name));
        targets[0].size = sizeof(name);
        return result < 0 ? result : 1;
    }
    if (address->type != SOCKET_ADDRESS_TYPE_INET)
        return error_set(err, -ENOTSUP, "Only addresses of type 'inet' and 'unix' can be connected to again");
    int result = inet_lookup(&address->u.inet, false, &list, err);

    if (result)
        return result;
    for (struct addrinfo *info = list; info && count < SOCKET_TARGET_MAX; info = info->ai_next) {
        memcpy(&targets[count].address, info->ai_addr, info->ai_addrlen);
        targets[count++].size = info->ai_addrlen;
    }
    freeaddrinfo(list);
    return count;
}

/* Sockets that were passed to us. */

static int socket_fd(const char *text, bool listening, struct error *err)
{
    char *end;

    errno = 0;
    long fd = strtol(text, &end, 10);
    int accepts = 0;
    socklen_t size = sizeof(accepts);

    if (errno || *end || end == text || fd < 0 || fd > INT32_MAX)
        return error_set(err, -EINVAL, "Parameter 'str' expects the number of a file descriptor, not '%s'", text);
    if (getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size))
        return error_set(err, -errno, "File descriptor '%s' is not a socket", text);
    if (listening != (bool)accepts)
        return error_set(err, -EINVAL, "File descriptor '%s' is %s listening socket", text, listening ? "not a" : "a");
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    if (listening)
        fcntl((int)fd, F_SETFL, fcntl((int)fd, F_GETFL) | O_NONBLOCK);
    return (int)fd;
}

int socket_listen(const struct socket_address *address, int fds[SOCKET_LISTEN_MAX], struct error *err)
{
    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_FD:
        fds[0] = socket_fd(address->u.fd.str, true, err);
        return fds[0] < 0 ? fds[0] : 1;
    case SOCKET_ADDRESS_TYPE_INET:
        return socket_inet_listen(&address->u.inet, fds, err);
    case SOCKET_ADDRESS_TYPE_UNIX:
        return socket_unix_listen(address->u.unix_.path, fds, err);
    }
    return error_set(err, -EINVAL, "Unknown type of address");
}

int socket_connect(const struct socket_address *address, struct error *err)
{
    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_FD:
        return socket_fd(address->u.fd.str, false, err);
    case SOCKET_ADDRESS_TYPE_INET:
        return socket_inet_connect(&address->u.inet, err);
    case SOCKET_ADDRESS_TYPE_UNIX:
        return socket_unix_connect(address->u.unix_.path, err);
    }
    return error_set(err, -EINVAL, "Unknown type of address");
}
