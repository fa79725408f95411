"""Reference parts of the manual pages, in roff: docs/*.inc."""
from .model import Any, Array, Enum, NodeRef, Scalar, Struct, display_name, reachable

# Files of command line options.
PAGES = {"blockdev": "blockdev.inc", "export": "exports.inc", "object": "objects.inc", "nbd-server": "nbd-server.inc"}

UNITS = {"bytes": "bytes", "ns": "nanoseconds", "s": "seconds"}


def text(plain):
    """Running text."""
    escaped = plain.replace("\\", "\\e").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\\&" + escaped if escaped.startswith(".") else escaped


def literal(plain):
    """Something to type: its hyphens must stay what they are."""
    return text(plain).replace("-", "\\-")


def type_name(type_):
    """What a value is, in words."""
    if isinstance(type_, Scalar):
        if type_.accept_integer:
            return "string or integer"
        return {"bool": "boolean", "string": "string"}.get(type_.kind, "integer")
    if isinstance(type_, Enum):
        return "string"
    if isinstance(type_, Array):
        return f"array of {type_name(type_.element)}"
    if isinstance(type_, NodeRef):
        return "node" + (" or null" if type_.nullable else "")
    if isinstance(type_, Any):
        return "any value"
    return display_name(type_.name)


def default_text(item):
    value = item.default
    if isinstance(value, bool):
        return "true" if value else "false"
    return '""' if value == "" else str(value)


def facts(item, fixed):
    found = [type_name(item.type)]
    if item.unit:
        found.append(UNITS[item.unit])
    if item.required:
        found.append("required")
    if item.has_default:
        found.append("default " + literal(default_text(item)))
    if item.since:
        found.append(f"since {item.since}")
    if fixed and item.change == "never":
        found.append("fixed")
    return ", ".join(found)


def range_text(type_):
    if isinstance(type_, Scalar) and type_.kind == "string" and type_.maximum:
        return f" At most {type_.maximum} bytes."
    if isinstance(type_, Scalar) and type_.kind == "uint" and type_.maximum and type_.maximum < 2**62:
        return f" At most {type_.maximum}."
    return ""


def enum_values(enum):
    if not enum.texts:
        return ".br\nOne of " + ", ".join(f"\\fB{literal(v)}\\fR" for v in enum.values) + ".\n"
    lines = [f".TP\n\\fB{literal(v)}\\fR\n{text(enum.texts[v])}\n" for v in enum.values]
    return ".RS\n" + "".join(lines) + ".RE\n"


def item_entry(key, item, fixed=False):
    """fixed: whether to tell what never changes."""
    out = [f".TP\n\\fB{literal(key)}\\fR ({facts(item, fixed)})\n{text(item.description)}{range_text(item.type)}\n"]
    if item.object:
        out.append(f"Names an object of type {literal(item.object)}.\n")
    if isinstance(item.type, Enum):
        out.append(enum_values(item.type))
    return "".join(out)


def entries(struct, prefix="", fixed=False):
    """The members of a struct; those of structs inside it with dotted names."""
    out = []
    for item in struct.properties:
        key = prefix + item.name
        if isinstance(item.type, Struct) and not item.open:
            if item.type.shorthand:
                out.append(f".TP\n\\fB{literal(key)}\\fR\nShort for "
                           f"\\fB{literal(key)}.{literal(item.type.shorthand)}\\fR.\n")
            out.append(entries(item.type, key + "."))
        else:
            out.append(item_entry(key, item, fixed))
    for branch in struct.branches if prefix else []:
        tag = prefix + struct.discriminator.name
        if branch.type:
            out.append(f".PP\nWhere \\fB{literal(tag)}\\fR is \\fB{literal(branch.value)}\\fR:\n")
            out.append(entries(branch.type, prefix + ("data." if struct.wrapped else "")))
    return "".join(out)


def union_page(struct):
    """What all have, then what each branch has. Drivers have sections of their own."""
    changing = any(branch.type.driver_kind for branch in struct.branches)
    out = [entries(struct, fixed=changing)]
    for branch in struct.branches:
        if branch.type.driver_kind:
            out.append(f".SS {literal(branch.value)} ({branch.type.driver_kind})\n{text(branch.type.description)}\n")
        else:
            out.append(f".PP\nWith \\fB{literal(struct.discriminator.name)}={literal(branch.value)}\\fR:\n"
                       f"{text(branch.type.description)}\n")
        out.append(entries(branch.type, fixed=changing))
    return "".join(out)


def arguments(struct):
    if struct.option:
        return f"Arguments: those of \\fB\\-\\-{literal(struct.option)}\\fR.\n"
    if not struct.properties:
        return ""
    out = [entries(struct)]
    for item in struct.properties:
        if isinstance(item.type, Array) and isinstance(item.type.element, Struct) and item.type.element.branches:
            union = item.type.element
            tag = union.discriminator.name
            out.append(f".IP\nEach element has \\fB{literal(tag)}\\fR, one of "
                       + ", ".join(f"\\fB{literal(b.value)}\\fR" for b in union.branches)
                       + (", and its members in \\fBdata\\fR" if union.wrapped else "") + ".\n")
    return "".join(out)


def commands_page(schema):
    """What there is by subject, then a section for each command."""
    titles = sorted({c.title for c in schema.commands})
    groups = [[c for c in schema.commands if c.title == title] for title in titles]
    out = []
    for title, commands in zip(titles, groups):
        names = ", ".join(f"\\fB{literal(c.name)}\\fR" for c in commands)
        out.append(f".TP\n{title}\n{names}\n")
    for command in (c for commands in groups for c in commands):
        out.append(f".SS {literal(command.name)}\n{text(command.description)}\n")
        out.append(arguments(command.arguments))
        if command.returns:
            out.append(f".PP\nReturns: {literal(type_name(command.returns))}.\n")
    return "".join(out)


def events_page(schema):
    return "".join(f".SS {literal(e.name)}\n{text(e.description)}\n" + entries(e.data) for e in schema.events)


def types_page(schema):
    """The structs that commands return."""
    options = {id(t) for t in reachable(schema.options().values())}
    returned = [t for t in reachable([c.returns for c in schema.commands if c.returns])
                if isinstance(t, Struct) and id(t) not in options]
    branches = {id(b.type) for t in returned for b in t.branches}
    out = []
    for struct in sorted(returned, key=lambda t: t.name):
        if id(struct) in branches:
            continue
        out.append(f".SS {literal(display_name(struct.name))}\n{text(struct.description)}\n")
        out.append("".join(item_entry(p.name, p) for p in struct.properties))
        for branch in struct.branches:
            out.append(f".PP\nWhere \\fB{literal(struct.discriminator.name)}\\fR is "
                       f"\\fB{literal(branch.value)}\\fR:\n" + entries(branch.type))
    return "".join(out)


def pages(schema):
    """File name below docs/: content."""
    options = schema.options()
    head = '.\\" Generated by scripts/schema_gen.py from schema/.\n'
    result = {PAGES[name]: union_page(struct) if struct.branches else entries(struct)
              for name, struct in options.items()}
    result["commands.inc"] = commands_page(schema)
    result["events.inc"] = events_page(schema)
    result["types.inc"] = types_page(schema)
    return {name: head + content for name, content in result.items()}
