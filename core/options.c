/*
 * Copying, freeing and comparing option structs by their tables: see
 * options.h. Recursion follows the values, whose depth whoever made them has
 * bounded. Any thread, as long as nobody changes the struct meanwhile.
 */
#include "core/options.h"

#include <string.h>

#include "core/memory.h"

static void option_struct_clear(const struct option_type *type, void *options);
static void option_struct_copy(const struct option_type *type, void *to, const void *from);
static bool option_struct_equal(const struct option_type *type, const void *a, const void *b);

size_t option_value_size(const struct option_value_type *type)
{
    switch (type->kind) {
    case OPTION_BOOL:
        return sizeof(bool);
    case OPTION_INT:
    case OPTION_UINT:
        return sizeof(uint64_t);
    case OPTION_ENUM:
        return sizeof(int);
    case OPTION_ARRAY:
        return sizeof(struct option_array);
    default:
        return sizeof(void *);
    }
}

/* Members are read and written by memcpy(), since their C types are known to the tables only. */
static void *option_pointer(const void *slot)
{
    void *pointer;

    memcpy(&pointer, slot, sizeof(pointer));
    return pointer;
}

static struct option_array option_array_at(const void *slot)
{
    struct option_array array;

    memcpy(&array, slot, sizeof(array));
    return array;
}

bool option_field_present(const struct option_field *field, const void *options)
{
    const char *slot = (const char *)options + field->offset;

    if (field->has_offset)
        return *(const bool *)((const char *)options + field->has_offset);
    switch (field->type.kind) {
    case OPTION_BOOL:
    case OPTION_INT:
    case OPTION_UINT:
    case OPTION_ENUM:
        return true;
    case OPTION_ARRAY:
        return option_array_at(slot).count > 0;
    default:
        return option_pointer(slot);
    }
}

void *option_branch_of(const struct option_type *type, const void *options, const struct option_type **ret_type)
{
    const struct option_type *branch = NULL;
    int tag;

    if (type->discriminator) {
        memcpy(&tag, (const char *)options + type->discriminator->offset, sizeof(tag));
        if (tag >= 0 && (unsigned)tag < type->branch_count)
            branch = type->branches[tag].type;
    }
    if (ret_type)
        *ret_type = branch;
    return branch ? (char *)options + type->branch_offset : NULL;
}

/* Freeing */

static void option_value_clear(const struct option_value_type *type, void *slot)
{
    struct option_array array;

    switch (type->kind) {
    case OPTION_STRING:
    case OPTION_ANY:
        free(option_pointer(slot));
        break;
    case OPTION_OBJECT:
    case OPTION_UNION:
        option_free(type->object, option_pointer(slot));
        break;
    case OPTION_NODE_REF:
        node_ref_free(option_pointer(slot));
        break;
    case OPTION_ARRAY:
        array = option_array_at(slot);
        for (size_t i = 0; i < array.count; i++)
            option_value_clear(type->element, (char *)array.items + i * option_value_size(type->element));
        free(array.items);
        break;
    default:
        break;
    }
}

static void option_struct_clear(const struct option_type *type, void *options)
{
    const struct option_type *branch_type;
    void *branch = option_branch_of(type, options, &branch_type);

    for (unsigned i = 0; i < type->field_count; i++)
        option_value_clear(&type->fields[i].type, (char *)options + type->fields[i].offset);
    if (branch)
        option_struct_clear(branch_type, branch);
}

void option_clear(const struct option_type *type, void *options)
{
    if (!options)
        return;
    option_struct_clear(type, options);
    memset(options, 0, type->size);
}

void option_free(const struct option_type *type, void *options)
{
    if (!options)
        return;
    option_struct_clear(type, options);
    free(options);
}

void node_ref_free(struct node_ref *ref)
{
    if (!ref)
        return;
    free(ref->name);
    option_free(&node_options_type, ref->node);
    free(ref);
}

/* Copying */

static void option_array_copy(const struct option_value_type *type, void *to, const void *from);

static void option_value_copy(const struct option_value_type *type, void *to, const void *from)
{
    void *copy;

    switch (type->kind) {
    case OPTION_STRING:
    case OPTION_ANY:
        copy = memory_string(option_pointer(from));
        break;
    case OPTION_OBJECT:
    case OPTION_UNION:
        copy = option_copy(type->object, option_pointer(from));
        break;
    case OPTION_NODE_REF:
        copy = node_ref_copy(option_pointer(from));
        break;
    case OPTION_ARRAY:
        option_array_copy(type, to, from);
        return;
    default:
        memcpy(to, from, option_value_size(type));
        return;
    }
    memcpy(to, &copy, sizeof(copy));
}

static void option_array_copy(const struct option_value_type *type, void *to, const void *from)
{
    struct option_array source = option_array_at(from), copy = {.count = source.count};
    size_t size = option_value_size(type->element);

    if (source.count)
        copy.items = memory_array(source.count, size);
    for (size_t i = 0; i < source.count; i++)
        option_value_copy(type->element, (char *)copy.items + i * size, (const char *)source.items + i * size);
    memcpy(to, &copy, sizeof(copy));
}

static void option_struct_copy(const struct option_type *type, void *to, const void *from)
{
    const struct option_type *branch_type;
    const void *branch = option_branch_of(type, from, &branch_type);

    for (unsigned i = 0; i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];

        option_value_copy(&field->type, (char *)to + field->offset, (const char *)from + field->offset);
        if (field->has_offset)
            *(bool *)((char *)to + field->has_offset) = *(const bool *)((const char *)from + field->has_offset);
    }
    if (branch)
        option_struct_copy(branch_type, (char *)to + type->branch_offset, branch);
}

void *option_copy(const struct option_type *type, const void *options)
{
    if (!options)
        return NULL;
    void *copy = memory_zero(type->size);

    option_struct_copy(type, copy, options);
    return copy;
}

struct node_ref *node_ref_copy(const struct node_ref *ref)
{
    if (!ref)
        return NULL;
    struct node_ref *copy = memory_new(struct node_ref);

    copy->name = memory_string(ref->name);
    copy->node = option_copy(&node_options_type, ref->node);
    copy->null = ref->null;
    return copy;
}

/* Comparing */

static bool option_string_equal(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

static bool option_node_ref_equal(const struct node_ref *a, const struct node_ref *b)
{
    if (!a || !b)
        return a == b;
    return option_string_equal(a->name, b->name) && option_equal(&node_options_type, a->node, b->node) &&
           a->null == b->null;
}

static bool option_value_equal(const struct option_value_type *type, const void *a, const void *b);

static bool option_array_equal(const struct option_value_type *type, const void *a, const void *b)
{
    struct option_array left = option_array_at(a), right = option_array_at(b);
    size_t size = option_value_size(type->element);

    if (left.count != right.count)
        return false;
    for (size_t i = 0; i < left.count; i++)
        if (!option_value_equal(type->element, (const char *)left.items + i * size,
                                (const char *)right.items + i * size))
            return false;
    return true;
}

static bool option_value_equal(const struct option_value_type *type, const void *a, const void *b)
{
    switch (type->kind) {
    case OPTION_STRING:
    case OPTION_ANY:
        return option_string_equal(option_pointer(a), option_pointer(b));
    case OPTION_OBJECT:
    case OPTION_UNION:
        return option_equal(type->object, option_pointer(a), option_pointer(b));
    case OPTION_NODE_REF:
        return option_node_ref_equal(option_pointer(a), option_pointer(b));
    case OPTION_ARRAY:
        return option_array_equal(type, a, b);
    default:
        return !memcmp(a, b, option_value_size(type));
    }
}

bool option_field_equal(const struct option_field *field, const void *a, const void *b)
{
    bool present = option_field_present(field, a);

    if (present != option_field_present(field, b))
        return false;
    return !present ||
           option_value_equal(&field->type, (const char *)a + field->offset, (const char *)b + field->offset);
}

static bool option_struct_equal(const struct option_type *type, const void *a, const void *b)
{
    for (unsigned i = 0; i < type->field_count; i++)
        if (!option_field_equal(&type->fields[i], a, b))
            return false;
    const struct option_type *branch_type;
    const void *branch = option_branch_of(type, a, &branch_type);

    /* The discriminators were found equal above. */
    return !branch || option_struct_equal(branch_type, branch, (const char *)b + type->branch_offset);
}

bool option_equal(const struct option_type *type, const void *a, const void *b)
{
    if (!a || !b)
        return a == b;
    return option_struct_equal(type, a, b);
}
