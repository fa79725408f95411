#!/usr/bin/python3
"""Filters and composites end to end: over NBD, with stock clients and tools."""
import json
import os
import subprocess
import sys
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

    def test_ends_with_requests_held(self):
        daemon = self.daemon(self.THROTTLED, options=("--object", self.SLOW))
        self.held()
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
