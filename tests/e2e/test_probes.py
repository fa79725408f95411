#!/usr/bin/python3
"""The static probes are in the program, as the manual page has them."""
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs


class Probes(unittest.TestCase):
    def documented(self):
        """Name: number of values."""
        with open(os.path.join(programs.ROOT, "man/cairnd.8.in"), encoding="utf-8") as page:
            section = re.search(r"^\.SH PROBES\n(.*?)^\.SH", page.read(), re.MULTILINE | re.DOTALL).group(1)
        return {name: len(values.split())
                for name, values in re.findall(r'^\.BI (\w+) " ([A-Z ]+)"$', section, re.MULTILINE)}

    def test_notes(self):
        notes = subprocess.run(["readelf", "--notes", "--wide", programs.CAIRND], capture_output=True, text=True,
                               env=dict(os.environ, LC_ALL="C"), check=True).stdout
        found = re.findall(r"Provider: cairn\s+Name: (\w+)\s+Location: (0x[0-9a-f]+).*\n\s+Arguments: (.*)", notes)
        self.assertEqual({name: len(values.split()) for name, _, values in found}, self.documented())
        for name, location, _ in found:
            self.assertEqual(self.instruction(int(location, 16)), "nop", name)

    @staticmethod
    def instruction(address):
        """What is there while nobody traces."""
        text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", f"--start-address={address:#x}",
                               f"--stop-address={address + 4:#x}", programs.CAIRND],
                              capture_output=True, text=True, check=True).stdout
        return re.search(rf"^\s*{address:x}:\s+(\w+)", text, re.MULTILINE).group(1)


if __name__ == "__main__":
    unittest.main()
