/*
 * What single commands and transactions share: each function checks its
 * arguments and adds one action to a change. 0 or a negative errno.
 */
#ifndef QMP_CMD_GRAPH_H
#define QMP_CMD_GRAPH_H

#include <stdbool.h>

struct block_export_del_args;
struct blockdev_reopen_args;
struct blockdev_snapshot_args;
struct blockdev_snapshot_sync_args;
struct change;
struct error;
struct export_options;
struct node_options;
struct source_add_args;
struct source_del_args;
struct source_pop_args;
struct source_push_args;
struct source_switch_args;
struct x_blockdev_change_args;

/* A letter, then letters, digits, '-', '.' and '_'. */
bool command_id_is_good(const char *id);

/* Applies change if result is 0, else undoes it; returns what came out in the end. */
int change_finish(struct change *change, int result, struct error *err);

/* What can be said before anything is done. */
int graph_check_blockdev_add(const struct node_options *options, struct error *err);

int graph_blockdev_add(struct change *change, const struct node_options *options, struct error *err);
int graph_blockdev_del(struct change *change, const char *node_name, struct error *err);
int graph_blockdev_reopen(struct change *change, const struct blockdev_reopen_args *args, struct error *err);
int graph_blockdev_change(struct change *change, const struct x_blockdev_change_args *args, struct error *err);
int graph_snapshot(struct change *change, const struct blockdev_snapshot_args *args, struct error *err);
int graph_snapshot_sync(struct change *change, const struct blockdev_snapshot_sync_args *args, struct error *err);
int graph_source_add(struct change *change, const struct source_add_args *args, struct error *err);
int graph_source_del(struct change *change, const struct source_del_args *args, struct error *err);
int graph_source_push(struct change *change, const struct source_push_args *args, struct error *err);
int graph_source_pop(struct change *change, const struct source_pop_args *args, struct error *err);
int graph_source_switch(struct change *change, const struct source_switch_args *args, struct error *err);
int graph_export_add(struct change *change, const struct export_options *options, struct error *err);
int graph_export_del(struct change *change, const struct block_export_del_args *args, struct error *err);

#endif
