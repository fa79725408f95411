#!/usr/bin/python3
"""The graph changes while it is in use. Clients that know every byte must not notice, and what fails changes nothing.
CAIRN_ROUNDS=1000 for a long run."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
from nbd_verify import Load
from qmp_client import QmpClient, QmpError
import programs

MIB = 1 << 20
SIZE = 8 * MIB
ROUNDS = int(os.environ.get("CAIRN_ROUNDS", "8"))
SEED = int(os.environ.get("CAIRN_SEED", "1"))


class Graph(programs.Program):
    def image(self, name, size=SIZE, *options):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, name, str(size)], cwd=self.folder,
                       check=True, capture_output=True, timeout=programs.PATIENCE)

    def check(self, *names):
        for name in names:
            result = subprocess.run(["qemu-img", "check", name], cwd=self.folder, capture_output=True, text=True,
                                    timeout=programs.PATIENCE, check=False)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def begin(self, *nodes, base):
        """A daemon with a source "disk" on base that is exported as "disk"."""
        self.daemon = self.serve("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                                 "--object", "iothread,id=t0", "--object", "iothread,id=t1")
        self.qmp = self.client()
        self.call = self.qmp.call
        for node in nodes:
            self.call("blockdev-add", **node)
        self.call("source-add", id="disk", node=base)
        self.call("block-export-add", type="nbd", id="disk", node_name="disk", writable=True, iothreads=["t0", "t1"])

    def client(self):
        client = QmpClient(self.socket)
        self.addCleanup(client.close)
        return client

    def load(self, **keywords):
        return Load(self, self.path("nbd"), "disk", SIZE, seed=SEED, **keywords)

    def qcow2(self, name, **options):
        return {"driver": "qcow2", "node-name": name, "discard": "unmap",
                "file": {"driver": "file", "filename": name + ".qcow2"}, **options}

    def finish(self):
        self.qmp.close()
        self.assertNotIn("Sanitizer", self.end(self.daemon))

    def state(self):
        """What a change that fails must leave as it was."""
        pid = self.daemon.pid
        links = []
        for number in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
            except FileNotFoundError:
                pass
        files = sorted(link for link in links if link.startswith("/"))
        return (self.call("x-debug-query-block-graph"), self.call("query-named-block-nodes"),
                self.call("query-node-options"), self.call("query-sources"), sorted(os.listdir(self.folder)), files,
                len(links))

    def refused(self, text, command, **arguments):
        before = self.state()
        with self.assertRaises(QmpError) as caught:
            self.call(command, **arguments)
        self.assertIn(text, str(caught.exception))
        after = self.state()
        for one, other in zip(before, after):
            self.assertEqual(one, other, f"{command} failed and changed something")


class UnderLoad(Graph):
    def test_filters(self):
        """Pushed and popped above the disk and below its format."""
        self.image("a.qcow2")
        self.begin(self.qcow2("a"), base="a")
        self.call("object-add", qom_type="throttle-group", id="g", **{"limits": {"iops-total": 1000000}})
        kinds = [{"driver": "delay"}, {"driver": "detect-zeroes", "mode": "unmap"},
                 {"driver": "throttle", "throttle-group": "g"}]
        with self.load() as load:
            for number in range(ROUNDS):
                kind = dict(kinds[number % len(kinds)], **{"node-name": "f"})
                self.call("source-push", source="disk", filter=kind)
                load.wait_for(20)
                self.call("source-push", parent="a", child="file", filter={"driver": "delay", "node-name": "low"})
                load.wait_for(20)
                self.call("source-pop", source="disk", filter="f")
                self.call("source-pop", parent="a", child="file", filter="low")
                load.wait_for(20)
        self.assertEqual(len(self.call("query-named-block-nodes")), 2)
        self.finish()
        self.check("a.qcow2")

    def test_options(self):
        self.image("a.qcow2")
        self.begin(self.qcow2("a"), base="a")
        variants = [{"cache-size": 65536}, {"l2-cache-size": 1 << 20, "refcount-cache-size": 65536}, {},
                    {"lazy-refcounts": True}, {"discard": "ignore"}, {"detect-zeroes": "unmap"},
                    {"overlap-check": "all", "discard-no-unref": True},
                    {"file": {"driver": "file", "filename": "a.qcow2", "locking": "off"}}, {"cache": {"no-flush": True}}]
        with self.load() as load:
            for number in range(ROUNDS * 2):
                self.call("blockdev-reopen", options=[self.qcow2("a", **variants[number % len(variants)])])
                load.wait_for(20)
            self.call("blockdev-reopen", options=[self.qcow2("a")])
        self.finish()
        self.check("a.qcow2")

    def test_snapshots(self):
        """Overlay over overlay, below a filter that stays."""
        self.image("a.qcow2")
        self.begin(self.qcow2("a"), base="a")
        self.call("source-push", source="disk", filter={"driver": "delay", "node-name": "top"})
        names = ["a"]
        with self.load() as load:
            for number in range(min(ROUNDS, 60)):
                name = f"o{number}"
                if number % 2:
                    self.call("blockdev-snapshot-sync", node_name="disk", snapshot_file=name + ".qcow2",
                              snapshot_node_name=name)
                else:
                    self.image(name + ".qcow2")
                    self.call("blockdev-add", **self.qcow2(name, backing=None))
                    self.call("blockdev-snapshot", node="disk", overlay=name)
                names.append(name)
                self.assertEqual(self.call("query-sources")[0]["nodes"], ["top", name])
                load.wait_for(30)
        self.finish()
        self.check(*(name + ".qcow2" for name in names))


if __name__ == "__main__":
    unittest.main()
