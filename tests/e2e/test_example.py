#!/usr/bin/python3
"""The example filter of CONTRIBUTING.md: built into a daemon of its own, as it stands there, and driven."""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
from filters import Filters
from nbd_client import *  # noqa: F403
import programs
import schema_gen

MIB = 1 << 20


class Example(Filters):
    def extract(self):
        """Writes the blocks of code to the files that are named above them, below the scratch folder."""
        with open(os.path.join(ROOT, "CONTRIBUTING.md"), encoding="utf-8") as stream:
            section = stream.read().split("### A filter\n")[1].split("\n### ")[0]
        shutil.copytree(os.path.join(ROOT, "schema"), self.path("schema"))
        os.makedirs(self.path("drivers/filter"))
        names = []
        for name, code in re.findall(r"`([a-z/_.-]+)`:\n\n```[a-z]+\n(.*?)\n```\n", section, re.DOTALL):
            self.write(name, code + "\n")
            names.append(name)
        self.assertEqual(names, ["schema/drivers/try-again.json", "drivers/filter/try_again.c"])

    def build(self):
        """Links what depends on the schema anew, and the rest as it was built."""
        schema_gen.generate(schema_gen.load.load(self.path("schema")), self.path("generated"))
        with open(os.path.join(programs.BUILD, ".flags"), encoding="utf-8") as stream:
            flags = shlex.split(stream.read())
        while not flags[0].startswith("-"):     # a cache may stand before the compiler
            compiler, flags = flags[0], flags[1:]
        with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as stream:
            packages = re.search(r"^PACKAGES := (.*)$", stream.read(), re.MULTILINE).group(1).split()
        libraries = subprocess.run(["pkg-config", "--libs", *packages], capture_output=True, text=True, check=True)
        sources = [self.path(f"generated/{name}.c") for name in ("options", "commands", "driver_table", "introspect")]
        # The driver is the last by name, so that what was compiled knows the others by the right numbers.
        result = subprocess.run(
            [compiler, "-I", self.folder, *flags, "-O0", "-Werror", *sources, self.path("drivers/filter/try_again.c"),
             *(os.path.join(programs.BUILD, name) for name in ("daemon/main.o", "libcairn.a", "libcairnformat.a")),
             *libraries.stdout.split(), "-o", self.path("cairnd")],
            cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_example(self):
        self.extract()
        self.build()
        real, programs.CAIRND = programs.CAIRND, self.path("cairnd")
        self.addCleanup(setattr, programs, "CAIRND", real)
        rules = [{"event": "none", "iotype": kind, "state": 1, "once": True} for kind in ("read", "write", "write")]
        daemon = self.daemon({"driver": "try-again", "node-name": "disk", "file": {
            "driver": "blkdebug", "inject-error": [*rules, {"event": "none", "iotype": "flush"}],
            "image": {"driver": "null-co", "size": MIB, "read-zeroes": True}}})
        client = self.client()
        self.assertEqual(client.do(READ, 0, 512).data, bytes(512))
        self.assertEqual(client.do(WRITE, 0, data=b"x" * 512).error, 0)
        self.assertEqual(self.ask("qom-get", "path=/nodes/disk", "property=again"), 3)
        self.assertEqual(client.do(FLUSH).error, EIO)
        self.assertEqual(self.ask("qom-get", "path=/nodes/disk", "property=again"), 5)
        options, = self.ask("query-node-options", "node-name=disk")
        self.assertEqual(options["tries"], 3)
        self.ask("blockdev-reopen", json.dumps({"options": [{**options, "tries": 1}]}))
        self.assertEqual(client.do(FLUSH).error, EIO)
        self.assertEqual(self.ask("qom-get", "path=/nodes/disk", "property=again"), 0)
        failed = self.cairnctl("blockdev-add", "driver=try-again", "node-name=x", "file=disk", "tries=0")
        self.assertIn("tries", failed.stderr)
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
