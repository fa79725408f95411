/*
 * The command line of cairnd: order of steps, errors, help; and what main.c
 * needs beside it: pid files, sockets from the service manager, configuration
 * text is tested from outside (tests/e2e/test_daemon.py).
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/command_line.h"
#include "daemon/pidfile.h"
#include "daemon/systemd.h"

#define WORDS_MAX 16

static struct command_line line;
static struct error err;

static void clear(void)
{
    command_line_clear(&line);
    error_clear(&err);
}

/* Parses words that end with NULL, program's name not included. */
static int parse(const char *const *words)
{
    char *argv[WORDS_MAX + 2] = {memory_string("cairnd")};
    int argc = 1;

    for (; words[argc - 1]; argc++)
        argv[argc] = memory_string(words[argc - 1]);
    clear();
    int rc = command_line_parse(&line, argc, argv, &err);
    /* values point into argv, which ends here */
    for (unsigned i = 0; i < line.step_count; i++)
        line.steps[i].value = memory_string(line.steps[i].value);
    line.pidfile = memory_string(line.pidfile);
    for (int i = 0; i < argc; i++)
        free(argv[i]);
    return rc;
}

static void free_values(void)
{
    for (unsigned i = 0; i < line.step_count; i++)
        free((char *)line.steps[i].value);
    free((char *)line.pidfile);
    clear();
}

START_TEST(test_defaults)
{
    const char *const words[] = {NULL};

    ck_assert_int_eq(parse(words), 0);
    ck_assert(!line.help && !line.version && !line.schema && !line.daemonize && !line.help_of_step);
    ck_assert_ptr_null(line.pidfile);
    ck_assert_uint_eq(line.step_count, 0);
    ck_assert_int_eq(line.log_level, LOG_LEVEL_INFO);
    ck_assert_int_eq(line.ring, LOOP_RING_AUTO);
    free_values();
}
END_TEST

START_TEST(test_order)
{
    const char *const words[] = {
        "--export",    "nbd,id=e", "--blockdev=null-co,node-name=n",
        "--pidfile",   "p",        "--qmp",
        "/s",          "--config", "c.json",
        "--daemonize", "--ring",   "threads",
        NULL,
    };
    static const struct command_line_step expected[] = {
        {COMMAND_LINE_EXPORT, "nbd,id=e"},
        {COMMAND_LINE_BLOCKDEV, "null-co,node-name=n"},
        {COMMAND_LINE_QMP, "/s"},
        {COMMAND_LINE_CONFIG, "c.json"},
    };

    ck_assert_int_eq(parse(words), 0);
    ck_assert_uint_eq(line.step_count, array_size(expected));
    for (unsigned i = 0; i < array_size(expected); i++) {
        ck_assert_int_eq(line.steps[i].kind, expected[i].kind);
        ck_assert_str_eq(line.steps[i].value, expected[i].value);
    }
    ck_assert(line.daemonize);
    ck_assert_str_eq(line.pidfile, "p");
    ck_assert_int_eq(line.ring, LOOP_RING_THREADS);
    free_values();
}
END_TEST

static const struct bad_line {
    const char *words[4];
    const char *text;
} bad_lines[] = {
    {{"--nonsense"}, "--nonsense: there is no such option"},
    {{"-x"}, "-x: there is no such option"},
    {{"--blockdev"}, "--blockdev: an argument is missing"},
    {{"--daemonize=yes"}, "--daemonize=yes: this option takes no argument"},
    {{"stray"}, "stray: unexpected argument"},
    {{"--daemonize", "stray"}, "stray: unexpected argument"},
    {{"--", "stray"}, "stray: unexpected argument"},
    {{"--log-level", "loud"}, "--log-level loud: there is no such value"},
    {{"--log-level", ""}, "--log-level : there is no such value"},
    {{"--ring", "epoll"}, "--ring epoll: there is no such value"},
};

START_TEST(test_bad_lines)
{
    ck_assert_int_eq(parse(bad_lines[_i].words), -EINVAL);
    ck_assert_str_eq(err.text, bad_lines[_i].text);
    free_values();
}
END_TEST

static const struct flag_line {
    const char *words[4];
    size_t flag;
} flag_lines[] = {
    {{"-h"}, offsetof(struct command_line, help)},
    {{"--help"}, offsetof(struct command_line, help)},
    {{"-V"}, offsetof(struct command_line, version)},
    {{"--version"}, offsetof(struct command_line, version)},
    {{"--schema"}, offsetof(struct command_line, schema)},
    {{"--blockdev", "help"}, offsetof(struct command_line, help_of_step)},
    {{"--blockdev", "null-co,help"}, offsetof(struct command_line, help_of_step)},
    {{"--object", "?"}, offsetof(struct command_line, help_of_step)},
    {{"--export", "help", "--nonsense"}, offsetof(struct command_line, help_of_step)},
};

START_TEST(test_flags)
{
    ck_assert_int_eq(parse(flag_lines[_i].words), 0);
    ck_assert(*((const bool *)&line + flag_lines[_i].flag));
    free_values();
}
END_TEST

START_TEST(test_no_help)
{
    const char *const words[] = {"--qmp", "help", "--blockdev", "{\"driver\": \"help\"}", "--config", "?", NULL};

    ck_assert_int_eq(parse(words), 0);
    ck_assert(!line.help_of_step);
    ck_assert_uint_eq(line.step_count, 3);
    free_values();
}
END_TEST

START_TEST(test_pidfile)
{
    char directory[] = "/tmp/cairn-pidfile-XXXXXX", text[32] = "";

    ck_assert_ptr_nonnull(mkdtemp(directory));
    AUTO_FREE char *path = memory_format("%s/pid", directory);
    ck_assert_int_eq(pidfile_lock(path, &err), 0);
    pid_t child = fork();
    if (child == 0)
        _exit(pidfile_lock(path, NULL) == -EAGAIN ? 0 : 1);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    ck_assert_int_eq(pidfile_write(&err), 0);
    AUTO_CLOSE int fd = open(path, O_RDONLY);
    ck_assert_int_gt(read(fd, text, sizeof(text) - 1), 0);
    ck_assert_int_eq(atoi(text), getpid());
    pidfile_remove();
    ck_assert_int_lt(access(path, F_OK), 0);
    pidfile_remove();
    ck_assert_int_eq(rmdir(directory), 0);
}
END_TEST

START_TEST(test_pidfile_errors)
{
    ck_assert_int_eq(pidfile_lock("/nonexistent/pid", &err), -ENOENT);
    ck_assert_str_eq(err.text, "--pidfile /nonexistent/pid: cannot open: No such file or directory");
    ck_assert_int_eq(pidfile_write(&err), 0);
    error_clear(&err);
}
END_TEST

START_TEST(test_sockets)
{
    char pid[16];
    struct systemd_socket *sockets;

    /* not for us */
    setenv("LISTEN_PID", "1", 1);
    setenv("LISTEN_FDS", "2", 1);
    ck_assert_uint_eq(systemd_sockets_take(&sockets), 0);
    systemd_sockets_free(sockets, 0);
    ck_assert_ptr_null(getenv("LISTEN_FDS"));

    /* without names: 3 and 4, which the test framework may use itself */
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "2", 1);
    setenv("LISTEN_FDNAMES", "qmp", 1);
    unsigned count = systemd_sockets_take(&sockets);
    ck_assert_uint_eq(count, 2);
    ck_assert_int_eq(sockets[0].fd, 3);
    ck_assert_str_eq(sockets[0].name, "qmp");
    ck_assert_str_eq(sockets[1].name, "");
    sockets[0].fd = sockets[1].fd = -1;
    systemd_sockets_free(sockets, count);
    ck_assert_ptr_null(getenv("LISTEN_PID"));
}
END_TEST

START_TEST(test_notify)
{
    char directory[] = "/tmp/cairn-notify-XXXXXX", text[64] = "";
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    systemd_notify("READY=1");      /* nobody listens: nothing happens */
    ck_assert_ptr_nonnull(mkdtemp(directory));
    AUTO_FREE char *path = memory_format("%s/s", directory);
    strcpy(address.sun_path, path);
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    setenv("NOTIFY_SOCKET", path, 1);
    systemd_notify("READY=1");
    ck_assert_int_eq(recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT), 7);
    ck_assert_str_eq(text, "READY=1");
    setenv("NOTIFY_SOCKET", "relative", 1);
    systemd_notify("READY=1");
    unsetenv("NOTIFY_SOCKET");
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(directory), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("command_line");
    TCase *parsing = tcase_create("parsing"), *process = tcase_create("process");

    tcase_add_test(parsing, test_defaults);
    tcase_add_test(parsing, test_order);
    tcase_add_loop_test(parsing, test_bad_lines, 0, array_size(bad_lines));
    tcase_add_loop_test(parsing, test_flags, 0, array_size(flag_lines));
    tcase_add_test(parsing, test_no_help);
    suite_add_tcase(suite, parsing);
    tcase_add_test(process, test_pidfile);
    tcase_add_test(process, test_pidfile_errors);
    tcase_add_test(process, test_sockets);
    tcase_add_test(process, test_notify);
    suite_add_tcase(suite, process);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
