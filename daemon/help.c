/*
 * See help.h.
 */
#include "daemon/help.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/options.h"
#include "generated/options.h"

static const struct option_type *help_type(enum command_line_kind kind)
{
    switch (kind) {
    case COMMAND_LINE_BLOCKDEV:
        return &node_options_type;
    case COMMAND_LINE_EXPORT:
        return &export_options_type;
    case COMMAND_LINE_OBJECT:
        return &object_options_type;
    case COMMAND_LINE_NBD_SERVER:
        return &nbd_server_options_type;
    default:
        return NULL;
    }
}

static void help_value(const struct option_field *field)
{
    const struct option_value_type *type = &field->type;

    switch (type->kind) {
    case OPTION_BOOL:
        fputs("on|off", stdout);
        break;
    case OPTION_INT:
    case OPTION_UINT:
        fputs(field->flags & OPTION_IS_SIZE ? "size" : "integer", stdout);
        break;
    case OPTION_ENUM:
        for (unsigned i = 0; i < type->enumeration->count; i++)
            printf("%s%s", i ? "|" : "", type->enumeration->names[i]);
        break;
    case OPTION_NODE_REF:
        fputs("name of a node, or its options after a dot", stdout);
        break;
    case OPTION_OBJECT:
    case OPTION_UNION:
        fputs("options after a dot", stdout);
        break;
    case OPTION_ARRAY:
        fputs("list: values after .0, .1 ...", stdout);
        break;
    default:
        fputs("string", stdout);
    }
}

static void help_fields(const struct option_type *type)
{
    for (unsigned i = 0; type && i < type->field_count; i++) {
        const struct option_field *field = &type->fields[i];
        printf("  %s=<", field->name);
        help_value(field);
        puts(field->flags & OPTION_REQUIRED ? "> (required)" : ">");
    }
}

static void help_branches(const struct option_type *type)
{
    const struct option_enum *names = type->discriminator->type.enumeration;

    printf("Values of '%s':\n", type->discriminator->name);
    for (unsigned i = 0; i < names->count; i++)
        printf("  %s\n", names->names[i]);
}

/* length bytes of name select a branch of the union. */
static int help_branch(const struct option_type *type, const char *name, size_t length, struct error *err)
{
    const struct option_enum *names = type->discriminator->type.enumeration;

    for (unsigned i = 0; i < names->count && i < type->branch_count; i++) {
        if (strlen(names->names[i]) != length || strncmp(names->names[i], name, length) != 0)
            continue;
        printf("Options of %s:\n", names->names[i]);
        help_fields(type->branches[i].type);
        help_fields(type);
        return 0;
    }
    return error_set(err, -EINVAL, "Parameter '%s' does not accept value '%.*s'", type->discriminator->name,
                     (int)length, name);
}

static void help_plain(enum command_line_kind kind)
{
    if (kind == COMMAND_LINE_CHARDEV)
        puts("Options of --chardev:\n"
             "  socket,id=ID,path=PATH[,server=on][,wait=off]\n"
             "  socket,id=ID,host=HOST,port=PORT[,server=on][,wait=off]\n"
             "  socket,id=ID,fd=N[,server=on]\n"
             "  stdio,id=ID");
    else
        puts("Options of --monitor:\n"
             "  chardev=ID[,mode=control][,pretty=on|off][,id=ID]");
}

int help_show(enum command_line_kind kind, const char *value, struct error *err)
{
    const struct option_type *type = help_type(kind);
    const char *comma = strchr(value, ',');

    if (!type) {
        help_plain(kind);
        return 0;
    }
    if (!type->discriminator) {
        printf("Options of %s:\n", command_line_name(kind));
        help_fields(type);
        return 0;
    }
    if (!comma) {
        help_branches(type);
        return 0;
    }
    const char *equals = memchr(value, '=', (size_t)(comma - value));
    const char *name = equals ? equals + 1 : value;
    return help_branch(type, name, (size_t)(comma - name), err);
}
