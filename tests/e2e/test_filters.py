#!/usr/bin/python3
"""Filters and composites end to end: over NBD, with stock clients and tools."""
import json
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20


class Filters(programs.Program):
    def uri(self, export="disk"):
        return f"nbd+unix:///{export}?socket={self.path('nbd')}"

    def file(self, name, size, byte=None):
        with open(self.path(name), "wb") as disk:
            if byte is not None:
                disk.write(bytes([byte]) * size)
            disk.truncate(size)
        return self.path(name)

    def daemon(self, *nodes, export="disk", options=()):
        """Starts cairnd with these nodes (dictionaries) and an export of the one called `export`."""
        arguments = ["--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}", *options]
        for node in nodes:
            arguments += ["--blockdev", json.dumps(node)]
        if export:
            arguments += ["--export", f"type=nbd,id={export},node-name={export},writable=on"]
        return self.serve(*arguments)

    def client(self, export="disk", **how):
        client = NbdClient(self.path("nbd")).go(export, **how)
        self.addCleanup(client.close)
        return client

    def run_tool(self, *command, check=True):
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=programs.PATIENCE,
                                check=False)
        if check:
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def qemu_io(self, *commands, export="disk", check=True):
        arguments = [part for command in commands for part in ("-c", command)]
        return self.run_tool("qemu-io", "-f", "raw", *arguments, self.uri(export), check=check)


class Simple(Filters):
    def test_detect_zeroes(self):
        self.file("image", 8 * MIB)
        self.file("zeroes", 8 * MIB, 0)
        daemon = self.daemon({"driver": "detect-zeroes", "node-name": "disk", "mode": "unmap", "discard": "unmap",
                              "file": {"driver": "file", "filename": "image", "discard": "unmap"}})
        self.qemu_io("write -P 5 0 8M", "flush")
        self.assertGreaterEqual(os.stat(self.path("image")).st_blocks, 8 * MIB // 512)
        # Written as data, not as holes: the client knows nothing of zeroes.
        self.qemu_io("write -P 0 1M 6M", "read -P 0 1M 6M", "read -P 5 0 1M", "read -P 5 7M 1M")
        self.assertLessEqual(os.stat(self.path("image")).st_blocks, 3 * MIB // 512)
        self.end(daemon)

    def test_delay(self):
        daemon = self.daemon({"driver": "delay", "node-name": "disk", "read-ns": 100000000,
                              "file": {"driver": "null-co", "size": MIB}})
        client = self.client()
        start = time.monotonic()
        for _ in range(20):
            client.do(WRITE, 0, 512, data=bytes(512))
        self.assertLess(time.monotonic() - start, 1)
        start = time.monotonic()
        cookies = {client.request(READ, 0, 512) for _ in range(16)}
        while cookies:
            cookies.remove(client.reply(READ, 512)[0])
        took = time.monotonic() - start
        self.assertGreaterEqual(took, 0.1)
        self.assertLess(took, 1.5)
        self.end(daemon)

    def test_clients_that_vanish_while_held(self):
        daemon = self.daemon({"driver": "delay", "node-name": "disk", "latency-ns": 300000000,
                              "file": {"driver": "null-co", "size": MIB}})
        for _ in range(8):
            client = self.client()
            for _ in range(32):
                client.request(READ, 0, 4096)
            client.close()
        self.ask("block-export-del", "id=disk", "mode=hard")
        self.assertNotIn("Sanitizer", self.end(daemon))


class Throttle(Filters):
    THROTTLED = {"driver": "throttle", "node-name": "disk", "throttle-group": "slow",
                 "file": {"driver": "null-co", "size": MIB}}
    # The first request passes, and no other for a long time.
    SLOW = "throttle-group,id=slow,limits.bps-read=1"

    def held(self, count=16):
        """A client with requests of which one was answered and the others are held."""
        client = self.client()
        cookies = {client.request(READ, 0, 4096) for _ in range(count)}
        cookies.remove(client.reply(READ, 4096)[0])
        return client, cookies

    def test_limits_live(self):
        daemon = self.daemon(self.THROTTLED, options=("--object", self.SLOW))
        client, cookies = self.held()
        client.do(WRITE, 0, 512, data=bytes(512))       # no limit for writes
        limits = self.ask("qom-get", "path=/objects/slow", "property=limits")
        self.assertEqual((limits["bps-read"], limits["bps-total"]), (1, 0))
        failed = self.cairnctl("qom-set", "path=/objects/slow", "property=limits", 'value={"iops-read-max": 5}')
        self.assertIn("iops-read-max=5 needs iops-read", failed.stderr)
        failed = self.cairnctl("qom-set", "path=/objects/slow", "property=limits", 'value={"iops": 5}')
        self.assertIn("iops", failed.stderr)
        self.ask("qom-set", "path=/objects/slow", "property=limits", 'value={"bps-read": 0, "iops-write": 7}')
        while cookies:
            cookies.remove(client.reply(READ, 4096)[0])
        limits = self.ask("qom-get", "path=slow", "property=limits")
        self.assertEqual((limits["bps-read"], limits["iops-write"]), (0, 7))
        self.end(daemon)

    def test_group_and_its_users(self):
        daemon = self.daemon(self.THROTTLED, options=("--object", self.SLOW))
        self.assertIn("in use", self.cairnctl("object-del", "id=slow").stderr)
        failed = self.cairnctl("blockdev-add", json.dumps({**self.THROTTLED, "node-name": "x", "throttle-group": "no"}))
        self.assertIn("Throttle group 'no' does not exist", failed.stderr)
        failed = self.cairnctl("object-add", "qom-type=throttle-group", "id=bad", "limits.iops-size=5")
        self.assertIn("iops-size=5", failed.stderr)
        self.ask("block-export-del", "id=disk")
        self.ask("blockdev-del", "node-name=disk")
        self.ask("object-del", "id=slow")
        self.end(daemon)

    def test_nothing_waits_for_what_is_held(self):
        daemon = self.daemon(self.THROTTLED, options=("--object", self.SLOW))
        client, cookies = self.held()
        gone = self.client()
        gone.request(READ, 0, 4096)
        gone.close()
        # A change drains the disk: all that was held goes on, as a part of it.
        self.ask("block_resize", "node-name=disk", f"size={2 * MIB}")
        while cookies:
            cookies.remove(client.reply(READ, 4096)[0])
        client.request(READ, 0, 4096)
        self.ask("block-export-del", "id=disk", "mode=hard")
        self.end(daemon)

    def test_changes_do_not_wait(self):
        """What a change reads and writes itself is not held."""
        self.run_tool("qemu-img", "create", "-f", "qcow2", "image", "8M")
        daemon = self.daemon({**self.THROTTLED, "file": {"driver": "file", "filename": "image"}}, export=None,
                             options=("--object", "throttle-group,id=slow,limits.bps-total=1"))
        for _ in range(2):
            self.ask("blockdev-add", "driver=qcow2", "node-name=format", "file=disk")
            self.ask("block_resize", "node-name=format", f"size={16 * MIB}")
            self.ask("blockdev-del", "node-name=format")
        self.ask("blockdev-add", "driver=qcow2", "node-name=format", "file=disk")
        self.ask("block-export-add", "type=nbd", "id=format", "node-name=format", "writable=true")
        client = self.client("format")
        cookies = {client.request(WRITE, offset, 512, data=b"x" * 512) for offset in range(0, MIB, 65536)}
        self.ask("blockdev-reopen", json.dumps({"options": [
            {"driver": "qcow2", "node-name": "format", "file": "disk", "lazy-refcounts": True}]}))
        while cookies:
            cookies.remove(client.reply(WRITE, 512)[0])
        self.ask("block-export-del", "id=format", "mode=hard")
        self.ask("blockdev-del", "node-name=format")
        self.end(daemon)
        self.run_tool("qemu-img", "check", "image")

    def test_another_group(self):
        """Reopened, a node is limited as before, by others."""
        daemon = self.daemon(self.THROTTLED, options=("--object", self.SLOW, "--object",
                                                      "throttle-group,id=other,limits.bps-write=1"))
        self.ask("blockdev-reopen", json.dumps({"options": [{**self.THROTTLED, "throttle-group": "other"}]}))
        client = self.client()
        for _ in range(8):
            client.do(READ, 0, 4096)
        client.do(WRITE, 0, data=bytes(512))
        cookie = client.request(WRITE, 0, 512, data=bytes(512))
        self.assertEqual(select.select([client.socket], [], [], 0.2)[0], [])
        self.ask("object-del", "id=slow")
        self.assertIn("in use", self.cairnctl("object-del", "id=other").stderr)
        self.ask("qom-set", "path=/objects/other", "property=limits", 'value={"bps-write": 0}')
        self.assertEqual(client.reply(WRITE)[0], cookie)
        self.end(daemon)

    def test_ends_with_requests_held(self):
        daemon = self.daemon(self.THROTTLED, options=("--object", self.SLOW))
        self.held()
        self.end(daemon)


class Threads(Filters):
    """Filters below several I/O threads, while clients come and go and everything changes."""

    def work(self, export, failures, stop):
        try:
            chance = random.Random(export)
            while not stop.is_set():
                client = NbdClient(self.path("nbd")).go(export)
                for _ in range(chance.randrange(1, 30)):
                    kind = chance.choice((READ, WRITE, FLUSH, TRIM))
                    length = 0 if kind == FLUSH else 4096
                    reply = client.do(kind, 0, length, data=bytes(4096) if kind == WRITE else b"")
                    if reply.error:
                        raise AssertionError(f"{kind} failed with {reply.error}")
                client.close()
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    def test_all_at_once(self):
        threads = [f"t{i}" for i in range(3)]
        options = [part for thread in threads for part in ("--object", f"iothread,id={thread}")]
        filters = {"driver": "throttle", "throttle-group": "group", "file": {
            "driver": "copy-on-read", "file": {"driver": "blkdebug", "image": {"driver": "null-co", "size": MIB}}}}
        daemon = self.daemon(
            {**filters, "node-name": "a"}, {**filters, "node-name": "b"},
            {"driver": "quorum", "node-name": "c", "vote-threshold": 2, "children": [
                {**filters, "throttle-group": "other"} for _ in range(3)]},
            export=None, options=(*options, "--object", "throttle-group,id=group,limits.iops-total=3000",
                                  "--object", "throttle-group,id=other,limits.iops-write=2000"))
        for name in "abc":
            self.ask("block-export-add", json.dumps({"type": "nbd", "id": name, "node-name": name, "writable": True,
                                                     "iothreads": threads}))
        failures, stop = [], threading.Event()
        workers = [threading.Thread(target=self.work, args=(name, failures, stop)) for name in "abc" * 3]
        for worker in workers:
            worker.start()
        try:
            for i in range(12):
                self.ask("qom-set", "path=/objects/group", "property=limits",
                         json.dumps({"value": {"iops-total": (1, 2000, 0)[i % 3], "bps-read": (1 << 20) * (i % 2)}}))
                for name in "abc":
                    self.ask("block_resize", f"node-name={name}", f"size={(2 + i % 2) * MIB}")
            self.ask("qom-set", "path=/objects/group", "property=limits",
                     json.dumps({"value": {"iops-total": 0, "bps-read": 0}}))
        finally:
            stop.set()
            for worker in workers:
                worker.join(programs.PATIENCE)
        self.assertEqual(failures, [])
        self.assertFalse(any(worker.is_alive() for worker in workers))
        self.assertNotIn("Sanitizer", self.end(daemon))


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
        self.assert_hit("write_aio", (WRITE, MIB + 100, 10))
        self.assert_hit("pwritev", (WRITE, MIB + 100, 10))
        for offset, event in enumerate(("flush_to_disk", "refblock_update", "l2_update", "l1_update")):
            offset = MIB + (offset + 2) * 65536
            self.assert_hit(event, (WRITE, offset, 512), (FLUSH, 0, 0))
        many = [(WRITE, offset, 65536) for offset in range(0, 2 * MIB, 65536)]
        self.assert_hit("refblock_alloc_write", *many[:16])
        self.assert_hit("reftable_update", *many[16:])
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

    def test_copy_on_read_under_load(self):
        """Reads that keep never undo a write that is faster."""
        daemon = self.daemon(self.overlay(more=("-o", "cluster_size=4096")))
        with open(self.path("base"), "rb") as base:
            model = bytearray(base.read())
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
