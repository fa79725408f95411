#!/usr/bin/python3
"""The life of a guest on a qcow2 image with a backing file."""
import hashlib
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from guest_test import MIB, SIZE, GuestTest as _GuestTest


class Qcow2(_GuestTest):
    def test_life(self):
        with open(self.disk("base.raw"), "wb") as base:
            base.write(os.urandom(4 * MIB))
            base.truncate(SIZE)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "disk"], cwd=self.disks,
                       check=True)
        before = self.digest("base.raw")
        self.start_daemon(f"driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={self.disk('disk')}")
        self.life()
        self.assertEqual(self.digest("base.raw"), before)
        subprocess.run(["qemu-img", "check", "-q", "disk"], cwd=self.disks, check=True)

    def digest(self, name):
        with open(self.disk(name), "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()


if __name__ == "__main__":
    unittest.main()
