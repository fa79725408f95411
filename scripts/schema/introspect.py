"""What the daemon tells about itself: query-qmp-schema, and the schema as one JSON Schema document."""
import dataclasses
import json

from .c_types import HEAD, c_structs
from .model import Any, Array, Enum, NodeRef, Scalar, Struct, children, reachable

BUILTINS = {"bool": "boolean", "int": "int", "null": "null", "str": "string", "any": "value"}


def opened(struct):
    """A union as x-open makes it: filtered children of its branches may be left out."""
    branches = []
    for branch in struct.branches:
        properties = [dataclasses.replace(p, required=p.required and "filtered" not in p.child)
                      for p in (branch.type.properties if branch.type else [])]
        type_ = dataclasses.replace(branch.type, name="pushed-" + branch.type.name, properties=properties) \
            if branch.type and "filtered" in [role for p in branch.type.properties for role in p.child] else branch.type
        branches.append(dataclasses.replace(branch, type=type_))
    return dataclasses.replace(struct, name="pushed-" + struct.name, branches=branches)


class SchemaInfo:
    """Builds the array of query-qmp-schema: types are added when they are first named."""

    def __init__(self, schema):
        self.schema = schema
        self.names = {c.name for c in schema.commands} | {e.name for e in schema.events}
        self.entities, self.known, self.kept = [], {}, []

    def unique(self, wanted):
        """A name for a type that is no command's or event's."""
        while wanted in self.names:
            wanted += "-type"
        self.names.add(wanted)
        return wanted

    def add(self, key, wanted, meta_type, make):
        """Name of the entity that is noted under key; make() gives its body once it has a name."""
        if key not in self.known:
            name = wanted if meta_type in ("builtin", "array") else self.unique(wanted)
            self.known[key] = name
            entity = {"name": name, "meta-type": meta_type}
            self.entities.append(entity)
            entity |= make()
        return self.known[key]

    def builtin(self, name):
        return self.add(name, name, "builtin", lambda: {"json-type": BUILTINS[name]})

    def alternate(self, name, members):
        return self.add(("alternate", name), name, "alternate",
                        lambda: {"members": [{"type": m()} for m in members]})

    def name(self, type_):
        if isinstance(type_, Struct):
            if not type_.properties:
                return self.empty()
            if type_.shorthand:
                return self.alternate(type_.name + "-or-" + type_.shorthand, [
                    lambda: self.add(id(type_), type_.name, "object", lambda: self.struct(type_)),
                    lambda: self.name(type_.shorthand_type())])
            return self.add(id(type_), type_.name, "object", lambda: self.struct(type_))
        if isinstance(type_, Enum):
            return self.add(type_.name + " enum", type_.name, "enum", lambda: {
                "members": [{"name": v} for v in type_.values], "values": type_.values})
        if isinstance(type_, Array):
            element = self.name(type_.element)
            return self.add(f"[{element}]", f"[{element}]", "array", lambda: {"element-type": element})
        if isinstance(type_, NodeRef):
            members = [lambda: self.name(self.schema.structs["node-options"]), lambda: self.builtin("str")]
            if type_.nullable:
                members.append(lambda: self.builtin("null"))
            return self.alternate("node-ref-or-null" if type_.nullable else "node-ref", members)
        if isinstance(type_, Any):
            return self.builtin("any")
        if type_.accept_integer:
            return self.alternate("str-or-int", [lambda: self.builtin("str"), lambda: self.builtin("int")])
        return self.builtin({"bool": "bool", "string": "str"}.get(type_.kind, "int"))

    def members(self, struct):
        members = []
        for item in struct.properties:
            type_ = opened(item.type) if item.open else item.type
            if item.open:
                self.kept.append(type_)     # types are known by their ids
            member = {"name": item.name, "type": self.name(type_)}
            if not item.required:
                member["default"] = None
            members.append(member)
        return members

    def empty(self):
        return self.add("empty", "empty", "object", lambda: {"members": []})

    def wrapper(self, struct, branch):
        """The object whose only member is the "data" of a wrapped branch."""
        return self.add(("wrapper", struct.name, branch.value), f"{struct.name}-{branch.value}", "object", lambda: {
            "members": [{"name": "data", "type": self.name(branch.type) if branch.type else self.empty()}]})

    def struct(self, struct):
        body = {"members": self.members(struct)}
        if struct.branches:
            body["tag"] = struct.discriminator.name
            body["variants"] = [{"case": b.value, "type": self.wrapper(struct, b) if struct.wrapped else
                                 self.name(b.type) if b.type else self.empty()} for b in struct.branches]
        return body

    def build(self):
        for command in self.schema.commands:
            entity = {"name": command.name, "meta-type": "command"}
            self.entities.append(entity)
            entity["arg-type"] = self.name(command.arguments)
            entity["ret-type"] = self.name(command.returns) if command.returns else self.empty()
        for event in self.schema.events:
            entity = {"name": event.name, "meta-type": "event"}
            self.entities.append(entity)
            entity["arg-type"] = self.name(event.data)
        return self.entities


def schema_info(schema):
    return SchemaInfo(schema).build()


# The document of --schema

def reference(struct):
    return {"$ref": "#/$defs/" + struct.name}


def scalar_document(type_, unit=None):
    words = {"bool": "boolean", "string": "string"}
    document = {"type": ["string", "integer"] if type_.accept_integer else words.get(type_.kind, "integer")}
    if type_.kind == "string":
        if type_.maximum:
            document["maxLength"] = type_.maximum
        return document
    if type_.minimum is not None:
        document["minimum"] = type_.minimum
    if type_.maximum is not None:
        document["maximum"] = type_.maximum
    if unit:
        document["x-unit"] = unit
    return document


def type_document(type_, unit=None):
    if isinstance(type_, Struct) and type_.shorthand:
        return {"anyOf": [reference(type_), type_document(type_.shorthand_type())]}
    if isinstance(type_, Struct):
        return reference(type_)
    if isinstance(type_, Enum):
        return reference(type_)
    if isinstance(type_, Array):
        document = {"type": "array", "items": type_document(type_.element)}
        return document | ({"maxItems": type_.maximum} if type_.maximum else {})
    if isinstance(type_, NodeRef):
        forms = [{"type": "string"}, {"$ref": "#/$defs/node-options"}]
        return {"anyOf": forms + ([{"type": "null"}] if type_.nullable else [])}
    if isinstance(type_, Scalar):
        return scalar_document(type_, unit)
    return {}


def property_document(item):
    document = type_document(opened(item.type) if item.open else item.type, item.unit)
    document["description"] = item.description
    if item.has_default:
        document["default"] = item.default
    for word, value in (("x-child", item.child), ("x-object", item.object), ("x-secret", item.secret),
                        ("x-open", item.open), ("x-since", item.since)):
        if value:
            document[word] = value
    return document


def branch_document(struct, branch):
    """What holds for one value of the discriminator."""
    document = {"properties": {struct.discriminator.name: {"const": branch.value}}}
    if struct.wrapped:
        document["properties"]["data"] = reference(branch.type) if branch.type else {
            "type": "object", "maxProperties": 0}
        document["required"] = ["data"]
    elif branch.type:
        document["properties"] |= {p.name: property_document(p) for p in branch.type.properties}
        required = [p.name for p in branch.type.properties if p.required]
        if required:
            document["required"] = required
        document["description"] = branch.type.description
        if branch.type.driver_kind:
            document["x-kind"] = branch.type.driver_kind
    return document


def struct_document(struct):
    document = {"description": struct.description, "type": "object",
                "properties": {p.name: property_document(p) for p in struct.properties}}
    required = [p.name for p in struct.properties if p.required]
    if required:
        document["required"] = required
    if struct.option:
        document["x-option"] = struct.option
    if struct.branches:
        document["oneOf"] = [branch_document(struct, b) for b in struct.branches]
        document["unevaluatedProperties"] = False
    else:
        document["additionalProperties"] = False
    return document


def enum_document(enum):
    document = {"type": "string", "enum": enum.values}
    if enum.description:
        document["description"] = enum.description
    return document | ({"x-values": enum.texts} if enum.texts else {})


def json_schema(schema):
    """Everything as one document of JSON Schema 2020-12 that any validator understands."""
    roots = [c.arguments for c in schema.commands] + [c.returns for c in schema.commands if c.returns]
    roots += [e.data for e in schema.events] + list(schema.options().values())
    # Branches that are not wrapped are written out in their unions.
    used = [t for t in reachable(roots) if isinstance(t, (Struct, Enum))]
    inline = {id(b.type) for t in used if isinstance(t, Struct) and not t.wrapped for b in t.branches if b.type}
    named = {id(t) for t in roots} | {id(c) for t in used if isinstance(t, Struct) for p in t.properties
                                      for c in [p.type, *children(p.type)]}
    open_ = [opened(p.type) for t in used if isinstance(t, Struct) for p in t.properties if p.open]
    used += open_
    definitions = {t.name: enum_document(t) if isinstance(t, Enum) else struct_document(t)
                   for t in sorted(used, key=lambda t: t.name) if id(t) not in inline or id(t) in named}
    commands = {}
    for command in schema.commands:
        commands[command.name] = {"description": command.description, "arguments": reference(command.arguments)}
        if command.returns:
            commands[command.name]["returns"] = type_document(command.returns)
    events = {e.name: {"description": e.description, "data": reference(e.data)} for e in schema.events}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Cairn",
            "description": "Options, commands and events of cairnd.", "$defs": definitions,
            "x-commands": commands, "x-events": events}


def c_string(variable, text):
    """text as a constant array of characters, a piece a line."""
    pieces = [text[i:i + 96] for i in range(0, len(text), 96)]
    return f"const char {variable}[] =\n" + "\n".join("    " + json.dumps(p) for p in pieces) + ";\n"


def introspect_h(_):
    return (HEAD + "#ifndef GENERATED_INTROSPECT_H\n#define GENERATED_INTROSPECT_H\n\n"
            "/* What query-qmp-schema returns: the array as JSON text. */\nextern const char introspect_schema_json[];\n\n"
            "/* All options, commands and events as one JSON Schema document. */\nextern const char schema_json[];\n\n"
            "#endif\n")


def introspect_c(schema):
    return (HEAD + "#include \"generated/introspect.h\"\n\n"
            + c_string("introspect_schema_json", json.dumps(schema_info(schema), ensure_ascii=True)) + "\n"
            + c_string("schema_json", json.dumps(json_schema(schema), indent=2, ensure_ascii=True) + "\n"))
