#!/usr/bin/python3
"""iothread objects: their options while they run, what they cost when idle, and clients spread over several of them."""
import glob
import os
import random
import threading
import time
import unittest

import programs
from nbd_client import FLUSH, NbdClient, READ, WRITE

MIB = 1 << 20
THREADS, CLIENTS = 4, 8
ROUNDS = 30 if "build-" in programs.BUILD else 150      # of each client; sanitizers are slow
TICKS = os.sysconf("SC_CLK_TCK")


def allowed_cpus(process, thread):
    with open(f"/proc/{process.pid}/task/{thread}/status", encoding="ascii") as status:
        text = [line.split()[1] for line in status if line.startswith("Cpus_allowed_list")][0]
    cpus = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def cpu_seconds(process):
    """User and system time of all threads so far."""
    with open(f"/proc/{process.pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Iothreads(programs.Program):
    def iothread(self, name):
        return [row for row in self.ask("query-iothreads") if row["id"] == name][0]

    def serve_nbd(self, *options):
        return self.serve("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}", *options)

    def test_options_show_and_change(self):
        cpu = min(os.sched_getaffinity(0))
        daemon = self.serve("--object", f"iothread,id=io,aio-max-batch=3,poll-grow=2,cpu-affinity.0={cpu}")
        row = self.iothread("io")
        self.assertEqual((row["aio-max-batch"], row["poll-grow"], row["poll-shrink"], row["cpu-affinity"]),
                         (3, 2, 0, [cpu]))
        self.assertEqual(allowed_cpus(daemon, row["thread-id"]), [cpu])
        for name, value in (("poll-max-ns", 7), ("poll-grow", 8), ("poll-shrink", 9), ("aio-max-batch", 10)):
            self.ask("qom-set", "path=/objects/io", f"property={name}", f"value={value}")
            self.assertEqual(self.iothread("io")[name], value)
            self.assertEqual(self.ask("qom-get", "path=io", f"property={name}"), value)
        self.ask("qom-set", '{"path": "io", "property": "cpu-affinity", "value": []}')
        self.assertEqual(self.iothread("io")["cpu-affinity"], [])
        self.assertEqual(allowed_cpus(daemon, row["thread-id"]), sorted(os.sched_getaffinity(0)))
        self.ask("qom-set", '{"path": "io", "property": "cpu-affinity", "value": [%d]}' % cpu)
        self.assertEqual(allowed_cpus(daemon, row["thread-id"]), [cpu])
        self.assert_fails(self.cairnctl("qom-set", '{"path": "io", "property": "cpu-affinity", "value": [%d, 4095]}' % cpu),
                          "Parameter 'cpu-affinity[1]': CPU 4095 is not one that this program may use")
        self.assertEqual(self.iothread("io")["cpu-affinity"], [cpu])
        self.assertEqual(allowed_cpus(daemon, row["thread-id"]), [cpu])
        self.end(daemon)

    def test_a_failed_start_leaves_nothing(self):
        daemon = self.serve()
        self.assert_fails(self.cairnctl("object-add", "qom-type=iothread", "id=io", "cpu-affinity.0=4095"),
                          "Parameter 'cpu-affinity[0]': CPU 4095 is not one that this program may use")
        self.assertEqual(self.ask("query-iothreads"), [])
        for path in glob.glob(f"/proc/{daemon.pid}/task/*/comm"):
            with open(path, encoding="ascii") as name:
                self.assertNotEqual(name.read(), "io\n")
        self.ask("object-add", "qom-type=iothread", "id=io")
        self.end(daemon)

    def test_idle_costs_nothing(self):
        """Polling ends soon after the last request, on an iothread that polls long and on the one that is made unasked."""
        daemon = self.serve_nbd("--object", "iothread,id=io,poll-max-ns=1000000", "--blockdev",
                                "null-co,node-name=disk,size=1M", "--export",
                                "nbd,id=own,node-name=disk,name=own,iothread=io",
                                "--export", "nbd,id=shared,node-name=disk,name=shared")
        clients = [self.client(name) for name in ("own", "shared")]
        for _ in range(300):
            for client in clients:
                client.do(READ, 0, 4096)
        before = {row["id"]: row for row in self.ask("query-iothreads")}
        for client in clients:
            for _ in range(50):
                client.do(READ, 0, 4096)
        after = {row["id"]: row for row in self.ask("query-iothreads")}
        for name in ("io", "io0"):
            self.assertGreater(after[name]["poll-hits"] + after[name]["sleeps"],
                               before[name]["poll-hits"] + before[name]["sleeps"])
        time.sleep(1)
        rows, spent = self.ask("query-iothreads"), cpu_seconds(daemon)
        time.sleep(1)
        self.assertLess(cpu_seconds(daemon) - spent, 0.1)
        for old, new in zip(rows, self.ask("query-iothreads")):
            self.assertEqual(old["polled-ns"], new["polled-ns"])
        self.end(daemon)

    def client(self, name):
        client = NbdClient(self.path("nbd")).go(name)
        self.addCleanup(client.close)
        return client

    def work(self, number, failures):
        """Writes blocks of its own to both disks, several requests at once, and reads them again."""
        rng = random.Random(number)
        try:
            for name in ("raw", "qcow2"):
                with NbdClient(self.path("nbd"), programs.PATIENCE) as client:
                    client.go(name)
                    for _ in range(ROUNDS):
                        blocks = rng.sample(range(number, 2048, CLIENTS), 8)
                        data = [rng.randbytes(4096) for _ in blocks]
                        for block, text in zip(blocks, data):
                            client.request(WRITE, block * 4096, 4096, data=text)
                        answers = [client.reply(WRITE)[1] for _ in blocks]
                        client.do(FLUSH)
                        if any(answer.error for answer in answers) or any(
                                client.do(READ, block * 4096, 4096).data != text for block, text in zip(blocks, data)):
                            failures.append((name, blocks))
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    def test_clients_spread_over_iothreads(self):
        """Eight connections on four iothreads, on a raw file and on a new qcow2 image."""
        names = [f"t{i}" for i in range(THREADS)]
        spread = "".join(f",iothreads.{i}={name}" for i, name in enumerate(names))
        with open(self.path("raw"), "wb") as disk:
            disk.truncate(8 * MIB)
        self.assertEqual(os.spawnlp(os.P_WAIT, "qemu-img", "qemu-img", "create", "-q", "-f", "qcow2",
                                    self.path("qcow2"), "8M"), 0)
        daemon = self.serve_nbd(
            *(part for name in names for part in ("--object", f"iothread,id={name}")),
            "--blockdev", "file,node-name=raw,filename=raw",
            "--blockdev", "qcow2,node-name=qcow2,file.driver=file,file.filename=qcow2",
            "--export", f"nbd,id=raw,node-name=raw,writable=on{spread}",
            "--export", f"nbd,id=qcow2,node-name=qcow2,writable=on{spread}")
        slept = {row["id"]: row["sleeps"] for row in self.ask("query-iothreads")}
        failures = []
        workers = [threading.Thread(target=self.work, args=(i, failures)) for i in range(CLIENTS)]
        for worker in workers:
            worker.start()
        self.assert_fails(self.cairnctl("object-del", "id=t2"), "object 't2' is in use, can not be deleted")
        for worker in workers:
            worker.join()
        self.assertEqual(failures, [])
        for row in self.ask("query-iothreads"):
            self.assertGreater(row["sleeps"], slept[row["id"]] + 10, row["id"])
        self.assert_fails(self.cairnctl("object-del", "id=t3"), "object 't3' is in use, can not be deleted")
        for name in ("raw", "qcow2"):
            self.ask("block-export-del", f"id={name}", "mode=hard")
        programs.wait_until(lambda: not self.ask("query-block-exports"), "the end of the exports")
        for name in names:
            self.ask("object-del", f"id={name}")
        self.assertEqual(self.ask("query-iothreads"), [])
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
