#!/usr/bin/python3
"""The schema and its generator: faults in a schema are named, what is generated holds together, nothing of the
outside interface has changed unnoticed."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "scripts"), os.path.join(ROOT, "tests")]

from schema import c_tables, c_types, completion, docs, introspect, load, model  # noqa: E402
from schema_info import SchemaInfo  # noqa: E402

SCHEMA = load.load(os.path.join(ROOT, "schema"))
GENERATOR = os.path.join(ROOT, "scripts", "schema_gen.py")


def references(document):
    """All $ref in a JSON document."""
    if isinstance(document, dict):
        if "$ref" in document:
            yield document["$ref"]
        for value in document.values():
            yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)


class Faults(unittest.TestCase):
    """Each changes one thing in a copy of the schema and expects it to be named."""

    def change(self, path, edit):
        with tempfile.TemporaryDirectory() as directory:
            copy = os.path.join(directory, "schema")
            shutil.copytree(os.path.join(ROOT, "schema"), copy)
            file = os.path.join(copy, path)
            with open(file, encoding="utf-8") as stream:
                document = json.load(stream)
            edit(document)
            with open(file, "w", encoding="utf-8") as stream:
                json.dump(document, stream)
            with self.assertRaises(model.SchemaError) as caught:
                load.load(copy)
            return str(caught.exception)

    def test_unknown_word(self):
        text = self.change("drivers/raw.json", lambda d: d["properties"]["size"].update({"minimun": 0}))
        self.assertIn("'minimun' is not understood", text)

    def test_impossible_default(self):
        text = self.change("drivers/raw.json", lambda d: d["properties"]["offset"].update({"default": "0"}))
        self.assertIn("raw-options.offset: this default is impossible", text)

    def test_default_outside_enum(self):
        text = self.change("drivers/file.json", lambda d: d["properties"]["locking"].update({"default": "maybe"}))
        self.assertIn("'maybe' is no value of 'file-locking'", text)

    def test_required_and_default(self):
        text = self.change("drivers/file.json", lambda d: d["required"].append("locking"))
        self.assertIn("is required and has a default", text)

    def test_required_without_property(self):
        text = self.change("drivers/file.json", lambda d: d["required"].append("size"))
        self.assertIn("required 'size' is no property", text)

    def test_no_description(self):
        text = self.change("drivers/raw.json", lambda d: d["properties"]["size"].pop("description"))
        self.assertIn("raw-options.size: has no description", text)

    def test_dangling_reference(self):
        text = self.change("drivers/raw.json",
                           lambda d: d["properties"]["file"].update({"$ref": "../common.json#/$defs/no"}))
        self.assertIn("leads nowhere", text)

    def test_branch_repeats_common_member(self):
        text = self.change("drivers/raw.json", lambda d: d["properties"].update(
            {"discard": {"type": "boolean", "description": "x"}}))
        self.assertIn("branch 'raw' has 'discard' again", text)

    def test_title(self):
        text = self.change("drivers/raw.json", lambda d: d.update({"title": "row"}))
        self.assertIn("the title must be 'raw'", text)


class Introspection(unittest.TestCase):
    def setUp(self):
        self.entities = introspect.schema_info(SCHEMA)
        self.info = SchemaInfo(self.entities)

    def test_describes_itself(self):
        self.assertEqual(self.info.reply_faults("query-qmp-schema", self.entities), [])

    def test_all_types_are_there(self):
        for entity in self.entities:
            named = [entity[k] for k in ("arg-type", "ret-type", "element-type") if k in entity]
            named += [m["type"] for m in entity.get("members", []) + entity.get("variants", []) if "type" in m]
            for name in named:
                self.assertIn(name, self.info.entities, entity["name"])

    def test_values(self):
        arguments = self.info.entities["blockdev-add"]["arg-type"]
        node = {"driver": "raw", "node-name": "a", "size": 512, "file": {"driver": "file", "filename": "x"}}
        self.assertEqual(self.info.faults(arguments, node), [])
        self.assertEqual(self.info.faults(arguments, node | {"file": "b"}), [])
        for wrong in ({"size": "512"}, {"size": True}, {"driver": "row"}, {"filename": "x"}, {"file": 1},
                      {"file": {"driver": "file"}}):
            self.assertNotEqual(self.info.faults(arguments, node | wrong), [], wrong)

    def test_document(self):
        document = introspect.json_schema(SCHEMA)
        found = list(references(document))
        self.assertGreater(len(found), 50)
        for reference in found:
            self.assertIn(reference.removeprefix("#/$defs/"), document["$defs"])


class Output(unittest.TestCase):
    def test_repeatable(self):
        again = load.load(os.path.join(ROOT, "schema"))
        for emit in (c_types.options_h, c_tables.options_c, c_types.commands_c, introspect.introspect_c,
                     completion.completion_bash, docs.pages):
            self.assertEqual(emit(SCHEMA), emit(again), emit.__name__)

    def test_unchanged_files_are_left_alone(self):
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([GENERATOR, directory], check=True)
            before = {e.name: e.stat().st_mtime_ns for e in os.scandir(directory)}
            subprocess.run([GENERATOR, directory], check=True)
            self.assertEqual(before, {e.name: e.stat().st_mtime_ns for e in os.scandir(directory)})

    def test_surface(self):
        result = subprocess.run([GENERATOR, "--check-surface"], stdout=subprocess.PIPE, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_pages_are_complete(self):
        pages = docs.pages(SCHEMA)
        for command in SCHEMA.commands:
            self.assertIn(f".SS {docs.literal(command.name)}\n", pages["commands.inc"])
        for branch in SCHEMA.structs["node-options"].branches:
            self.assertIn(f".SS {docs.literal(branch.value)} (", pages["blockdev.inc"])


class Completion(unittest.TestCase):
    """What bash would offer for a line, with the cursor at its end."""

    SCRIPT = r"""
source "$1"
compopt() { :; }
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
COMP_LINE=$2 COMP_POINT=${#2}
"$3"
printf '%s\n' "${COMPREPLY[@]}"
"""

    def offers(self, line):
        function = "_cairn_daemon" if line.startswith("cairnd") else "_cairn_control"
        with tempfile.NamedTemporaryFile("w", suffix=".bash") as file:
            file.write(completion.completion_bash(SCHEMA))
            file.flush()
            result = subprocess.run(["bash", "-c", self.SCRIPT, "-", file.name, line, function],
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=True)
        self.assertEqual(result.stderr, "")
        return result.stdout.split()

    def test_daemon(self):
        self.assertIn("null-co", self.offers("cairnd --blockdev "))
        self.assertEqual(self.offers("cairnd --blockdev raw,file.dri"), ["raw,file.driver="])
        self.assertEqual(self.offers("cairnd --blockdev raw,discard="), ["ignore", "unmap"])
        self.assertIn("unix,addr.path=", self.offers("cairnd --nbd-server addr.type=unix,addr.p"))

    def test_control(self):
        self.assertIn("blockdev-add", self.offers("cairnctl -s /x block"))
        self.assertEqual(self.offers("cairnctl blockdev-add driver=null-co lat"), ["latency-ns="])
        self.assertEqual(self.offers("cairnctl transaction actions.0.type=blockdev-del actions.0.data.no"),
                         ["actions.0.data.node-name="])
        self.assertIn("source-push", self.offers("cairnctl help sour"))
        self.assertEqual(self.offers("cairnctl help blockdev-add driver=null-co lat"), ["latency-ns="])
        self.assertEqual(self.offers("cairnctl node "), ["options"])
        for line in ("cairnctl events ", "cairnctl node options ", "cairnctl tree ", "cairnctl none "):
            self.assertEqual(self.offers(line), [])


if __name__ == "__main__":
    unittest.main()
