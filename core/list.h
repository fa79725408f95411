/*
 * Intrusive doubly linked list. A struct list is a ring whose head is no
 * element; a link that is in no list points at itself, so that
 * list_remove() may be called twice.
 */
#ifndef CORE_LIST_H
#define CORE_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "core/memory.h"

struct list_link {
    struct list_link *next, *previous;
};

struct list {
    struct list_link head;
};

/* clang-format off */
#define LIST_INIT(list) { { &(list).head, &(list).head } }
/* clang-format on */

static inline void list_link_init(struct list_link *link)
{
    link->next = link->previous = link;
}

static inline void list_init(struct list *list)
{
    list_link_init(&list->head);
}

static inline bool list_is_empty(const struct list *list)
{
    return list->head.next == &list->head;
}

static inline bool list_is_linked(const struct list_link *link)
{
    return link->next != link;
}

static inline void list_insert_before(struct list_link *where, struct list_link *link)
{
    link->next = where;
    link->previous = where->previous;
    where->previous->next = link;
    where->previous = link;
}

static inline void list_append(struct list *list, struct list_link *link)
{
    list_insert_before(&list->head, link);
}

static inline void list_remove(struct list_link *link)
{
    link->previous->next = link->next;
    link->next->previous = link->previous;
    list_link_init(link);
}

/* Moves all elements of from to the end of to. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_is_empty(from))
        return;
    from->head.next->previous = to->head.previous;
    to->head.previous->next = from->head.next;
    from->head.previous->next = &to->head;
    to->head.previous = from->head.previous;
    list_init(from);
}

#define list_first(list, type, member) (list_is_empty(list) ? NULL : container_of((list)->head.next, type, member))

#define list_for_each(item, list, member)                                                                   \
    for (item = container_of((list)->head.next, __typeof__(*item), member); &item->member != &(list)->head; \
         item = container_of(item->member.next, __typeof__(*item), member))

/* The body may remove item, and nothing else, from the list. */
#define list_for_each_safe(item, after, list, member)                       \
    for (item = container_of((list)->head.next, __typeof__(*item), member), \
        after = container_of(item->member.next, __typeof__(*item), member); \
         &item->member != &(list)->head;                                    \
         item = after, after = container_of(item->member.next, __typeof__(*item), member))

#endif
