#!/usr/bin/python3
"""Generates all that follows from schema/: C types and tables, command dispatch, introspection, documentation,
completion. Usage:

    scripts/schema_gen.py OUTDIR            writes the files below OUTDIR; those that did not change are left alone
    scripts/schema_gen.py --check-surface   compares the outside interface with schema/surface.txt
    scripts/schema_gen.py --write-surface   records it there
"""
import argparse
import os
import sys

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from schema import c_tables, c_types, introspect, load, model  # noqa: E402

OUTPUTS = {
    "options.h": c_types.options_h,
    "options.c": c_tables.options_c,
    "commands.h": c_types.commands_h,
    "commands.c": c_types.commands_c,
    "driver_table.c": c_types.driver_table_c,
    "introspect.h": introspect.introspect_h,
    "introspect.c": introspect.introspect_c,
}


def write(path, text):
    """Writes text to path unless it is there already."""
    try:
        with open(path, encoding="utf-8") as stream:
            if stream.read() == text:
                return
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description="Generates what follows from schema/.")
    parser.add_argument("outdir")
    arguments = parser.parse_args()
    schema = load.load(os.path.join(ROOT, "schema"))
    for name, emit in OUTPUTS.items():
        write(os.path.join(arguments.outdir, name), emit(schema))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (model.SchemaError, OSError) as problem:
        sys.exit(f"schema_gen.py: {problem}")
