/*
 * A load generator for NBD servers that is never the limit: many requests per
 * system call, one thread per connection, payloads received into one buffer
 * and thrown away. Prints one JSON object.
 *
 *   nbd_load [--unix PATH | --tcp HOST:PORT] [--export NAME] [--write] [--sequential] [--size BYTES]
 *            [--depth N] [--connections N] [--seconds S] [--warmup S] [--pid SERVER]
 */
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LOAD_DEPTH_MAX 1024u
#define LOAD_REPLY 16u
#define LOAD_REQUEST 28u
#define LOAD_RECEIVE (4u << 20)
#define LOAD_BUCKETS 512u       /* 16 for each power of two of nanoseconds */

struct load_options {
    const char *unix_path, *tcp, *export;
    bool write, sequential;
    uint32_t size, depth, connections;
    double seconds, warmup;
    long pid;
};

struct load_thread {
    const struct load_options *options;
    pthread_t thread;
    int fd;
    uint64_t export_size, position, random;
    uint64_t sent_at[LOAD_DEPTH_MAX];
    uint32_t free_slots[LOAD_DEPTH_MAX], free_count;
    uint64_t done, buckets[LOAD_BUCKETS];
    unsigned char *requests, *replies;
    size_t reply_fill, payload_left;
};

static _Atomic bool load_counting, load_stop;

static uint64_t clock_ns(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "nbd_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void put32(unsigned char *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, 4);
}

static void put64(unsigned char *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, 8);
}

static uint64_t get64(const unsigned char *at)
{
    uint64_t value;

    memcpy(&value, at, 8);
    return be64toh(value);
}

static uint32_t get32(const unsigned char *at)
{
    uint32_t value;

    memcpy(&value, at, 4);
    return be32toh(value);
}

static void send_all(int fd, const void *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);

        if (sent < 0 && errno != EINTR)
            fail("send");
        if (sent > 0) {
            data = (const char *)data + sent;
            size -= (size_t)sent;
        }
    }
}

static void receive_all(int fd, void *data, size_t size)
{
    while (size) {
        ssize_t got = recv(fd, data, size, 0);

        if (got == 0)
            errno = ECONNRESET;
        if (got == 0 || (got < 0 && errno != EINTR))
            fail("recv");
        if (got > 0) {
            data = (char *)data + got;
            size -= (size_t)got;
        }
    }
}

static int load_connect(const struct load_options *options)
{
    if (options->unix_path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", options->unix_path);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            fail(options->unix_path);
        return fd;
    }
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;

    snprintf(host, sizeof(host), "%s", options->tcp);
    char *port = strrchr(host, ':');
    if (!port)
        fail("--tcp needs HOST:PORT");
    *port++ = '\0';
    if (getaddrinfo(host, port, &hints, &list) != 0)
        fail(options->tcp);
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, list->ai_addr, list->ai_addrlen) < 0)
        fail(options->tcp);
    freeaddrinfo(list);
    return fd;
}

/* Fixed newstyle, NBD_OPT_GO, simple replies. Returns the export's size. */
static uint64_t load_negotiate(int fd, const char *export)
{
    unsigned char buf[4096];
    uint32_t name = (uint32_t)strlen(export);
    uint64_t size = 0;

    receive_all(fd, buf, 18);
    put32(buf, 3);
    put64(buf + 4, 0x49484156454f5054u);
    put32(buf + 12, 7);
    put32(buf + 16, 4 + name + 2);
    put32(buf + 20, name);
    memcpy(buf + 24, export, name);
    memset(buf + 24 + name, 0, 2);
    send_all(fd, buf, 24 + name + 2);
    for (;;) {
        receive_all(fd, buf, 20);
        uint32_t type = get32(buf + 12), length = get32(buf + 16);

        if (length > sizeof(buf) || type & 0x80000000u) {
            errno = EPROTO;
            fail("negotiation");
        }
        receive_all(fd, buf, length);
        if (type == 1)
            return size;
        if (type == 3 && length >= 10 && buf[1] == 0)
            size = get64(buf + 2);
    }
}

static uint64_t load_offset(struct load_thread *thread)
{
    const struct load_options *options = thread->options;
    uint64_t blocks = thread->export_size / options->size;

    if (options->sequential)
        return thread->position++ % blocks * options->size;
    thread->random = thread->random * 6364136223846793005u + 1442695040888963407u;
    return (thread->random >> 24) % blocks * options->size;
}

/* All that the depth allows, in one send. */
static void load_send(struct load_thread *thread)
{
    const struct load_options *options = thread->options;
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    unsigned char *at = thread->requests;

    if (!thread->free_count)
        return;
    while (thread->free_count) {
        uint32_t slot = thread->free_slots[--thread->free_count];

        thread->sent_at[slot] = now;
        put32(at, 0x25609513u);
        put32(at + 4, options->write ? 1 : 0);
        put64(at + 8, slot);
        put64(at + 16, load_offset(thread));
        put32(at + 24, options->size);
        at += LOAD_REQUEST + (options->write ? options->size : 0);
    }
    send_all(thread->fd, thread->requests, (size_t)(at - thread->requests));
}

static unsigned bucket_of(uint64_t ns)
{
    if (ns < 16)
        return (unsigned)ns;
    unsigned shift = 59u - (unsigned)__builtin_clzll(ns);
    unsigned bucket = 16 * (shift + 1) + (unsigned)(ns >> shift) - 16;

    return bucket < LOAD_BUCKETS ? bucket : LOAD_BUCKETS - 1;
}

static double bucket_value(unsigned bucket)
{
    return bucket < 16 ? bucket : (double)(16 + bucket % 16) * (double)(1ull << (bucket / 16 - 1));
}

static void load_reply(struct load_thread *thread, const unsigned char *at, uint64_t now)
{
    uint64_t slot = get64(at + 8);

    if (get32(at) != 0x67446698u || get32(at + 4) != 0 || slot >= thread->options->depth) {
        errno = EPROTO;
        fail("reply");
    }
    if (load_counting) {
        thread->done++;
        thread->buckets[bucket_of(now - thread->sent_at[slot])]++;
    }
    thread->free_slots[thread->free_count++] = (uint32_t)slot;
}

/* One large receive; payload bytes are only counted. */
static void load_receive(struct load_thread *thread)
{
    unsigned char *buf = thread->replies;
    ssize_t got = recv(thread->fd, buf + thread->reply_fill, LOAD_RECEIVE, 0);

    if (got == 0)
        errno = ECONNRESET;
    if (got <= 0)
        fail("recv");
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    size_t end = thread->reply_fill + (size_t)got, at = 0;

    for (;;) {
        size_t skip = thread->payload_left < end - at ? thread->payload_left : end - at;

        at += skip;
        thread->payload_left -= skip;
        if (thread->payload_left || end - at < LOAD_REPLY)
            break;
        load_reply(thread, buf + at, now);
        at += LOAD_REPLY;
        thread->payload_left = thread->options->write ? 0 : thread->options->size;
    }
    thread->reply_fill = end - at;
    memmove(buf, buf + at, thread->reply_fill);
}

static void *load_run(void *arg)
{
    struct load_thread *thread = arg;

    while (!load_stop) {
        load_send(thread);
        load_receive(thread);
    }
    /* Some servers do not take it well when a client vanishes. */
    while (thread->free_count < thread->options->depth)
        load_receive(thread);
    memset(thread->requests, 0, LOAD_REQUEST);
    put32(thread->requests, 0x25609513u);
    put32(thread->requests + 4, 2);
    send_all(thread->fd, thread->requests, LOAD_REQUEST);
    close(thread->fd);
    return NULL;
}

static void load_prepare(struct load_thread *thread, const struct load_options *options, unsigned index)
{
    int size = 4 << 20;

    thread->options = options;
    thread->fd = load_connect(options);
    if (setsockopt(thread->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
        setsockopt(thread->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    thread->export_size = load_negotiate(thread->fd, options->export);
    if (thread->export_size < options->size) {
        errno = EINVAL;
        fail("the export is smaller than one request");
    }
    thread->random = 0x9e3779b97f4a7c15u * (index + 1);
    thread->position = thread->export_size / options->size / options->connections * index;
    thread->requests = calloc(options->depth, LOAD_REQUEST + (options->write ? options->size : 0));
    thread->replies = malloc(LOAD_RECEIVE + LOAD_REPLY);
    if (!thread->requests || !thread->replies)
        fail("memory");
    for (uint32_t i = 0; i < options->depth; i++)
        thread->free_slots[thread->free_count++] = i;
}

/* User and system time of all threads of a process, in seconds. */
static double process_cpu(long pid)
{
    char path[64], line[1024];
    unsigned long user = 0, system = 0;

    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    FILE *file = pid ? fopen(path, "r") : NULL;
    if (!file)
        return 0;
    if (fgets(line, sizeof(line), file) && strrchr(line, ')'))
        sscanf(strrchr(line, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    fclose(file);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static double percentile(const uint64_t *buckets, uint64_t total, double part)
{
    uint64_t seen = 0;

    for (unsigned i = 0; i < LOAD_BUCKETS; i++) {
        seen += buckets[i];
        if (seen && (double)seen >= part * (double)total)
            return bucket_value(i) / 1000;
    }
    return 0;
}

static void load_report(const struct load_thread *threads, const struct load_options *options, double seconds,
                        double own_cpu, double server_cpu)
{
    uint64_t total = 0, buckets[LOAD_BUCKETS] = {0};

    for (unsigned i = 0; i < options->connections; i++) {
        total += threads[i].done;
        for (unsigned b = 0; b < LOAD_BUCKETS; b++)
            buckets[b] += threads[i].buckets[b];
    }
    double each = total ? 1e6 / (double)total : 0;

    printf("{\"iops\": %.0f, \"mib_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"client_cpu_us\": %.3f, "
           "\"server_cpu_us\": %.3f}\n",
           (double)total / seconds, (double)total * options->size / seconds / 1048576, percentile(buckets, total, 0.5),
           percentile(buckets, total, 0.99), own_cpu * each, server_cpu * each);
}

static void sleep_for(double seconds)
{
    struct timespec time = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};

    nanosleep(&time, NULL);
}

static void load_options_parse(struct load_options *options, int argc, char **argv)
{
    static const struct option longs[] = {
        {"unix", 1, NULL, 'u'},       {"tcp", 1, NULL, 't'},    {"export", 1, NULL, 'e'}, {"write", 0, NULL, 'w'},
        {"sequential", 0, NULL, 's'}, {"size", 1, NULL, 'b'},   {"depth", 1, NULL, 'd'},  {"connections", 1, NULL, 'c'},
        {"seconds", 1, NULL, 'T'},    {"warmup", 1, NULL, 'W'}, {"pid", 1, NULL, 'p'},    {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", longs, NULL)) >= 0) {
        switch (option) {
        case 'u':
            options->unix_path = optarg;
            break;
        case 't':
            options->tcp = optarg;
            break;
        case 'e':
            options->export = optarg;
            break;
        case 'w':
            options->write = true;
            break;
        case 's':
            options->sequential = true;
            break;
        case 'b':
            options->size = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'd':
            options->depth = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'c':
            options->connections = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'T':
            options->seconds = strtod(optarg, NULL);
            break;
        case 'W':
            options->warmup = strtod(optarg, NULL);
            break;
        case 'p':
            options->pid = strtol(optarg, NULL, 0);
            break;
        default:
            exit(2);
        }
    }
    if ((!options->unix_path && !options->tcp) || !options->size || !options->depth ||
        options->depth > LOAD_DEPTH_MAX || !options->connections) {
        fprintf(stderr, "usage: nbd_load --unix PATH | --tcp HOST:PORT [options]; depth 1 to %u\n", LOAD_DEPTH_MAX);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct load_options options = {
        .export = "", .size = 4096, .depth = 32, .connections = 1, .seconds = 1.5, .warmup = 0.3};

    load_options_parse(&options, argc, argv);
    struct load_thread *threads = calloc(options.connections, sizeof(*threads));

    if (!threads)
        fail("memory");
    for (unsigned i = 0; i < options.connections; i++)
        load_prepare(&threads[i], &options, i);
    for (unsigned i = 0; i < options.connections; i++)
        pthread_create(&threads[i].thread, NULL, load_run, &threads[i]);
    sleep_for(options.warmup);
    uint64_t start = clock_ns(CLOCK_MONOTONIC), own = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    double server = process_cpu(options.pid);

    load_counting = true;
    sleep_for(options.seconds);
    load_counting = false;
    double seconds = (double)(clock_ns(CLOCK_MONOTONIC) - start) / 1e9;

    load_report(threads, &options, seconds, (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own) / 1e9,
                process_cpu(options.pid) - server);
    load_stop = true;
    for (unsigned i = 0; i < options.connections; i++)
        pthread_join(threads[i].thread, NULL);
    return 0;
}
