#!/usr/bin/python3
"""cairn-vhost-bench against qemu-storage-daemon: it must get along with it, and notice when something is wrong."""
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
import programs
from programs import wait_until
from vhost_client import MIX, VhostTest as _VhostTest

MIB = 1 << 20

# That server takes a chain whose buffers lie across two memory regions for a loop, and misreads tables that do:
# several regions only with buffers that do not.
LOADS = [
    MIX,
    f"{MIX} --size 512-32768 --segments 4",
    f"{MIX} --size 512-8192 --segments 8 --cut --queues 3 --threads 2",
    f"{MIX} --size 512-8192 --segments 6 --cut --direct --depth 30",
    f"{MIX} --no-event-idx --queues 2",
    f"{MIX} --direct --poll --queues 4",
    f"{MIX} --poll --no-event-idx --depth 1",
    f"{MIX} --sequential --size 65536 --depth 8",
    f"{MIX} --queues 4 --restarts 5",
    "--mix read,write --direct --regions 5 --size 512 --depth 8",
    f"{MIX} --queue-size 1024 --depth 1000 --size 512",
]


@unittest.skipIf(not shutil.which("qemu-storage-daemon"), "not installed: qemu-storage-daemon")
class Qsd(_VhostTest):
    def storage_daemon(self, node):
        process = subprocess.Popen(
            ["qemu-storage-daemon", "--chardev", "socket,id=m,path=monitor,server=on,wait=off", "--monitor", "chardev=m",
             "--blockdev", node, "--export",
             "type=vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,writable=on,num-queues=4"],
            cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, process)
        wait_until(lambda: process.poll() is not None or os.path.exists(self.path("vhost")), "qemu-storage-daemon")
        return process

    def serve_file(self):
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(64 * MIB)
        return self.storage_daemon("driver=file,node-name=d,filename=disk,discard=unmap")

    def test_export_deleted_under_load(self):
        self.serve_file()
        load = self.start_bench("--seconds=60", "--queues=4", "--verify", "--mix=read,write")
        time.sleep(0.3)
        self.socket = self.path("monitor")
        self.ask("block-export-del", "id=e", "mode=hard")
        _, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 1)
        self.assertIn("closed the connection", said)

    def test_loads(self):
        self.serve_file()
        for load in LOADS:
            with self.subTest(load):
                result = self.bench("--verify", "--count", "3000", *load.split())
                self.assertEqual(result["requests"], 3000)
                self.assertGreater(result["verified_blocks"], 1000)

    def test_offers(self):
        self.serve_file()
        for option, text in (("--packed", "packed rings"), ("--in-order", "in order"), ("--reconnect=5", "in flight"),
                             ("--queues=5", "has 4"), ("--segments=1000", "takes 126"), ("--size=600", "of 512 bytes"),
                             ("--span=1K", "too few"), ("--depth=300", "do not fit")):
            with self.subTest(option):
                self.bench_fails(text, "--count=10", option)

    def test_usage(self):
        for option in ("--queues=0", "--queues=x", "--size=1K-512", "--mix=reed", "--mix=read=0", "--count=-1",
                       "--seconds=nan", "--size=", "--mix="):
            with self.subTest(option):
                result = self.run_bench(option)
                self.assertEqual(result.returncode, 2)
                self.assertIn(option[2:].split("=", maxsplit=1)[0], result.stderr)

    def test_lost_writes_are_found(self):
        self.storage_daemon("driver=null-co,node-name=d,size=67108864,read-zeroes=on")
        self.bench_fails("should hold write", "--verify", "--count=500", "--mix=read,write")

    def test_failed_requests_are_reported(self):
        self.write("rules", '[inject-error]\nevent = "none"\niotype = "write"\nerrno = "5"\n')
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(8 * MIB)
        self.storage_daemon("driver=blkdebug,node-name=d,config=rules,image.driver=file,image.filename=disk")
        self.bench_fails("ended with status 1", "--verify", "--count=500", "--mix=read,write")

    def test_the_server_dies(self):
        server = self.serve_file()
        load = self.start_bench("--seconds=60", "--queues=4")
        time.sleep(0.3)
        server.kill()
        _, said = load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 1)
        self.assertIn("closed the connection", said)

    def test_one_at_a_time(self):
        self.serve_file()
        load = self.start_bench("--seconds=60", "--queues=4")
        time.sleep(0.3)
        self.bench_fails("does not answer", "--timeout=1")
        load.send_signal(signal.SIGTERM)
        load.communicate(timeout=programs.PATIENCE)
        self.assertEqual(load.returncode, 0)
        self.bench("--count=100")


if __name__ == "__main__":
    unittest.main()
