#!/usr/bin/python3
"""The graph changes while it is in use. Clients that know every byte must not notice, and what fails changes nothing.
For a long run: CAIRN_ROUNDS=1000 and CAIRN_SECONDS=600; CAIRN_SEED."""
import json
import os
import resource
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
from nbd_verify import Load
from qmp_client import QmpClient, QmpError
import programs

MIB = 1 << 20
SIZE = 8 * MIB
ROUNDS = int(os.environ.get("CAIRN_ROUNDS", "8"))
SECONDS = float(os.environ.get("CAIRN_SECONDS", "2"))
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

    def check_objects(self):
        """The object tree shows what query-block-graph tells."""
        graph = self.call("query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        parents = {node["id"] for node in graph["nodes"] if node["type"] == "node"}
        seen = set()
        for node in (node for node in graph["nodes"] if node["type"] == "node"):
            path = f"/nodes/{node['name']}/children"
            for row in self.call("qom-list", path=path):
                if row["type"] == "child<edge>":
                    edge = {name: self.call("qom-get", path=f"{path}/{row['name']}", property=name)
                            for name in ("node", "perm", "shared-perm")}
                    seen.add((node["name"], row["name"], edge["node"], edge["perm"], edge["shared-perm"]))
        self.assertEqual(seen, {(names[e["parent"]], e["name"], names[e["child"]], ",".join(e["perm"]),
                                 ",".join(e["shared-perm"])) for e in graph["edges"] if e["parent"] in parents})
        drawn = self.cairnctl("graph").stdout
        self.assertTrue(drawn.startswith("digraph cairn {") and drawn.endswith("}\n"), drawn)
        # An export that holds a source is drawn above it.
        sources = {node["name"]: node["id"] for node in graph["nodes"] if node["type"] == "source"}
        holds = {node["id"]: sources[node["source"]] for node in graph["nodes"] if "source" in node}
        for edge in graph["edges"]:
            child = holds.get(edge["parent"], edge["child"])
            self.assertIn(f'n{edge["parent"]} -> n{child} [label=< {edge["name"]} ', drawn)
        for node in graph["nodes"]:
            self.assertIn(f"tooltip=<{node['name']}>", drawn)
        clients = [row["name"] for row in self.call("qom-list", path="/exports/disk") if "nbd-client" in row["type"]]
        self.assertEqual(len(clients), self.call("qom-get", path="/exports/disk", property="clients"))
        self.assertIn(self.call("qom-get", path=f"/exports/disk/{clients[0]}", property="iothread"), ("t0", "t1"))

    def state(self):
        """What a change that fails must leave as it was."""
        pid = self.daemon.pid
        links = []
        for number in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
            except FileNotFoundError:
                pass
        links = sorted(link.split(":")[0] for link in links)
        nodes = self.call("query-named-block-nodes")
        for node in nodes:
            # Clients write meanwhile.
            node["image"].pop("actual-size", None)
            if node["drv"] == "file":
                node["image"].pop("virtual-size")
        return (self.call("x-debug-query-block-graph"), nodes,
                self.call("query-node-options"), self.call("query-sources"), sorted(os.listdir(self.folder)), links)

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
        kinds = [{"driver": "throttle", "throttle-group": "g"}, {"driver": "copy-on-read"}, {"driver": "blkdebug"},
                 {"driver": "delay", "jitter-ns": 1000000}, {"driver": "detect-zeroes", "mode": "unmap"},
                 {"driver": "compress"}, {"driver": "blkdebug", "align": 4096, "max-transfer": 16384}]
        low = [{"driver": "blkdebug"}, {"driver": "delay"}, {"driver": "throttle", "throttle-group": "g"},
               {"driver": "preallocate", "prealloc-size": 1 << 20}]
        with self.load() as load:
            for number in range(ROUNDS):
                kind = dict(kinds[number % len(kinds)], **{"node-name": "f"})
                self.call("source-push", source="disk", filter=kind)
                load.wait_for(20)
                self.call("source-push", parent="a", child="file",
                          filter=dict(low[number % len(low)], **{"node-name": "low"}))
                load.wait_for(20)
                self.call("source-pop", source="disk", filter="f")
                self.call("source-pop", parent="a", child="file", filter="low")
                load.wait_for(20)
            self.check_objects()
        self.assertEqual(len(self.call("query-named-block-nodes")), 2)
        self.finish()
        self.check("a.qcow2")

    def test_options(self):
        self.image("a.qcow2")
        self.begin(self.qcow2("a"), base="a")
        variants = [{"cache-size": 65536}, {"l2-cache-size": 1 << 20, "refcount-cache-size": 65536}, {},
                    {"lazy-refcounts": True}, {"discard": "ignore"}, {"detect-zeroes": "unmap"},
                    {"overlap-check": "all", "discard-no-unref": True},
                    {"file": {"driver": "file", "filename": "a.qcow2", "locking": "off"}},
                    {"cache": {"no-flush": True}}]
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
            for number in range(ROUNDS):
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


class UnderGuest(Graph):
    """The same for a virtual machine: the front end verifies what it reads."""

    def test_vhost_user(self):
        self.image("a.qcow2")
        self.image("b.qcow2")
        self.begin(self.qcow2("a"), self.qcow2("b", backing=None), base="a")
        self.call("block-export-del", id="disk")
        self.call("block-export-add", type="vhost-user-blk", id="disk", node_name="disk", writable=True, num_queues=2,
                  addr={"type": "unix", "path": self.path("vhost")}, iothreads=["t0", "t1"])
        bench = subprocess.Popen([os.path.join(programs.BUILD, "cairn-vhost-bench"), "--queues=2", "--depth=8",
                                  "--mix=read=10,write=10,flush,discard,write-zeroes", "--verify",
                                  f"--count={300 * ROUNDS}", "--seconds=600", self.path("vhost")],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(self.reap, bench)
        number = 0
        while bench.poll() is None:
            self.call("source-push", source="disk", filter={"driver": "delay", "node-name": "p"})
            self.call("blockdev-reopen", options=[self.qcow2("a", **{"cache-size": (1 + number % 3) << 20})]
                      if number < 5 else [self.qcow2("b", backing="a", **{"cache-size": (1 + number % 3) << 20})])
            self.call("source-pop", source="disk", filter="p")
            number += 1
            if number == 5:
                self.call("blockdev-snapshot", node="disk", overlay="b")
        said = bench.stdout.read()
        self.assertEqual(bench.returncode, 0, said)
        self.assertGreater(number, 5)
        self.finish()
        self.check("a.qcow2", "b.qcow2")


class Quorum(Graph):
    """A disk on three images: children come and go, and a snapshot of the whole is one of each."""

    def begin_quorum(self):
        """throttle over blkdebug over quorum over three qcow2 over three files."""
        for name in ("c0", "c1", "c2"):
            self.image(name + ".qcow2")
        self.begin(*(self.qcow2(name) for name in ("c0", "c1", "c2")),
                   {"driver": "quorum", "node-name": "q", "vote-threshold": 2, "discard": "unmap",
                    "children": ["c0", "c1", "c2"]}, base="q")
        self.call("object-add", qom_type="throttle-group", id="g", limits={"iops-total": 1000000})
        self.call("source-push", source="disk", filter={"driver": "blkdebug", "node-name": "crypto"})
        self.call("source-push", source="disk",
                  filter={"driver": "throttle", "throttle-group": "g", "node-name": "brake"})

    def children(self):
        graph = self.call("query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        return {edge["name"]: names[edge["child"]] for edge in graph["edges"] if names[edge["parent"]] == "q"}

    def same(self, *names):
        for name in names[1:]:
            result = subprocess.run(["qemu-img", "compare", names[0], name], cwd=self.folder, capture_output=True,
                                    text=True, timeout=programs.PATIENCE, check=False)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_children(self):
        """One is taken out, and a copy of another takes its place; names stay, and gaps."""
        self.begin_quorum()
        for number in range(ROUNDS):
            place = f"children.{number % 3}"
            with self.load() as load:
                load.wait_for(20)
                out = self.children()[place]
                self.call("x-blockdev-change", parent="q", child=place, node=None)
                self.assertEqual(sorted(self.children()), [f"children.{i}" for i in range(3) if i != number % 3])
                load.wait_for(20)
            # What it missed it is given, while nobody writes: by a program that sees what is in the file.
            with NbdClient(self.path("nbd")).go("disk") as client:
                self.assertEqual(client.do(FLUSH).error, 0)
            rest = next(iter(self.children().values()))
            self.call("blockdev-del", node_name=out)
            subprocess.run(["qemu-img", "convert", "-U", "-O", "qcow2", rest + ".qcow2", out + ".qcow2"],
                           cwd=self.folder, check=True, timeout=programs.PATIENCE)
            self.call("blockdev-add", **self.qcow2(out))
            self.call("x-blockdev-change", parent="q", child=place, node=out)
            self.assertEqual(self.children(), {f"children.{i}": f"c{i}" for i in range(3)})
            with self.load() as load:
                load.wait_for(20)
        # The order is set by reopening, together with another node's options.
        self.call("blockdev-reopen", options=[
            {"driver": "quorum", "node-name": "q", "vote-threshold": 1, "read-pattern": "fifo", "discard": "unmap",
             "children": ["c2", None, "c0"]}, self.qcow2("c1", **{"cache-size": 65536})])
        self.assertEqual(self.children(), {"children.0": "c2", "children.2": "c0"})
        options, = self.call("query-node-options", node_name="q")
        self.assertEqual(options["children"], ["c2", None, "c0"])
        self.refused("vote-threshold", "blockdev-reopen", options=[
            {"driver": "quorum", "node-name": "q", "vote-threshold": 3, "children": ["c2", None, "c0"]}])
        self.finish()
        self.check("c0.qcow2", "c1.qcow2", "c2.qcow2")
        self.same("c0.qcow2", "c2.qcow2")

    def test_snapshot(self):
        self.begin_quorum()
        for name in ("o0", "o1", "o2"):
            self.image(name + ".qcow2")
            self.call("blockdev-add", **self.qcow2(name, backing=None))
        stack = ["brake", "crypto", "q"]
        self.assertEqual(self.call("resolve", source="disk")["layers"], ["c0", "c1", "c2"])
        with self.load() as load:
            load.wait_for(50)
            snapshot = {"command": "blockdev-snapshot", "node": "disk"}
            self.refused("needs 3 overlays, but 1 are given", **snapshot, overlay="o0")
            self.refused("is already in use", **snapshot, overlays=["o0", "o1", "o0"])
            self.refused("Cannot find device", **snapshot, overlays=["o0", "o1", "none"])
            self.full_disk()
            load.wait_for(20)
            self.call("blockdev-snapshot", node="disk", overlays=["o0", "o1", "o2"])
            self.assertEqual(self.call("query-sources")[0]["nodes"], stack)
            self.assertEqual(self.children(), {f"children.{i}": f"o{i}" for i in range(3)})
            load.wait_for(50)
            files, names = [f"p{i}.qcow2" for i in range(3)], ["p0", "p1", "p2"]
            sync = {"command": "blockdev-snapshot-sync", "device": "disk", "snapshot_node_names": names}
            self.refused("needs 3 files, but 1 are given", **sync, snapshot_file="p")
            self.refused("needs 3 node names, but 2 are given", **dict(sync, snapshot_node_names=names[:2]),
                         snapshot_files=files)
            self.refused("Either 'snapshot-file' or 'snapshot-files'", **sync, snapshot_files=files, snapshot_file="p")
            self.call(sync.pop("command"), **sync, snapshot_files=files)
            self.assertEqual(self.children(), {f"children.{i}": f"p{i}" for i in range(3)})
            load.wait_for(50)
        self.finish()
        for number in range(3):
            subprocess.run(["qemu-img", "rebase", "-u", "-b", f"c{number}.qcow2", "-F", "qcow2", f"o{number}.qcow2"],
                           cwd=self.folder, check=True, timeout=programs.PATIENCE)
        self.check(*(f"{kind}{number}.qcow2" for kind in "cop" for number in range(3)))
        self.same("p0.qcow2", "p1.qcow2", "p2.qcow2")
        self.same("o0.qcow2", "o1.qcow2", "o2.qcow2")
        self.same("c0.qcow2", "c1.qcow2", "c2.qcow2")

    def full_disk(self):
        """The files of three overlays in one transaction, of which the last has no room: nothing stays."""
        os.mkdir(self.path("full"))
        text = "No space left on device"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", self.path("full")], capture_output=True,
                          check=False).returncode == 0:
            self.addCleanup(subprocess.run, ["umount", "-l", self.path("full")], check=False)
        else:
            text = "Permission denied"
            os.chmod(self.path("full"), 0)
        actions = [{"type": "blockdev-snapshot-sync",
                    "data": {"node-name": f"c{i}", "snapshot-file": name, "snapshot-node-name": f"n{i}"}}
                   for i, name in enumerate(("n0", "n1", "full/n2"))]
        self.refused(text, "transaction", actions=actions)
        self.refused(text, "blockdev-snapshot-sync", device="disk", snapshot_files=["n0", "n1", "full/n2"],
                     snapshot_node_names=["n0", "n1", "n2"])
        self.assertFalse(os.path.exists(self.path("n0")) or os.path.exists(self.path("n1")))
        if text.startswith("No space"):
            self.assertEqual(os.listdir(self.path("full")), [])


class Together(Graph):
    """Several management clients at once, each with changes of its own, and none of them waits for the others."""

    def manage(self, run):
        """A thread that repeats run(client, number) until it is told to stop."""
        def work():
            client, number = QmpClient(self.socket), 0
            try:
                while not self.over.is_set():
                    run(client, number)
                    number += 1
                    self.changes += 1
            except Exception as fault:  # told by the test
                self.faults.append(f"{run.__name__}: {fault}")
            client.close()
        return threading.Thread(target=work, daemon=True)

    def push_and_pop(self, client, _):
        client.call("source-push", source="disk", filter={"driver": "delay", "node-name": "p"})
        client.call("source-pop", source="disk", filter="p")

    def push_below(self, client, _):
        client.call("source-push", parent="low", child="file", filter={"driver": "detect-zeroes", "node-name": "q"})
        client.call("source-pop", parent="low", child="file", filter="q")

    def reopen(self, client, number):
        client.call("blockdev-reopen", options=[self.qcow2("a", **{"cache-size": (1 + number % 3) << 20})])

    def snapshot(self, client, number):
        """Over another disk, and away again."""
        client.call("blockdev-add", **self.qcow2("b", backing=None))
        client.transaction(("blockdev-snapshot", {"node": "other", "overlay": "b"}),
                           ("source-push", {"source": "other", "filter": {"driver": "delay", "node-name": "r"}}))
        client.transaction(("source-pop", {"source": "other", "filter": "r"}),
                           ("source-switch", {"source": "other", "node": "n"}), ("blockdev-del", {"node-name": "b"}))

    def nodes(self, client, number):
        client.call("blockdev-add", driver="raw", node_name="t", file="raw", read_only=True)
        client.call("source-add", id="t-source", node="t")
        client.call("block-export-add", type="nbd", id="t-export", node_name="t-source", name="t", iothread="t0")
        client.call("block-export-del", id="t-export", mode="hard")
        client.call("source-del", id="t-source")
        client.call("blockdev-del", node_name="t")

    def look(self, client, _):
        for query in ("query-block-graph", "query-node-options", "query-sources", "query-named-block-nodes",
                      "query-blockstats"):
            client.call(query)

    def test_clients(self):
        for name in ("a", "b"):
            self.image(name + ".qcow2")
        with open(self.path("raw"), "wb") as raw:
            raw.truncate(SIZE)
        self.begin(self.qcow2("a"), {"driver": "delay", "node-name": "low", "file": "a", "discard": "unmap"},
                   {"driver": "null-co", "node-name": "n", "size": SIZE},
                   {"driver": "file", "node-name": "raw", "filename": "raw"}, base="low")
        self.call("source-add", id="other", node="n")
        self.over, self.faults, self.changes = threading.Event(), [], 0
        threads = [self.manage(run) for run in (self.push_and_pop, self.push_below, self.reopen, self.snapshot,
                                                self.nodes, self.look)]
        with self.load() as load:
            for thread in threads:
                thread.start()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not self.faults:
                load.wait_for(50)
            self.over.set()
            for thread in threads:
                thread.join(programs.PATIENCE)
                self.assertFalse(thread.is_alive(), "a management client hangs")
            self.assertEqual(self.faults, [])
        self.assertGreater(self.changes, 0)
        self.assertEqual({node["node-name"] for node in self.call("query-named-block-nodes") if node["drv"] != "file"},
                         {"a", "low", "n"})
        self.finish()
        self.check("a.qcow2", "b.qcow2")


class Refusals(Graph):
    """Whatever fails, and wherever: the graph, files and descriptors are as before, and clients go on."""

    def setUp(self):
        super().setUp()
        for name in ("a", "b", "c", "small"):
            self.image(name + ".qcow2", MIB if name == "small" else SIZE)
        with open(self.path("raw"), "wb") as raw:
            raw.truncate(SIZE)
        self.begin(self.qcow2("a"), {"driver": "file", "node-name": "raw", "filename": "raw"},
                   {"driver": "raw", "node-name": "window", "file": "raw", "offset": MIB}, base="a")
        self.call("source-push", source="disk", filter={"driver": "delay", "node-name": "top"})

    def reopen(self, text, *options):
        self.refused(text, "blockdev-reopen", options=list(options))

    def test_reopen(self):
        window = {"driver": "raw", "node-name": "window", "file": "raw", "offset": MIB}
        with self.load() as load:
            self.reopen("node-name not specified", {"driver": "null-co"})
            self.reopen("Failed to find node with node-name='x'", {"driver": "null-co", "node-name": "x"})
            self.reopen("Cannot change the option 'driver'", {"driver": "null-co", "node-name": "a"})
            self.reopen("Cannot change the option 'filename'",
                        {"driver": "file", "node-name": "raw", "filename": "a.qcow2"})
            self.reopen("Cannot change the option 'l2-cache-entry-size'",
                        self.qcow2("a", **{"l2-cache-entry-size": 512}))
            # One of several, whichever it is.
            self.reopen("force-share=on needs read-only=on", self.qcow2("a", **{"cache-size": 65536}),
                        dict(window, **{"force-share": True}))
            self.reopen("cannot be greater than size", self.qcow2("a", **{"cache-size": 65536, "read-only": False}),
                        dict(window, offset=SIZE + 512))
            self.reopen("cannot be greater than size", dict(window, offset=SIZE + 512),
                        self.qcow2("a", **{"lazy-refcounts": True}))
            # Children.
            self.reopen("Could not open 'none'", self.qcow2("a", backing=None, file={"driver": "file", "filename": "none"}))
            self.reopen("Image is not in qcow2 format",
                        self.qcow2("a", backing=None, file={"driver": "file", "filename": "raw", "locking": "off"}))
            self.reopen("Cannot find device='' nor node-name='none'", self.qcow2("a", backing="none"))
            self.reopen("would form a loop", {"driver": "delay", "node-name": "top", "file": "top"})
            self.reopen("would form a loop", dict(window, file="window"))
            # Who writes does not become read-only.
            self.reopen("Block node 'a' is read-only", self.qcow2("a", **{"read-only": True}))
            # A smaller disk under its users is their affair: exports follow.
            load.wait_for(20)
        self.finish()
        self.check("a.qcow2")

    def test_locks(self):
        """Somebody else has the file when locks are to begin."""
        other = self.start("--blockdev", "driver=qcow2,node-name=c,file.driver=file,file.filename=c.qcow2",
                           "--nbd-server", f"addr.type=unix,addr.path={self.path('other')}",
                           "--export", "type=nbd,id=c,node-name=c,writable=on")
        programs.wait_until(lambda: os.path.exists(self.path("other")), "the other daemon")
        # Locks are taken before the socket is made, or soon after it.
        programs.wait_until(lambda: subprocess.run(["qemu-img", "info", "c.qcow2"], cwd=self.folder,
                                                   capture_output=True, check=False).returncode, "its locks")
        unlocked = {"driver": "file", "node-name": "c", "filename": "c.qcow2", "locking": "off"}
        self.call("blockdev-add", **unlocked)
        self.call("block-export-add", type="nbd", id="c", node_name="c", writable=True)
        self.reopen("lock", dict(unlocked, locking="on"))
        self.refused("lock", "blockdev-snapshot-sync", node_name="disk", snapshot_file="c.qcow2",
                     snapshot_node_name="o", mode="existing")
        self.end(other)
        self.call("blockdev-reopen", options=[dict(unlocked, locking="on")])
        self.finish()

    def test_sources(self):
        with self.load() as load:
            push = {"command": "source-push", "source": "disk"}
            self.refused("Either 'filter' or 'node'", **push)
            self.refused("Parameter 'filter.driver' is missing", **push, filter={})
            self.refused("is no filter", **push, filter={"driver": "null-co"})
            self.refused("is no filter", **push, node="raw")
            self.refused("has fewer than 2 filters", **push, filter={"driver": "delay"}, position=2)
            self.refused("Duplicate nodes", **push, filter={"driver": "delay", "node-name": "top"})
            self.refused("would form a loop", **push, node="top")
            self.refused("Driver 'raw' is no filter", **push, filter={"driver": "raw"})
            self.refused("What a filter is put over", **push, filter={"driver": "delay", "file": "a"})
            self.refused("Either 'source' or 'parent'", "source-push", parent="a", filter={"driver": "delay"})
            self.refused("Node 'a' has no child 'backing'", "source-push", parent="a", child="backing",
                         filter={"driver": "delay"})
            self.refused("has no filter 'raw'", "source-pop", source="disk", filter="raw")
            self.refused("is the base of source 'disk'", "source-pop", source="disk", filter="a")
            self.refused("is node '#block", "source-pop", parent="a", child="file", filter="top")
            self.refused("Cannot find device", "source-switch", source="disk", node="none")
            self.refused("Source 'none' is not found", "source-switch", source="none", node="a")
            self.refused("would form a loop", "source-switch", source="disk", node="top")
            # What is written to cannot be switched to something that is not.
            self.call("blockdev-add", driver="null-co", node_name="ro", size=SIZE, read_only=True)
            self.refused("Block node 'ro' is read-only", "source-switch", source="disk", node="ro")
            self.refused("in use", "source-del", id="disk")
            load.wait_for(20)
        self.finish()

    def test_relations(self):
        change = "x-blockdev-change"
        self.refused("There is no node, source or export", change, parent="none", child="file", node="a")
        self.refused("has no child 'nope'", change, parent="a", child="nope", node="raw")
        self.refused("has no child 'children.1'", change, parent="a", child="children.1", node="raw")
        self.refused("cannot be without its child 'file'", change, parent="a", child="file", node=None)
        self.refused("Cannot find device", change, parent="a", child="backing", node="none")
        self.refused("would form a loop", change, parent="a", child="backing", node="top")
        self.refused("Could not open 'none'", change, parent="a", child="backing",
                     node={"driver": "file", "filename": "none"})
        self.refused("Parameter 'node' is missing", change, parent="a", child="backing")
        self.finish()

    def test_snapshots(self):
        snapshot = "blockdev-snapshot"
        add = self.call
        add("blockdev-add", **self.qcow2("b", backing=None))
        add("blockdev-add", **self.qcow2("small", backing=None))
        add("blockdev-add", **self.qcow2("c", backing="raw"))
        with self.load() as load:
            self.refused("Either 'overlay' or 'overlays'", snapshot, node="disk")
            self.refused("needs 1 overlays, but 2 are given", snapshot, node="disk", overlays=["b", "small"])
            self.refused("Cannot find device", snapshot, node="disk", overlay="none")
            self.refused("Cannot find device", snapshot, node="none", overlay="b")
            self.refused("is smaller than node 'a'", snapshot, node="disk", overlay="small")
            self.refused("does not support backing images", snapshot, node="disk", overlay="window")
            self.refused("already has a backing image", snapshot, node="disk", overlay="c")
            self.refused("is already in use", snapshot, node="raw", overlay="a")
            self.refused("overlay of itself", snapshot, node="disk", overlay="a")
            sync = {"command": "blockdev-snapshot-sync", "snapshot_file": "new", "snapshot_node_name": "new"}
            self.refused("Either 'device' or 'node-name'", **sync)
            self.refused("Could not create 'a.qcow2': File exists", **dict(sync, snapshot_file="a.qcow2"), device="disk")
            self.refused("No such file or directory", **dict(sync, snapshot_file="none/new"), device="disk")
            self.refused("does not accept value 'raw'", **sync, device="disk", format="raw")
            self.refused("Duplicate nodes", **dict(sync, snapshot_node_name="b"), device="disk")
            self.refused("Could not open 'new'", **sync, device="disk", mode="existing")
            # The disk is full: no file stays.
            load.pause()
            resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            self.refused("Could not create 'new'", **sync, device="disk")
            resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            load.resume()
            load.wait_for(20)
        self.finish()
        self.check("a.qcow2")

    def test_transactions(self):
        """Everything goes back, in reverse, whatever was before the action that fails."""
        self.call("blockdev-add", **self.qcow2("b", backing=None))
        before = [("blockdev-add", {"driver": "null-co", "node-name": "n"}),
                  ("blockdev-snapshot", {"node": "disk", "overlay": "b"}),
                  ("source-push", {"source": "disk", "filter": {"driver": "delay", "node-name": "t"}}),
                  ("source-push", {"parent": "b", "child": "file", "filter": {"driver": "delay", "node-name": "u"}}),
                  ("blockdev-snapshot-sync", {"node-name": "disk", "snapshot-file": "new", "snapshot-node-name": "new"}),
                  ("blockdev-reopen", {"options": [self.qcow2("c")]}),
                  ("source-pop", {"source": "disk", "filter": "top"}),
                  ("source-add", {"id": "s", "node": "n"}),
                  ("x-blockdev-change", {"parent": "window", "child": "file", "node": "n"}),
                  ("block-export-add", {"type": "nbd", "id": "x", "node-name": "s", "name": "x", "iothread": "t0"}),
                  ("source-switch", {"source": "s", "node": "window"}),
                  ("blockdev-del", {"node-name": "n"})]
        self.call("blockdev-add", **self.qcow2("c"))
        with self.load() as load:
            for count in range(len(before) + 1):
                actions = [{"type": name, "data": data} for name, data in before[:count]]
                actions.append({"type": "abort", "data": {}})
                self.refused("Transaction aborted" if count < len(before) else "in use", "transaction", actions=actions)
                load.wait_for(5)
            before.pop()
            self.qmp.transaction(*before, dry_run=True)
            self.assertNotIn("new", os.listdir(self.folder))
            self.qmp.transaction(*before)
            load.wait_for(20)
        self.assertEqual(self.call("query-sources")[0]["nodes"], ["t", "new"])
        self.finish()
        self.check("a.qcow2", "b.qcow2", "new")


if __name__ == "__main__":
    unittest.main()
