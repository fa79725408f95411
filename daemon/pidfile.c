/*
 * See pidfile.h. The lock is on the open file (OFD), so it lasts as long as
 * the daemon and vanishes with it; a file left over from a crash is taken
 * over.
 */
#include "daemon/pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

static const char *pidfile_path;
static int pidfile_fd = -1;

/* Whether the name still leads to the open file: its last holder may just have removed it. */
static bool pidfile_is_current(int fd, const char *path)
{
    struct stat open_file, named;

    return fstat(fd, &open_file) == 0 && stat(path, &named) == 0 && open_file.st_dev == named.st_dev &&
           open_file.st_ino == named.st_ino;
}

int pidfile_lock(const char *path, struct error *err)
{
    for (;;) {
        AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

        if (fd < 0)
            return error_set(err, -errno, "--pidfile %s: cannot open: %s", path, strerror(errno));
        if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
            bool taken = errno == EAGAIN || errno == EACCES;
            return error_set(err, -errno, "--pidfile %s: %s", path,
                             taken ? "locked by another process" : strerror(errno));
        }
        if (!pidfile_is_current(fd, path))
            continue;
        if (ftruncate(fd, 0) < 0)
            return error_set(err, -errno, "--pidfile %s: cannot truncate: %s", path, strerror(errno));
        pidfile_fd = take_fd(&fd);
        pidfile_path = path;
        return 0;
    }
}

int pidfile_write(struct error *err)
{
    char text[32];

    if (pidfile_fd < 0)
        return 0;
    int length = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
    ssize_t written = pwrite(pidfile_fd, text, (size_t)length, 0);
    if (written != length)
        return error_set(err, written < 0 ? -errno : -ENOSPC, "--pidfile %s: cannot write: %s", pidfile_path,
                         strerror(written < 0 ? errno : ENOSPC));
    return 0;
}

void pidfile_remove(void)
{
    if (pidfile_fd < 0)
        return;
    unlink(pidfile_path);
    close(take_fd(&pidfile_fd));
}
