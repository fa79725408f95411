"""Reads and checks schema/*.json and builds the model.

The files are JSON Schema 2020-12, of which this understands: $defs, $ref
(with siblings), type, properties, required, enum, default, minimum, maximum,
maxLength, maxItems, items, description, title. Words of our own:

  x-branches         a union: branches by the discriminator's value, or the directory of their files
  x-discriminator    on the property that decides
  x-wrapped          a branch's members are in a member "data"
  x-shorthand        an object's member that a bare string stands for
  x-name             name of the C enum of a discriminator
  x-node-ref         reference to a node; x-nullable: null is allowed
  x-any              any JSON value
  x-arguments-of     the arguments of a command
  x-discriminator-of the enumeration of a union's discriminator
  x-change           live, drain, never: when the option can be changed
  x-unit             bytes, ns, s
  x-child            roles of the edge that the reference makes
  x-object           type of the objects that a string names
  x-secret           never shown
  x-open             options of a filter, whose filtered child may be left out
  x-since            version
  x-values           what the values of an enumeration mean
  x-kind             kind of driver
  x-option           command line option of cairnd that takes this type
  x-commands, x-events
"""
import json
import os

from .model import (Any, Array, Branch, Command, Enum, Event, NodeRef, Property, Scalar, Schema, SchemaError, Struct,
                    display_name)

# Directories whose files are branches of a union, and how their types are called.
BRANCH_NAMES = {"drivers": "%s-options", "exports": "%s-export-options", "objects": "%s-options"}

TYPE_WORDS = {
    "$ref", "type", "properties", "required", "enum", "default", "minimum", "maximum", "maxLength", "maxItems",
    "items", "description", "title", "$schema", "$defs", "x-branches", "x-discriminator", "x-wrapped", "x-name",
    "x-node-ref", "x-nullable", "x-any", "x-arguments-of", "x-discriminator-of", "x-change", "x-unit", "x-child",
    "x-object", "x-secret", "x-since", "x-values", "x-kind", "x-option", "x-commands", "x-events", "x-shorthand", "x-open",
}
PROPERTY_WORDS = {"default", "description", "x-change", "x-unit", "x-child", "x-object", "x-secret", "x-since", "x-open"}


class Loader:
    def __init__(self, directory):
        self.directory = directory
        self.documents = {}         # path relative to directory: parsed JSON
        self.types = {}             # (path, pointer): type
        self.schema = Schema()
        self.raw_commands = {}      # name: (path, raw)
        self.arguments = {}         # command name: Struct

    # Documents and references

    def document(self, path):
        if path not in self.documents:
            with open(os.path.join(self.directory, path), encoding="utf-8") as stream:
                self.documents[path] = json.load(stream)
        return self.documents[path]

    def paths(self):
        found = []
        for parent, _, names in os.walk(self.directory):
            found += [os.path.relpath(os.path.join(parent, n), self.directory) for n in names if n.endswith(".json")]
        return sorted(found)

    def resolve(self, path, reference):
        """The type that $ref names."""
        file, _, pointer = reference.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
        raw = self.document(target)
        for part in pointer.strip("/").split("/") if pointer.strip("/") else []:
            if part not in raw:
                raise SchemaError(f"{path}: '{reference}' leads nowhere")
            raw = raw[part]
        name = pointer.rsplit("/", 1)[-1] if pointer else None
        return self.definition(target, pointer, raw, name or self.file_type_name(target))

    @staticmethod
    def file_type_name(path):
        directory, file = os.path.split(path)
        return BRANCH_NAMES[directory] % file.removesuffix(".json")

    def definition(self, path, pointer, raw, name):
        key = (path, pointer)
        if key not in self.types:
            self.types[key] = self.type(path, raw, name, key)
        return self.types[key]

    # Types

    def type(self, path, raw, name, key=None):
        """A type from its JSON; name is used if it needs one of its own. key: where to note it before its members
        are read, because they may refer to it."""
        where = f"{path}: {name}"
        unknown = set(raw) - TYPE_WORDS
        if unknown:
            raise SchemaError(f"{where}: '{sorted(unknown)[0]}' is not understood")
        if "$ref" in raw:
            return self.resolve(path, raw["$ref"])
        if raw.get("x-node-ref"):
            return NodeRef(bool(raw.get("x-nullable")))
        if raw.get("x-any"):
            return Any()
        if "x-arguments-of" in raw:
            return self.command_arguments(raw["x-arguments-of"])
        if "x-discriminator-of" in raw:
            return self.resolve(path, raw["x-discriminator-of"]).discriminator.type
        if "enum" in raw:
            return self.enum(where, raw, name)
        if raw.get("type") == "array":
            return Array(self.type(path, raw["items"], name + "-item"), raw.get("maxItems", 0))
        if raw.get("type") == "object":
            return self.struct(path, raw, name, key)
        return self.scalar(where, raw)

    @staticmethod
    def scalar(where, raw):
        kinds = raw.get("type")
        if kinds == "boolean":
            return Scalar("bool")
        if kinds == "string":
            return Scalar("string", maximum=raw.get("maxLength"))
        if kinds == ["string", "integer"]:
            return Scalar("string", maximum=raw.get("maxLength"), accept_integer=True)
        if kinds == "integer":
            minimum = raw.get("minimum")
            kind = "uint" if minimum is not None and minimum >= 0 else "int"
            return Scalar(kind, minimum, raw.get("maximum"))
        raise SchemaError(f"{where}: type {kinds!r} is not understood")

    def enum(self, where, raw, name):
        values = raw["enum"]
        texts = raw.get("x-values", {})
        if raw.get("type") != "string" or not values or len(set(values)) != len(values):
            raise SchemaError(f"{where}: an enum needs type string and different values")
        if texts and set(texts) != set(values):
            raise SchemaError(f"{where}: x-values must describe all values of the enum")
        return self.add_enum(where, Enum(name, list(values), raw.get("description", ""), texts))

    def add_enum(self, where, enum):
        known = self.schema.enums.setdefault(enum.name, enum)
        if known.values != enum.values:
            raise SchemaError(f"{where}: another enum '{enum.name}' has other values")
        return known

    def struct(self, path, raw, name, key):
        where = f"{path}: {name}"
        struct = Struct(name, raw.get("description", ""), raw.get("title", ""), raw.get("x-kind"), raw.get("x-option"),
                        wrapped=bool(raw.get("x-wrapped")), shorthand=raw.get("x-shorthand"))
        if name in self.schema.structs:
            raise SchemaError(f"{where}: there is another type of this name")
        self.schema.structs[name] = struct
        if key:
            self.types[key] = struct
        if not struct.description:
            raise SchemaError(f"{where}: has no description")
        required = raw.get("required", [])
        if "x-branches" in raw:
            struct.branches = self.branches(path, raw["x-branches"])
        for property_name, property_raw in raw.get("properties", {}).items():
            struct.properties.append(
                self.property(path, struct, property_name, property_raw, property_name in required))
        missing = set(required) - {p.name for p in struct.properties}
        if missing:
            raise SchemaError(f"{where}: required '{sorted(missing)[0]}' is no property")
        if struct.branches and (struct.discriminator is None or not struct.discriminator.required):
            raise SchemaError(f"{where}: x-branches needs a required property with x-discriminator")
        if struct.shorthand and not isinstance(struct.shorthand_type(), (Scalar, Enum)):
            raise SchemaError(f"{where}: x-shorthand must name a string or an enum")
        self.check_branches(where, struct)
        return struct

    @staticmethod
    def check_branches(where, struct):
        common = {p.name for p in struct.properties}
        for branch in struct.branches:
            if not branch.type or struct.wrapped:
                continue
            if branch.type.branches:
                raise SchemaError(f"{where}: branch '{branch.value}' is a union itself")
            clash = common & {p.name for p in branch.type.properties}
            if clash:
                raise SchemaError(f"{where}: branch '{branch.value}' has '{clash.pop()}' again")

    def branches(self, path, raw):
        if isinstance(raw, dict):
            return [Branch(value, self.type(path, branch, value) if branch else None) for value, branch in raw.items()]
        if raw not in BRANCH_NAMES:
            raise SchemaError(f"{path}: no directory '{raw}' is known")
        found = [p for p in self.paths() if os.path.dirname(p) == raw]
        branches = [Branch(os.path.basename(p).removesuffix(".json"), self.resolve(path, "/".join(
            [".."] * path.count(os.sep) + [p]))) for p in found]
        for branch in branches:
            if branch.type.title != branch.value:
                raise SchemaError(f"{raw}/{branch.value}.json: the title must be '{branch.value}'")
        return sorted(branches, key=lambda b: b.value)

    def property(self, path, struct, name, raw, required):
        where = f"{path}: {struct.name}.{name}"
        owner = display_name(struct.name)
        if raw.get("x-discriminator"):
            values = [b.value for b in struct.branches]
            texts = {b.value: b.type.description for b in struct.branches if b.type}
            type_ = self.add_enum(where, Enum(raw.get("x-name", f"{owner}-{name}"), values, raw["description"],
                                              texts if len(texts) == len(values) else {}))
        else:
            if "$ref" in raw and set(raw) - PROPERTY_WORDS - {"$ref"}:
                raise SchemaError(f"{where}: only a description and the like may stand beside $ref")
            type_ = self.type(path, raw, f"{owner}-{name}")
        result = Property(
            name, type_, required, raw.get("description", ""), "default" in raw, raw.get("default"),
            raw.get("x-change", "never"), raw.get("x-unit"), bool(raw.get("x-secret")), raw.get("x-object"),
            raw.get("x-child", []), raw.get("x-since"), bool(raw.get("x-open")))
        self.check_property(where, result)
        if raw.get("x-discriminator"):
            struct.discriminator = result
        return result

    @staticmethod
    def check_property(where, item):
        if not item.description:
            raise SchemaError(f"{where}: has no description")
        if item.change not in ("live", "drain", "never"):
            raise SchemaError(f"{where}: x-change '{item.change}'")
        if item.required and item.has_default:
            raise SchemaError(f"{where}: is required and has a default")
        if not item.has_default:
            return
        good = {"bool": bool, "int": int, "uint": int, "string": str, "enum": str}.get(item.type.kind)
        if good is None or not isinstance(item.default, good):
            raise SchemaError(f"{where}: this default is impossible")
        if item.type.kind == "enum" and item.default not in item.type.values:
            raise SchemaError(f"{where}: '{item.default}' is no value of '{item.type.name}'")

    # Commands and events

    def command_arguments(self, name):
        if name not in self.arguments:
            path, raw = self.raw_commands[name]
            arguments = raw.get("arguments", {"type": "object"})
            if "$ref" not in arguments:
                arguments = {"description": f"Arguments of {name}."} | arguments
            self.arguments[name] = self.type(path, arguments, name + "-args")
        return self.arguments[name]

    def command(self, name, path, raw):
        unknown = set(raw) - {"description", "arguments", "returns", "x-since"}
        if unknown or not raw.get("description"):
            raise SchemaError(f"{path}: {name}: {sorted(unknown)[0] if unknown else 'description'}?")
        returns = self.type(path, raw["returns"], name + "-return") if "returns" in raw else None
        return Command(name, self.document(path)["title"], raw["description"], self.command_arguments(name), returns,
                       raw.get("x-since"))

    def load(self):
        for path in self.paths():
            document = self.document(path)
            for name, raw in document.get("x-commands", {}).items():
                if name in self.raw_commands:
                    raise SchemaError(f"{path}: there is another command '{name}'")
                self.raw_commands[name] = (path, raw)
        for path in self.paths():
            document = self.document(path)
            for name, raw in document.get("$defs", {}).items():
                self.definition(path, "/$defs/" + name, raw, name)
            for name, raw in document.get("x-events", {}).items():
                data = {"description": f"Data of {name}."} | raw["data"]
                struct = self.type(path, data, name.lower().replace("_", "-") + "-event")
                self.schema.events.append(Event(name, raw["description"], struct))
        self.schema.commands = [self.command(name, path, raw) for name, (path, raw) in self.raw_commands.items()]
        self.schema.commands.sort(key=lambda c: c.name)
        return self.schema


def load(directory):
    """The model of all files in directory. Raises SchemaError."""
    return Loader(directory).load()
