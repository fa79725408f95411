#!/usr/bin/python3
"""Clients that vanish, do not read or come in thousands; disks and processes that run out; ends in the middle of work.
Nobody else may notice, and nothing may be left behind."""
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs
from test_nbd import MIB, NbdTest


class Faults(NbdTest):
    def descriptors(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def settle(self, count):
        programs.wait_until(lambda: self.descriptors() <= count, f"no more than {count} descriptors")

    def unharmed(self, client):
        self.assertEqual(client.do(READ, 0, 4096).error, 0)

    def test_clients_that_vanish(self):
        rng, other = random.Random(1), self.client()
        time.sleep(0.2)
        before = self.descriptors()
        name = NbdClient.name_data("disk")
        write = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, 0, 200000) + bytes(200000)
        stream = (struct.pack(">IQII", 3, IHAVEOPT, GO, len(name)) + name + write +
                  struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 2, 0, 3 * MIB) * 4)
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self.path("nbd"))
                try:
                    client.sendall(stream[:rng.randrange(len(stream))])
                except OSError:
                    pass
            self.unharmed(other)
        self.settle(before)

    def test_killed_clients(self):
        """Stock programs that are killed while they read and write."""
        with open(self.path("image"), "wb") as image:
            image.write(os.urandom(4 * MIB))
        rng, other = random.Random(2), self.client()
        time.sleep(0.2)
        before = self.descriptors()
        url = f"nbd+unix:///disk?socket={self.path('nbd')}"
        for i in range(16):
            ends = [self.path("image"), url] if i % 2 else [url, "null:"]
            with subprocess.Popen(["nbdcopy", *ends], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as copy:
                time.sleep(rng.random() * 0.06)
                copy.kill()
            self.unharmed(other)
        self.settle(before)

    def test_a_client_that_never_reads(self):
        deaf, other = self.client("big"), self.client("big")
        deaf.socket.settimeout(0.5)
        request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 2, 0, 2 * MIB)
        try:
            for _ in range(100000):
                deaf.send(request * 100)
        except socket.timeout:
            pass
        self.unharmed(other)
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as status:
            size = [int(line.split()[1]) for line in status if line.startswith("VmRSS")][0]
        if not os.environ.get("CAIRN_BUILD", "").endswith(("undefined", "thread")):
            self.assertLess(size, 160 << 10)
        self.ask("block-export-del", "id=big", "mode=hard")
        self.assertTrue(other.hangs_up())

    def test_two_thousand_connections(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 5000:
            self.skipTest("this user may not open so many files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (5000, hard))
        self.ask("nbd-server-start", "id=many", "addr.type=unix", f"addr.data.path={self.path('many')}",
                 "max-connections=0", "handshake-max-seconds=0")
        self.ask("block-export-add", "type=nbd", "id=many", "node-name=disk", "server=many")
        time.sleep(0.2)
        before = self.descriptors()
        clients = [NbdClient(self.path("many"), 120).go("disk") for _ in range(2000)]
        for client in clients[::97]:
            self.unharmed(client)
        for client in clients:
            client.close()
        self.settle(before)

    def test_no_descriptors_left(self):
        other = self.client()
        # The limit is of numbers, not of a count.
        highest = max(map(int, os.listdir(f"/proc/{self.daemon.pid}/fd")))
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (highest + 4, 4096))
        crowd = []
        for _ in range(12):
            client = NbdClient(self.path("nbd"))
            crowd.append(client)
        time.sleep(0.3)
        self.unharmed(other)
        for client in crowd:
            client.close()
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        self.unharmed(self.client())

    def slow_disk(self):
        self.ask("blockdev-add", "driver=null-co", "node-name=slow", f"size={64 * MIB}", "latency-ns=200000000")
        self.ask("block-export-add", "type=nbd", "id=slow", "node-name=slow", "writable=on")
        return self.client("slow")

    def test_an_export_goes_with_requests_in_flight(self):
        for how in ("export", "server", "transaction"):
            client = self.slow_disk()
            for _ in range(20):
                client.request(READ, 0, 4096)
            time.sleep(0.05)
            if how == "transaction":
                self.ask("transaction", '{"actions": [{"type": "block-export-del", "data": {"id": "slow", "mode": '
                         '"hard"}}, {"type": "blockdev-del", "data": {"node-name": "slow"}}]}')
            else:
                self.assert_fails(self.cairnctl("block-export-del", "id=slow"), "still in use")
                self.ask("block-export-del", "id=slow", "mode=hard")
                programs.wait_until(lambda: "slow" not in [e["id"] for e in self.ask("query-block-exports")], "its end")
                self.ask("blockdev-del", "node-name=slow")
            self.assertTrue(client.hangs_up())
            programs.wait_until(lambda: "slow" not in [e["id"] for e in self.ask("query-block-exports")], "its end")

    def worker(self, name, first, stop, failures):
        """Writes and checks blocks of its own, again and again."""
        rng = random.Random(first)
        try:
            with NbdClient(self.path("nbd")) as client:
                client.go(name)
                while not stop.is_set():
                    offset = (first + 2 * rng.randrange(100)) * 4096
                    data = rng.randbytes(4096)
                    if client.do(WRITE, offset, data=data).error or client.do(READ, offset, 4096).data != data:
                        failures.append(offset)
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    def test_one_node_from_two_iothreads_while_it_is_resized(self):
        for thread in ("t0", "t1"):
            self.ask("object-add", "qom-type=iothread", f"id={thread}")
            self.ask("block-export-add", "type=nbd", f"id={thread}", "node-name=disk", f"name={thread}",
                     "writable=on", f"iothread={thread}")
        stop, failures = threading.Event(), []
        workers = [threading.Thread(target=self.worker, args=(f"t{i % 2}", i % 2, stop, failures)) for i in range(2)]
        for worker in workers:
            worker.start()
        for i in range(30):
            self.ask("block_resize", "node-name=disk", f"size={(4 + i % 5) * MIB}")
        stop.set()
        for worker in workers:
            worker.join()
        self.assertEqual(failures, [])
        self.assert_fails(self.cairnctl("object-del", "id=t0"), "in use")

    def test_a_stop_under_load(self):
        """tearDown() checks that it is clean."""
        for _ in range(4):
            client = self.client("big", extended=True)
            for _ in range(50):
                client.request(READ, 0, 65536)


class HungDisk(programs.Program):
    def test_a_stop(self):
        """A disk that does not answer is left behind after one wait; the others, and sources, are closed as always."""
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "good", "8M"],
                       cwd=self.folder, check=True, timeout=programs.PATIENCE)
        daemon = self.serve("--blockdev", "null-co,node-name=hung,size=1M,latency-ns=1000000000000",
                            "--blockdev", "qcow2,node-name=good,file.driver=file,file.filename=good",
                            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                            "--export", "nbd,id=hung,node-name=hung", "--pidfile", "pid")
        self.ask("source-add", "id=one", "node=hung")
        self.ask("source-add", "id=two", "node=good")
        self.ask("block-export-add", "type=nbd", "id=good", "node-name=two", "name=good", "writable=on")
        with NbdClient(self.path("nbd")) as stuck, NbdClient(self.path("nbd")) as client:
            stuck.go("hung").request(READ, 0, 512)
            self.assertEqual(client.go("good").do(WRITE, 0, data=b"x" * MIB).error, 0)
            start = time.monotonic()
            daemon.terminate()
            said = daemon.communicate(timeout=programs.PATIENCE)[1]
        self.assertLess(time.monotonic() - start, 50)
        self.assertEqual(daemon.returncode, 1)
        self.assertIn("export 'hung' still has 1 requests in flight", said)
        self.assertNotIn("Sanitizer", said)
        self.assertEqual(sorted(os.listdir(self.folder)), ["good"])
        for command in (["qemu-img", "check", "good"], ["qemu-io", "-f", "qcow2", "-c", "read -P 0x78 0 1M", "good"]):
            result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False,
                                    timeout=programs.PATIENCE)
            self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
            self.assertNotIn("Pattern verification failed", result.stdout)
        with open(self.path("good"), "rb") as image:
            self.assertEqual(struct.unpack(">Q", image.read(80)[72:])[0] & 1, 0, "the dirty mark stayed")


class FullDisk(programs.Program):
    def test_no_space(self):
        small = self.path("small")
        os.mkdir(small)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False,
                          capture_output=True).returncode:
            self.skipTest("only root can mount")
        self.addCleanup(subprocess.run, ["umount", "-l", small], check=False)
        with open(os.path.join(small, "disk"), "wb") as disk:
            disk.truncate(8 * MIB)
        daemon = self.serve("--blockdev", "driver=file,filename=small/disk,node-name=disk,discard=unmap",
                            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                            "--export", "type=nbd,id=disk,node-name=disk,writable=on")
        with NbdClient(self.path("nbd")) as client:
            client.go("disk")
            errors = [client.do(WRITE, i * 65536, data=b"x" * 65536).error for i in range(64)]
            self.assertEqual(errors[0], 0)
            self.assertIn(ENOSPC, errors)
            self.assertEqual(client.do(READ, 0, 65536).data, b"x" * 65536)
            self.assertEqual(client.do(TRIM, 0, 8 * MIB).error, 0)
            self.assertEqual(client.do(WRITE, 0, data=b"y" * 65536).error, 0)
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
