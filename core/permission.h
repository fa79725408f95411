/*
 * Permissions: what the parent of an edge does with the child (taken), and
 * what it lets the child's other parents do (shared). A change is refused if,
 * in the graph as it would be, one edge takes what another does not share.
 */
#ifndef CORE_PERMISSION_H
#define CORE_PERMISSION_H

#include <stdint.h>

enum permission_bit {
    PERM_READ = 1,              /* consistent data, not merely some bytes */
    PERM_WRITE = 2,
    PERM_WRITE_UNCHANGED = 4,   /* writes that nobody can notice: copy-on-read, stream */
    PERM_RESIZE = 8,
    PERM_ALL = 15
};

struct permission {
    uint32_t taken, shared;     /* PERM_* */
};

/* "consistent-read", "write", "write-unchanged", "resize": the i-th bit, i in 0..3. */
const char *permission_name(unsigned bit);

struct edge;
struct node;

/* What parent takes and shares on one of its edges, by role, if its driver says nothing else. total:
 * what parent's own parents take and share together. */
struct permission permission_default(const struct node *parent, const struct edge *edge,
                                     const struct permission *total);

#endif
