/*
 * What a change would do, for those who only try it: see change_try().
 */
#include <string.h>

#include "core/change_list.h"
#include "core/node.h"

/* An edge that a reopening made takes the place of the one of the same name that it dropped. */
static const struct edge *tell_twin(const struct change *change, const struct edge *edge)
{
    const struct change_edge *other;

    list_for_each(other, &change->edges, link) {
        if (other->edge != edge && other->edge->parent.object == edge->parent.object &&
            strcmp(other->edge->name, edge->name) == 0)
            return other->edge;
    }
    return NULL;
}

static const struct node *tell_before(const struct edge *edge)
{
    return edge && list_is_linked(&edge->in_child) ? edge->child : NULL;
}

static void tell_edge(const struct change *change, const struct edge *edge,
                      void (*tell)(const struct change_step *step, void *arg), void *arg)
{
    const struct edge *twin = tell_twin(change, edge);
    const struct node *from = tell_before(edge), *to = edge->next_child;

    /* The two are told of once, as the one that will be. */
    if (twin && !to && twin->next_child)
        return;
    if (!from)
        from = tell_before(twin);
    if (from == to)
        return;
    const struct change_step step = {.what = CHANGE_EDGE,
                                     .node = edge->parent.ops->name(edge),
                                     .edge = edge->name,
                                     .from = from ? from->name : NULL,
                                     .to = to ? to->name : NULL};

    tell(&step, arg);
}

static void tell_nodes(const struct list *nodes, bool pending, void (*tell)(const struct change_step *step, void *arg),
                       void *arg)
{
    const struct node *node;

    list_for_each(node, nodes, in_registry) {
        struct change_step step = {.what = CHANGE_NODE_ADDED, .node = node->name};

        if (!pending && !(node->flags & NODE_REMOVED) && !node->next.self)
            continue;
        if (!pending)
            step.what = node->flags & NODE_REMOVED ? CHANGE_NODE_REMOVED : CHANGE_NODE_REOPENED;
        tell(&step, arg);
    }
}

void change_tell(const struct change *change, void (*tell)(const struct change_step *step, void *arg), void *arg)
{
    const struct change_edge *changed;

    tell_nodes(&node_pending, true, tell, arg);
    tell_nodes(&node_registry, false, tell, arg);
    list_for_each(changed, &change->edges, link)
        tell_edge(change, changed->edge, tell, arg);
}
