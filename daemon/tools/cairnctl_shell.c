/*
 * See cairnctl_shell.h. Line editing is libedit's; its reading of characters
 * is replaced by one that also looks at the connection, so that events appear
 * above the line that is being typed. Signals only set flags while a line is
 * read; at other times they have their usual effect.
 */
#include "daemon/tools/cairnctl_shell.h"

#include <errno.h>
#include <histedit.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/tools/cairnctl_arguments.h"
#include "daemon/tools/cairnctl_complete.h"
#include "daemon/tools/cairnctl_session.h"

#define SHELL_HISTORY_SIZE 1000
#define SHELL_CANCEL L'\003'

struct shell {
    struct session *session;
    EditLine *line;
    History *history;
    char *history_file;     /* NULL: none */
    bool cancelled;         /* Ctrl-C: the line is void */
    bool ended;             /* the daemon closed the connection */
    sigset_t signals;       /* blocked before the line was begun */
};

static volatile sig_atomic_t shell_interrupted, shell_resized, shell_continued;

static void shell_signal(int number)
{
    if (number == SIGINT)
        shell_interrupted = 1;
    else if (number == SIGWINCH)
        shell_resized = 1;
    else
        shell_continued = 1;
}

/* While a line is typed, signals wait for ppoll(): one that came between a look at its flag and the wait were lost. */
static void shell_catch_signals(struct shell *shell, bool on)
{
    static const int signals[] = {SIGINT, SIGWINCH, SIGCONT};
    struct sigaction action = {.sa_handler = on ? shell_signal : SIG_DFL};
    sigset_t caught;

    if (!on)
        sigprocmask(SIG_SETMASK, &shell->signals, NULL);
    sigemptyset(&caught);
    for (unsigned i = 0; i < array_size(signals); i++) {
        sigaddset(&caught, signals[i]);
        sigaction(signals[i], &action, NULL);
    }
    if (on)
        sigprocmask(SIG_BLOCK, &caught, &shell->signals);
}

static char *shell_prompt(EditLine *line)
{
    static char prompt[] = "cairn> ";

    (void)line;
    return prompt;
}

static void shell_obey_signals(struct shell *shell)
{
    if (shell_resized) {
        shell_resized = 0;
        el_resize(shell->line);
    }
    if (shell_continued) {
        shell_continued = 0;
        el_set(shell->line, EL_PREP_TERM, 1);
        el_set(shell->line, EL_REFRESH);
    }
}

static void shell_event(void *object, struct json_object *event, const char *line)
{
    struct shell *shell = object;

    fputs("\r\033[K", stdout);
    session_show_event(shell->session, event, line);
}

/* Shows events above the line. False: the connection has ended. */
static bool shell_take_events(struct shell *shell)
{
    AUTO_ERROR struct error err = {0};

    if (client_take_events(&shell->session->client, &err) < 0) {
        fputs("\r\033[K", stdout);
        session_fail(&err);
        return false;
    }
    el_set(shell->line, EL_REFRESH);
    return true;
}

/* One character of the terminal's encoding from standard input: as read(2). */
static int shell_read_character(wchar_t *ret)
{
    mbstate_t state = {0};
    char byte;

    for (;;) {
        ssize_t got = read(STDIN_FILENO, &byte, 1);
        if (got <= 0)
            return (int)got;
        size_t length = mbrtowc(ret, &byte, 1, &state);
        if (length <= 1)
            return 1;
        if (length == (size_t)-1)
            state = (mbstate_t){0}; /* not of this encoding: dropped */
    }
}

/* libedit's EL_GETCFN: 1, or 0 at the end, or -1. */
static int shell_getc(EditLine *line, wchar_t *ret)
{
    struct shell *shell;

    el_get(line, EL_CLIENTDATA, &shell);
    for (;;) {
        struct pollfd fds[] = {
            {.fd = STDIN_FILENO, .events = POLLIN},
            {.fd = shell->session->client.fd, .events = POLLIN},
        };
        fflush(stdout);
        if (ppoll(fds, array_size(fds), NULL, &shell->signals) < 0 && errno != EINTR)
            return -1;
        if (shell_interrupted) {
            shell_interrupted = 0;
            *ret = SHELL_CANCEL;
            return 1;
        }
        shell_obey_signals(shell);
        if (fds[1].revents && !shell_take_events(shell)) {
            shell->ended = true;
            return 0;
        }
        if (!fds[0].revents)
            continue;
        int got = shell_read_character(ret);
        if (got >= 0 || errno != EINTR)
            return got;
    }
}

static unsigned char shell_cancel(EditLine *line, int character)
{
    struct shell *shell;

    (void)character;
    el_get(line, EL_CLIENTDATA, &shell);
    shell->cancelled = true;
    fputs("^C", stdout);
    return CC_NEWLINE;
}

static unsigned shell_columns(void)
{
    struct winsize size;

    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void shell_list(const struct completion *completion)
{
    size_t width = 0;

    for (unsigned i = 0; i < completion->count; i++)
        if (strlen(completion->items[i]) > width)
            width = strlen(completion->items[i]);
    unsigned columns = shell_columns() / (unsigned)(width + 2);
    if (columns == 0)
        columns = 1;
    unsigned rows = (completion->count + columns - 1) / columns;
    for (unsigned row = 0; row < rows; row++) {
        fputc('\n', stdout);
        for (unsigned i = row; i < completion->count; i += rows)
            printf("%-*s", i + rows < completion->count ? (int)width + 2 : 0, completion->items[i]);
    }
    fputc('\n', stdout);
    fflush(stdout);
}

/* Length of what all items start with. */
static size_t shell_common(const struct completion *completion)
{
    const char *first = completion->items[0];
    size_t common = strlen(first);

    for (unsigned i = 1; i < completion->count; i++)
        for (size_t at = 0; at < common; at++)
            if (completion->items[i][at] != first[at])
                common = at;
    return common;
}

static unsigned char shell_insert(EditLine *line, const struct completion *completion, const char *begun)
{
    if (completion->count == 0)
        return CC_ERROR;
    size_t have = strlen(begun), common = shell_common(completion);
    const char *item = completion->items[0];
    bool whole = completion->count == 1 && item[common - 1] != '=' && item[common - 1] != '.';
    if (common > have || whole) {
        AUTO_FREE char *rest = memory_format("%.*s%s", (int)(common - have), item + have, whole ? " " : "");
        return el_insertstr(line, rest) < 0 ? CC_ERROR : CC_REFRESH;
    }
    shell_list(completion);
    return CC_REDISPLAY;
}

/* Bound to the tabulator. */
static unsigned char shell_complete(EditLine *line, int character)
{
    const LineInfo *info = el_line(line);
    AUTO_FREE char *text = memory_format("%.*s", (int)(info->cursor - info->buffer), info->buffer);
    size_t length = strlen(text);
    struct completion completion;
    struct shell *shell;
    char **words;
    unsigned count;

    (void)character;
    el_get(line, EL_CLIENTDATA, &shell);
    bool closed = words_split(text, &words, &count, NULL) == 0;
    bool fresh = count == 0 || (closed && strchr(" \t", text[length - 1]));
    const char *begun = fresh ? "" : words[count - 1];
    complete_word(shell->session, words, fresh ? count : count - 1, begun, &completion);
    unsigned char result = shell_insert(line, &completion, begun);
    complete_clear(&completion);
    words_free(words, count);
    return result;
}

static void shell_open_history(struct shell *shell)
{
    const char *home = getenv("HOME");
    HistEvent event;

    shell->history = history_init();
    history(shell->history, &event, H_SETSIZE, SHELL_HISTORY_SIZE);
    history(shell->history, &event, H_SETUNIQUE, 1);
    if (home && *home) {
        shell->history_file = memory_format("%s/.cairnctl_history", home);
        history(shell->history, &event, H_LOAD, shell->history_file);
    }
    el_set(shell->line, EL_HIST, history, shell->history);
}

static void shell_open(struct shell *shell)
{
    shell->line = el_init("cairnctl", stdin, stdout, stderr);
    el_set(shell->line, EL_CLIENTDATA, shell);
    el_set(shell->line, EL_PROMPT, shell_prompt);
    el_set(shell->line, EL_EDITOR, "emacs");
    shell_open_history(shell);
    /* wide: the narrow form leaks copies of the names */
    el_wset(shell->line, EL_ADDFN, L"cairn-complete", L"Complete the word", shell_complete);
    el_wset(shell->line, EL_ADDFN, L"cairn-cancel", L"Forget the line", shell_cancel);
    el_source(shell->line, NULL);
    el_set(shell->line, EL_BIND, "^I", "cairn-complete", NULL);
    el_set(shell->line, EL_BIND, "^C", "cairn-cancel", NULL);
    el_set(shell->line, EL_GETCFN, shell_getc);
}

static void shell_close(struct shell *shell)
{
    HistEvent event;

    if (shell->history_file)
        history(shell->history, &event, H_SAVE, shell->history_file);
    free(shell->history_file);
    history_end(shell->history);
    el_end(shell->line);
}

/* "quit" ends the daemon, not the shell: asks whether that is meant. */
static bool shell_may_quit(void)
{
    AUTO_FREE char *answer = NULL;
    size_t room = 0;

    fputs("quit stops the daemon; exit leaves the shell. Stop the daemon? [y/N] ", stdout);
    fflush(stdout);
    return getline(&answer, &room, stdin) > 0 && (*answer == 'y' || *answer == 'Y');
}

/* Runs a line; false when the shell is to end. */
static bool shell_line(struct session *session, const char *text, bool terminal, int *status)
{
    AUTO_ERROR struct error err = {0};
    char **words;
    unsigned count;
    bool more = true;

    if (words_split(text, &words, &count, &err) < 0) {
        *status = session_fail(&err);
    } else if (count > 0 && strcmp(words[0], "exit") == 0) {
        more = false;
    } else if (count > 0 && strcmp(words[0], "shell") == 0) {
        *status = session_usage("this is the shell");
    } else if (count > 0 && words[0][0] != '#' && (!terminal || strcmp(words[0], "quit") != 0 || shell_may_quit())) {
        *status = session_run(session, words, count);
        more = *status != SESSION_CONNECTION && strcmp(words[0], "quit") != 0;
    }
    words_free(words, count);
    return more;
}

static int shell_terminal(struct session *session)
{
    struct shell shell = {.session = session};
    int status = SESSION_OK;
    bool more = true;

    shell_open(&shell);
    while (more) {
        int length = 0;
        HistEvent event;
        session->client.event = shell_event;
        session->client.object = &shell;
        shell.cancelled = false;
        status = SESSION_OK;
        shell_catch_signals(&shell, true);
        const char *text = el_gets(shell.line, &length);
        shell_catch_signals(&shell, false);
        if (!text || length <= 0)
            break;
        if (shell.cancelled)
            continue;
        if (text[strspn(text, " \t\n")] != '\0')
            history(shell.history, &event, H_ENTER, text);
        more = shell_line(session, text, true, &status);
    }
    if (more && !shell.ended)
        putchar('\n');
    shell_close(&shell);
    return shell.ended || status == SESSION_CONNECTION ? SESSION_CONNECTION : SESSION_OK;
}

static int shell_script(struct session *session)
{
    AUTO_FREE char *text = NULL;
    size_t room = 0;
    int worst = SESSION_OK;
    bool more = true;

    session->client.event = NULL;
    while (more && getline(&text, &room, stdin) >= 0) {
        int status = SESSION_OK;
        more = shell_line(session, text, false, &status);
        if (status > worst)
            worst = status;
    }
    return worst;
}

int shell_run(struct session *session)
{
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) ? shell_terminal(session) : shell_script(session);
}
