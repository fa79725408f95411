/*
 * Permissions: names, and the defaults by kind of parent and role of edge.
 */
#include "core/permission.h"

#include "core/driver.h"

const char *permission_name(unsigned bit)
{
    static const char *const names[] = {"consistent-read", "write", "write-unchanged", "resize"};

    return names[bit];
}

/* Filters, and formats on their pure data, do below what is done to them above. */
static struct permission permission_pass(const struct permission *total)
{
    return *total;
}

/* A format owns its metadata: others may look at the file, but not change it. */
static struct permission permission_metadata(uint32_t node_flags)
{
    uint32_t writing = node_flags & NODE_READ_ONLY ? 0 : PERM_WRITE | PERM_RESIZE;

    return (struct permission){.taken = PERM_READ | writing, .shared = PERM_READ | PERM_WRITE_UNCHANGED};
}

/* What lies below an overlay must not change its content. */
static struct permission permission_backing(const struct permission *total)
{
    return (struct permission){.taken = total->taken & PERM_READ, .shared = PERM_READ | PERM_WRITE_UNCHANGED};
}

struct permission permission_default(const struct node *parent, const struct edge *edge, const struct permission *total)
{
    uint32_t flags = parent->flags;
    struct permission result;

    if (edge->role & ROLE_BACKING)
        result = permission_backing(total);
    else if (edge->role & ROLE_METADATA)
        result = permission_metadata(flags);
    else
        result = permission_pass(total);
    if (flags & NODE_READ_ONLY)
        result.taken &= PERM_READ;
    return result;
}
