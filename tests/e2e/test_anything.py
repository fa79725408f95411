#!/usr/bin/python3
"""Anything goes: management clients send whatever comes to their minds, right or wrong, while others read and write. What
fails changes nothing, nobody hangs, and in the end all can be taken apart. A long run: CAIRN_SECONDS=600; CAIRN_SEED."""
import json
import os
import random
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
from qmp_client import QmpClient, QmpError
import programs
from programs import wait_until

SEED = int(os.environ.get("CAIRN_SEED", "0")) or random.randrange(1 << 32)
SECONDS = float(os.environ.get("CAIRN_SECONDS", "4"))
SIZE = 4 << 20
NODES = [f"n{i}" for i in range(8)]
SOURCES, EXPORTS, THREADS, GROUPS = ["s0", "s1"], ["e0", "e1", "e2"], ["t0", "t1"], ["g0", "g1"]
RAWS, IMAGES = ["r0", "r1"], ["q0", "q1", "q2"]
PLACES = ["file", "file", "file", "backing", "root", "image", "log", "children.0", "children.1", "top", "raw", "nonsense"]


class Mind:
    """Thinks of commands."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def one(self, *choices):
        return self.rng.choice(choices)

    def maybe(self, **members):
        return {name.replace("_", "-"): self.one(*values) for name, values in members.items() if self.rng.random() < 0.3}

    def node(self):
        return self.one(*NODES)

    def anybody(self):
        return self.one(*NODES, *NODES, *SOURCES, *EXPORTS)

    def child(self, depth):
        return self.node() if depth == 0 or self.rng.random() < 0.6 else self.options(depth - 1)

    def options(self, depth=2, name=None):
        flags = (True, False)
        general = self.maybe(read_only=flags, auto_read_only=flags, force_share=flags, discard=("unmap", "ignore"),
                             detect_zeroes=("on", "off", "unmap"))
        if self.rng.random() < 0.2:
            general["cache"] = self.maybe(direct=flags, no_flush=flags)
        if name:
            general["node-name"] = name
        driver = self.one("file", "file", "null-co", "raw", "qcow2", "qcow2", "qcow2", "delay", "throttle", "quorum",
                          "copy-on-read", "detect-zeroes", "blkdebug", "blklogwrites", "preallocate", "compress")
        if driver == "file":
            special = {"filename": self.one(*RAWS, "absent"), **self.maybe(locking=("on", "off", "auto"))}
        elif driver == "null-co":
            special = {"size": self.one(SIZE, SIZE, SIZE // 2, 0), **self.maybe(read_zeroes=flags, latency_ns=(0, 100000))}
        elif driver == "qcow2":
            special = {"file": self.one(self.child(depth), {"driver": "file", "filename": self.one(*IMAGES)}),
                       **self.maybe(l2_cache_size=(65536, 1 << 20), lazy_refcounts=flags, discard_no_unref=flags,
                                    backing=(None, self.child(depth)))}
        elif driver == "quorum":
            special = {"children": [self.child(depth) for _ in range(self.one(1, 2, 3))], "vote-threshold": self.one(1, 2),
                       **self.maybe(rewrite_corrupted=flags, read_pattern=("quorum", "fifo"))}
        elif driver == "blkdebug":
            special = {"image": self.child(depth), **self.maybe(align=(512, 4096), inject_error=(
                [{"event": "read_aio", "once": True}], [{"event": "flush_to_disk", "errno": 28, "once": True}]))}
        elif driver == "blklogwrites":
            special = {"file": self.child(depth), "log": self.child(depth)}
        elif driver == "throttle":
            special = {"file": self.child(depth), "throttle-group": self.one(*GROUPS, "absent")}
        else:
            special = {"file": self.child(depth), **(
                self.maybe(offset=(0, 4096, SIZE), size=(65536, SIZE)) if driver == "raw" else
                self.maybe(read_ns=(0, 50000), flush_ns=(0, 1000000)) if driver == "delay" else
                self.maybe(mode=("on", "unmap")) if driver == "detect-zeroes" else
                self.maybe(bottom=NODES) if driver == "copy-on-read" else {})}
        return {"driver": driver, **general, **special}

    def changed(self, client):
        """Options of a node that is there, or nearly."""
        known = client.call("query-node-options")
        if not known:
            return self.options(name=self.node())
        options = self.one(*known)
        for name in list(options):
            if name not in ("driver", "node-name", "file", "filename", "children", "image") and self.rng.random() < 0.5:
                del options[name]
        return {**options, **self.maybe(read_only=(True, False), discard=("unmap", "ignore"),
                                        **{place: (self.node(),) for place in ("file", "backing", "image")
                                           if place in options})}

    def action(self, client):
        """One that may be part of a transaction."""
        kind = self.one("blockdev-add", "blockdev-add", "blockdev-del", "blockdev-reopen", "x-blockdev-change", "source-add",
                        "source-del", "source-push", "source-pop", "source-switch", "blockdev-snapshot", "block-export-add",
                        "block-export-del")
        data = {
            "blockdev-add": lambda: self.options(name=self.node()),
            "blockdev-del": lambda: {"node-name": self.node()},
            "blockdev-reopen": lambda: {"options": [self.changed(client) for _ in range(self.one(1, 1, 2))]},
            "x-blockdev-change": lambda: {"parent": self.anybody(), "child": self.one(*PLACES),
                                          "node": self.one(None, self.child(1))},
            "source-add": lambda: {"id": self.one(*SOURCES), "node": self.node()},
            "source-del": lambda: {"id": self.one(*SOURCES)},
            "source-push": lambda: {"source": self.one(*SOURCES), **self.one({"node": self.node()}, {
                "filter": self.options(1, self.node())}), **self.maybe(position=(0, 1))},
            "source-pop": lambda: {"source": self.one(*SOURCES), "filter": self.node()},
            "source-switch": lambda: {"source": self.one(*SOURCES), "node": self.node()},
            "blockdev-snapshot": lambda: {"node": self.one(*NODES, *SOURCES), "overlay": self.node()},
            "block-export-add": lambda: {"id": self.one(*EXPORTS), "node-name": self.anybody(), **self.one(
                {"type": "nbd", **self.maybe(name=("x", "y"))},
                {"type": "vhost-user-blk", "addr": {"type": "unix", "path": self.one("v0", "v1")}}),
                **self.maybe(writable=(True, False), iothread=THREADS, writethrough=(True, False))},
            "block-export-del": lambda: {"id": self.one(*EXPORTS), **self.maybe(mode=("safe", "hard"))},
        }[kind]()
        return kind, data

    def command(self, client):
        rest = self.rng.random()
        if rest < 0.75:
            return self.action(client)
        if rest < 0.85:
            actions = [dict(zip(("type", "data"), self.action(client))) for _ in range(self.one(2, 3, 4))]
            return "transaction", {"actions": actions, **self.maybe(dry_run=(True, False))}
        limits = {"iops-total": self.one(0, 2000, 100000)}
        return self.one(
            ("block_resize", {"node-name": self.node(), "size": self.one(SIZE, SIZE // 2, 2 * SIZE, 65536)}),
            ("object-add", {"qom-type": "iothread", "id": self.one(*THREADS)}),
            ("object-add", {"qom-type": "throttle-group", "id": self.one(*GROUPS), "limits": limits}),
            ("object-del", {"id": self.one(*THREADS, *GROUPS)}),
            ("qom-set", {"path": "/objects/" + self.one(*GROUPS), "property": "limits", "value": limits}),
            *((query, {}) for query in ("query-block-graph", "query-named-block-nodes", "query-block-exports",
                                        "query-sources", "query-blockstats", "query-node-options")))


class Anything(programs.Program):
    def manage(self, number):
        client, mind = QmpClient(self.socket), Mind(SEED * 10 + number)
        try:
            while not self.over.is_set():
                command = mind.command(client)
                self.last[number] = json.dumps(command)
                try:
                    client.execute(*command)
                    self.good += 1
                except QmpError as refused:
                    self.refused += 1
                    if "\n" in str(refused) or not str(refused):
                        raise
        except Exception as fault:  # told by the test
            self.faults.append(f"{type(fault).__name__} {fault} in {self.last[number]}")
        client.close()

    def use(self, number):
        """Connects to whatever is exported, and does something with it. That it is taken away is in the game."""
        rng = random.Random(SEED * 10 + number)
        while not self.over.is_set():
            try:
                with NbdClient(self.path("nbd")) as client:
                    client.go(rng.choice(["x", "y", *NODES, *SOURCES]))
                    for _ in range(rng.randrange(200)):
                        offset = rng.randrange(0, max(1, client.size - 65536), 512)
                        length = min(rng.choice((512, 4096, 65536)), client.size - offset)
                        kind = rng.choice((READ, WRITE, WRITE, FLUSH, TRIM, ZEROES))
                        client.do(kind, *((offset, length) if kind not in (WRITE, FLUSH) else (offset,) if kind == WRITE
                                          else ()), data=bytes([rng.randrange(256)]) * length if kind == WRITE else b"")
                        self.done += 1
            except TimeoutError as fault:
                self.faults.append(f"a client waits for ever: {fault}")
            except (Refused, EOFError, ConnectionError):
                # Not there, or taken away. There may be nothing else for a while: no need to ask all the time.
                time.sleep(0.01)
            except Exception as fault:  # told by the test
                self.faults.append(f"a client got a wrong answer: {type(fault).__name__} {fault}")

    def take_apart(self):
        """What is there can go, in some order."""
        qmp = QmpClient(self.socket)

        def attempt(command, **arguments):
            try:
                qmp.call(command, **arguments)
            except QmpError as refused:     # what still has users goes later
                self.stuck.append(f"{arguments}: {refused}")

        def nothing_left():
            self.stuck = []
            for export in qmp.call("query-block-exports"):
                attempt("block-export-del", id=export["id"], mode="hard")
            for source in qmp.call("query-sources"):
                attempt("source-del", id=source["id"])
            for node in qmp.call("query-named-block-nodes"):
                attempt("blockdev-del", node_name=node["node-name"])
            return not qmp.call("query-block-graph")["nodes"]
        try:
            wait_until(nothing_left, "the end of all nodes")
        except AssertionError:
            self.fail(f"what cannot be taken apart: {self.stuck}")
        qmp.close()

    def test_anything(self):
        print(f"CAIRN_SEED={SEED}", file=sys.stderr, end=" ")
        for name in RAWS:
            with open(self.path(name), "wb") as disk:
                disk.write(bytes([7]) * SIZE)
        for name in IMAGES:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE)], cwd=self.folder, check=True)
        daemon = self.serve("--nbd-server", "addr.type=unix,addr.path=nbd", "--object", "iothread,id=t0", "--object",
                            "throttle-group,id=g0")
        self.over, self.faults, self.last = threading.Event(), [], {}
        self.good = self.refused = self.done = 0
        threads = [threading.Thread(target=what, args=(number,), daemon=True)
                   for number, what in enumerate((self.manage, self.manage, self.manage, self.use, self.use))]
        for thread in threads:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not self.faults and daemon.poll() is None:
            time.sleep(0.1)     # the test is as long as it is told to be
        self.over.set()
        for thread in threads:
            thread.join(2 * programs.PATIENCE)
            self.assertFalse(thread.is_alive(), f"somebody hangs: {self.last}")
        if daemon.poll() is not None:
            self.fail(f"the daemon has ended: {daemon.returncode}\n{daemon.communicate()[1]}\n{self.last}")
        self.assertEqual(self.faults, [])
        self.assertGreater(self.good, 20)
        self.assertGreater(self.refused, 20)
        print(f"{self.good} commands, {self.refused} refused, {self.done} requests", file=sys.stderr, end=" ")
        self.take_apart()
        self.assertNotIn("Sanitizer", self.end(daemon))
        for name in IMAGES:
            self.examine(name)

    def examine(self, name):
        """Nobody but qcow2 has written to it."""
        found = subprocess.run(["qemu-img", "check", "-f", "qcow2", name], cwd=self.folder, capture_output=True, text=True,
                               check=False)
        self.assertIn(found.returncode, (0, 3), f"{name}: {found.stdout}{found.stderr}")


if __name__ == "__main__":
    unittest.main()
