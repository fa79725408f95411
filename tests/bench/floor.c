/*
 * What a machine gives to any server: copying memory, a round trip between
 * two sleeping threads, a stream through a socket. Prints "NAME VALUE UNIT".
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FLOOR_NS 300000000u
#define FLOOR_COPY (256u << 20)
#define FLOOR_CACHED (64u << 10)
#define FLOOR_SEND (64u << 10)

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void floor_copy(const char *name, size_t size)
{
    char *from = malloc(size), *to = malloc(size);
    uint64_t start, end, bytes = 0;

    if (!from || !to)
        exit(1);
    memset(from, 1, size);
    memset(to, 2, size);
    start = clock_ns();
    do {
        memcpy(to, from, size);
        /* The copy must not be left out. */
        __asm__ volatile("" : : "r"(to) : "memory");
        bytes += size;
        end = clock_ns();
    } while (end - start < FLOOR_NS);
    printf("%s %.0f MiB/s\n", name, (double)bytes / 1048576 / ((double)(end - start) / 1e9));
    free(from);
    free(to);
}

struct floor_pair {
    int ends[2];
    size_t size;
};

static void receive_all(int fd, char *data, size_t size)
{
    while (size) {
        ssize_t got = recv(fd, data, size, 0);

        if (got <= 0)
            pthread_exit(NULL);
        data += got;
        size -= (size_t)got;
    }
}

static void *floor_answer(void *arg)
{
    const struct floor_pair *pair = arg;
    char request[28], *reply = calloc(1, pair->size);

    while (reply) {
        receive_all(pair->ends[1], request, sizeof(request));
        if (send(pair->ends[1], reply, pair->size, MSG_NOSIGNAL) < 0)
            break;
    }
    free(reply);
    return NULL;
}

static void floor_round_trip(const char *name, size_t size)
{
    struct floor_pair pair = {.size = size};
    char request[28] = {0}, *reply = malloc(size);
    uint64_t start, end, count = 0;
    pthread_t thread;

    if (!reply || socketpair(AF_UNIX, SOCK_STREAM, 0, pair.ends) || pthread_create(&thread, NULL, floor_answer, &pair))
        exit(1);
    start = clock_ns();
    do {
        if (send(pair.ends[0], request, sizeof(request), MSG_NOSIGNAL) < 0)
            exit(1);
        receive_all(pair.ends[0], reply, size);
        count++;
        end = clock_ns();
    } while (end - start < FLOOR_NS);
    printf("%s %.0f /s\n", name, (double)count / ((double)(end - start) / 1e9));
    shutdown(pair.ends[0], SHUT_RDWR);
    pthread_join(thread, NULL);
    free(reply);
}

static void *floor_send(void *arg)
{
    const struct floor_pair *pair = arg;
    char *data = calloc(1, FLOOR_SEND);

    while (data && send(pair->ends[1], data, FLOOR_SEND, MSG_NOSIGNAL) > 0)
        continue;
    free(data);
    return NULL;
}

static void floor_stream(const char *name)
{
    struct floor_pair pair = {.size = FLOOR_SEND};
    char *data = malloc(4 * FLOOR_SEND);
    uint64_t start, end, bytes = 0;
    int room = 4 << 20;
    pthread_t thread;

    if (!data || socketpair(AF_UNIX, SOCK_STREAM, 0, pair.ends))
        exit(1);
    setsockopt(pair.ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
    if (pthread_create(&thread, NULL, floor_send, &pair))
        exit(1);
    start = clock_ns();
    do {
        ssize_t got = recv(pair.ends[0], data, 4 * FLOOR_SEND, 0);

        if (got <= 0)
            exit(1);
        bytes += (uint64_t)got;
        end = clock_ns();
    } while (end - start < FLOOR_NS);
    printf("%s %.0f MiB/s\n", name, (double)bytes / 1048576 / ((double)(end - start) / 1e9));
    shutdown(pair.ends[0], SHUT_RDWR);
    pthread_join(thread, NULL);
    free(data);
}

int main(void)
{
    floor_copy("memcpy of 256 MiB", FLOOR_COPY);
    floor_copy("memcpy of 64 KiB", FLOOR_CACHED);
    floor_round_trip("socket round trip, 28 and 16 bytes", 16);
    floor_round_trip("socket round trip, 28 and 4112 bytes", 4112);
    floor_stream("socket stream, 64 KiB sends");
    return 0;
}
