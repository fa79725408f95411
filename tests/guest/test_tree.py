#!/usr/bin/python3
"""A guest on throttle over blkdebug over quorum over three images over three files: one snapshot of the whole gives each
image an overlay, and the layers above stay; with no room for the third overlay nothing changes."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from guest_test import SIZE, GuestTest as _GuestTest

STACK = ["brake", "crypto", "quorum"]


class Tree(_GuestTest):
    def tool(self, *command):
        return subprocess.run(command, cwd=self.disks, check=True, capture_output=True, text=True).stdout

    def start_tree(self):
        for i in range(3):
            self.tool("qemu-img", "create", "-q", "-f", "qcow2", f"c{i}", str(SIZE))
        images = [word for i in range(3) for word in (
            "--blockdev", f"driver=qcow2,node-name=c{i},discard=unmap,file.driver=file,file.filename={self.disk(f'c{i}')}")]
        children = ",".join(f"children.{i}=c{i}" for i in range(3))
        self.daemon = self.serve(
            "--object", "iothread,id=one", "--object", "throttle-group,id=g,limits.iops-total=100000", *images, "--blockdev",
            f"driver=quorum,node-name=quorum,vote-threshold=2,discard=unmap,{children}", "--blockdev",
            "driver=blkdebug,node-name=crypto,discard=unmap,image=quorum", "--blockdev",
            "driver=throttle,node-name=brake,discard=unmap,throttle-group=g,file=crypto")
        self.ask("source-add", "id=disk", "node=brake")
        self.ask("block-export-add", *self.EXPORT)

    def full(self):
        """A folder where no image has room."""
        os.mkdir(self.disk("full"))
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", self.disk("full")], capture_output=True,
                          check=False).returncode == 0:
            self.addCleanup(subprocess.run, ["umount", "-l", self.disk("full")], check=False)
            return "No space left on device"
        os.chmod(self.disk("full"), 0)
        return "Permission denied"

    def snapshot(self, *files):
        return self.cairnctl("blockdev-snapshot-sync", json.dumps({
            "device": "disk", "snapshot-files": [self.disk(name) for name in files],
            "snapshot-node-names": ["o0", "o1", "o2"]}))

    def test_tree(self):
        self.start_tree()
        guest = self.start_guest()
        self.make_files()
        self.start_load()
        before, why = self.ask("query-block-graph"), self.full()
        self.assert_fails(self.snapshot("o0", "o1", "full/o2"), why)
        self.assertEqual(self.ask("query-block-graph"), before)
        self.assertEqual(sorted(os.listdir(self.disks)), ["c0", "c1", "c2", "full"])
        self.wait_for_load(1)
        result = self.snapshot("o0", "o1", "o2")
        self.assertEqual(result.returncode, 0, result.stderr)
        source, = self.ask("query-sources")
        self.assertEqual(source["nodes"], STACK)
        self.assertEqual(self.ask("resolve", "source=disk")["layers"], ["o0", "o1", "o2"])
        self.wait_for_load(2)
        self.end_load()
        self.check_files()
        guest.run("umount /mnt && /sbin/e2fsck -fn /dev/vda")
        guest.power_off()
        self.assertEqual(self.end(self.daemon), "")
        for kind in "co":
            for i in range(3):
                self.tool("qemu-img", "check", f"{kind}{i}")
                self.tool("qemu-img", "compare", f"{kind}0", f"{kind}{i}")


if __name__ == "__main__":
    unittest.main()
