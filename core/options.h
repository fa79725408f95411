/*
 * Options as C structs, described by tables.
 *
 * scripts/schema_gen.py turns schema/ into structs (generated/options.h) and
 * tables of the types below (generated/options.c). One walker per job reads
 * the tables: copy, free and compare in options.c, JSON in qmp/option_json.c,
 * key=value in qmp/option_keyval.c. So an option is written once, in its
 * schema, and nothing here knows any option.
 *
 * How a schema property becomes a member (its name with '-' and '.' as '_'):
 *   boolean              bool x;            integer       int64_t x; (uint64_t if "minimum" >= 0)
 *   string               char *x;           enum          enum tag x;
 *   object               struct tag *x;     union         struct tag *x; (discriminator enum, then union u)
 *   array                struct { size_t count; T *items; } x;      (T as above)
 *   common.json node-ref struct node_ref *x;
 *   any (x-any)          char *x;           JSON text
 * A bool, integer or enum that is neither required nor has a default is
 * followed by a member "bool has_x". Strings, objects and node references that are
 * absent are NULL, arrays have count 0.
 */
#ifndef CORE_OPTIONS_H
#define CORE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct node_options;

enum option_kind {
    OPTION_BOOL,
    OPTION_INT,         /* int64_t */
    OPTION_UINT,        /* uint64_t */
    OPTION_STRING,
    OPTION_ENUM,        /* C enum, int sized */
    OPTION_OBJECT,      /* pointer to struct */
    OPTION_UNION,       /* pointer to struct */
    OPTION_ARRAY,       /* struct option_array */
    OPTION_NODE_REF,    /* pointer to struct node_ref */
    OPTION_ANY          /* char *: JSON text */
};

enum option_flag {
    OPTION_REQUIRED = 1,
    OPTION_IS_SIZE = 2,         /* bytes: key=value accepts K, M, G, T suffixes */
    OPTION_SECRET = 4,          /* never shown */
    OPTION_ALLOW_NULL = 8,      /* node-ref: null is allowed */
    OPTION_ELEMENT_DEFAULT = 16, /* the default applies when absent */
    OPTION_ACCEPT_INTEGER = 32, /* string: JSON may give a number */
    OPTION_OPEN = 64            /* options of a filter that need not say what is filtered */
};

enum option_change { OPTION_CHANGE_NEVER, OPTION_CHANGE_DRAIN, OPTION_CHANGE_LIVE };

/* A reference to a node: exactly one of the three. */
struct node_ref {
    char *name;                 /* an existing node */
    struct node_options *node;  /* defined here */
    bool null;                  /* explicitly none */
};

struct option_array {
    size_t count;
    void *items;                /* count times the element's size */
};

struct option_enum {
    const char *const *names;
    unsigned count;
};

struct option_type;

/* Type of a member or of an array's elements. */
struct option_value_type {
    enum option_kind kind;
    const struct option_type *object;           /* OBJECT, UNION */
    const struct option_enum *enumeration;      /* ENUM */
    const struct option_value_type *element;    /* ARRAY */
    int64_t minimum;                            /* INT; UINT: not negative */
    uint64_t maximum;                           /* INT (as int64_t), UINT; STRING: most bytes, 0 = no limit */
    uint64_t array_maximum;                     /* ARRAY: most elements, 0 = no limit */
};

struct option_field {
    const char *name;           /* as on the wire */
    struct option_value_type type;
    uint32_t offset;            /* in the struct; for a union's branch members: in the branch's struct */
    uint32_t has_offset;        /* of has_x, 0 = none */
    uint32_t flags;             /* OPTION_* */
    enum option_change change;  /* x-change */
    int64_t default_integer;    /* bool, int, uint, enum; with OPTION_ELEMENT_DEFAULT */
    const char *default_string;
    uint32_t child_role;        /* ROLE_* from x-child, 0 = not a child */
};

/* A branch of a union: the fields of its struct are on the same JSON level as the common ones,
 * or, where the union is wrapped, in a member "data". */
struct option_branch {
    const char *name;                   /* value of the discriminator */
    const struct option_type *type;     /* NULL: no fields of its own */
};

struct option_type {
    const char *name;                   /* schema name, "file", "node", "blockdev-del" */
    uint32_t size;                      /* sizeof the C struct */
    const struct option_field *fields;  /* for a union: the common ones, with the discriminator among them */
    unsigned field_count;
    /* Unions only: */
    const struct option_field *discriminator;   /* one of fields; OPTION_ENUM */
    const struct option_branch *branches;       /* by enum value */
    unsigned branch_count;
    uint32_t branch_offset;             /* of the C union u inside the struct */
    bool wrapped;                       /* x-wrapped */
    const char *shorthand;              /* the member that a bare string stands for, or NULL */
};

/* Bytes that a value takes in a struct, or as an element of an array. */
size_t option_value_size(const struct option_value_type *type);

/* Whether the field's value is there: for a has_x, if that is set; for pointers, if not NULL;
 * for arrays, if not empty; otherwise yes. options: the struct that the field is a member of. */
bool option_field_present(const struct option_field *field, const void *options);

/* options.c. copy gives a new struct (free it by option_free()); NULL stays NULL. */
void *option_copy(const struct option_type *type, const void *options);
void option_free(const struct option_type *type, void *options);
/* Frees what the struct's members own and zeroes it; for structs on the stack or inside others. */
void option_clear(const struct option_type *type, void *options);
bool option_equal(const struct option_type *type, const void *a, const void *b);
/* The same for one field of two structs. */
bool option_field_equal(const struct option_field *field, const void *a, const void *b);

/* The branch struct of a union's value and its type; NULL if that branch has no members, or if type
 * is no union. ret_type may be NULL. */
void *option_branch_of(const struct option_type *type, const void *options, const struct option_type **ret_type);

struct node_ref *node_ref_copy(const struct node_ref *ref);
void node_ref_free(struct node_ref *ref);

/* Generated: the type of struct node_options. */
extern const struct option_type node_options_type;

#endif
