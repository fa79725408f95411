#!/usr/bin/python3
"""Filters end to end: detect-zeroes, delay, throttle."""
import json
import os
import random
import select
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from filters import Filters
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20


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

    def test_discards_are_made_durable(self):
        """Filters that send discards anew do not forget that."""
        failing = {"driver": "blkdebug", "discard": "unmap", "inject-error": [{"event": "none", "iotype": "flush"}],
                   "image": {"driver": "null-co", "size": MIB}}
        self.file("log", 0)
        for node in ({"driver": "blkdebug", "align": 4096, "image": failing},
                     {"driver": "blklogwrites", "file": failing, "log": {"driver": "file", "filename": "log"}}):
            daemon = self.daemon({**node, "node-name": "disk", "discard": "unmap"})
            client = self.client()
            self.assertEqual(client.do(TRIM, 0, 65536).error, 0)
            self.assertEqual(client.do(TRIM, 0, 65536, flags=FUA).error, EIO)
            client.close()
            self.end(daemon)

    def test_delay_and_changes(self):
        """A change does not wait for what is held, and neither does what comes after it."""
        daemon = self.daemon({"driver": "null-co", "size": MIB, "node-name": "null"},
                             {"driver": "delay", "node-name": "disk", "write-ns": 10**10, "file": "null"})
        client = self.client()
        for more in (1, 2):
            client.request(WRITE, 0, 512, data=bytes(512))
            client.request(WRITE, 512, 512, data=bytes(512))
            self.assertEqual(client.do(READ, 0, 512).error, 0)
            self.ask("block_resize", "node-name=null", f"size={(more + 1) * MIB}")
            for _ in range(2):
                self.assertEqual(client.reply(WRITE)[1].error, 0)
        client.request(WRITE, 0, 512, data=bytes(512))
        self.ask("blockdev-reopen", json.dumps({"options": [
            {"driver": "delay", "node-name": "disk", "file": "null", "flush-ns": 1}]}))
        self.assertEqual(client.reply(WRITE)[1].error, 0)
        self.assertEqual(client.do(WRITE, 0, data=bytes(512)).error, 0)
        self.assertEqual(client.do(FLUSH).error, 0)
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

    def test_iothreads_come_and_go(self):
        """A thread that comes later may have the place of one that has gone."""
        threads = ("--object", "iothread,id=a", "--object", "iothread,id=b")
        daemon = self.daemon(self.THROTTLED, export=None,
                             options=("--object", "throttle-group,id=slow,limits.iops-total=50", *threads))
        for thread in ("a", "c"):
            self.ask("block-export-add", "type=nbd", "id=disk", "node-name=disk", f"iothread={thread}")
            client = self.client()
            cookies = {client.request(READ, 0, 4096) for _ in range(16)}
            while cookies:
                cookies.remove(client.reply(READ, 4096)[0])
            client.close()
            self.ask("block-export-del", "id=disk", "mode=hard")
            programs.wait_until(lambda: self.ask("query-block-exports") == [], "the end of the export")
            if thread == "a":
                for name in "ab":
                    self.ask("object-del", f"id={name}")
                for name in "cd":
                    self.ask("object-add", "qom-type=iothread", f"id={name}")
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


if __name__ == "__main__":
    unittest.main()
