#!/usr/bin/python3
"""Composites end to end: disks of several images, over NBD, and what stock tools find in the images afterwards."""
import json
import os
import random
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from filters import Filters
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20
SIZE = 8 * MIB


class Quorum(Filters):
    def child(self, i, rules=()):
        """A qcow2 image of its own, below which requests can fail."""
        name = f"image{i}"
        if not os.path.exists(self.path(name)):
            self.run_tool("qemu-img", "create", "-f", "qcow2", name, str(SIZE))
        return {"driver": "qcow2", "node-name": f"child{i}", "discard": "unmap", "file": {
            "driver": "blkdebug", "node-name": f"debug{i}", "discard": "unmap", "inject-error": list(rules), "image": {
                "driver": "file", "filename": name, "discard": "unmap"}}}

    def quorum(self, children, **options):
        return {"driver": "quorum", "node-name": "disk", "vote-threshold": 2, "discard": "unmap", "children": children,
                **options}

    def change(self, **options):
        """Reopens, with all that is not said as it was."""
        self.ask("blockdev-reopen", json.dumps({"options": [options]}))

    def load(self, client, model, count, seed):
        """Random writes, zeroes and discards, and reads that are checked."""
        chance = random.Random(seed)
        for _ in range(count):
            offset, length = chance.randrange(0, SIZE - 200000), chance.randrange(1, 200000)
            kind = chance.choice((WRITE, WRITE, ZEROES, TRIM, READ, FLUSH))
            if kind == WRITE:
                data = chance.randbytes(length)
                self.assertEqual(client.do(WRITE, offset, data=data).error, 0)
                model[offset:offset + length] = data
            elif kind == READ:
                self.assertEqual(client.do(READ, offset, length).data, model[offset:offset + length])
            elif kind == FLUSH:
                self.assertEqual(client.do(FLUSH).error, 0)
            else:
                offset, length = offset & ~65535, (length & ~65535) + 65536
                self.assertEqual(client.do(kind, offset, length).error, 0)
                model[offset:offset + length] = bytes(length)

    def assert_images(self, model, images):
        with open(self.path("model"), "wb") as stream:
            stream.write(model)
        for image in images:
            self.run_tool("qemu-img", "check", image)
            self.assertIn("identical",
                          self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, "model"))

    def test_child_fails_and_returns(self):
        model = bytearray(SIZE)
        # The second child fails to write for a while, then comes back and is rewritten by reads.
        daemon = self.daemon(self.child(0), self.child(1, ({"event": "none", "iotype": "write", "state": 2},)),
                             self.child(2), self.quorum(["child0", "child1", "child2"], **{"rewrite-corrupted": True}))
        client = self.client()
        self.load(client, model, 150, 1)
        self.ask("qom-set", "path=/nodes/debug1", "property=state", "value=2")
        self.load(client, model, 150, 2)
        self.ask("qom-set", "path=/nodes/debug1", "property=state", "value=1")
        self.load(client, model, 50, 3)
        for offset in range(0, SIZE, MIB):
            self.assertEqual(client.do(READ, offset, MIB).data, model[offset:offset + MIB])
        self.end(daemon)
        self.assert_images(model, ("image0", "image1", "image2"))

    def test_children_come_and_go(self):
        model = bytearray(SIZE)
        daemon = self.daemon(self.child(0), self.child(1), self.child(2),
                             self.quorum(["child0", "child1", "child2"], **{"rewrite-corrupted": True}))
        client = self.client()
        self.load(client, model, 50, 1)
        self.ask("x-blockdev-change", json.dumps({"parent": "disk", "child": "children.1", "node": None}))
        self.load(client, model, 50, 2)
        options, = self.ask("query-node-options", "node-name=disk")
        self.assertEqual(options["children"], ["child0", None, "child2"])
        # Two of two are needed: neither can go.
        failed = self.cairnctl("x-blockdev-change", json.dumps({"parent": "disk", "child": "children.2", "node": None}))
        self.assertIn("vote-threshold=2 is more than the 1 children", failed.stderr)
        self.assertEqual(client.do(READ, 0, MIB).data, model[:MIB])
        # Back with old content, which two others outvote.
        self.ask("x-blockdev-change", "parent=disk", "child=children.1", "node=child1")
        for offset in range(0, SIZE, MIB):
            self.assertEqual(client.do(READ, offset, MIB).data, model[offset:offset + MIB])
        self.change(**self.quorum(["child2", "child1", "child0"], **{"vote-threshold": 3, "rewrite-corrupted": True}))
        self.load(client, model, 50, 3)
        self.end(daemon)
        self.assert_images(model, ("image0", "image1", "image2"))

    def test_order_of_fifo(self):
        for name, byte in (("a", 1), ("b", 2)):
            self.file(name, MIB, byte)
        nodes = [{"driver": "file", "node-name": name, "filename": name} for name in "ab"]
        quorum = {"driver": "quorum", "node-name": "disk", "vote-threshold": 1, "read-pattern": "fifo"}
        daemon = self.daemon(*nodes, {**quorum, "children": ["a", "b"]})
        client = self.client()
        self.assertEqual(client.do(READ, 0, 512).data, b"\1" * 512)
        self.change(**quorum, children=["b", "a"])
        self.assertEqual(client.do(READ, 0, 512).data, b"\2" * 512)
        edges = self.ask("query-block-graph")["edges"]
        self.assertEqual([edge["name"] for edge in edges if "children" in edge["name"]], ["children.0", "children.1"])
        self.change(**quorum, children=[None, "a"])
        self.assertEqual(client.do(READ, 0, 512).data, b"\1" * 512)
        failed = self.cairnctl("blockdev-reopen", json.dumps({"options": [
            {**quorum, "children": ["a", "b"], "vote-threshold": 3}]}))
        self.assertIn("vote-threshold=3 is more than the 2 children", failed.stderr)
        self.assertEqual(client.do(READ, 0, 512).data, b"\1" * 512)
        self.end(daemon)

    def test_one_that_is_behind(self):
        """What a child has missed is not read from it, nor through what comes over it, until it is exchanged."""
        for name in ("a", "b"):
            self.file(name, MIB, 1)
        quorum = {"driver": "quorum", "node-name": "disk", "vote-threshold": 1, "read-pattern": "fifo"}
        once = [{"event": "none", "iotype": "write", "once": True}]
        daemon = self.daemon({"driver": "blkdebug", "node-name": "a", "inject-error": once, "image": {
            "driver": "file", "filename": "a"}}, {"driver": "file", "node-name": "b", "filename": "b"},
            {**quorum, "children": ["a", "b"]})

        def assert_missed(children, byte):
            self.assertEqual(self.ask("qom-get", "path=/nodes/disk", "property=missed"), children)
            self.assertEqual(client.do(READ, 0, 512).data, bytes([byte]) * 512)

        client = self.client()
        assert_missed("", 1)
        self.assertEqual(client.do(WRITE, 0, data=b"\2" * 512).error, 0)
        assert_missed("children.0", 2)
        self.ask("source-push", "parent=disk", "child=children.0", "filter.driver=delay", "filter.node-name=f")
        assert_missed("children.0", 2)
        self.ask("blockdev-snapshot-sync", "device=disk", "snapshot-files.0=o0", "snapshot-files.1=o1",
                 "snapshot-node-names.0=o0", "snapshot-node-names.1=o1")
        assert_missed("children.0", 2)
        self.ask("x-blockdev-change", '{"parent": "disk", "child": "children.0", "node": null}')
        assert_missed("", 2)
        self.ask("x-blockdev-change", '{"parent": "disk", "child": "children.0", "node": "o0"}')
        assert_missed("", 1)
        self.end(daemon)

    def test_snapshot_of_all(self):
        """One command, and each child has an overlay."""
        model = bytearray(SIZE)
        daemon = self.daemon(self.child(0), self.child(1), self.child(2), self.quorum(["child0", "child1", "child2"]))
        client = self.client()
        self.load(client, model, 30, 1)
        before = bytes(model)
        for i in range(3):
            self.run_tool("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", f"image{i}", "-u", f"over{i}",
                          str(SIZE))
            self.ask("blockdev-add", json.dumps({"driver": "qcow2", "node-name": f"over{i}", "backing": None,
                                                 "file": {"driver": "file", "filename": f"over{i}"}}))
        self.ask("transaction", json.dumps({"actions": [
            {"type": "blockdev-snapshot", "data": {"node": f"child{i}", "overlay": f"over{i}"}} for i in range(3)]}))
        self.load(client, model, 30, 2)
        self.end(daemon)
        self.assert_images(model, ("over0", "over1", "over2"))
        self.assert_images(before, ("image0", "image1", "image2"))

    def test_verify(self):
        self.file("plain", SIZE)
        right = {"driver": "file", "node-name": "right", "filename": "plain", "discard": "unmap"}
        daemon = self.daemon({"driver": "blkverify", "node-name": "disk", "discard": "unmap", "test": self.child(0),
                              "raw": right})
        client, model = self.client(), bytearray(SIZE)
        self.load(client, model, 150, 4)
        with open(self.path("plain"), "r+b") as plain:
            plain.seek(123456)
            plain.write(bytes([model[123456] ^ 255]))
        self.assertEqual([client.do(READ, offset, 512).error for offset in (122880, 123392, 123904)], [0, EIO, 0])
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
