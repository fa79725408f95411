/*
 * How long clients stand still when the graph changes: one connection reads at
 * random with a constant queue depth, while filters are pushed onto the source
 * that it uses and popped again, or a node is reopened, over QMP. For each
 * change the longest latency of any request that was under way, or began,
 * between the command and its reply. The same for stretches of time
 * without a change, which say what the machine itself does. Prints one JSON
 * object; times are microseconds.
 *
 *   graph_stall --nbd PATH --qmp PATH [--export NAME] [--source ID] [--depth N] [--rounds N] [--filter JSON]
 */
#include <endian.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define STALL_DEPTH_MAX 256u
#define STALL_SIZE 4096u
#define STALL_REQUEST 28u
#define STALL_REPLY 16u
#define STALL_PAUSE_NS 2000000

static struct {
    const char *nbd, *qmp, *export, *source, *filter;
    unsigned depth, rounds;
} stall_options = {.export = "disk",
                   .source = "disk",
                   .depth = 32,
                   .rounds = 1000,
                   .filter = "{\"driver\":\"delay\",\"node-name\":\"pushed\"}"};

static _Atomic uint64_t stall_longest;  /* ns, since it was last taken */
static _Atomic bool stall_stop;
static _Atomic uint64_t stall_done;

static uint64_t stall_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void stall_fail(const char *what)
{
    perror(what);
    exit(1);
}

static int stall_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        stall_fail(path);
    return fd;
}

static void stall_send(int fd, const void *data, size_t size)
{
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
        stall_fail("send");
}

static void stall_receive(int fd, void *data, size_t size)
{
    if (recv(fd, data, size, MSG_WAITALL) != (ssize_t)size)
        stall_fail("recv");
}

/* NBD, the short way: NBD_OPT_EXPORT_NAME. Returns the size of the export. */
static uint64_t stall_handshake(int fd)
{
    unsigned char greeting[18], option[16], reply[10];
    uint32_t flags = htobe32(3), length = htobe32((uint32_t)strlen(stall_options.export)), number = htobe32(1);
    uint64_t size;

    stall_receive(fd, greeting, sizeof(greeting));
    stall_send(fd, &flags, sizeof(flags));
    memcpy(option, "IHAVEOPT", 8);
    memcpy(option + 8, &number, 4);
    memcpy(option + 12, &length, 4);
    stall_send(fd, option, sizeof(option));
    stall_send(fd, stall_options.export, strlen(stall_options.export));
    stall_receive(fd, reply, sizeof(reply));
    memcpy(&size, reply, sizeof(size));
    return be64toh(size);
}

struct stall_client {
    int fd;
    uint64_t blocks, random;
    uint64_t sent_at[STALL_DEPTH_MAX];
};

static void stall_read(struct stall_client *client, uint32_t slot)
{
    unsigned char request[STALL_REQUEST] = {0};
    uint32_t magic = htobe32(0x25609513), length = htobe32(STALL_SIZE);
    uint64_t cookie = slot, offset;

    client->random = client->random * 6364136223846793005u + 1442695040888963407u;
    offset = htobe64((client->random >> 33) % client->blocks * STALL_SIZE);
    memcpy(request, &magic, 4);
    memcpy(request + 8, &cookie, 8);
    memcpy(request + 16, &offset, 8);
    memcpy(request + 24, &length, 4);
    client->sent_at[slot] = stall_now();
    stall_send(client->fd, request, sizeof(request));
}

static void *stall_load(void *arg)
{
    struct stall_client *client = arg;
    unsigned char reply[STALL_REPLY + STALL_SIZE];

    for (uint32_t slot = 0; slot < stall_options.depth; slot++)
        stall_read(client, slot);
    while (!stall_stop) {
        uint64_t slot, latency;

        stall_receive(client->fd, reply, sizeof(reply));
        memcpy(&slot, reply + 8, sizeof(slot));
        latency = stall_now() - client->sent_at[slot];
        if (latency > stall_longest)
            stall_longest = latency;
        stall_done++;
        stall_read(client, (uint32_t)slot);
    }
    return NULL;
}

/* Replies are lines; events may stand between. text NULL: what the daemon says first. */
static void stall_command(FILE *qmp, const char *text)
{
    static char line[1 << 16];

    if (text) {
        stall_send(fileno(qmp), text, strlen(text));
        stall_send(fileno(qmp), "\n", 1);
    }
    do {
        if (!fgets(line, sizeof(line), qmp))
            stall_fail("QMP");
    } while (strstr(line, "\"event\""));
    if (strstr(line, "\"error\"")) {
        fprintf(stderr, "%s: %s", text, line);
        exit(1);
    }
}

static void stall_sleep(void)
{
    nanosleep(&(struct timespec){.tv_nsec = STALL_PAUSE_NS}, NULL);
}

/* Nanoseconds. Whoever was under way during the change has answered when depth more answers have come. */
static uint64_t stall_measure(FILE *qmp, const char *text, uint64_t *command_ns)
{
    uint64_t start = stall_now();

    stall_longest = 0;
    if (text)
        stall_command(qmp, text);
    else
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    *command_ns = stall_now() - start;
    uint64_t done = stall_done;

    while (stall_done < done + stall_options.depth)
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    return stall_longest;
}

static int stall_compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

static void stall_print(const char *name, uint64_t *samples, unsigned count, bool last)
{
    qsort(samples, count, sizeof(*samples), stall_compare);
    printf("  \"%s\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %.1f}%s\n", name,
           (double)samples[count / 2] / 1e3, (double)samples[count * 9ull / 10] / 1e3,
           (double)samples[count * 99ull / 100] / 1e3, (double)samples[count * 999ull / 1000] / 1e3,
           (double)samples[count - 1] / 1e3, last ? "" : ",");
}

static void stall_parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"nbd", required_argument, NULL, 'n'},    {"qmp", required_argument, NULL, 'q'},
        {"export", required_argument, NULL, 'e'}, {"source", required_argument, NULL, 's'},
        {"depth", required_argument, NULL, 'd'},  {"rounds", required_argument, NULL, 'r'},
        {"filter", required_argument, NULL, 'f'}, {NULL, 0, NULL, 0},
    };
    int letter;

    while ((letter = getopt_long(argc, argv, "", options, NULL)) != -1) {
        const char **texts[] = {['n'] = &stall_options.nbd,
                                ['q'] = &stall_options.qmp,
                                ['e'] = &stall_options.export,
                                ['s'] = &stall_options.source,
                                ['f'] = &stall_options.filter};

        if (letter == 'd')
            stall_options.depth = (unsigned)strtoul(optarg, NULL, 10);
        else if (letter == 'r')
            stall_options.rounds = (unsigned)strtoul(optarg, NULL, 10);
        else if (letter == '?')
            exit(2);
        else
            *texts[letter] = optarg;
    }
    if (!stall_options.nbd || !stall_options.qmp || stall_options.depth == 0 || stall_options.rounds == 0 ||
        stall_options.depth > STALL_DEPTH_MAX) {
        fputs("usage: graph_stall --nbd PATH --qmp PATH [--export NAME] [--source ID] [--depth N] [--rounds N] "
              "[--filter JSON]\n",
              stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    enum { PUSH, POP, NOTHING, COMMAND, KINDS };
    static const char *const names[] = {"push", "pop", "nothing", "command"};
    struct stall_client client = {.random = 1};
    uint64_t *samples[KINDS];
    char push[4096], pop[512];
    pthread_t thread;

    stall_parse(argc, argv);
    for (unsigned i = 0; i < KINDS; i++)
        samples[i] = calloc(stall_options.rounds, sizeof(uint64_t));
    client.fd = stall_connect(stall_options.nbd);
    client.blocks = stall_handshake(client.fd) / STALL_SIZE;
    FILE *qmp = fdopen(stall_connect(stall_options.qmp), "r");

    snprintf(push, sizeof(push), "{\"execute\":\"source-push\",\"arguments\":{\"source\":\"%s\",\"filter\":%s}}",
             stall_options.source, stall_options.filter);
    snprintf(pop, sizeof(pop), "{\"execute\":\"source-pop\",\"arguments\":{\"source\":\"%s\",\"filter\":\"pushed\"}}",
             stall_options.source);
    stall_command(qmp, NULL);
    stall_command(qmp, "{\"execute\":\"qmp_capabilities\"}");
    pthread_create(&thread, NULL, stall_load, &client);
    stall_sleep();
    uint64_t start = stall_now(), before = stall_done, command;

    for (unsigned i = 0; i < stall_options.rounds; i++) {
        stall_sleep();
        samples[NOTHING][i] = stall_measure(qmp, NULL, &command);
        samples[PUSH][i] = stall_measure(qmp, push, &samples[COMMAND][i]);
        stall_sleep();
        samples[POP][i] = stall_measure(qmp, pop, &command);
    }
    printf("{\n  \"rounds\": %u, \"depth\": %u, \"iops\": %.0f,\n", stall_options.rounds, stall_options.depth,
           (double)(stall_done - before) * 1e9 / (double)(stall_now() - start));
    for (unsigned i = 0; i < KINDS; i++)
        stall_print(names[i], samples[i], stall_options.rounds, i + 1 == KINDS);
    puts("}");
    stall_stop = true;
    pthread_join(thread, NULL);
    return 0;
}
