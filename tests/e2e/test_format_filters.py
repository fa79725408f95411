#!/usr/bin/python3
"""Filters that work together with a format, and blkdebug, blklogwrites: end to end, with stock tools."""
import json
import os
import random
import select
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from filters import Filters
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20


class Debug(Filters):
    def breakpoint(self, event):
        self.ask("blkdebug-break", "node-name=debug", f"event={event}", "tag=t")

    def suspended(self):
        return self.ask("query-blkdebug", "node-name=debug") == [
            {"tag": "t", "event": self.event, "suspended": True}]

    def assert_hit(self, event, *steps):
        """The event happens in one of these requests, which wait for it and end well."""
        client = self.client()
        self.event = event
        self.breakpoint(event)
        for op, offset, length in steps:
            data = b"z" * length if op == WRITE else b""
            cookie = client.request(op, offset, 0 if op == FLUSH else length, data=data)
            if self.suspended_now(client, event):
                self.ask("blkdebug-resume", "node-name=debug", "tag=t")
                self.assertEqual(client.reply(op, length)[0], cookie)
                return
            self.assertEqual(client.reply(op, length)[0], cookie)
        self.fail(f"{event} never happened")

    def suspended_now(self, client, event):
        """Waits until the request is suspended or answered; whether it is suspended."""
        return programs.wait_until(lambda: "yes" if self.suspended() else
                                   "no" if select.select([client.socket], [], [], 0)[0] else None, event) == "yes"

    def test_errors_reach_the_client(self):
        daemon = self.daemon({"driver": "blkdebug", "node-name": "disk", "image": {"driver": "null-co", "size": MIB},
                              "inject-error": [{"event": "none", "iotype": "write", "errno": 28, "once": True},
                                               {"event": "none", "iotype": "read", "sector": 8}]})
        client = self.client()
        self.assertEqual([client.do(WRITE, 0, data=bytes(512)).error for _ in range(3)], [ENOSPC, 0, 0])
        self.assertEqual([client.do(READ, offset, 512).error for offset in (3584, 4096, 4608)], [0, EIO, 0])
        self.end(daemon)

    def config(self, text):
        with open(self.path("rules"), "w") as rules:
            rules.write(text)
        return {"driver": "blkdebug", "node-name": "disk", "image": "null", "config": "rules"}

    def test_config(self):
        """Rules of a file, besides those of the options."""
        options = self.config("""# The second write fails, once, and reads of sector 8.
[set-state]
event = "write_aio"
state = "1"
new_state = "2"

  [inject-error "named"]
event = "none"
  iotype =\t"write"
state = "2"
errno = "28"
once = "on"
immediately = "off"
[inject-error]
event = "read_aio"
sector = "8"
""")
        daemon = self.daemon({"driver": "null-co", "node-name": "null", "size": MIB},
                             options | {"inject-error": [{"event": "none", "iotype": "flush"}]})
        client = self.client()

        def errors():
            return ([client.do(WRITE, 0, data=bytes(512)).error for _ in range(3)] +
                    [client.do(READ, offset, 512).error for offset in (3584, 4096)] + [client.do(FLUSH).error])

        self.assertEqual(errors(), [ENOSPC, 0, 0, 0, EIO, EIO])
        described, = self.ask("query-node-options", "node-name=disk")
        self.assertEqual((described["config"], len(described["inject-error"])), ("rules", 1))
        self.assertNotIn("set-state", described)
        described["set-state"] = [{"event": "discard", "new_state": 9}]
        # Read once more by a reopen, and what is wrong there changes nothing.
        text = '[inject-error]\nevent = "none"\niotype = "read"\n'
        self.config(text)
        for wrong, error in (
                ('x = "1"', "line 4: 'x' is unexpected"), ("errno = 5", "line 4: 'errno = 5' is not of the form"),
                ('errno = "5" x', "is not of the form"), ('errno = "0"', "'errno' expects a number from 1 to 4095"),
                ('errno = "-1"', 'not "-1"'), ('once = "1"', '\'once\' expects "on" or "off", not "1"'),
                ('event = "never"', '\'event\' does not accept "never"'), ("[set-state", "is not of the form [section]"),
                ("[other]", "section [other] is neither"), ('[set-state]\nevent = "read"', "lacks 'new_state'"),
                ('[set-state]\nevent = "none"\nnew_state = "1"', 'event "none" of the section before never happens'),
                ("\0", "is not a text file"), (" " * MIB, "is not a file of at most 1048576 bytes"),
                ("[set-state]\n" * 1025, "lacks 'event'")):
            self.config(text + wrong)
            failed = self.cairnctl("blockdev-reopen", json.dumps({"options": [described]})).stderr
            self.assertIn("config=rules", failed)
            self.assertIn(error, failed)
        failed = self.cairnctl("blockdev-reopen", json.dumps({"options": [described | {"config": "none"}]})).stderr
        self.assertIn("Could not open config=none: No such file or directory", failed)
        os.mkfifo(self.path("pipe"))
        failed = self.cairnctl("blockdev-reopen", json.dumps({"options": [described | {"config": "pipe"}]})).stderr
        self.assertIn("config=pipe is not a file", failed)
        self.assertEqual(errors(), [0, 0, 0, 0, EIO, EIO])
        self.config(text)
        self.ask("blockdev-reopen", json.dumps({"options": [described]}))
        self.assertEqual(errors(), [0, 0, 0, EIO, EIO, EIO])
        self.end(daemon)

    def test_events_of_qcow2(self):
        """Each event happens where it should, waits, and goes on."""
        self.file("base", 2 * MIB, 7)
        self.run_tool("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", "base", "-o", "cluster_size=512", "image")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", "-c", "write -c -P 6 64k 512", "image")
        self.run_tool("qemu-img", "snapshot", "-c", "one", "image")
        daemon = self.daemon(
            {"driver": "qcow2", "node-name": "disk", "discard": "unmap",
             "file": {"driver": "blkdebug", "node-name": "debug", "discard": "unmap",
                      "image": {"driver": "file", "filename": "image", "discard": "unmap"}}})
        self.assert_hit("l2_load", (READ, 0, 4096))
        self.assert_hit("read_aio", (READ, 0, 512))
        self.assert_hit("read", (READ, 0, 512))
        self.assert_hit("read_backing_aio", (READ, MIB, 512))
        self.assert_hit("read_compressed", (READ, 65536, 512))
        self.assert_hit("refblock_load", (WRITE, 0, 512))
        self.assert_hit("cluster_alloc", (WRITE, 512, 512))
        self.assert_hit("l2_alloc_write", (WRITE, 32768, 512), (WRITE, 65536, 512))
        self.assert_hit("cow_read", (WRITE, MIB + 100, 10))
        self.assert_hit("cow_write", (WRITE, MIB + 1024 + 100, 10))
        self.assert_hit("write_aio", (WRITE, MIB + 100, 10))
        self.assert_hit("pwritev", (WRITE, MIB + 100, 10))
        for offset, event in enumerate(("flush_to_disk", "refblock_update", "l2_update", "l1_update")):
            offset = MIB + (offset + 2) * 65536
            self.assert_hit(event, (WRITE, offset, 512), (FLUSH, 0, 0))
        many = [(WRITE, offset, 65536) for offset in range(0, 2 * MIB, 65536)]
        self.assert_hit("refblock_alloc_write", *many[:16])
        self.assert_hit("reftable_update", *many[16:], (FLUSH, 0, 0))
        self.assert_hit("cluster_free", *3 * [(TRIM, 0, MIB), (FLUSH, 0, 0), (WRITE, MIB, 4096)])
        self.end(daemon)
        self.run_tool("qemu-img", "check", "image")

    def test_metadata_errors(self):
        """A flush whose metadata cannot be written fails, and the next one makes good for it."""
        for event in ("refblock_update", "l2_update", "l1_update", "flush_to_disk"):
            with self.subTest(event):
                self.run_tool("qemu-img", "create", "-f", "qcow2", "image", "8M")
                daemon = self.daemon(
                    {"driver": "qcow2", "node-name": "disk",
                     "file": {"driver": "blkdebug", "node-name": "debug",
                              "inject-error": [{"event": event, "once": True}],
                              "image": {"driver": "file", "filename": "image"}}})
                client = self.client()
                self.assertEqual(client.do(WRITE, MIB, data=b"a" * 4096).error, 0)
                self.assertEqual([client.do(FLUSH).error for _ in range(2)], [EIO, 0])
                self.assertEqual(client.do(READ, MIB, 4096).data, b"a" * 4096)
                self.end(daemon)
                self.run_tool("qemu-img", "check", "image")
                self.run_tool("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 97 1M 4k", "image")

    def test_breakpoints_and_changes(self):
        daemon = self.daemon({"driver": "blkdebug", "node-name": "debug", "image": {"driver": "null-co", "size": MIB}},
                             export="debug")
        client = self.client("debug")
        self.event = "pwritev"
        self.breakpoint("pwritev")
        client.request(WRITE, 0, 512, data=bytes(512))
        programs.wait_until(self.suspended, "the breakpoint")
        self.assertEqual(client.do(READ, 0, 512).error, 0)
        self.ask("block_resize", "node-name=debug", f"size={2 * MIB}")
        client.reply(WRITE, 512)
        self.assertEqual(self.ask("query-blkdebug", "node-name=debug"), [])
        failed = self.cairnctl("blkdebug-resume", "node-name=debug", "tag=x")
        self.assertIn("There is no breakpoint 'x'", failed.stderr)
        failed = self.cairnctl("blkdebug-break", "node-name=debug", "tag=x", "event=none")
        self.assertIn("event=none", failed.stderr)
        self.end(daemon)


class Formats(Filters):
    """Filters that ask something of a format below."""

    def allocated(self, image, depth=0):
        """Ranges that the image itself has, as (start, end, whether they are zero clusters)."""
        ranges = []
        for row in json.loads(self.run_tool("qemu-img", "map", "--output=json", "-U", image)):
            if row["depth"] == depth and row["present"]:
                start, end = row["start"], row["start"] + row["length"]
                if ranges and ranges[-1][1] == start and ranges[-1][2] == row["zero"]:
                    start = ranges.pop()[0]
                ranges.append((start, end, row["zero"]))
        return ranges

    def overlay(self, **options):
        """An image over base, of which the second MiB is zero."""
        with open(self.path("base"), "wb") as base:
            base.write(bytes(range(1, 129)) * (4 * MIB // 128))
            base.seek(MIB)
            base.write(bytes(MIB))
        self.run_tool("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", "base", *options.get("more", ()), "image")
        return {"driver": "copy-on-read", "node-name": "disk", "file": {
            "driver": "qcow2", "node-name": "image", "discard": "unmap", "file": options.get("file") or {
                "driver": "file", "filename": "image", "discard": "unmap"}}}

    def test_copy_on_read(self):
        daemon = self.daemon(self.overlay())
        client = self.client()
        with open(self.path("base"), "rb") as base:
            expected = base.read()
        # A cluster that is read in part is kept whole, zeroes take no room, and what nobody reads is not kept.
        for offset, length in ((70000, 10), (MIB + 5, 131072), (2 * MIB + 65536, 131072), (4 * MIB - 10, 10)):
            for _ in range(2):
                self.assertEqual(client.do(READ, offset, length).data, expected[offset:offset + length])
        client.do(CACHE, 3 * MIB, 65537)
        self.assertEqual(self.ask("query-blockstats")[0]["stats"]["wr_operations"], 0)
        self.end(daemon)
        self.assertEqual(self.allocated("image"), [
            (65536, 131072, False), (MIB, MIB + 3 * 65536, True), (2 * MIB + 65536, 2 * MIB + 3 * 65536, False),
            (3 * MIB, 3 * MIB + 131072, False), (4 * MIB - 65536, 4 * MIB, False)])
        self.assertLess(os.stat(self.path("image")).st_size, MIB)
        self.assertIn("identical", self.run_tool("qemu-img", "compare", "image", "base"))
        self.run_tool("qemu-img", "check", "image")

    def test_copy_on_read_of_subclusters(self):
        daemon = self.daemon(self.overlay(more=("-o", "extended_l2=on")))
        client = self.client()
        self.assertEqual(client.do(ZEROES, 36864, 4096).error, 0)
        for _ in range(2):
            self.assertEqual(client.do(READ, 32768, 8192).data, bytes(range(1, 129)) * 32 + bytes(4096))
        self.end(daemon)
        self.assertEqual(self.allocated("image"), [(0, 36864, False), (36864, 40960, True), (40960, 65536, False)])

    def test_copy_on_read_of_a_backing_that_comes(self):
        options = self.overlay()
        options["file"]["backing"] = None
        raw = {"driver": "raw", "node-name": "view", "file": options["file"]}
        daemon = self.daemon({"driver": "file", "node-name": "base", "filename": "base", "read-only": True},
                             options | {"file": raw})
        client = self.client()
        self.assertEqual(client.do(READ, 0, 512).data, bytes(512))
        self.ask("x-blockdev-change", "parent=image", "child=backing", "node=base")
        self.assertEqual(client.do(READ, 65536, 512).data[0], 1)
        self.end(daemon)
        self.assertEqual(self.allocated("image"), [(65536, 131072, False)])

    def chain(self, **more):
        """disk (copy-on-read) over image over upper over a filter over lower over base; expected content."""
        overlay = self.overlay()
        with open(self.path("base"), "rb") as base:
            expected = bytearray(base.read())
        os.rename(self.path("image"), self.path("lower"))
        self.run_tool("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", "lower", "-o", "cluster_size=4096",
                      "upper", "3M")
        self.run_tool("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", "upper", "image", "4M")
        expected[3 * MIB:] = bytes(MIB)
        for image, byte, start, end in (("lower", 5, 65536, 3 * 65536), ("lower", 5, 3 * MIB, 4 * MIB),
                                        ("upper", 6, 2 * MIB, 2 * MIB + 4096), ("upper", 0, 128 * 1024, 192 * 1024)):
            self.run_tool("qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {start} {end - start}", image)
            if image == "upper" or start < MIB:
                expected[start:end] = bytes([byte]) * (end - start)
        below = {}
        for image in ("lower", "upper", "image"):
            below = {"driver": "qcow2", "node-name": image, "file": {"driver": "file", "filename": image},
                     "backing": below or {"driver": "raw", "node-name": "base",
                                          "file": {"driver": "file", "filename": "base"}}}
            if image == "lower":
                below = {"driver": "delay", "node-name": "filter", "file": below}
        return overlay | {"file": below} | more, bytes(expected)

    def test_copy_on_read_bottom(self):
        # What each keeps of reads in small parts of: nothing but base; lower; zeroes in upper; base around 4 KiB of
        # upper; what lower has behind the end of upper.
        reads = ((0, 512), (100000, 512), (130 * 1024, 512), (2 * MIB + 100, 1000), (2 * MIB + 8192, 512),
                 (MIB, 65536), (3 * MIB + 512, 512))
        lower, zero, upper = (65536, 131072, False), (131072, 196608, True), (2 * MIB, 2 * MIB + 65536, False)
        all_of_base = [(0, 131072, False), zero, (MIB, MIB + 65536, True), upper]
        for bottom, kept in (("image", []), ("upper", [zero, upper]), ("lower", [lower, zero, upper]),
                             ("base", all_of_base), (None, all_of_base)):
            with self.subTest(bottom=bottom):
                options, expected = self.chain(**({"bottom": bottom} if bottom else {}))
                daemon = self.daemon(options)
                client = self.client()
                for offset, length in reads:
                    for _ in range(2):
                        self.assertEqual(client.do(READ, offset, length).data, expected[offset:offset + length])
                self.assertEqual(client.do(READ, 0, 4 * MIB).data if bottom == "image" else expected, expected)
                client.close()
                self.end(daemon)
                self.assertEqual(self.allocated("image"), kept)
                self.run_tool("qemu-img", "check", "image")
                os.remove(self.path("lower"))

    def test_copy_on_read_bottom_of_long_reads(self):
        options, expected = self.chain(bottom="lower")
        daemon = self.daemon(options)
        client = self.client()
        self.assertEqual(client.do(READ, 10, 4 * MIB - 20).data, expected[10:-10])
        client.do(CACHE, 0, 4 * MIB)
        self.end(daemon)
        self.assertEqual(self.allocated("image"), [
            (65536, 131072, False), (131072, 196608, True), (2 * MIB, 2 * MIB + 65536, False)])

    def test_copy_on_read_bottom_and_changes(self):
        """It is a layer of the chain, whatever changes there."""
        options, expected = self.chain()
        daemon = self.daemon(options, options=("--object", "throttle-group,id=g"))
        client = self.client()
        described, = self.ask("query-node-options", "node-name=disk")

        def refused(error, command, **arguments):
            before = self.ask("query-block-graph")
            self.assertIn(error, self.cairnctl(command, json.dumps(arguments)).stderr)
            self.assertEqual(self.ask("query-block-graph"), before)

        for bottom, error in (("none", "bottom=none is not in the backing chain below node 'disk'"),
                              ("disk", "bottom=disk is not in the backing chain"), ("", "bottom="),
                              ("filter", "bottom=filter is a filter")):
            refused(error, "blockdev-reopen", options=[described | {"bottom": bottom}])
        self.ask("blockdev-reopen", json.dumps({"options": [described | {"bottom": "upper"}]}))
        described, = self.ask("query-node-options", "node-name=disk")
        self.assertEqual(described["bottom"], "upper")
        client.do(READ, 65536, 512)
        # Below it all may change, above it too, and it may not go.
        self.ask("blockdev-add", json.dumps({"driver": "throttle", "node-name": "more", "throttle-group": "g",
                                             "file": "lower"}))
        self.ask("x-blockdev-change", json.dumps({"parent": "filter", "child": "file", "node": "more"}))
        self.ask("blockdev-add", json.dumps({"driver": "delay", "node-name": "above", "file": "image"}))
        self.ask("x-blockdev-change", json.dumps({"parent": "disk", "child": "file", "node": "above"}))
        described, = self.ask("query-node-options", "node-name=disk")
        self.assertEqual(described["bottom"], "upper")
        gone = {"parent": "image", "child": "backing", "node": "lower"}
        refused("bottom=upper is not in the backing chain below node 'disk'", "x-blockdev-change", **gone)
        refused("bottom=upper is not in the backing chain below node 'disk'", "transaction",
                actions=[{"type": "x-blockdev-change", "data": gone}], **{"dry-run": True})
        self.assertEqual(client.do(READ, 0, 4 * MIB).data, expected)
        self.ask("transaction", json.dumps({"actions": [
            {"type": "blockdev-reopen", "data": {"options": [described | {"bottom": "lower"}]}},
            {"type": "x-blockdev-change", "data": gone}]}))
        self.assertEqual(self.ask("query-node-options", "node-name=disk")[0]["bottom"], "lower")
        client.do(READ, 65536, 512)
        client.do(FLUSH)
        refused("Node lower is not owned by the monitor", "blockdev-del", **{"node-name": "lower"})
        client.close()
        self.ask("block-export-del", "id=disk")
        described, = self.ask("query-node-options", "node-name=disk")
        self.ask("blockdev-del", "node-name=disk")
        self.ask("blockdev-add", json.dumps(described))
        self.assertEqual(self.ask("query-node-options", "node-name=disk"), [described])
        self.end(daemon)

    def test_copy_on_read_under_load(self):
        """Reads that keep never undo a write that is faster."""
        with self.subTest("all"):
            options = self.overlay(more=("-o", "cluster_size=4096"))
            with open(self.path("base"), "rb") as base:
                self.load(options, bytearray(base.read()))
        for bottom in ("upper", "lower"):
            with self.subTest(bottom=bottom):
                options, expected = self.chain(bottom=bottom)
                self.load(options, bytearray(expected))

    def load(self, options, model):
        daemon = self.daemon(options)
        client, chance = self.client(), random.Random(5)
        for _ in range(300):
            at, length = chance.randrange(0, 4 * MIB - 20000), chance.randrange(1, 10000)
            data = chance.randbytes(length)
            around = [max(0, at + chance.randrange(-9000, 9000)) for _ in range(8)]
            for offset in around[:4]:
                client.request(READ, offset, 10000)
            write = client.request(WRITE, at, length, data=data)
            for offset in around[4:]:
                client.request(READ, offset, 10000)
            model[at:at + length] = data
            for _ in range(9):
                self.assertEqual(client.receive(8), struct.pack(">II", SIMPLE_MAGIC, 0))
                cookie, = struct.unpack(">Q", client.receive(8))
                client.receive(0 if cookie == write else 10000)
            start = max(0, at - 5000)
            self.assertEqual(client.do(READ, start, 16000).data, model[start:start + 16000])
        for offset in range(0, 4 * MIB, MIB):
            self.assertEqual(client.do(READ, offset, MIB).data, model[offset:offset + MIB])
        client.close()
        self.end(daemon)
        self.run_tool("qemu-img", "check", "image")
        with open(self.path("model"), "wb") as stream:
            stream.write(model)
        self.assertIn("identical", self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "image", "model"))

    def test_copy_on_read_without_space(self):
        daemon = self.daemon(self.overlay(file={
            "driver": "blkdebug", "inject-error": [{"event": "none", "iotype": "write", "errno": 28}],
            "image": {"driver": "file", "filename": "image"}}))
        client = self.client()
        self.assertEqual(client.do(READ, 65536, 3).data, bytes((1, 2, 3)))
        self.assertEqual(client.do(READ, 0, MIB).error, 0)
        self.end(daemon)
        self.assertEqual(self.allocated("image"), [])

    def test_copy_on_read_of_nothing(self):
        self.file("plain", MIB, 3)
        options = {"driver": "copy-on-read", "node-name": "disk",
                   "file": {"driver": "file", "filename": "plain", "read-only": True}}
        daemon = self.daemon(export=None)
        self.assertIn("is read-only", self.cairnctl("blockdev-add", json.dumps(options)).stderr)
        options["file"]["read-only"] = False
        self.ask("blockdev-add", json.dumps(options))
        self.ask("block-export-add", "type=nbd", "id=disk", "node-name=disk")
        self.assertEqual(self.client().do(READ, 0, 512).data, bytes([3]) * 512)
        self.end(daemon)

    def test_compress(self):
        self.run_tool("qemu-img", "create", "-f", "qcow2", "image", "8M")
        daemon = self.daemon({"driver": "compress", "node-name": "disk", "discard": "unmap", "file": {
            "driver": "qcow2", "file": {"driver": "file", "filename": "image"}, "discard": "unmap"}})
        noise = random.Random(1).randbytes(65536)
        client = self.client()
        client.do(WRITE, 0, data=b"a" * MIB)
        client.do(WRITE, 100, data=b"b" * 100000)
        client.do(WRITE, MIB, data=noise)
        self.assertEqual(client.do(READ, 0, MIB).data, b"a" * 100 + b"b" * 100000 + b"a" * (MIB - 100100))
        self.assertEqual(client.do(FLUSH).error, 0)
        self.end(daemon)
        clusters = json.loads(self.run_tool("qemu-img", "check", "--output=json", "image"))
        self.assertEqual((clusters["allocated-clusters"], clusters["compressed-clusters"]), (17, 16))
        self.assertLess(os.stat(self.path("image")).st_size, MIB)
        self.run_tool("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 97 0 100", "-c", "read -P 98 100 100000",
                      "-c", f"read -P 97 100100 {MIB - 100100}", "image")

    def test_compress_needs_a_format(self):
        daemon = self.daemon({"driver": "null-co", "node-name": "null"}, export=None)
        failed = self.cairnctl("blockdev-add", "driver=compress", "node-name=x", "file=null")
        self.assertIn("Compression is not supported for driver 'null-co' of node 'null'", failed.stderr)
        self.end(daemon)

    def test_preallocate(self):
        self.run_tool("qemu-img", "create", "-f", "qcow2", "image", "1G")
        daemon = self.daemon({"driver": "qcow2", "node-name": "disk", "file": {
            "driver": "preallocate", "prealloc-size": 16 * MIB, "file": {"driver": "file", "filename": "image"}}})
        client = self.client()
        for offset in range(0, 20 * MIB, MIB):
            self.assertEqual(client.do(WRITE, 3 * offset, data=b"p" * MIB).error, 0)
        self.assertEqual(client.do(FLUSH).error, 0)
        self.assertEqual(os.stat(self.path("image")).st_size % MIB, 0)
        self.assertGreaterEqual(os.stat(self.path("image")).st_blocks * 512, 24 * MIB)
        self.end(daemon)
        self.assertLess(os.stat(self.path("image")).st_size, 21 * MIB)
        self.run_tool("qemu-img", "check", "image")
        self.run_tool("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 112 57M 1M", "-c", "read -P 0 58M 2M", "image")

    def test_filter_below_a_live_format(self):
        """blkdebug comes under a qcow2 in use, lets one request fail, and goes."""
        self.run_tool("qemu-img", "create", "-f", "qcow2", "image", "8M")
        daemon = self.daemon({"driver": "file", "node-name": "file", "filename": "image"},
                             {"driver": "qcow2", "node-name": "disk", "file": "file"})
        client = self.client()
        client.do(WRITE, 0, data=b"a" * MIB)
        debug = {"driver": "blkdebug", "node-name": "debug", "image": "file",
                 "inject-error": [{"event": "write_aio", "iotype": "write", "once": True}]}
        self.ask("blockdev-add", json.dumps(debug))
        self.ask("x-blockdev-change", "parent=disk", "child=file", "node=debug")
        self.assertEqual([client.do(WRITE, 4096, data=b"b" * 4096).error for _ in range(2)], [EIO, 0])
        # Reopened in use: the rules begin anew.
        self.ask("blockdev-reopen", json.dumps({"options": [{**debug, "inject-error": [
            {"event": "read_aio", "once": True, "errno": 28}]}]}))
        self.assertEqual([client.do(READ, 4096, 4096).error for _ in range(2)], [ENOSPC, 0])
        self.ask("x-blockdev-change", "parent=disk", "child=file", "node=file")
        self.ask("blockdev-del", "node-name=debug")
        self.assertEqual(client.do(READ, 4096, 4096).data, b"b" * 4096)
        self.end(daemon)
        self.run_tool("qemu-img", "check", "image")


class Logs(Filters):
    FLUSH, FUA, DISCARD = 1, 2, 4

    def entries(self, log):
        """(flags, offset, length, data) of each entry, as dm-log-writes has it."""
        with open(self.path(log), "rb") as stream:
            magic, version, count, sector = struct.unpack("<QQQI", stream.read(28))
            self.assertEqual((magic, version), (0x6a736677736872, 1))
            stream.seek(sector)
            for _ in range(count):
                start, sectors, flags, _ = struct.unpack("<QQQQ", stream.read(sector)[:32])
                data = b"" if flags & self.DISCARD else stream.read(sectors * sector)
                yield flags, start * sector, sectors * sector, data

    def replay(self, entries):
        """The disk as it is at each flush, and in the end."""
        disk = bytearray(MIB)
        for flags, offset, length, data in entries:
            if flags & self.FLUSH:
                yield bytes(disk)
            elif not flags & self.DISCARD:
                self.assertEqual(len(data), length)
                disk[offset:offset + length] = data
        yield bytes(disk[:MIB])

    def test_replay(self):
        self.file("image", MIB)
        for sector, appends in ((512, False), (4096, False), (4096, True)):
            with self.subTest(sector=sector, appends=appends):
                before = [entry[3] for entry in self.entries("log")] if appends else []
                with open(self.path("image"), "rb") as image:
                    model = bytearray(image.read() if appends else bytes(MIB))
                self.write("image", "") if not appends else None
                os.truncate(self.path("image"), MIB)
                self.file("log", 0) if not appends else None
                daemon = self.daemon({
                    "driver": "blklogwrites", "node-name": "disk", "log-append": appends, "discard": "unmap",
                    **({} if appends else {"log-sector-size": sector}), "log-super-update-interval": 7,
                    "file": {"driver": "file", "filename": "image", "discard": "unmap"},
                    "log": {"driver": "file", "filename": "log"}})
                client, chance, flushed = self.client(), random.Random(sector), []
                for i in range(200):
                    offset, length = chance.randrange(0, MIB - 40000), chance.randrange(1, 40000)
                    if i % 3 == 0:
                        offset, length = offset // sector * sector, (length // sector + 1) * sector
                    data = chance.randbytes(length)
                    kind = chance.choice((WRITE, WRITE, WRITE, ZEROES, FLUSH))
                    if kind == WRITE:
                        client.do(WRITE, offset, data=data, flags=i % 5 == 0)
                        model[offset:offset + length] = data
                    elif kind == ZEROES:
                        client.do(ZEROES, offset, length)
                        model[offset:offset + length] = bytes(length)
                    else:
                        client.do(FLUSH)
                        flushed.append(bytes(model))
                self.end(daemon)
                states = list(self.replay(self.entries("log")))
                self.assertEqual(states[-1], bytes(model))
                # Of shutting down there is one flush more.
                self.assertEqual(states[-2 - len(flushed):-2], flushed)
                self.assertEqual([entry[3] for entry in self.entries("log")][:len(before)], before)

    def test_discards_and_parts(self):
        self.file("image", MIB, 1)
        self.file("log", 0)
        daemon = self.daemon({"driver": "blklogwrites", "node-name": "disk", "discard": "unmap",
                              "file": {"driver": "file", "filename": "image", "discard": "unmap"},
                              "log": {"driver": "file", "filename": "log"}})
        client = self.client()
        client.do(TRIM, 1000, 5000)
        client.do(TRIM, 600, 100)
        client.do(WRITE, 513, data=b"x")
        client.do(WRITE, 0, data=bytes(512), flags=1)
        self.ask("block-export-del", "id=disk", "mode=hard")
        self.ask("blockdev-del", "node-name=disk")
        with open(self.path("image"), "rb") as image:
            image.seek(512)
            part = image.read(512)
        self.assertEqual(list(self.entries("log"))[:3],
                         [(self.DISCARD, 1024, 4608, b""), (0, 512, 512, part), (self.FUA, 0, 512, bytes(512))])
        self.end(daemon)

    def test_continues_a_log_of_qemu(self):
        self.file("image", MIB)
        self.file("log", 0)
        self.run_tool("qemu-io", "-c", "write -P 1 0 64k", "-c", "flush", "-c", "write -P 2 4k 4k", "-c", "flush",
                      "--image-opts", "driver=blklogwrites,file.driver=file,file.filename=image,log.driver=file,"
                      "log.filename=log")
        before = list(self.entries("log"))
        self.assertGreaterEqual(len(before), 4)
        daemon = self.daemon({"driver": "blklogwrites", "node-name": "disk", "log-append": True,
                              "file": {"driver": "file", "filename": "image"},
                              "log": {"driver": "file", "filename": "log"}})
        client = self.client()
        client.do(WRITE, 8192, data=b"\3" * 4096)
        client.do(FLUSH)
        self.end(daemon)
        after = list(self.entries("log"))
        self.assertEqual(after[:len(before) + 1], before + [(0, 8192, 4096, b"\3" * 4096)])
        with open(self.path("image"), "rb") as image:
            self.assertEqual(list(self.replay(after))[-1], image.read())

    def test_full_log(self):
        """What cannot be logged fails, and the log stays good."""
        self.file("image", MIB)
        self.file("log", 4 * 4096)
        daemon = self.daemon({"driver": "blklogwrites", "node-name": "disk", "file": {
            "driver": "file", "filename": "image"}, "log": {"driver": "raw", "size": 16384, "file": {
                "driver": "file", "filename": "log"}}})
        client = self.client()
        self.assertEqual([client.do(WRITE, 0, data=bytes([i]) * 7680).error for i in (1, 2, 3)], [0, ENOSPC, ENOSPC])
        self.end(daemon)
        self.assertEqual(next(self.entries("log")), (0, 0, 7680, b"\1" * 7680))


if __name__ == "__main__":
    unittest.main()
