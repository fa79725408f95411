/*
 * Commands that describe nodes: query-named-block-nodes, query-node-options,
 * query-blockstats.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core/consumer.h"
#include "core/coroutine.h"
#include "core/driver.h"
#include "core/error.h"
#include "core/list.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/options.h"
#include "generated/commands.h"
#include "generated/options.h"
#include "qmp/json_build.h"
#include "qmp/option_json.h"

/* Chains of nodes are short; this only keeps a broken one from hanging us. */
#define QUERY_DEPTH_MAX 64u

/* Files whose size on disk is asked for after the graph was walked, since that may block. */
struct query_files {
    unsigned count, room;
    struct query_file {
        const char *filename;      /* lives in image */
        struct json_object *image; /* where "actual-size" goes */
        int64_t actual_size;       /* bytes; -1: unknown */
    } * files;
};

/* The driver's option "filename", or NULL. */
static const char *node_own_filename(const struct node *node)
{
    const struct option_type *type = NULL;
    const char *options = option_branch_of(&node_options_type, node->options, &type);

    for (unsigned i = 0; type && i < type->field_count; i++)
        if (!strcmp(type->fields[i].name, "filename") && type->fields[i].type.kind == OPTION_STRING)
            return *(char *const *)(options + type->fields[i].offset);
    return NULL;
}

static struct edge *node_primary_child(const struct node *node)
{
    return node->filtered ? node->filtered : node_child_by_role(node, ROLE_PRIMARY);
}

/* The file that the node's data is in, or what kind of thing holds it; the caller's. */
static char *node_image_name(const struct node *node)
{
    for (unsigned depth = 0; depth < QUERY_DEPTH_MAX && !node_own_filename(node); depth++) {
        const struct edge *child = node_primary_child(node);

        if (!child || !child->child)
            break;
        node = child->child;
    }
    const char *filename = node_own_filename(node);
    struct object_value uri;

    if (filename)
        return memory_string(filename);
    return object_get(&node->object, "uri", &uri, NULL) == 0 ? uri.string : memory_format("%s://", node->driver->name);
}

/* What is read where the node, or the first format below its filters, has nothing. */
static const struct node *node_backing(const struct node *node)
{
    for (unsigned depth = 0; depth < QUERY_DEPTH_MAX && node && node->filtered; depth++)
        node = node->filtered->child;
    const struct edge *backing = node ? node_child_by_role(node, ROLE_BACKING) : NULL;

    return backing ? backing->child : NULL;
}

/* Images below this one; a graph has no loops. */
static unsigned node_backing_depth(const struct node *node)
{
    unsigned depth = 0;

    while ((node = node_backing(node)))
        depth++;
    return depth;
}

static const char *node_detect_zeroes_name(const struct node *node)
{
    static const char *const names[] = {
        [NODE_DETECT_ZEROES_OFF] = "off", [NODE_DETECT_ZEROES_ON] = "on", [NODE_DETECT_ZEROES_UNMAP] = "unmap"};

    return names[node->options->detect_zeroes];
}

/* What only some formats have. */
static void query_image_format(struct json_object *image, const struct node *node)
{
    const struct node *backing = node_backing(node);
    struct object_value value = {0};

    if (node->driver->properties && object_get(&node->object, "cluster-size", &value, NULL) == 0)
        json_add_uint(image, "cluster-size", value.size);
    object_value_clear(&value);
    if (backing) {
        AUTO_FREE char *name = node_image_name(backing);

        json_add_string(image, "backing-filename", name);
        json_add_string(image, "full-backing-filename", name);
        json_add_string(image, "backing-filename-format", backing->driver->name);
    }
}

static struct json_object *query_image(struct json_object *row, const struct node *node, const char *filename,
                                       struct query_files *files)
{
    struct json_object *image = json_add_object(row, "image");

    json_add_string(image, "filename", filename);
    json_add_string(image, "format", node->driver->name);
    json_add_uint(image, "virtual-size", atomic_load(&node->size));
    query_image_format(image, node);
    if (files->count == files->room) {
        files->room = files->room * 2 + 16;
        files->files = memory_grow(files->files, files->room, sizeof(files->files[0]));
    }
    files->files[files->count++] = (struct query_file){
        .filename = json_object_get_string(json_object_object_get(image, "filename")),
        .image = image,
    };
    return image;
}

static void query_children(struct json_object *row, const struct node *node)
{
    struct json_object *children = json_add_array(row, "children");

    for (unsigned i = 0; i < node->child_count; i++) {
        const struct edge *edge = node->children[i];

        if (!edge->child)
            continue;
        struct json_object *child = json_append_object(children);

        json_add_string(child, "child", edge->name);
        json_add_string(child, "node-name", edge->child->name);
    }
}

/* What a node never limits, for clients that read it. */
static void query_limits(struct json_object *row)
{
    static const char *const names[] = {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"};

    for (unsigned i = 0; i < array_size(names); i++)
        json_add_int(row, names[i], 0);
    json_add_int(row, "write_threshold", 0);
}

static void query_node(struct json_object *array, const struct node *node, struct query_files *files)
{
    struct json_object *row = json_append_object(array);
    struct json_object *cache = json_add_object(row, "cache");
    AUTO_FREE char *filename = node_image_name(node);

    json_add_string(row, "node-name", node->name);
    json_add_string(row, "drv", node->driver->name);
    json_add_string(row, "file", filename);
    json_add_bool(row, "ro", node->flags & NODE_READ_ONLY);
    json_add_bool(row, "encrypted", false);
    json_add_uint(row, "backing_file_depth", node_backing_depth(node));
    if (node_backing(node)) {
        AUTO_FREE char *backing = node_image_name(node_backing(node));

        json_add_string(row, "backing_file", backing);
    }
    json_add_string(row, "detect_zeroes", node_detect_zeroes_name(node));
    json_add_bool(cache, "writeback", true);
    json_add_bool(cache, "direct", node->options->cache && node->options->cache->direct);
    json_add_bool(cache, "no-flush", node->options->cache && node->options->cache->no_flush);
    query_limits(row);
    query_image(row, node, filename, files);
    query_children(row, node);
}

static int query_stat_files(void *arg)
{
    struct query_files *files = arg;

    for (unsigned i = 0; i < files->count; i++) {
        struct stat status;
        bool known = stat(files->files[i].filename, &status) == 0;

        files->files[i].actual_size = known ? (int64_t)status.st_blocks * 512 : -1;
    }
    return 0;
}

int qmp_query_named_block_nodes(struct qmp_client *client, const struct query_named_block_nodes_args *args,
                                struct json_object **ret, struct error *err)
{
    struct query_files files = {0};
    struct node *node;

    (void)client;
    (void)args;
    (void)err;
    *ret = json_object_new_array();
    list_for_each(node, &node_registry, in_registry)
        query_node(*ret, node, &files);
    coroutine_call(query_stat_files, &files);
    for (unsigned i = 0; i < files.count; i++)
        if (files.files[i].actual_size >= 0)
            json_add_int(files.files[i].image, "actual-size", files.files[i].actual_size);
    free(files.files);
    return 0;
}

static void query_options(struct json_object *array, struct node *node)
{
    struct node_options *options = node_describe(node);

    json_object_array_add(array, option_to_json(&node_options_type, options));
    option_free(&node_options_type, options);
}

int qmp_query_node_options(struct qmp_client *client, const struct query_node_options_args *args,
                           struct json_object **ret, struct error *err)
{
    struct node *node = NULL;

    (void)client;
    if (args->node_name && !(node = node_lookup(args->node_name, err)))
        return -ENODEV;
    *ret = json_object_new_array();
    if (node) {
        query_options(*ret, node);
        return 0;
    }
    list_for_each(node, &node_registry, in_registry)
        if (!(node->flags & NODE_IMPLICIT))
            query_options(*ret, node);
    return 0;
}

/* Statistics. */

static void stats_add(struct io_stats *sum, const struct io_stats *stats)
{
    for (unsigned op = 0; op < REQ_OP_COUNT; op++) {
        sum->count[op] += stats->count[op];
        sum->failed[op] += stats->failed[op];
        sum->bytes[op] += stats->bytes[op];
        sum->time_ns[op] += stats->time_ns[op];
    }
}

/* How the operations of a kind are called in the reply, and which ones they are. */
static const struct stats_group {
    const char *name;
    bool has_bytes;
    enum request_op ops[2];
    unsigned op_count;
} stats_groups[] = {
    {"rd", true, {REQ_READ}, 1},
    {"wr", true, {REQ_WRITE, REQ_WRITE_ZEROES}, 2},
    {"unmap", true, {REQ_DISCARD}, 1},
    {"flush", false, {REQ_FLUSH}, 1},
};

static void stats_add_number(struct json_object *object, const char *before, const char *group, const char *after,
                             uint64_t value)
{
    char key[40];

    snprintf(key, sizeof(key), "%s%s%s", before, group, after);
    json_add_uint(object, key, value);
}

static void stats_write_group(struct json_object *object, const struct stats_group *group, const struct io_stats *stats)
{
    uint64_t count = 0, failed = 0, bytes = 0, time_ns = 0;

    for (unsigned i = 0; i < group->op_count; i++) {
        count += stats->count[group->ops[i]];
        failed += stats->failed[group->ops[i]];
        bytes += stats->bytes[group->ops[i]];
        time_ns += stats->time_ns[group->ops[i]];
    }
    stats_add_number(object, "", group->name, "_operations", count);
    stats_add_number(object, "failed_", group->name, "_operations", failed);
    stats_add_number(object, "", group->name, "_total_time_ns", time_ns);
    if (group->has_bytes) {
        stats_add_number(object, "", group->name, "_bytes", bytes);
        stats_add_number(object, "", group->name, "_merged", 0);
    }
}

static void stats_write(struct json_object *row, const struct io_stats *stats)
{
    struct json_object *object = json_add_object(row, "stats");

    for (unsigned i = 0; i < array_size(stats_groups); i++)
        stats_write_group(object, &stats_groups[i], stats);
    json_add_bool(object, "account_failed", true);
}

static void stats_list_consumers(struct json_object *array)
{
    struct consumer *consumer;

    list_for_each(consumer, &consumer_registry, in_registry) {
        struct json_object *row = json_append_object(array);
        struct io_stats stats = {0};

        json_add_string(row, "device", consumer->ops->name(consumer));
        if (consumer->edge.child)
            json_add_string(row, "node-name", consumer->edge.child->name);
        consumer_stats(consumer, &stats);
        stats_write(row, &stats);
    }
}

/* What came in at each node: the sum over those who are attached to it. */
static void stats_list_nodes(struct json_object *array)
{
    struct node *node;

    list_for_each(node, &node_registry, in_registry) {
        struct json_object *row = json_append_object(array);
        struct io_stats sum = {0};
        struct consumer *consumer;

        json_add_string(row, "node-name", node->name);
        list_for_each(consumer, &consumer_registry, in_registry) {
            struct io_stats stats = {0};

            if (consumer->edge.child != node)
                continue;
            consumer_stats(consumer, &stats);
            stats_add(&sum, &stats);
        }
        stats_write(row, &sum);
    }
}

int qmp_query_blockstats(struct qmp_client *client, const struct query_blockstats_args *args, struct json_object **ret,
                         struct error *err)
{
    (void)client;
    (void)err;
    *ret = json_object_new_array();
    if (args->query_nodes)
        stats_list_nodes(*ret);
    else
        stats_list_consumers(*ret);
    return 0;
}
