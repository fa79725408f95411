/*
 * See daemonize.h. Parent and child share a pipe: one byte says that the
 * daemon is ready, its end without one that it is not.
 */
#include "daemon/daemonize.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

static int daemonize_pipe = -1;

static void daemonize_wait(int fd) __attribute__((noreturn));

static void daemonize_wait(int fd)
{
    char ready;
    ssize_t got;

    do {
        got = read(fd, &ready, 1);
    } while (got < 0 && errno == EINTR);
    _exit(got == 1 ? 0 : 1);
}

static int daemonize_replace(int fd, int flags)
{
    AUTO_CLOSE int null = open("/dev/null", flags | O_CLOEXEC);

    return null < 0 || dup2(null, fd) < 0 ? -errno : 0;
}

int daemonize_begin(struct error *err)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set(err, -errno, "--daemonize: cannot make a pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0) {
        int code = -errno;
        close(ends[0]);
        close(ends[1]);
        return error_set(err, code, "--daemonize: cannot fork: %s", strerror(-code));
    }
    if (child > 0) {
        close(ends[1]);
        daemonize_wait(ends[0]);
    }
    close(ends[0]);
    daemonize_pipe = ends[1];
    setsid();
    int rc = daemonize_replace(STDIN_FILENO, O_RDONLY);
    return rc < 0 ? error_set(err, rc, "--daemonize: cannot open /dev/null: %s", strerror(-rc)) : 0;
}

void daemonize_ready(void)
{
    struct stat status;
    char ready = 1;

    if (daemonize_pipe < 0)
        return;
    /* a log file stays; a terminal, or a pipe that the caller reads to its end, is let go */
    bool log = fstat(STDERR_FILENO, &status) == 0 && S_ISREG(status.st_mode);
    daemonize_replace(STDOUT_FILENO, O_WRONLY);
    if (!log)
        daemonize_replace(STDERR_FILENO, O_WRONLY);
    while (write(daemonize_pipe, &ready, 1) < 0 && errno == EINTR)
        ;
    close(take_fd(&daemonize_pipe));
}
