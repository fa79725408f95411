"""The schema as Python objects: what the emitters work on.

A type is one of Scalar, Enum, Struct, Array, NodeRef, Any. Struct is an
object; with branches it is a union: the value of its discriminator decides
which further members there are.
"""
from dataclasses import dataclass, field


class SchemaError(Exception):
    """The schema is not what the generator understands; the text says where."""


@dataclass
class Scalar:
    kind: str                       # "bool", "int", "uint", "string"
    minimum: int | None = None
    maximum: int | None = None      # of an integer; of a string: most bytes
    accept_integer: bool = False    # string that may be given as a number


@dataclass
class Enum:
    name: str
    values: list
    description: str = ""
    texts: dict = field(default_factory=dict)       # value: what it means
    kind: str = "enum"


@dataclass
class Property:
    name: str
    type: object
    required: bool
    description: str
    has_default: bool = False
    default: object = None
    change: str = "never"
    unit: str | None = None
    secret: bool = False
    object: str | None = None       # type of the objects that it names
    child: list = field(default_factory=list)       # roles of the edge, if it is a child
    since: str | None = None
    open: bool = False              # options of a filter that need not say what is filtered


@dataclass
class Branch:
    value: str
    type: object                    # Struct, or None if it has no members


@dataclass
class Struct:
    name: str
    description: str = ""
    title: str = ""                 # name of the driver, export or object
    driver_kind: str | None = None  # "protocol", "format" ...
    option: str | None = None       # the command line option of cairnd that takes it
    properties: list = field(default_factory=list)
    discriminator: object = None    # Property
    branches: list = field(default_factory=list)
    wrapped: bool = False           # branch members are in "data"
    shorthand: str | None = None    # the property that a bare string stands for

    @property
    def kind(self):
        return "union" if self.discriminator else "object"

    def shorthand_type(self):
        return next((p.type for p in self.properties if p.name == self.shorthand), None)


@dataclass
class Array:
    element: object
    maximum: int = 0                # most elements, 0 = no limit
    kind: str = "array"


@dataclass
class NodeRef:
    nullable: bool = False
    kind: str = "node-ref"


@dataclass
class Any:
    kind: str = "any"


@dataclass
class Command:
    name: str
    title: str                      # of its file: the heading it belongs to
    description: str
    arguments: Struct
    returns: object                 # a type, or None: nothing
    since: str | None = None


@dataclass
class Event:
    name: str
    description: str
    data: Struct


@dataclass
class Schema:
    structs: dict = field(default_factory=dict)     # name: Struct
    enums: dict = field(default_factory=dict)       # name: Enum
    commands: list = field(default_factory=list)
    events: list = field(default_factory=list)

    def options(self):
        """The structs that are command line options, by the option's name."""
        return {s.option: s for s in self.structs.values() if s.option}


def display_name(name):
    """Name of a type for people: without what only tells C types apart."""
    for suffix in ("-options", "-args", "-event"):
        if name.endswith(suffix):
            return name[:-len(suffix)]
    return name


def children(type_):
    """Types that type_ is directly made of."""
    if isinstance(type_, Array):
        return [type_.element]
    if isinstance(type_, Struct):
        return [p.type for p in type_.properties] + [b.type for b in type_.branches if b.type]
    return []


def reachable(roots):
    """All types below roots and the roots themselves; what others need comes first."""
    seen, order = set(), []

    def visit(type_):
        if id(type_) in seen:
            return
        seen.add(id(type_))
        for child in children(type_):
            visit(child)
        order.append(type_)

    for root in roots:
        visit(root)
    return order
