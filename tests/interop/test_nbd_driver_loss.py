#!/usr/bin/python3
"""The nbd driver when servers die and come back, under load and not."""
import json
import os
import random
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
from nbd_client import *  # noqa: F403
from nbd_servers import SEED, SIZE, NbdDriver as _NbdDriver
import programs

ROUNDS = 1 if os.path.basename(programs.BUILD) != "build" else 4


class Loss(_NbdDriver):
    """Servers that die."""

    def writers(self, count, model, stop):
        """Threads that write and read areas of their own until stop is set; errors go into the list that is returned."""
        wrong = []

        def run(number):
            rng, area = random.Random(SEED + number), SIZE // count
            client = self.client("ab"[number % 2])
            steps = 0
            try:
                while not stop.is_set() or steps < 10:
                    offset = number * area + rng.randrange(area // 4096 - 16) * 4096
                    data = rng.randbytes(rng.choice((4096, 65536)))
                    reply = client.do(WRITE, offset, data=data)
                    self.assertEqual(reply.error, 0)
                    model[offset:offset + len(data)] = data
                    self.assertEqual(client.do(READ, offset, len(data)).data, data)
                    steps += 1
            except BaseException as error:  # noqa: B902
                wrong.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        return threads, wrong

    def killed_under_load(self, start):
        with open(self.path("image"), "wb") as image:
            image.truncate(SIZE)
        start()
        self.start_daemon("reconnect-delay=120")
        stop, model = threading.Event(), bytearray(SIZE)
        threads, wrong = self.writers(4, model, stop)
        for round_number in range(ROUNDS):
            time.sleep(0.2)
            self.kill_server()
            time.sleep(0.1 * round_number)
            start()
            programs.wait_until(lambda: self.property("connected"), "the connection")
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]
        self.assertGreater(self.property("reconnects"), 0)
        self.assertEqual(self.property("last-error"), "")
        self.assert_stored(model)

    def test_requests_go_on(self):
        for start in (self.qemu_nbd, self.nbdkit, self.storage_daemon, self.cairn):
            with self.subTest(start.__name__):
                self.killed_under_load(start)
                self.end(self.daemon)
                self.kill_server()

    def test_with_one_connection_only(self):
        self.killed_under_load(lambda: self.nbdkit("--filter=multi-conn", "multi-conn-mode=disable"))
        self.assertEqual(self.property("connections"), 1)

    def test_without_delay(self):
        self.qemu_nbd()
        self.start_daemon()
        clients = [self.client("a"), self.client("b")]
        for client in clients:
            self.assertEqual(client.do(WRITE, 0, data=b"1" * 4096).error, 0)
        self.kill_server()
        for client in clients:
            self.assertEqual(client.do(READ, 0, 4096).error, EIO)
            self.assertEqual(client.do(FLUSH).error, EIO)
        programs.wait_until(lambda: "Connection refused" in self.property("last-error"), "an attempt")
        self.assertFalse(self.property("connected"))
        self.qemu_nbd()
        for client in clients:
            programs.wait_until(lambda client=client: client.do(READ, 0, 4096).error == 0, "the node to be usable")
            self.assertEqual(client.do(READ, 0, 4096).data, b"1" * 4096)
        self.assertEqual(self.property("last-error"), "")

    def test_the_delay_ends(self):
        self.qemu_nbd()
        self.start_daemon("reconnect-delay=1")
        clients = [self.client("a"), self.client("b")]
        self.kill_server()
        for client in clients:
            client.request(READ, 0, 4096)
            client.request(WRITE, 0, 4096, data=bytes(4096))
        for client in clients:
            for kind in (READ, WRITE):
                self.assertEqual(client.reply(kind, 4096)[1].error, EIO)
            self.assertEqual(client.do(READ, 0, 4096).error, EIO)

    def test_another_export(self):
        """What comes back must be what was there."""
        self.qemu_nbd()
        self.start_daemon()
        client = self.client()
        self.assertEqual(client.do(READ, 0, 4096).error, 0)
        self.kill_server()
        os.truncate(self.path("image"), SIZE // 2)
        self.qemu_nbd()
        programs.wait_until(lambda: f"had {SIZE} bytes before, and has {SIZE // 2}" in self.property("last-error"), "an attempt")
        self.assertEqual(client.do(READ, 0, 4096).error, EIO)
        self.kill_server()
        os.truncate(self.path("image"), SIZE)
        self.qemu_nbd()
        programs.wait_until(lambda: client.do(READ, 0, 4096).error == 0, "the node to be usable")

    def test_held_requests_do_not_hold_a_change(self):
        self.qemu_nbd()
        self.start_daemon("reconnect-delay=100000")
        clients = [self.client("a"), self.client("b")]
        for client in clients:
            self.assertEqual(client.do(READ, 0, 4096).error, 0)
        self.kill_server()
        for client in clients:
            client.request(READ, 0, 4096)
        self.assertIn("return", json.loads(self.cairnctl("--raw", "block-export-del", "id=b", "mode=hard").stdout))
        # It was of the graph's other half as well: the node is the same.
        self.ask("blockdev-add", "driver=null-co", "node-name=other", "size=4096")
        self.end(self.daemon)

    def test_the_daemon_ends_while_requests_are_held(self):
        self.qemu_nbd()
        self.start_daemon("reconnect-delay=100000")
        client = self.client()
        self.kill_server()
        client.request(READ, 0, 4096)
        time.sleep(0.2)
        self.end(self.daemon)

    def test_the_daemon_ends_while_the_server_hangs(self):
        self.qemu_nbd()
        self.start_daemon()
        client = self.client()
        self.assertEqual(client.do(WRITE, 0, data=bytes(4096)).error, 0)
        self.server.send_signal(signal.SIGSTOP)
        client.close()
        self.assertIn("'disk' is removed although its last flush failed", self.end(self.daemon))

    def test_a_loop_that_ends(self):
        """The connection goes on where there is work, and outlives the iothread where it was."""
        for several in ("disable", "emulate"):
            with self.subTest(several):
                self.nbdkit("--filter=multi-conn", f"multi-conn-mode={several}")
                self.start_daemon("reconnect-delay=60")
                one, two = self.client("a"), self.client("b")
                for client in (one, two, one):
                    self.assertEqual(client.do(WRITE, 4096, data=b"2" * 4096).error, 0)
                one.close()
                self.ask("block-export-del", "id=a", "mode=hard")
                programs.wait_until(lambda: self.cairnctl("object-del", "id=one").returncode == 0, "the iothread to go")
                for _ in range(20):
                    self.assertEqual(two.do(READ, 4096, 4096).data, b"2" * 4096)
                self.ask("object-add", "qom-type=iothread", "id=one")
                self.ask("block-export-add", "type=nbd", "id=a", "name=a", "node-name=disk", "iothread=one")
                self.assertEqual(self.client("a").do(READ, 4096, 4096).data, b"2" * 4096)
                two.close()
                self.end(self.daemon)
                self.kill_server()

    def test_a_server_that_ends_in_order(self):
        """SIGTERM: qemu-nbd answers what is in flight with ESHUTDOWN, or hangs up."""
        self.qemu_nbd()
        self.start_daemon("reconnect-delay=60")
        stop, model = threading.Event(), bytearray(SIZE)
        threads, wrong = self.writers(2, model, stop)
        time.sleep(0.2)
        self.server.send_signal(signal.SIGTERM)
        self.server.wait()
        self.qemu_nbd()
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]
        self.assert_stored(model)


if __name__ == "__main__":
    unittest.main()
