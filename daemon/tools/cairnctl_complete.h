/*
 * What the word at the cursor of the shell may become: commands, names of
 * arguments, values of enums, names of nodes and exports that exist.
 */
#ifndef DAEMON_TOOLS_CAIRNCTL_COMPLETE_H
#define DAEMON_TOOLS_CAIRNCTL_COMPLETE_H

struct session;

struct completion {
    char **items;       /* sorted, each once; owned */
    unsigned count;
};

/*
 * words: those before the one at the cursor, begun: that one so far. Every
 * item starts with begun. Asks the daemon; without one there are no items.
 */
void complete_word(struct session *session, char *const *words, unsigned count, const char *begun,
                   struct completion *ret);
void complete_clear(struct completion *completion);

#endif
