/*
 * Commands for the breakpoints of blkdebug nodes.
 */
#include <errno.h>
#include <json-c/json.h>

#include "core/memory.h"
#include "drivers/filter/blkdebug.h"
#include "generated/commands.h"
#include "qmp/json_build.h"

int qmp_blkdebug_break(struct qmp_client *client, const struct blkdebug_break_args *args, struct json_object **ret,
                       struct error *err)
{
    struct blkdebug *debug = blkdebug_find(args->node_name, err);

    (void)client;
    (void)ret;
    return debug ? blkdebug_break(debug, args->event, args->tag, err) : -ENODEV;
}

int qmp_blkdebug_resume(struct qmp_client *client, const struct blkdebug_resume_args *args, struct json_object **ret,
                        struct error *err)
{
    struct blkdebug *debug = blkdebug_find(args->node_name, err);

    (void)client;
    (void)ret;
    return debug ? blkdebug_resume(debug, args->tag, err) : -ENODEV;
}

int qmp_query_blkdebug(struct qmp_client *client, const struct query_blkdebug_args *args, struct json_object **ret,
                       struct error *err)
{
    struct blkdebug *debug = blkdebug_find(args->node_name, err);
    const struct blkdebug_break *point;

    (void)client;
    if (!debug)
        return -ENODEV;
    *ret = json_object_new_array();
    pthread_mutex_lock(&debug->guard);
    list_for_each(point, &debug->breaks, link) {
        struct json_object *row = json_append_object(*ret);

        json_add_string(row, "tag", point->tag);
        json_add_string(row, "event", blkdebug_event_enum.names[point->event]);
        json_add_bool(row, "suspended", point->suspended != NULL);
    }
    pthread_mutex_unlock(&debug->guard);
    return 0;
}
