#!/usr/bin/python3
"""Every command that query-commands lists, in one session: arguments, replies and events are what query-qmp-schema says.
A command or an event that is new needs a step here."""
import collections
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
from schema_info import SchemaInfo
import programs

MIB = 1 << 20
IMAGE_SIZE = 8 * MIB


class Session:
    """A QMP client that holds everything it is told against the schema."""

    def __init__(self, test, path):
        self.test = test
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(programs.PATIENCE)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rwb")
        self.greeting = self.receive()
        self.events, self.replies, self.used = collections.deque(), 0, set()
        self.send("qmp_capabilities", {"enable": []})
        self.test.assertEqual(self.receive(), {"return": {}, "id": 1})
        self.schema = None
        self.schema = SchemaInfo(self.call("query-qmp-schema"))
        for command in ("qmp_capabilities", "query-qmp-schema"):
            self.test.assertEqual(self.schema.reply_faults(command, {} if "cap" in command else self.last), [])

    def close(self):
        self.stream.close()
        self.socket.close()

    def receive(self):
        line = self.stream.readline()
        self.test.assertTrue(line.endswith(b"\r\n"), line)
        return json.loads(line)

    def send(self, command, arguments):
        self.replies += 1
        self.used.add(command)
        message = {"execute": command, "id": self.replies}
        if arguments:
            message["arguments"] = arguments
        self.stream.write(json.dumps(message).encode() + b"\n")
        self.stream.flush()

    def take_event(self, message):
        self.test.assertEqual(set(message), {"event", "timestamp"} | ({"data"} & set(message)))
        self.test.assertEqual({name: type(value) for name, value in message["timestamp"].items()},
                              {"seconds": int, "microseconds": int})
        self.test.assertEqual(self.schema.event_faults(message), [])
        self.used.add(message["event"])
        self.events.append(message)

    def call(self, command, **arguments):
        """What the command returns. Underscores in the names of arguments stand for dashes."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        if self.schema:
            entity = self.schema.entities[command]
            self.test.assertEqual(self.schema.faults(entity["arg-type"], arguments, command + " arguments"), [])
        self.send(command, arguments)
        while "event" in (reply := self.receive()):
            self.take_event(reply)
        self.test.assertEqual((set(reply), reply.get("id")), ({"return", "id"}, self.replies), f"{command}: {reply}")
        self.last = reply["return"]
        if self.schema:
            self.test.assertEqual(self.schema.reply_faults(command, self.last), [])
        return self.last

    def event(self, name):
        """The data of the next event of that name, which may have come already."""
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event.get("data")
            message = self.receive()
            self.test.assertIn("event", message)
            self.take_event(message)


class Commands(programs.Program):
    def setUp(self):
        super().setUp()
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(4 * MIB)
        self.image()
        self.process = self.start("--qmp", "qmp")
        programs.wait_until(lambda: os.path.exists(self.socket), "the socket")
        self.session = Session(self, self.socket)
        self.addCleanup(self.session.close)

    def image(self):
        """A qcow2 image with a table that points at itself: its first write finds the damage."""
        for command in (["create", "-q", "-f", "qcow2", "image", str(IMAGE_SIZE)],
                        ["bench", "-w", "-c", "1", "-d", "1", "-s", "65536", "-f", "qcow2", "-t", "writeback", "image"]):
            subprocess.run(["qemu-img", *command], cwd=self.folder, check=True, capture_output=True,
                           timeout=programs.PATIENCE)
        with open(self.path("image"), "r+b") as image:
            image.seek(40)
            l1, = struct.unpack(">Q", image.read(8))
            image.seek(l1)
            l2 = struct.unpack(">Q", image.read(8))[0] & ~(1 << 63)
            image.seek(l2 + 8)
            image.write(struct.pack(">Q", l2 | 1 << 63))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "overlay", str(MIB)], cwd=self.folder, check=True,
                       capture_output=True, timeout=programs.PATIENCE)

    def client(self, name):
        client = NbdClient(self.path("nbd"))
        self.addCleanup(client.close)
        return client.go(name)

    def session_steps(self):
        call = self.session.call
        self.assertEqual(self.session.greeting["QMP"]["version"], call("query-version"))
        self.assertEqual(self.session.greeting["QMP"]["capabilities"], [])

    def object_steps(self):
        call = self.session.call
        for path in ("/nodes", "/sources", "/exports", "/objects"):
            self.assertEqual([row["name"] for row in call("qom-list", path=path)], ["type"])
        call("object-add", qom_type="iothread", id="t0")
        call("object-add", qom_type="iothread", id="t1", poll_max_ns=1000, poll_grow=2, poll_shrink=2)
        self.assertEqual([thread["id"] for thread in call("query-iothreads")], ["t0", "t1"])
        self.assertIn("t0", [row["name"] for row in call("qom-list", path="/objects")])
        call("qom-set", path="/objects/t1", property="poll-max-ns", value=2000)
        self.assertEqual(call("qom-get", path="/objects/t1", property="poll-max-ns"), 2000)
        call("object-add", qom_type="throttle-group", id="t2", limits={"iops-total": 5, "bps-read-max-length": 1})
        call("qom-set", path="/objects/t2", property="limits", value={"iops-total": 7})
        self.assertEqual(call("qom-get", path="/objects/t2", property="limits")["iops-total"], 7)
        call("object-del", id="t2")
        call("object-del", id="t1")
        self.assertEqual([thread["id"] for thread in call("query-iothreads")], ["t0"])

    def node_steps(self):
        call = self.session.call
        call("blockdev-add", driver="file", node_name="disk", filename="disk", discard="unmap",
             cache={"direct": False, "no-flush": False})
        call("blockdev-add", driver="raw", node_name="window", file="disk", offset=MIB)
        call("blockdev-add", driver="detect-zeroes", node_name="zeroes", file="window", mode="unmap")
        call("blockdev-add", driver="delay", node_name="held", latency_ns=1000,
             file={"driver": "null-co", "node-name": "null", "size": MIB, "read-zeroes": True})
        call("blockdev-add", driver="qcow2", node_name="image", file={"driver": "file", "filename": "image"})
        call("blockdev-add", driver="blkdebug", node_name="debug", inject_error=[{"event": "pwritev", "state": 2}],
             set_state=[{"event": "l2_load", "new_state": 2}], image={"driver": "null-co", "node-name": "null2"})
        call("blkdebug-break", node_name="debug", event="read", tag="stop")
        self.assertEqual(call("query-blkdebug", node_name="debug"),
                         [{"tag": "stop", "event": "read", "suspended": False}])
        call("blkdebug-resume", node_name="debug", tag="stop")
        call("block_resize", node_name="window", size=2 * MIB)
        nodes = {node["node-name"]: node for node in call("query-named-block-nodes")}
        self.assertEqual((nodes["disk"]["image"]["virtual-size"], nodes["window"]["image"]["virtual-size"]),
                         (3 * MIB, 2 * MIB))
        call("query-named-block-nodes", flat=True)
        self.assertEqual([row["driver"] for row in call("query-node-options", node_name="image")], ["qcow2"])

    def rebuild_steps(self):
        """What query-node-options tells makes the same node again."""
        call = self.session.call
        for name in ("held", "image", "zeroes", "debug"):
            options, = call("query-node-options", node_name=name)
            call("blockdev-del", node_name=name)
            self.assertNotIn(name, [node["node-name"] for node in call("query-named-block-nodes")])
            call("blockdev-add", **options)
            self.assertEqual(call("query-node-options", node_name=name), [options])
        self.assertEqual(len(call("query-node-options")), 6)

    def source_steps(self):
        call = self.session.call
        call("source-add", id="stable", node="zeroes")
        call("source-add", id="brief", node="held")
        call("source-del", id="brief")
        self.assertEqual([(row["id"], row["nodes"]) for row in call("query-sources")],
                         [("stable", ["zeroes", "window"])])

    def change_steps(self):
        call = self.session.call
        options, = call("query-node-options", node_name="held")
        call("blockdev-reopen", options=[dict(options, **{"latency-ns": 2000})])
        call("source-add", id="moving", node="held")
        call("source-push", source="moving", filter={"driver": "delay", "node-name": "pushed"}, position=0)
        self.assertEqual(call("resolve", source="moving"), {"top": "pushed", "base": "null", "layers": ["null"]})
        call("blockdev-add", driver="null-co", node_name="other", size=MIB)
        call("source-switch", source="moving", node="other")
        call("source-pop", source="moving", filter="pushed")
        call("x-blockdev-change", parent="held", child="file",
             node={"driver": "null-co", "node-name": "null", "size": MIB})
        call("blockdev-add", driver="qcow2", node_name="overlay", backing=None,
             file={"driver": "file", "filename": "overlay"})
        would = call("transaction", dry_run=True, actions=[
            {"type": "blockdev-snapshot", "data": {"node": "moving", "overlay": "overlay"}}])["would"]
        self.assertIn({"action": "connect", "name": "overlay", "child": "backing", "to": "null"}, would)
        self.assertIn({"action": "connect", "name": "held", "child": "file", "from": "null", "to": "overlay"}, would)
        self.assertIn({"action": "reopen", "name": "null"}, would)
        graph = call("query-block-graph")
        self.assertIn(("held", "filter", "delay"),
                      [(node["name"], node.get("kind"), node.get("driver")) for node in graph["nodes"]])
        self.assertTrue(all("role" in edge for edge in graph["edges"]))
        call("blockdev-snapshot", node="moving", overlay="overlay")
        call("blockdev-snapshot-sync", node_name="moving", snapshot_file="second", snapshot_node_name="second")
        self.assertEqual(call("resolve", source="moving")["base"], "second")
        call("source-del", id="moving")
        call("blockdev-del", node_name="held")
        for name in ("second", "overlay", "other"):
            call("blockdev-del", node_name=name)
        call("blockdev-add", **options)

    def export_steps(self):
        call = self.session.call
        call("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}}, max_connections=7)
        call("nbd-server-start", id="second", addr={"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}})
        self.assertEqual([(server["id"], server["addr"]["type"]) for server in call("query-nbd-servers")],
                         [("", "unix"), ("second", "inet")])
        call("block-export-add", type="nbd", id="e", node_name="stable", name="d", description="the disk",
             writable=True, writethrough=True, iothread="t0")
        call("block-export-add", type="nbd", id="i", node_name="image", writable=True)
        call("block-export-add", type="nbd", id="n", node_name="held", server="second", iothreads=["t0"])
        self.assertEqual({export["id"]: export["node-name"] for export in call("query-block-exports")},
                         {"e": "zeroes", "i": "image", "n": "held"})
        self.assertEqual(call("qom-get", path="/exports/e", property="writable"), True)
        call("block-export-add", type="vhost-user-blk", id="v", node_name="stable", num_queues=2, queue_size=256,
             addr={"type": "unix", "path": "vhost"}, logical_block_size=4096)
        call("vhost-queue-move", id="v", iothreads=["t0"], queue=1)
        call("block-export-del", id="v")
        self.assertEqual(self.session.event("BLOCK_EXPORT_DELETED"), {"id": "v"})

    def io_steps(self):
        call = self.session.call
        client = self.client("d")
        self.assertEqual(client.do(WRITE, 0, data=b"x" * 4096).error, 0)
        self.assertEqual(client.do(READ, 0, 4096).data, b"x" * 4096)
        by_export = {row["device"]: row["stats"] for row in call("query-blockstats")}
        self.assertEqual((by_export["e"]["rd_bytes"], by_export["e"]["wr_operations"]), (4096, 1))
        by_node = call("query-blockstats", query_nodes=True)
        self.assertIn("zeroes", [row.get("node-name") for row in by_node])
        graph = call("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        self.assertIn(("zeroes", "window"), [(names[edge["parent"]], names[edge["child"]]) for edge in graph["edges"]])

    def fault_steps(self):
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
        self.assertEqual(self.client("d").do(WRITE, MIB, data=b"x" * 4096).error, ENOSPC)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        failure = self.session.event("BLOCK_IO_ERROR")
        self.assertEqual((failure["device"], failure["operation"], failure["action"]), ("e", "write", "report"))
        self.assertNotEqual(self.client("image").do(WRITE, 65536, data=b"x" * 4096).error, 0)
        damage = self.session.event("BLOCK_IMAGE_CORRUPTED")
        self.assertEqual((damage["node-name"], damage["fatal"]), ("image", True))

    def quorum_steps(self):
        call = self.session.call
        bad = {"driver": "blkdebug", "node-name": "bad", "inject-error": [{"event": "none", "iotype": "write"}],
               "image": {"driver": "null-co", "size": MIB}}
        call("blockdev-add", driver="quorum", node_name="quorum", vote_threshold=1, children=[bad])
        call("block-export-add", type="nbd", id="q", node_name="quorum", writable=True)
        self.assertEqual(self.client("quorum").do(WRITE, 512, data=b"x" * 512).error, EIO)
        report = self.session.event("QUORUM_REPORT_BAD")
        self.assertEqual((report["type"], report["node-name"], report["sector-num"]), ("write", "bad", 1))
        self.assertEqual(self.session.event("QUORUM_FAILURE"),
                         {"reference": "quorum", "sector-num": 1, "sectors-count": 1})
        call("block-export-del", id="q", mode="hard")
        self.assertEqual(self.session.event("BLOCK_EXPORT_DELETED"), {"id": "q"})
        call("blockdev-del", node_name="quorum")

    def removal_steps(self):
        call = self.session.call
        call("block-export-del", id="e", mode="hard")
        self.assertEqual(self.session.event("BLOCK_EXPORT_DELETED"), {"id": "e"})
        call("transaction", actions=[
            {"type": "block-export-del", "data": {"id": "n", "mode": "hard"}},
            {"type": "blockdev-add", "data": {"driver": "null-co", "node-name": "fresh", "size": MIB}},
            {"type": "block-export-add", "data": {"type": "nbd", "id": "f", "node-name": "fresh", "name": "f"}},
            {"type": "blockdev-del", "data": {"node-name": "held"}}])
        self.assertEqual(self.session.event("BLOCK_EXPORT_DELETED"), {"id": "n"})
        call("nbd-server-stop", id="second")
        call("nbd-server-stop")
        self.assertEqual({self.session.event("BLOCK_EXPORT_DELETED")["id"] for _ in range(2)}, {"f", "i"})
        call("source-del", id="stable")
        call("object-del", id="t0")

    def test_all(self):
        listed = {row["name"] for row in self.session.call("query-commands")}
        schema = self.session.schema.entities.values()
        self.assertEqual({entity["name"] for entity in schema if entity["meta-type"] == "command"}, listed)
        events = {entity["name"] for entity in schema if entity["meta-type"] == "event"}
        for steps in (self.session_steps, self.object_steps, self.node_steps, self.rebuild_steps, self.source_steps,
                      self.change_steps, self.export_steps, self.io_steps, self.fault_steps, self.quorum_steps, self.removal_steps):
            steps()
        self.session.call("quit")
        self.assertEqual(self.session.event("SHUTDOWN"), {"guest": False, "reason": "host-qmp-quit"})
        self.assertEqual(self.process.wait(programs.PATIENCE), 0)
        self.assertNotIn("Sanitizer", self.process.stderr.read())
        self.assertEqual(listed | events, self.session.used, "give each command and each event a step in this file")


if __name__ == "__main__":
    unittest.main()
