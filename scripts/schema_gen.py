#!/usr/bin/python3
"""Generates all that follows from schema/: C types and tables, command dispatch, introspection, documentation,
completion. Usage:

    scripts/schema_gen.py OUTDIR            writes below OUTDIR; files that would not change are left alone
    scripts/schema_gen.py --check-surface   compares the outside interface with schema/surface.txt
    scripts/schema_gen.py --write-surface   records it there
"""
import argparse
import difflib
import os
import sys

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SURFACE = os.path.join(ROOT, "schema", "surface.txt")
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from schema import c_tables, c_types, completion, docs, introspect, load, model, surface  # noqa: E402

OUTPUTS = {
    "options.h": c_types.options_h,
    "options.c": c_tables.options_c,
    "commands.h": c_types.commands_h,
    "commands.c": c_types.commands_c,
    "driver_table.c": c_types.driver_table_c,
    "introspect.h": introspect.introspect_h,
    "introspect.c": introspect.introspect_c,
    "completion.bash": completion.completion_bash,
}


def read(path):
    """What is in the file; nothing if there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def write(path, text):
    """Writes text to path unless it is there already."""
    if read(path) == text:
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(temporary, path)


def generate(schema, outdir):
    for name, emit in OUTPUTS.items():
        write(os.path.join(outdir, name), emit(schema))
    for name, text in docs.pages(schema).items():
        write(os.path.join(outdir, "docs", name), text)


def check_surface(schema):
    """Exit status: 1 if the interface is not the recorded one; the difference is printed."""
    recorded, now = read(SURFACE), surface.surface(schema)
    if recorded == now:
        return 0
    sys.stdout.writelines(difflib.unified_diff(recorded.splitlines(True), now.splitlines(True),
                                               "schema/surface.txt", "schema/*.json"))
    print("The outside interface has changed. If it should: scripts/schema_gen.py --write-surface, and commit it.")
    return 1


def main():
    parser = argparse.ArgumentParser(description="Generates what follows from schema/.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("outdir", nargs="?", help="where generated files go")
    task.add_argument("--check-surface", action="store_true", help="compare the interface with schema/surface.txt")
    task.add_argument("--write-surface", action="store_true", help="record the interface there")
    arguments = parser.parse_args()
    schema = load.load(os.path.join(ROOT, "schema"))
    if arguments.check_surface:
        return check_surface(schema)
    if arguments.write_surface:
        write(SURFACE, surface.surface(schema))
    else:
        generate(schema, arguments.outdir)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (model.SchemaError, OSError, ValueError) as problem:
        sys.exit(f"schema_gen.py: {problem}")
