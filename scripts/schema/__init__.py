"""Generates C, documentation and introspection from schema/. See ../schema_gen.py."""
