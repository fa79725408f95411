#!/usr/bin/python3
"""Nodes in use get other options: each driver, read-only and back, other children; locks against stock tools; and what
query-node-options tells makes the same node again, for every driver."""
import os
import struct
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
from nbd_verify import Load
from qmp_client import QmpClient, QmpError
import programs

MIB = 1 << 20
SIZE = 8 * MIB


class Reopen(programs.Program):
    def setUp(self):
        super().setUp()
        with open(self.path("raw"), "wb") as raw:
            for number in range(SIZE // MIB):
                raw.write(bytes([number]) * MIB)
        for name in ("a", "b", "c"):
            self.tool("qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE))
        self.daemon = self.serve("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        self.qmp = QmpClient(self.socket)
        self.addCleanup(self.qmp.close)
        self.call = self.qmp.call

    def tool(self, *command, code=0):
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=programs.PATIENCE,
                                stdin=subprocess.DEVNULL, check=False)
        self.assertEqual(result.returncode, code, f"{command}\n{result.stdout}{result.stderr}")
        return result.stdout + result.stderr

    def finish(self):
        self.qmp.close()
        self.assertNotIn("Sanitizer", self.end(self.daemon))

    def file(self, **options):
        return {"driver": "file", "node-name": "file", "filename": "raw", "discard": "unmap", **options}

    def qcow2(self, name="a", **options):
        return {"driver": "qcow2", "node-name": name, "discard": "unmap", "file": {"driver": "file", "filename": name},
                **options}

    def reopen(self, *options):
        self.call("blockdev-reopen", options=list(options))

    def refused(self, text, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.call(command, **arguments)
        self.assertIn(text, str(caught.exception))

    def export(self, node, writable=True):
        self.call("block-export-add", type="nbd", id="e", node_name=node, name="disk", writable=writable)

    def unexport(self):
        self.call("block-export-del", id="e", mode="hard")

    def client(self):
        client = NbdClient(self.path("nbd")).go("disk")
        self.addCleanup(client.close)
        return client

    def modes(self, name):
        """How the daemon has the file open: flags of open(2)."""
        found = []
        for number in os.listdir(f"/proc/{self.daemon.pid}/fd"):
            path = f"/proc/{self.daemon.pid}/fd/{number}"
            if os.path.exists(path) and os.path.realpath(path) == os.path.realpath(self.path(name)):
                with open(f"/proc/{self.daemon.pid}/fdinfo/{number}", encoding="ascii") as info:
                    found.append(int(dict(line.split(":", 1) for line in info)["flags"], 8))
        return found

    def test_file(self):
        """cache.direct, locking and discard under load; read-only and back without writers."""
        self.call("blockdev-add", **self.file())
        self.export("file")
        with Load(self, self.path("nbd"), "disk", SIZE) as load:
            for direct in (True, False, True):
                try:
                    self.reopen(self.file(cache={"direct": direct}))
                except QmpError as error:
                    self.assertIn("does not support O_DIRECT", str(error))
                    continue
                self.assertEqual(bool(self.modes("raw")[0] & os.O_DIRECT or self.modes("raw")[-1] & os.O_DIRECT), direct)
                load.wait_for(20)
            self.reopen(self.file(locking="off"))
            load.wait_for(20)
            self.reopen(self.file(discard="ignore", **{"detect-zeroes": "on"}))
            load.wait_for(20)
            self.refused("Block node 'file' is read-only", "blockdev-reopen", options=[self.file(**{"read-only": True})])
        self.unexport()
        self.reopen(self.file(**{"read-only": True}))
        self.assertEqual([mode & os.O_ACCMODE for mode in self.modes("raw")], [os.O_RDONLY])
        self.export("file", writable=False)
        client = self.client()
        self.assertEqual(client.do(READ, 0, 512).error, 0)
        self.assertNotEqual(client.do(WRITE, 0, data=bytes(512)).error, 0)
        self.unexport()
        self.reopen(self.file())
        self.export("file")
        self.assertEqual(self.client().do(WRITE, 0, data=bytes(512)).error, 0)
        # It has another file under its name by now: that is not what is meant.
        os.rename(self.path("raw"), self.path("moved"))
        with open(self.path("raw"), "wb") as raw:
            raw.truncate(SIZE)
        self.refused("it was replaced meanwhile", "blockdev-reopen", options=[self.file(locking="off")])
        self.assertEqual(self.client().do(WRITE, 0, data=b"x" * 512).error, 0)
        self.finish()
        with open(self.path("moved"), "rb") as moved:
            self.assertEqual(moved.read(512), b"x" * 512)

    def as_somebody(self):
        """The daemon anew, as one for whom modes of files hold."""
        self.finish()
        nobody = 65534
        for path in (self.folder, *(self.path(name) for name in os.listdir(self.folder))):
            os.chown(path, nobody, nobody)
        self.daemon = self.start("--qmp", "qmp", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                                 user=nobody, group=nobody, extra_groups=[])
        programs.wait_until(lambda: self.cairnctl("query-version").returncode == 0, "the daemon")
        self.qmp = QmpClient(self.socket)
        self.addCleanup(self.qmp.close)
        self.call = self.qmp.call

    def test_auto_read_only(self):
        """A file that cannot be written, if it may be so."""
        os.chmod(self.path("raw"), 0o444)
        if os.geteuid() == 0:
            self.as_somebody()
        auto = self.file(**{"auto-read-only": True})
        self.refused("Could not open 'raw': Permission denied", "blockdev-add", **self.file())
        self.call("blockdev-add", **auto)
        self.call("blockdev-add", driver="raw", node_name="r", auto_read_only=True,
                  file={"driver": "file", "filename": "raw"})
        ro = {node["node-name"]: node["ro"] for node in self.call("query-named-block-nodes")}
        self.assertTrue(ro["file"])
        self.refused("Block node 'file' is read-only", "block-export-add", type="nbd", id="x", node_name="file",
                     writable=True)
        self.refused("is read-only", "block-export-add", type="nbd", id="x", node_name="r", writable=True)
        self.export("file", writable=False)
        self.assertEqual(self.client().do(READ, MIB, 1).data, b"\1")
        self.unexport()
        self.refused("Permission denied", "blockdev-reopen", options=[self.file()])
        self.export("file", writable=False)
        reader = self.client()
        would = [{"type": "block-export-add", "data": {"type": "nbd", "id": "x", "node-name": "file", "writable": True}}]
        self.refused("Block node 'file' is read-only", "transaction", actions=would, dry_run=True)
        os.chmod(self.path("raw"), 0o644)
        # The first who is to write has it opened again, and who reads does not notice.
        steps = self.call("transaction", actions=would, dry_run=True)["would"]
        self.assertIn({"action": "reopen", "name": "file"}, steps)
        self.assertTrue(self.call("qom-get", path="/nodes/file", property="read-only"))
        self.call("block-export-add", type="nbd", id="x", node_name="r", name="x", writable=True)
        self.call("block-export-del", id="x")
        self.assertTrue(self.call("qom-get", path="/nodes/file", property="read-only"))
        self.call("block-export-add", type="nbd", id="x", node_name="file", name="x", writable=True)
        self.assertEqual(reader.do(READ, MIB, 1).data, b"\1")
        self.assertFalse(self.call("qom-get", path="/nodes/file", property="read-only"))
        reader.close()
        self.call("block-export-del", id="x")
        self.unexport()
        self.reopen(self.file())
        self.export("file")
        self.assertEqual(self.client().do(WRITE, MIB, data=b"x" * 512).error, 0)
        self.finish()

    def test_auto_read_only_below(self):
        """An image that is to be written after all, over a file that could not be."""
        os.chmod(self.path("a"), 0o444)
        if os.geteuid() == 0:
            self.as_somebody()
        self.call("blockdev-add", **{"driver": "file", "filename": "a", "node-name": "below", "auto-read-only": True})
        image = self.qcow2(file="below", **{"read-only": True})
        self.call("blockdev-add", **image)
        image["read-only"] = False
        self.refused("Block node 'below' is read-only", "blockdev-reopen", options=[image])
        os.chmod(self.path("a"), 0o644)
        self.reopen(image)
        self.export("a")
        client = self.client()
        self.assertEqual((client.do(WRITE, 0, data=b"y" * 70000).error, client.do(FLUSH).error), (0, 0))
        self.finish()
        self.assertIn("No errors", self.tool("qemu-img", "check", "a"))

    def test_raw(self):
        """The window moves, and its users see other data and another size."""
        self.call("blockdev-add", **self.file())
        window = {"driver": "raw", "node-name": "window", "file": "file"}
        self.call("blockdev-add", **window, offset=MIB)
        self.call("blockdev-add", driver="delay", node_name="above", file="window")
        self.export("above")
        self.assertEqual(self.client().do(READ, 0, 1).data, b"\1")
        self.reopen(dict(window, offset=3 * MIB, size=MIB))
        client = self.client()
        self.assertEqual((client.size, client.do(READ, 0, 1).data), (MIB, b"\3"))
        self.reopen(window)
        client = self.client()
        self.assertEqual((client.size, client.do(READ, 0, 1).data), (SIZE, b"\0"))
        # Who relies on the size says so by name.
        self.call("blockdev-add", driver="raw", node_name="fixed", file="above", size=4 * MIB)
        self.refused("which does not allow 'resize' on node 'window'", "blockdev-reopen",
                     options=[dict(window, size=2 * MIB)])
        self.assertEqual(self.client().size, SIZE)
        self.finish()

    def test_qcow2_read_only(self):
        self.call("blockdev-add", **self.qcow2())
        self.export("a")
        client = self.client()
        self.assertEqual(client.do(WRITE, 70000, data=b"x" * 70000).error, 0)
        self.refused("Block node 'a' is read-only", "blockdev-reopen", options=[self.qcow2(**{"read-only": True})])
        client.close()
        self.unexport()
        self.reopen(self.qcow2(**{"read-only": True, "lazy-refcounts": True}))
        self.assertEqual({mode & os.O_ACCMODE for mode in self.modes("a")}, {os.O_RDONLY})
        self.assertIn("No errors", self.tool("qemu-img", "check", "a"))
        self.export("a", writable=False)
        self.assertEqual(self.client().do(READ, 70000, 70000).data, b"x" * 70000)
        self.unexport()
        self.reopen(self.qcow2(**{"lazy-refcounts": True}))
        self.export("a")
        client = self.client()
        self.assertEqual(client.do(WRITE, 0, data=b"y" * 70000).error, 0)
        self.assertEqual(client.do(FLUSH).error, 0)
        # The dirty bit stands while refcounts are late, and goes when they no longer may be.
        with open(self.path("a"), "rb") as image:
            self.assertEqual(image.read(80)[79] & 1, 1)
        self.reopen(self.qcow2())
        with open(self.path("a"), "rb") as image:
            self.assertEqual(image.read(80)[79] & 1, 0)
        self.assertEqual(client.do(READ, 0, 140000).data, b"y" * 70000 + b"x" * 70000)
        self.finish()
        self.assertIn("No errors", self.tool("qemu-img", "check", "a"))

    def test_qcow2_keeps_state(self):
        """Counters go on; tables stay in memory, as far as they fit."""
        self.call("blockdev-add", **self.qcow2())
        self.export("a")
        client = self.client()
        self.assertEqual(client.do(WRITE, 0, data=b"x" * MIB).error, 0)
        for _ in range(10):
            client.do(READ, 0, 4096)

        def stat(name):
            return self.call("qom-get", path="/nodes/a", property=name)
        hits, misses = stat("l2-hits"), stat("l2-misses")
        self.assertGreaterEqual(hits, 10)
        for options in ({"cache-size": 16 * MIB}, {"l2-cache-size": 32768}, {"discard-no-unref": True}, {}):
            self.reopen(self.qcow2(**options))
            self.assertEqual(client.do(READ, 0, 4096).data, b"x" * 4096)
            self.assertEqual(stat("l2-misses"), misses)
            self.assertGreater(stat("l2-hits"), hits)
        self.finish()

    def test_an_export_that_moves_keeps_its_name(self):
        """The name that it has from its first node, which may go."""
        self.call("blockdev-add", **self.file())
        self.call("blockdev-add", driver="null-co", node_name="first-node-of-the-export", size=SIZE, read_zeroes=True)
        self.call("block-export-add", type="nbd", id="e", node_name="first-node-of-the-export")
        listed = [line for line in self.tool("nbdinfo", "--list", "nbd+unix:///?socket=nbd").splitlines() if "export=" in line]
        self.call("x-blockdev-change", parent="e", child="root", node="file")
        self.call("blockdev-del", node_name="first-node-of-the-export")
        self.assertEqual(listed, ['export="first-node-of-the-export":'])
        self.assertIn(listed[0], self.tool("nbdinfo", "--list", "nbd+unix:///?socket=nbd").splitlines())
        client = NbdClient(self.path("nbd")).go("first-node-of-the-export")
        self.assertEqual(client.do(READ, 3 * MIB, 1).data, b"\3")
        client.close()
        self.finish()

    def test_qcow2_backing(self):
        self.call("blockdev-add", **self.file(**{"read-only": True}))
        self.call("blockdev-add", **self.qcow2(backing="file"))
        self.call("blockdev-add", driver="null-co", node_name="zeroes", size=SIZE, read_zeroes=True, read_only=True)
        self.export("a")
        client = self.client()

        def first():
            return client.do(READ, 2 * MIB, 1).data
        self.assertEqual(first(), b"\2")
        self.reopen(self.qcow2(backing="zeroes"))
        self.assertEqual(first(), b"\0")
        self.call("x-blockdev-change", parent="a", child="backing", node="file")
        self.assertEqual(first(), b"\2")
        self.call("x-blockdev-change", parent="a", child="backing", node=None)
        self.assertEqual(first(), b"\0")
        self.assertIsNone(self.call("query-node-options", node_name="a")[0]["backing"])
        # Made here, and gone when nobody has it any more.
        self.call("x-blockdev-change", parent="a", child="backing",
                  node={"driver": "raw", "node-name": "inside", "file": "file"})
        self.assertEqual(first(), b"\2")
        self.reopen(self.qcow2(backing="file"))
        self.assertNotIn("inside", [node["node-name"] for node in self.call("query-named-block-nodes")])
        # Another image altogether.
        self.call("blockdev-add", driver="file", node_name="other", filename="b")
        self.reopen(dict(self.qcow2(backing=None), file="other"))
        self.assertEqual(first(), b"\0")
        self.assertEqual(client.do(WRITE, 0, data=b"z" * 512).error, 0)
        self.finish()
        self.tool("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x7a 0 512", "b")
        self.tool("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0 0 512", "a")

    def test_repair(self):
        """A damaged image stays in the graph, can be read, and is whole again once it was repaired and reopened."""
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "a")
        with open(self.path("a"), "r+b") as image:
            image.seek(40)
            image.seek(struct.unpack(">Q", image.read(8))[0])
            l2 = struct.unpack(">Q", image.read(8))[0] & ~(1 << 63)
            # The second cluster is said to begin in the middle of one.
            image.seek(l2 + 8)
            image.write(struct.pack(">Q", l2 + 512 | 1 << 63))
        self.call("blockdev-add", **self.qcow2())
        self.export("a")
        client = self.client()
        self.assertNotEqual(client.do(WRITE, 65536, data=bytes(4096)).error, 0)
        self.assertNotEqual(client.do(WRITE, 0, data=bytes(4096)).error, 0)
        self.assertTrue(self.call("qom-get", path="/nodes/a", property="corrupted"))
        # It was not repaired yet, and is as it was after that is found.
        self.refused("corrupt", "blockdev-reopen", options=[self.qcow2()])
        self.assertTrue(self.call("qom-get", path="/nodes/a", property="corrupted"))
        self.assertNotEqual(client.do(WRITE, 0, data=bytes(4096)).error, 0)
        self.assertEqual(client.do(READ, 0, 65536).data, b"\1" * 65536)
        client.close()
        self.unexport()
        self.reopen(self.qcow2(**{"read-only": True, "force-share": True}))
        self.export("a", writable=False)
        self.assertEqual(self.client().do(READ, 0, 65536).data, b"\1" * 65536)
        self.unexport()
        # Repaired by hand: what stock tools make of such an entry is no image.
        with open(self.path("a"), "r+b") as image:
            image.seek(72)
            features, = struct.unpack(">Q", image.read(8))
            self.assertEqual(features & 2, 2)
            image.seek(72)
            image.write(struct.pack(">Q", features & ~2))
            image.seek(l2 + 8)
            image.write(bytes(8))
        self.reopen(self.qcow2())
        self.assertFalse(self.call("qom-get", path="/nodes/a", property="corrupted"))
        self.export("a")
        client = self.client()
        self.assertEqual(client.do(WRITE, 65536, data=b"\2" * 4096).error, 0)
        self.assertEqual(client.do(READ, 0, 1).data, b"\1")
        self.finish()
        self.assertIn("No errors", self.tool("qemu-img", "check", "a"))

    def test_round_trip(self):
        """What query-node-options tells makes the same node again: for each driver, with all kinds of options."""
        null = {"driver": "null-co", "size": MIB}
        self.call("object-add", qom_type="throttle-group", id="g", limits={"iops-total": 10})
        self.call("blockdev-add", node_name="below", **null)
        with open(self.path("rules"), "w") as rules:
            rules.write('[set-state]\nevent = "read"\nnew_state = "7"\n')
        rows = {
            "blkdebug": {"image": null, "config": "rules", "align": 4096, "max-transfer": 65536, "take-child-perms": ["write"],
                         "inject-error": [{"event": "read_aio", "errno": 5, "once": True, "sector": 7}],
                         "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}]},
            "blklogwrites": {"file": null, "log": {"driver": "file", "filename": "raw"}, "log-sector-size": 4096},
            "blkverify": {"test": null, "raw": "below"},
            "compress": {"file": {"driver": "qcow2", "file": {"driver": "file", "filename": "a"}}},
            "copy-on-read": {"file": {"driver": "qcow2", "file": {"driver": "file", "filename": "a"}, "node-name": "over",
                                      "backing": null | {"node-name": "last"}}, "bottom": "last"},
            "delay": {"file": "below", "read-ns": 1, "jitter-ns": 3},
            "detect-zeroes": {"file": null, "mode": "unmap"},
            "file": {"filename": "raw", "locking": "off", "cache": {"direct": False, "no-flush": True}},
            "null-co": {"size": 4096, "read-zeroes": True, "latency-ns": 0},
            "preallocate": {"file": {"driver": "file", "filename": "raw"}},
            "qcow2": {"file": {"driver": "file", "filename": "a"}, "backing": {"driver": "raw", "file": null},
                      "overlap-check": {"template": "all", "main-header": False}, "lazy-refcounts": True,
                      "cache-size": 1 << 20, "cache-clean-interval": 0},
            "quorum": {"children": ["below", None, null], "vote-threshold": 1, "read-pattern": "fifo"},
            "raw": {"file": {"driver": "delay", "file": null}, "offset": 512, "size": 1024},
            "throttle": {"file": null, "throttle-group": "g"},
        }
        # They need what is not everywhere: a device, a server.
        known = set(rows) | {"host_device", "nbd"}
        schema = {entity["name"]: entity for entity in self.call("query-qmp-schema")}
        drivers = {variant["case"] for variant in schema[schema["blockdev-add"]["arg-type"]]["variants"]}
        self.assertEqual(drivers - known, set(), "give each driver a row")
        for driver in sorted(drivers & set(rows)):
            for common in ({}, {"discard": "unmap", "detect-zeroes": "unmap"}, {"read-only": True, "force-share": True}):
                with self.subTest(driver=driver, common=common):
                    # What writes can do nothing here.
                    if common.get("read-only") and driver in ("blklogwrites", "compress", "preallocate", "copy-on-read",
                                                              "blkdebug"):
                        continue
                    self.call("blockdev-add", driver=driver, node_name="n", **rows[driver], **common)
                    options, = self.call("query-node-options", node_name="n")
                    for name, value in (common | {"driver": driver}).items():
                        self.assertEqual(options[name], value)
                    self.reopen(options)
                    self.assertEqual(self.call("query-node-options", node_name="n"), [options])
                    self.call("blockdev-del", node_name="n")
                    self.call("blockdev-add", **options)
                    self.assertEqual(self.call("query-node-options", node_name="n"), [options])
                    self.call("blockdev-del", node_name="n")
        self.assertEqual(len(self.call("query-named-block-nodes")), 1)
        self.finish()

    def test_loops(self):
        """Refused before anybody goes round in them: of a node that is not there yet, and between actions."""
        cor, change = {"driver": "copy-on-read", "node-name": "x"}, "x-blockdev-change"
        self.call("blockdev-add", **self.file())
        self.call("blockdev-add", **self.qcow2())
        self.call("blockdev-add", driver="delay", node_name="top", file="a")
        self.call("source-add", id="s", node="top")
        self.refused("Making node 'x' the 'file' child of node 'x' would form a loop", "blockdev-add", **cor, file="x")
        self.refused("'file' child of node 'y' would form a loop", "blockdev-add", **cor,
                     file={"driver": "delay", "node-name": "y", "file": "x"})
        self.refused("would form a loop", change, parent="top", child="file", node=dict(cor, file="top"))
        for after in ({"type": "source-switch", "data": {"source": "s", "node": "a"}},
                      {"type": "source-pop", "data": {"source": "s", "filter": "none"}},
                      {"type": "blockdev-snapshot", "data": {"node": "s", "overlay": "none"}}):
            self.refused("would form a loop", "transaction", actions=[
                {"type": change, "data": {"parent": "top", "child": "file", "node": "top"}}, after])
        self.refused("would form a loop", "blockdev-reopen", options=[
            {"driver": "delay", "node-name": "top", "file": "top"}, self.qcow2("a", file="top")])
        self.finish()

    def test_properties(self):
        """Asked for while the node is being opened anew, which takes its time."""
        self.call("blockdev-add", driver="delay", node_name="slow", read_ns=300000000,
                  file={"driver": "file", "filename": "b"})
        self.call("blockdev-add", **self.qcow2())
        other = QmpClient(self.socket)
        self.addCleanup(other.close)
        names = [row["name"] for row in self.call("qom-list", path="/nodes/a") if row["type"] == "uint64"]
        self.assertIn("flushes", names)
        opening = threading.Thread(target=other.call, args=["blockdev-reopen"],
                                   kwargs={"options": [self.qcow2(file="slow")]})
        opening.start()
        count = 0
        while opening.is_alive():
            for name in names:
                self.assertGreaterEqual(self.call("qom-get", path="/nodes/a", property=name), 0)
            self.call("query-named-block-nodes")
            count += 1
        self.assertGreater(count, 1)
        opening.join()
        self.assertEqual(self.call("qom-get", path="/nodes/a", property="cluster-size"), 65536)
        self.finish()

    def test_exports_move(self):
        self.call("blockdev-add", **self.file())
        self.call("blockdev-add", **self.qcow2())
        self.call("source-add", id="s", node="a")
        self.export("s")
        client = self.client()
        self.assertEqual(client.do(READ, MIB, 1).data, b"\0")
        self.call("x-blockdev-change", parent="e", child="root", node="file")
        self.assertEqual(client.do(READ, MIB, 1).data, b"\1")
        self.assertEqual(self.call("query-sources")[0]["users"], [])
        self.refused("Cannot find device", "x-blockdev-change", parent="e", child="root", node="none")
        self.refused("cannot be without its child 'root'", "x-blockdev-change", parent="e", child="root", node=None)
        self.refused("has no child 'file'", "x-blockdev-change", parent="e", child="file", node="a")
        self.call("x-blockdev-change", parent="e", child="root", node="s")
        self.call("x-blockdev-change", parent="s", child="top", node="file")
        self.assertEqual(client.do(READ, MIB, 1).data, b"\1")
        self.call("source-push", source="s", filter={"driver": "delay", "node-name": "d"})
        self.call("x-blockdev-change", parent="s", child="base", node="a")
        self.assertEqual(client.do(READ, MIB, 1).data, b"\0")
        self.assertEqual(self.call("query-sources")[0]["nodes"], ["d", "a"])
        self.finish()

    def test_locks(self):
        """Stock tools refuse what we have, and we what they have, but for those who take no locks."""
        write = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", "a"]
        self.call("blockdev-add", **self.qcow2())
        self.export("a")
        self.assertIn("lock", self.tool(*write, code=1))
        self.tool("qemu-img", "info", "-U", "a")
        self.assertIn("lock", self.tool("qemu-img", "info", "a", code=1))
        self.tool("qemu-io", "-U", "-r", "-f", "qcow2", "-c", "read 0 512", "a")
        self.unexport()
        # Read-only leaves room for readers.
        self.reopen(self.qcow2(**{"read-only": True}))
        self.tool("qemu-img", "info", "a")
        self.assertIn("lock", self.tool(*write, code=1))
        self.reopen(self.qcow2(**{"read-only": True, "force-share": True}))
        self.tool(*write)
        self.call("blockdev-del", node_name="a")
        with subprocess.Popen(["qemu-io", "-f", "qcow2", "a"], cwd=self.folder, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as other:
            other.stdin.write("write 0 512\n")
            other.stdin.flush()
            other.stdout.readline()
            self.refused("lock", "blockdev-add", **self.qcow2())
            self.refused("lock", "blockdev-add", **self.qcow2(**{"read-only": True}))
            self.call("blockdev-add", **self.qcow2(**{"read-only": True, "force-share": True}))
            self.refused("lock", "blockdev-reopen", options=[self.qcow2(**{"read-only": True})])
            self.refused("lock", "blockdev-reopen", options=[self.qcow2()])
            other.communicate("quit\n", timeout=programs.PATIENCE)
        self.reopen(self.qcow2())
        self.finish()


if __name__ == "__main__":
    unittest.main()
