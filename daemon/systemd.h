/*
 * What a service manager and its daemon tell each other: sd_notify(3) and
 * socket activation, sd_listen_fds(3). Both are a few lines of protocol, so
 * no library is needed. Without a manager nothing happens.
 */
#ifndef DAEMON_SYSTEMD_H
#define DAEMON_SYSTEMD_H

/* A socket that the manager passed. */
struct systemd_socket {
    int fd;
    char *name;     /* FileDescriptorName=; "" if it was not given */
};

/* Takes the sockets, closed on exec from now on, out of the environment. *ret is an array for
 * systemd_sockets_free(); returns how many. At the start, before any fork. */
unsigned systemd_sockets_take(struct systemd_socket **ret);
/* Closes those whose fd is not -1. */
void systemd_sockets_free(struct systemd_socket *sockets, unsigned count);

/* "READY=1", "STOPPING=1", lines separated by newlines. */
void systemd_notify(const char *state);

#endif
