"""Tables that describe the C types: options.c."""
import json

from .c_types import HEAD, c_structs, constant, has_flag, ident, member
from .model import Array, Enum, Scalar, Struct, display_name

ROLES = {"data": "ROLE_DATA", "metadata": "ROLE_METADATA", "filtered": "ROLE_FILTERED", "backing": "ROLE_BACKING",
         "primary": "ROLE_PRIMARY"}
INT64_MIN, INT64_MAX, UINT64_MAX = -2**63, 2**63 - 1, 2**64 - 1


def string(text):
    """text as a C string literal."""
    return json.dumps(text, ensure_ascii=True)


def integer(value):
    if value == INT64_MIN:
        return "INT64_MIN"
    return f"{value}u" if value > INT64_MAX else str(value)


def value_type(type_, element=None):
    """Initialiser of a struct option_value_type. element: name of the array's element type."""
    parts = [f".kind = OPTION_{type_.kind.replace('-', '_').upper()}"]
    if isinstance(type_, Struct):
        parts.append(f".object = &{ident(type_.name)}_type")
    elif isinstance(type_, Enum):
        parts.append(f".enumeration = &{ident(type_.name)}_enum")
    elif isinstance(type_, Array):
        parts.append(f".element = &{element}")
        parts.append(f".array_maximum = {type_.maximum}")
    elif isinstance(type_, Scalar) and type_.kind in ("int", "uint"):
        signed = type_.kind == "int"
        low = type_.minimum if type_.minimum is not None else INT64_MIN
        high = type_.maximum if type_.maximum is not None else INT64_MAX if signed else UINT64_MAX
        parts.append(f".minimum = {integer(low)}")
        parts.append(f".maximum = {integer(high)}")
    elif isinstance(type_, Scalar) and type_.kind == "string" and type_.maximum:
        parts.append(f".maximum = {type_.maximum}")
    return "{ " + ", ".join(parts) + " }"


def flags(item):
    found = []
    if item.required:
        found.append("OPTION_REQUIRED")
    if item.unit == "bytes":
        found.append("OPTION_IS_SIZE")
    if item.secret:
        found.append("OPTION_SECRET")
    if item.has_default:
        found.append("OPTION_ELEMENT_DEFAULT")
    # Of an array: of its elements.
    if getattr(getattr(item.type, "element", item.type), "nullable", False):
        found.append("OPTION_ALLOW_NULL")
    if item.open:
        found.append("OPTION_OPEN")
    if getattr(item.type, "accept_integer", False):
        found.append("OPTION_ACCEPT_INTEGER")
    return " | ".join(found)


def default(item):
    if not item.has_default:
        return None
    kind = item.type.kind
    if kind == "string":
        return f".default_string = {string(item.default)}"
    if kind == "enum":
        return f".default_integer = {constant(item.type, item.default)}"
    if kind == "bool":
        return f".default_integer = {int(item.default)}"
    return f".default_integer = {integer(item.default)}"


def elements(struct):
    """Types of the elements of arrays: variables of their own."""
    for item in struct.properties:
        type_, name = item.type, f"{ident(struct.name)}_{ident(item.name)}_element"
        if isinstance(type_, Array):
            if isinstance(type_.element, Array):
                raise ValueError(f"{struct.name}.{item.name}: an array of arrays")
            yield f"static const struct option_value_type {name} = {value_type(type_.element)};\n"


def field(struct, item):
    tag = ident(struct.name)
    parts = [f".name = {string(item.name)}",
             f".type = {value_type(item.type, f'{tag}_{ident(item.name)}_element')}",
             f".offset = offsetof(struct {tag}, {member(item.name)})"]
    if has_flag(item):
        parts.append(f".has_offset = offsetof(struct {tag}, has_{ident(item.name)})")
    if flags(item):
        parts.append(f".flags = {flags(item)}")
    if item.change != "never":
        parts.append(f".change = OPTION_CHANGE_{item.change.upper()}")
    if default(item):
        parts.append(default(item))
    if item.child:
        parts.append(".child_role = " + " | ".join(ROLES[r] for r in item.child))
    return "    { " + ",\n      ".join(parts) + " },\n"


def struct_table(struct):
    tag = ident(struct.name)
    out = ["\n", *elements(struct)]
    if struct.properties:
        out.append(f"static const struct option_field {tag}_fields[] = {{\n")
        out += [field(struct, p) for p in struct.properties]
        out.append("};\n")
    if struct.branches:
        out.append(f"static const struct option_branch {tag}_branches[] = {{\n")
        for branch in struct.branches:
            target = f"&{ident(branch.type.name)}_type" if branch.type else "NULL"
            out.append(f"    {{ {string(branch.value)}, {target} }},\n")
        out.append("};\n")
    out.append(f"const struct option_type {tag}_type = {{\n    .name = {string(display_name(struct.name))},\n"
               f"    .size = sizeof(struct {tag}),\n")
    if struct.properties:
        out.append(f"    .fields = {tag}_fields,\n    .field_count = {len(struct.properties)},\n")
    if struct.branches:
        index = struct.properties.index(struct.discriminator)
        out.append(f"    .discriminator = &{tag}_fields[{index}],\n    .branches = {tag}_branches,\n"
                   f"    .branch_count = {len(struct.branches)},\n")
        if any(b.type for b in struct.branches):
            out.append(f"    .branch_offset = offsetof(struct {tag}, u),\n")
        if struct.wrapped:
            out.append("    .wrapped = true,\n")
    if struct.shorthand:
        out.append(f"    .shorthand = {string(struct.shorthand)},\n")
    out.append("};\n")
    return "".join(out)


def options_c(schema):
    structs, enums = c_structs(schema)
    out = [HEAD, "#include \"generated/options.h\"\n\n#include \"core/edge.h\"\n"]
    for enum in enums:
        tag = ident(enum.name)
        out.append(f"\nstatic const char *const {tag}_names[] = {{\n")
        out += [f"    {string(v)},\n" for v in enum.values]
        out.append(f"}};\nconst struct option_enum {tag}_enum = {{ {tag}_names, {len(enum.values)} }};\n")
    out += [struct_table(s) for s in structs]
    return "".join(out)
