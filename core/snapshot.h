/*
 * External snapshots: overlays are put over the first layers below filters
 * that can take them, and everybody who used these goes on with the overlays.
 */
#ifndef CORE_SNAPSHOT_H
#define CORE_SNAPSHOT_H

struct change;
struct error;
struct node;

#define SNAPSHOT_LAYERS_MAX 256u

/*
 * The layers that a snapshot of what is called name (a source or a node) is
 * taken of: below filters, and all children of a composite. ret has
 * SNAPSHOT_LAYERS_MAX places; returns how many, or a negative errno.
 */
int snapshot_layers(const char *name, struct node **ret, struct error *err);

/*
 * Adds to change: overlay, which has no backing node yet and is in nobody's
 * use, lies over layer; all who used layer use it. Layer becomes read-only.
 */
int snapshot_take(struct change *change, struct node *layer, struct node *overlay, struct error *err);

#endif
