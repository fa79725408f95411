"""The outside interface in a few lines for each part, kept in schema/surface.txt: a change of it is seen in review,
and cannot happen unnoticed."""
from .model import Any, Array, Enum, NodeRef, Scalar, Struct, reachable

HEAD = """# The outside interface: commands, events, options and their types.
# Written by scripts/schema_gen.py --write-surface; make check compares.
"""


def type_text(type_):
    if isinstance(type_, Array):
        return f"[{type_text(type_.element)}]" + (f" at most {type_.maximum}" if type_.maximum else "")
    if isinstance(type_, NodeRef):
        return "node or name or null" if type_.nullable else "node or name"
    if isinstance(type_, Any):
        return "any"
    if isinstance(type_, Struct) and type_.shorthand:
        return f"{type_.name} or its {type_.shorthand}"
    if isinstance(type_, (Struct, Enum)):
        return type_.name
    if not isinstance(type_, Scalar):
        raise TypeError(type_)
    kind = {"bool": "bool", "string": "string"}.get(type_.kind, "integer")
    if type_.accept_integer:
        kind += " or integer"
    if type_.minimum is not None:
        kind += f" from {type_.minimum}"
    if type_.maximum is not None:
        kind += f" to {type_.maximum}"
    return kind


def member_line(item):
    facts = [type_text(item.type)]
    if item.unit:
        facts.append(item.unit)
    if item.required:
        facts.append("required")
    if item.has_default:
        facts.append(f"default {item.default!r}")
    return f"    {item.name}: {', '.join(facts)}\n"


def type_lines(type_):
    if isinstance(type_, Enum):
        return f"enum {type_.name}: {' '.join(type_.values)}\n"
    out = [f"type {type_.name}\n"] + [member_line(p) for p in type_.properties]
    for branch in type_.branches:
        data = " in data" if type_.wrapped else ""
        out.append(f"    where {type_.discriminator.name} is {branch.value}: "
                   f"{branch.type.name if branch.type else 'nothing more'}{data}\n")
    return "".join(out)


def surface(schema):
    roots = [c.arguments for c in schema.commands] + [c.returns for c in schema.commands if c.returns]
    roots += [e.data for e in schema.events] + list(schema.options().values())
    out = [HEAD]
    for command in schema.commands:
        returns = f" -> {type_text(command.returns)}" if command.returns else ""
        out.append(f"command {command.name}: {command.arguments.name}{returns}\n")
    out += [f"event {e.name}: {e.data.name}\n" for e in sorted(schema.events, key=lambda e: e.name)]
    out += [f"option --{name}: {struct.name}\n" for name, struct in sorted(schema.options().items())]
    named = [t for t in reachable(roots) if isinstance(t, (Struct, Enum))]
    out += [type_lines(t) for t in sorted(named, key=lambda t: t.name)
            if isinstance(t, Enum) or t.properties]
    return "".join(out)
