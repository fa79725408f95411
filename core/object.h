/*
 * The object tree: everything that the daemon has, as sysfs shows a kernel:
 * /nodes, /sources, /exports, /objects (iothreads and throttle groups).
 * Properties are tables, so that qom-list, qom-get, qom-set, cairnctl and
 * metrics read the same rows.
 * Main loop only.
 */
#ifndef CORE_OBJECT_H
#define CORE_OBJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "core/list.h"

struct object;
struct option_type;

enum object_value_kind { OBJECT_BOOL, OBJECT_INT, OBJECT_SIZE, OBJECT_STRING, OBJECT_OPTIONS, OBJECT_NUMBERS };

struct object_value {
    enum object_value_kind kind;
    union {
        bool boolean;
        int64_t integer;
        uint64_t size;
        char *string;           /* owned by whoever holds the value, as options.data and numbers.items */
        struct {
            const struct option_type *type;
            void *data;
        } options;
        struct {
            size_t count;
            uint64_t *items;
        } numbers;
    };
};

void object_value_clear(struct object_value *value);

struct object_property {
    const char *name;
    /* As qom-list shows it: "bool", "int", "uint64", "string", "uint64List", or the name of an option type. */
    const char *type;
    int (*get)(const struct object *object, struct object_value *ret, struct error *err);
    int (*set)(struct object *object, const struct object_value *value, struct error *err);     /* NULL: read-only */
};

struct object_type {
    const char *name;           /* "node", "iothread", "nbd-export", "container" */
    const struct object_property *properties;       /* ends with name == NULL; may be NULL */
    /* Optional: "Object 'x' is in use" for object-del. */
    bool (*in_use)(const struct object *object);
    void (*destroy)(struct object *object);         /* for objects made by object-add */
};

struct object {
    const struct object_type *type;
    char *name;                 /* last part of the path */
    struct object *parent;      /* NULL: not in the tree */
    struct list children;
    struct list_link in_parent;
};

extern struct object object_root;

extern const struct object_type object_container_type;

/* The container at the top with this name ("nodes" ...), made when it is first asked for. */
struct object *object_container(const char *name);

/* -EEXIST if parent has a child of that name. */
int object_attach(struct object *object, const struct object_type *type, struct object *parent, const char *name,
                  struct error *err);
void object_detach(struct object *object);      /* may be called when not attached */

/* Absolute path ("/nodes/a"), or a unique last part ("a"). DeviceNotFound "Device 'x' not found". */
struct object *object_resolve(const char *path, struct error *err);
struct object *object_child(const struct object *object, const char *name);

/* GenericError "Property 'type.x' not found"; "... is read-only"; wrong kind by name. */
int object_get(const struct object *object, const char *property, struct object_value *ret, struct error *err);
int object_set(struct object *object, const char *property, const struct object_value *value, struct error *err);

#endif
