/*
 * iothread objects: named I/O loops. "io0" is made when the first export that
 * names none needs it.
 */
#ifndef CORE_IOTHREAD_H
#define CORE_IOTHREAD_H

#include "core/list.h"
#include "core/loop.h"
#include "core/object.h"

struct error;
struct iothread_options;

/* How long an idle I/O loop looks for work, unless told; the schema's default too. A virtual processor takes 20 to
 * 100 us to wake, and a client at depth 1 that was woken by our answer comes back that late. */
#define IOTHREAD_POLL_MAX_NS 131072u

struct iothread {
    struct object object;       /* /objects/<id> */
    struct list_link in_registry;
    struct loop *loop;
    struct iothread_options *options;
    unsigned users;             /* exports */
    long thread_id;
};

extern struct list iothread_registry;

int iothread_add(const char *id, const struct iothread_options *options, struct error *err);
/* By id; NULL id gives io0. The caller counts itself in users. "Cannot find iothread 'x'" */
struct iothread *iothread_get(const char *id, struct error *err);
void iothread_stop_all(void);   /* no users left */

#endif
