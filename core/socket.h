/*
 * Stream sockets from the addresses of the schema. Control path; blocks
 * while host names are looked up.
 */
#ifndef CORE_SOCKET_H
#define CORE_SOCKET_H

#include <sys/socket.h>

#define SOCKET_LISTEN_MAX 16
#define SOCKET_TARGET_MAX 16

struct error;
struct socket_address;

/*
 * Listens at address, at all that a host name stands for; fds are not
 * blocking and closed on exec, and the caller's. Returns how many, or a
 * negative errno. A UNIX socket that nobody listens at any more is replaced;
 * -EADDRINUSE if somebody does, or if path is no socket.
 */
int socket_listen(const struct socket_address *address, int fds[SOCKET_LISTEN_MAX], struct error *err);

/* Where a client connects to. */
struct socket_target {
    struct sockaddr_storage address;
    socklen_t size;
};

/* All that address, inet or unix, stands for, in the order to try. Blocks while a name is looked up. Returns how many,
 * or a negative errno. */
int socket_resolve(const struct socket_address *address, struct socket_target targets[SOCKET_TARGET_MAX],
                   struct error *err);

/* Connects, blocking; the fd, the caller's, or a negative errno. */
int socket_connect(const struct socket_address *address, struct error *err);

#endif
