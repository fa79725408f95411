/*
 * New qcow2 images.
 */
#ifndef DRIVERS_FORMAT_QCOW2_CREATE_H
#define DRIVERS_FORMAT_QCOW2_CREATE_H

struct change;
struct error;
struct node;

/*
 * Makes the file of an overlay over layer: as large, and naming layer's file in
 * full if it has one. It is there, durably, when this returns; if the change
 * is not applied, it is removed. -EEXIST where there is a file of that name. Main
 * loop coroutine.
 */
int qcow2_create_overlay(struct change *change, const char *path, struct node *layer, struct error *err);

#endif
