"""The check of the sources' shape finds what it is for, and nothing else."""
import os
import sys
import unittest

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

import check_layers  # noqa: E402


def function(lines, head="int f(void)"):
    return head + "\n{\n" + "    g();\n" * lines + "}\n"


class Includes(unittest.TestCase):
    def faults(self, path, include):
        return list(check_layers.check_includes(path, f"/* A file. */\n#include {include}\n"))

    def test_upward(self):
        for path, include in (("core/a.c", '"drivers/b.h"'), ("core/a.c", '"qmp/b.h"'), ("drivers/x/a.c", '"qmp/b.h"'),
                              ("qmp/a.h", '"daemon/b.h"'), ("daemon/a.c", '"tests/b.h"'),
                              ("core/a.c", '"generated/commands.h"'), ("core/a.c", "<json-c/json.h>"),
                              ("drivers/x/a.c", "<json-c/json.h>"), ("core/a.c", '"b.h"')):
            with self.subTest(path=path, include=include):
                faults = self.faults(path, include)
                self.assertEqual(len(faults), 1)
                self.assertTrue(faults[0].startswith(path + ":2: "))

    def test_downward(self):
        for path, include in (("core/a.c", '"core/b.h"'), ("core/a.c", '"generated/options.h"'),
                              ("core/a.c", "<errno.h>"), ("drivers/x/a.c", '"core/b.h"'), ("qmp/a.c", '"core/b.h"'),
                              ("qmp/a.c", "<json-c/json.h>"), ("daemon/nbd/a.c", '"qmp/b.h"'),
                              ("tests/unit/a.c", '"daemon/b.h"')):
            with self.subTest(path=path, include=include):
                self.assertEqual(self.faults(path, include), [])


class Sizes(unittest.TestCase):
    def faults(self, text):
        return list(check_layers.check_sizes("core/a.c", text))

    def test_files(self):
        self.assertEqual(self.faults("\n" * check_layers.FILE_LINES), [])
        self.assertIn("601 lines", self.faults("\n" * (check_layers.FILE_LINES + 1))[0])

    def test_functions(self):
        self.assertEqual(self.faults(function(check_layers.FUNCTION_LINES)), [])
        for head in ("int f(void)", "static struct x *f(struct y *y,\n                   int z)"):
            with self.subTest(head=head):
                faults = self.faults(function(check_layers.FUNCTION_LINES + 1, head))
                self.assertEqual(len(faults), 1)
                self.assertIn("f() has 61 lines", faults[0])

    def test_braces_in_text(self):
        text = "int f(void)\n{\n    g(\"{{{\", '{'); /* { */\n}\n"
        self.assertEqual(self.faults(text * 20), [])

    def test_structs(self):
        def struct(count):
            return "struct x {\n" + "".join(f"    int m{i};\n" for i in range(count)) + "};\n"
        self.assertEqual(self.faults(struct(check_layers.STRUCT_MEMBERS)), [])
        self.assertIn("struct x has 26 members", self.faults(struct(check_layers.STRUCT_MEMBERS + 1))[0])
        several = "struct x {\n    int a, b;\n    int (*call)(int, int);\n    struct { int c, d; } e;\n};\n"
        self.assertEqual(check_layers.members(several.split("{", 1)[1].rsplit("}", 1)[0]), 4)

    def test_python_files(self):
        paths = check_layers.scripts()
        for path in ("scripts/check", "scripts/check_layers.py", "scripts/schema_gen.py", "tests/unit/test_schema.py"):
            self.assertIn(path, paths)
        self.assertNotIn("scripts/deps", paths)


if __name__ == "__main__":
    unittest.main()
