#!/usr/bin/python3
"""vhost-user-blk exports, under cairn-vhost-bench."""
import json
import os
import socket
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs
from programs import wait_until
from vhost_client import MIX, VhostTest as _VhostTest

MIB = 1 << 20
SANITIZED = "-" in os.path.basename(programs.BUILD)
# Requests of each load, and how often the daemon dies; a long run has more.
COUNT = os.environ.get("CAIRN_VHOST_COUNT", "300" if SANITIZED else "1000")
KILLS = int(os.environ.get("CAIRN_VHOST_KILLS", "1" if SANITIZED else "3"))

LOADS = [
    "",
    "--size 512-32768 --segments 4",
    "--size 512-8192 --segments 8 --cut --queues 3 --threads 2",
    "--size 512-8192 --segments 6 --cut --direct --depth 30",
    "--no-event-idx --queues 2",
    "--direct --poll --queues 4",
    "--poll --no-event-idx --depth 4",
    "--sequential --size 65536 --depth 8",
    "--queues 4 --restarts 5",
    "--direct --regions 5 --size 512 --depth 8",
    "--regions 7 --cut --segments 5 --size 512-8192",
    "--queue-size 1024 --depth 1000 --size 512",
    "--queues 33 --depth 4 --threads 2 --size 512",
]


class VhostTest(_VhostTest):
    OPTIONS = "num-queues=40,iothreads.0=t0,iothreads.1=t1,iothreads.2=t2,iothreads.3=t3"

    def serve_export(self, node="driver=file,node-name=d,filename=disk,discard=unmap", options="writable=on"):
        threads = [word for i in range(4) for word in ("--object", f"iothread,id=t{i}")]
        self.daemon = self.serve("--blockdev", node, *threads, "--export",
                                 f"vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,{options},"
                                 f"{self.OPTIONS}")
        return self.daemon

    def wait_for_front_end(self):
        wait_until(lambda: self.ask("qom-get", "path=/exports/e", "property=clients") == 1, "the front end")

    def start_load(self, *options):
        load = self.start_bench("--seconds=60", *options)
        self.wait_for_front_end()
        time.sleep(0.3)     # it is negotiating
        return load

    def setUp(self):
        super().setUp()
        self.daemon = None
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(64 * MIB)

    def tearDown(self):
        if self.daemon and self.daemon.poll() is None:
            self.assert_clean(self.end(self.daemon))

    def assert_clean(self, said):
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            self.assertNotIn(sign, said)


class Loads(VhostTest):
    def verify(self, *options):
        self.serve_export()
        for load in LOADS:
            with self.subTest(load):
                result = self.bench("--verify", "--seconds=600", "--count", COUNT, *MIX.split(), *load.split(), *options)
                self.assertEqual(result["requests"], int(COUNT))
                self.assertGreater(result["verified_blocks"], int(COUNT) // 2)

    def test_split(self):
        self.verify()

    def test_packed(self):
        self.verify("--packed")

    def test_read_only(self):
        self.serve_export(options="writable=off")
        self.bench("--count=500", "--mix=read,get-id")
        self.bench_fails("the disk is read-only", "--count=500", "--mix=write")
        self.bench_fails("--pid: process 4194304 cannot be measured", "--count=500", "--pid=4194304")

    def test_sleeps_when_idle(self):
        self.serve_export()
        load = self.start_bench("--count=1", "--mix=read")
        load.communicate(timeout=programs.PATIENCE)

        def ticks():
            with open(f"/proc/{self.daemon.pid}/stat", encoding="ascii") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])
        wait_until(lambda: (before := ticks(), time.sleep(0.5), ticks() == before)[-1], "an idle daemon")


class Unanswered(VhostTest):
    def test_the_bench_gives_up(self):
        self.daemon = self.serve("--object", "throttle-group,id=g,limits.bps-total=1", "--blockdev",
                                 "driver=throttle,node-name=d,throttle-group=g,file.driver=null-co,file.size=64M", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d")
        self.bench_fails("requests are not answered", "--timeout=2", "--count=10")


class Life(VhostTest):
    def test_one_front_end_at_a_time(self):
        self.serve_export()
        load = self.start_load("--queues=4")
        self.bench_fails("", "--count=10")    # however the refusal shows
        load.terminate()
        _, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0, said)
        self.bench("--count=100")
        self.assertIn("another one is refused", self.end(self.daemon))

    def test_export_deleted_and_added_under_load(self):
        self.serve_export()
        load = self.start_load("--queues=4", "--reconnect=30", "--verify", "--mix=read,write")
        self.assert_fails(self.cairnctl("block-export-del", "id=e"), "still in use")
        for _ in range(3):
            time.sleep(0.2)
            self.ask("block-export-del", "id=e", "mode=hard")
            wait_until(lambda: self.ask("query-block-exports") == [], "the end of the export")
            self.ask("block-export-add", "type=vhost-user-blk", "id=e", "node-name=d", "writable=true",
                     "addr.type=unix", "addr.path=vhost", "num-queues=4")
            self.wait_for_front_end()
        load.terminate()
        out, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0, said)
        self.assertEqual(json.loads(out)["reconnects"], 3)

    def kill_under_load(self, *options):
        """The daemon is killed and comes back; the front end must not see an error, and all data must be there."""
        daemon = self.serve_export()
        load = self.start_load("--queues=4", "--reconnect=30", "--verify", *MIX.split(), *options)
        for _ in range(KILLS):
            time.sleep(0.3)
            daemon.kill()
            daemon.wait()
            daemon = self.serve_export()
            self.wait_for_front_end()
        time.sleep(0.3)
        load.terminate()
        out, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0, said)
        self.assertEqual(json.loads(out)["reconnects"], KILLS)

    def test_killed_split(self):
        self.kill_under_load("--size=512-16384", "--segments=4", "--cut")

    def test_killed_split_direct(self):
        self.kill_under_load("--direct", "--poll")

    def test_killed_packed(self):
        self.kill_under_load("--packed", "--size=512-16384", "--segments=4", "--cut")

    def test_killed_packed_direct(self):
        self.kill_under_load("--packed", "--direct", "--segments=3")

    def test_queues_move_under_load(self):
        self.serve_export()
        load = self.start_load("--queues=4", "--verify", *MIX.split())
        for i in range(6):
            where = [f"iothreads.{k}=t{(i + k) % 4}" for k in range(1 + i % 4)]
            self.ask("vhost-queue-move", "id=e", *where, *(["queue=2"] if i % 3 == 0 else []))
        self.ask("object-add", "qom-type=iothread", "id=unused")
        self.assert_fails(self.cairnctl("vhost-queue-move", "id=e", "iothreads.0=unused", "iothreads.1=t9"), "t9")
        self.ask("object-del", "id=unused")
        self.assert_fails(self.cairnctl("vhost-queue-move", "id=e", "iothreads.0=t0", "queue=40"), "has no queue 40")
        self.assert_fails(self.cairnctl("vhost-queue-move", "id=f", "iothreads.0=t0"), "'f' is not found")
        load.terminate()
        _, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0, said)

    def test_graph_changes_under_load(self):
        """Nodes come and go below a source; each change pauses the queues."""
        self.serve_export()
        self.ask("blockdev-add", "driver=raw", "node-name=window", "file=d")
        self.ask("block-export-add", "type=vhost-user-blk", "id=w", "node-name=window", "writable=true",
                 "addr.type=unix", "addr.path=window", "num-queues=4", "iothreads.0=t0", "iothreads.1=t1")
        load = self.start_load("--queues=4", "--verify", *MIX.split())
        for i in range(6):
            self.ask("blockdev-add", "driver=delay", "node-name=held", "file=d", f"latency-ns={1000 * i}")
            self.ask("blockdev-del", "node-name=held")
            self.ask("block_resize", "node-name=d", f"size={(64 + i) * MIB}")
        load.terminate()
        _, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0, said)

    def test_resize_is_announced(self):
        self.serve_export()
        load = self.start_load("--span=1M")
        self.ask("block_resize", "node-name=d", f"size={128 * MIB}")
        time.sleep(0.2)
        load.terminate()
        out, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0, said)
        self.assertIn(str(128 * MIB), out)

    def test_inherited_socket(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("vhost"))
            listener.listen()
            self.daemon = self.start("--blockdev", "null-co,node-name=d", "--export",
                                     "vhost-user-blk,id=e,node-name=d,addr.type=fd,addr.str=" + str(listener.fileno()),
                                     pass_fds=[listener.fileno()])
            self.bench("--count=100")

    def test_options(self):
        process = self.start("--blockdev", "null-co,node-name=d", "--export",
                             "vhost-user-blk,id=e,node-name=d,addr.type=inet,addr.host=::1,addr.port=0")
        self.assertIn("addr must be a UNIX socket", process.communicate(timeout=programs.PATIENCE)[1])
        for option, text in (("num-queues=0", "num-queues"), ("num-queues=257", "num-queues"),
                             ("queue-size=2048", "queue-size"), ("logical-block-size=1000", "logical-block-size"),
                             ("iothread=none", "none")):
            with self.subTest(option):
                process = self.start("--blockdev", "null-co,node-name=d", "--export",
                                     f"vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=x,{option}")
                self.assertIn(text, process.communicate(timeout=programs.PATIENCE)[1])
                self.assertEqual(process.returncode, 1)
                self.assertFalse(os.path.exists(self.path("x")))


if __name__ == "__main__":
    unittest.main()
