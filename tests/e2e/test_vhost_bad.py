#!/usr/bin/python3
"""Front ends that break the rules of vhost-user and virtio: each must be refused, and the next one must find the device
as it was."""
import os
import socket
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs
from vhost_bad_inputs import *  # noqa: F403
from vhost_front import *  # noqa: F403
from programs import wait_until


class BadFrontEnds(programs.Program):
    def setUp(self):
        super().setUp()
        self.fronts = []
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(4 << 20)
        self.daemon = self.serve("--blockdev", "driver=file,node-name=d,filename=disk,discard=unmap", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,writable=on,"
                                 "num-queues=4")
        self.check()
        self.quiet = self.descriptors()

    def tearDown(self):
        for front in self.fronts:
            front.close()
        self.check()
        wait_until(lambda: self.descriptors() <= self.quiet, "descriptors to be closed")
        said = self.end(self.daemon)
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            self.assertNotIn(sign, said)

    def front(self):
        self.fronts.append(Front(self.path("vhost")))
        return self.fronts[-1]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def check(self):
        """A good front end is served, and when it is gone nothing of it is left."""
        front = self.front().good()
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)
        front.close()
        wait_until(lambda: self.ask("qom-get", "path=/exports/e", "property=clients") == 0, "the end of the front end")

    def assert_refused(self, front, *message, **how):
        try:
            self.assertFalse(front.ack(*message, **how))
        except Closed:
            pass
        front.close()

    def test_flags_and_sizes(self):
        for how in (dict(flags=0), dict(flags=2), dict(flags=3), dict(flags=VERSION | REPLY), dict(size=1025),
                    dict(size=4096), dict(size=(1 << 32) - 1), dict(size=1 << 31)):
            with self.subTest(how):
                front = self.front()
                front.send(GET_FEATURES, **how)
                with self.assertRaises(Closed):
                    front.receive()
                front.close()

    def test_unknown_messages(self):
        for request in UNKNOWN:
            for payload in (b"", bytes(8), bytes(1024)):
                with self.subTest(request, size=len(payload)):
                    self.assert_refused(self.front().negotiate(), request, payload)

    def test_payloads_of_other_sizes(self):
        for request, (size, fds) in FORMS.items():
            for change in (-1, 1, 500):
                if size + change >= 0 and (change < 0 or change > 1 or request not in PADDED):
                    with self.subTest(request, change=change):
                        front = self.front().negotiate()
                        self.assert_refused(front, request, bytes(size + change), [front.kick] * fds)

    def test_other_file_descriptors(self):
        for request, (size, fds) in FORMS.items():
            for count in (0, 1, 2, 8, 9, 200):
                if count != fds and (request, count) != (REM_MEM_REG, 1):
                    with self.subTest(request, count=count):
                        front = self.front().negotiate()
                        self.assert_refused(front, request, bytes(size), [front.kick] * count)

    def test_what_was_not_negotiated(self):
        for request, (size, fds) in FORMS.items():
            if request in (GET_QUEUE_NUM, SET_BACKEND_REQ_FD) or request >= GET_CONFIG:
                with self.subTest(request):
                    front = self.front().negotiate(protocol=REPLY_ACK)
                    self.assert_refused(front, request, bytes(size), [front.kick] * fds)

    def test_messages(self):
        for name, case in MESSAGES.items():
            with self.subTest(name):
                front = self.front().good()
                self.assert_refused(front, *case(front))

    def test_a_refused_message_changes_nothing(self):
        for name, case in MESSAGES.items():
            with self.subTest(name):
                front = self.front().good()
                front.request(IN, data=4096)
                self.assertFalse(front.ack(*case(front)))
                self.assertEqual(front.run(), OK)
                front.close()

    def test_configuration_that_is_not_there(self):
        for offset, size in ((256, 1), (0, 257), (255, 2), ((1 << 32) - 1, 2), (2, (1 << 32) - 1)):
            with self.subTest(offset, size=size):
                front = self.front().negotiate()
                self.assertEqual(front.ask(GET_CONFIG, config(offset, size)), b"")
                front.close()

    def test_rings_that_are_not_there(self):
        for packed in (0, RING_PACKED):
            for name, where in ADDRESSES.items():
                with self.subTest(name, packed=packed):
                    if packed and "odd av" in name:
                        where = dict(avail=USER + AVAIL + 2)
                    if packed and "used ring across" in name:
                        where = dict(used=USER + MEMORY)
                    front = self.front().negotiate(features=packed).share()
                    with self.assertRaises(AssertionError):
                        front.start(addresses=front.addresses(**where))
                    front.close()

    def test_rings_of_other_sizes(self):
        for size in (3, 15, 1023):
            with self.subTest(size):
                front = self.front().negotiate().share()
                with self.assertRaises(AssertionError):
                    front.start(size=size)
                front.close()
        for base in (16, 0x80100000, 0xffffffff):
            with self.subTest(base):
                front = self.front().negotiate(features=RING_PACKED).share()
                with self.assertRaises(AssertionError):
                    front.start(base=base)
                front.close()

    def test_settings_of_a_running_queue(self):
        front = self.front().good()
        self.assertFalse(front.ack(SET_VRING_NUM, struct.pack(STATE, 0, SIZE)))
        self.assertFalse(front.ack(SET_VRING_BASE, struct.pack(STATE, 0, 5)))
        self.assertFalse(front.ack(SET_VRING_ADDR, front.addresses(desc=USER + 0x6000)))
        self.assertTrue(front.ack(SET_VRING_ADDR, front.addresses()))
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)

    def assert_broken(self, front):
        self.assertEqual(front.wait(), "broken")
        self.assertTrue(front.number(GET_STATUS) & NEEDS_RESET)
        front.close()

    def test_chains(self):
        for features in (0, RING_PACKED, INDIRECT_DESC, INDIRECT_DESC | RING_PACKED):
            for name, fill in (CHAINS if features & RING_PACKED else CHAINS | SPLIT_CHAINS).items():
                with self.subTest(name, features=features):
                    front = self.front().good(features=features)
                    fill(front)
                    front.show(0)
                    self.assert_broken(front)

    def test_chains_without_end(self):
        front = self.front().good(features=RING_PACKED)
        front.chain(*[(HEADER, 16, False)] * SIZE)
        front.desc(SIZE - 1, HEADER, 16, NEXT)
        front.show()
        self.assert_broken(front)

    def test_available(self):
        for name, show in AVAILABLE.items():
            with self.subTest(name):
                front = self.front().good()
                front.request(IN, data=512)
                front.show(*show["heads"], index=show.get("index"))
                self.assert_broken(front)

    def test_a_device_that_was_reset_works(self):
        for packed in (0, RING_PACKED):
            for reset in (lambda f: f.must(RESET_DEVICE), lambda f: f.must(SET_STATUS, bytes(8)),
                          lambda f: f.ask(GET_VRING_BASE, bytes(8))):
                with self.subTest(packed=packed):
                    front = self.front().good(features=packed)
                    CHAINS["an empty buffer"](front)
                    front.show(0)
                    self.assertEqual(front.wait(), "broken")
                    os.eventfd_read(front.broken)
                    reset(front)
                    front.memory[:0x6000] = bytes(0x6000)
                    front.avail = 0
                    front.must(SET_FEATURES, struct.pack(NUMBER, front.features))
                    front.start()
                    front.request(IN, data=4096)
                    self.assertEqual(front.run(), OK)
                    front.close()

    def test_a_reset_beside_a_fault(self):
        """A fault that the reset has overtaken is not one of the device that is set up next."""
        resets = (lambda f: f.must(RESET_DEVICE), lambda f: f.must(SET_STATUS, bytes(8)),
                  lambda f: f.ask(GET_VRING_BASE, bytes(8)))
        front = self.front().good()
        for i in range(300):
            CHAINS["an empty buffer"](front)
            front.show(0)
            time.sleep(i % 10 * 0.00002)    # each time at another moment of what the queue does
            resets[i % 3](front)
            if select.select([front.broken], [], [], 0)[0]:
                os.eventfd_read(front.broken)
            front.memory[:0x6000] = bytes(0x6000)
            front.avail = 0
            front.must(SET_FEATURES, struct.pack(NUMBER, front.features))
            front.start()
            front.request(IN, data=4096)
            self.assertEqual(front.run(), OK)
            front.memory[:0x6000] = bytes(0x6000)
            front.avail = 0
            front.ask(GET_VRING_BASE, bytes(8))
            front.start()

    def test_requests(self):
        for packed in (0, RING_PACKED):
            for name, (kind, sector, data, status) in REQUESTS.items():
                with self.subTest(name, packed=packed):
                    front = self.front().good(features=packed | BLK_DISCARD | BLK_ZEROES)
                    front.request(kind, sector, data)
                    self.assertEqual(front.run(), status)
                    front.close()

    def test_ranges(self):
        front = self.front().good()
        for sector, sectors, flags, *statuses in RANGES:
            for kind, status in zip((DISCARD, WRITE_ZEROES), statuses):
                with self.subTest(kind, sector=sector, sectors=sectors, flags=flags):
                    front.request(kind, data=16)
                    front.put(DATA, "QII", sector, sectors, flags)
                    self.assertEqual(front.run(), status)

    def test_ranges_that_were_not_negotiated(self):
        front = self.front().good(features=0)
        for kind in (DISCARD, WRITE_ZEROES):
            front.request(kind, data=16)
            front.put(DATA, "QII", 0, 8, 0)
            self.assertEqual(front.run(), UNSUPP)

    def test_memory_that_vanishes(self):
        """The file below the mapping becomes shorter: the daemon must not die of SIGBUS."""
        for packed in (0, RING_PACKED):
            for left in (0, 0x4000):
                with self.subTest(packed=packed, left=left):
                    front = self.front().good(features=packed)
                    front.request(IN, data=4096)
                    if left:
                        front.show(0)
                        front.wait()
                    os.ftruncate(front.memfd, left)
                    os.eventfd_write(front.kick, 1)
                    if not left:    # the ring is gone; and it would be us who die if we looked at it
                        wait_until(lambda: select.select([front.broken], [], [], 1)[0], "the error")
                    self.assertIsNone(self.daemon.poll())
                    front.close()
                    self.check()

    def test_disconnect_in_a_message(self):
        whole = struct.pack("=III", SET_FEATURES, VERSION, 8) + bytes(8)
        for count in range(len(whole)):
            with self.subTest(count):
                front = self.front()
                front.socket.sendall(whole[:count])
                front.close()

    def test_disconnect_while_waiting(self):
        """Who waits for the end of the last front end, and goes away, is in nobody's way."""
        self.ask("blockdev-add", "driver=delay", "node-name=slow", "file=d", "latency-ns=1000000000")
        self.ask("block-export-add", "type=vhost-user-blk", "id=s", "addr.type=unix", "addr.path=slow", "node-name=slow")
        self.quiet = self.descriptors()
        first = Front(self.path("slow")).good()
        first.request(IN, data=512)
        first.show(0)
        time.sleep(0.1)     # until it is in flight: if it is not, the test shows less, and passes
        first.close()
        for _ in range(2):
            Front(self.path("slow")).close()
        last = Front(self.path("slow"))
        self.fronts.append(last)
        self.assertTrue(last.number(GET_FEATURES))

    def test_disconnect_after_each_message(self):
        class Enough(Exception):
            pass
        for limit in range(1, 40):
            front = self.front()
            send = front.send

            def counted(*arguments, **keywords):
                counted.left -= 1
                if counted.left < 0:
                    raise Enough
                send(*arguments, **keywords)
            counted.left = limit
            front.send = counted
            try:
                front.good()
                front.request(IN, data=4096)
                front.show(0)
                break
            except Enough:
                front.close()
        self.assertGreater(limit, 12)
        front.close()

    def test_slow_sender(self):
        front = self.front()
        for byte in struct.pack("=III", GET_FEATURES, VERSION, 0):
            front.socket.sendall(bytes([byte]))
            time.sleep(0.002)
        self.assertEqual(front.receive()[0], GET_FEATURES)

    def test_one_who_never_reads(self):
        front = self.front()
        front.socket.setblocking(False)
        message = struct.pack("=III", GET_FEATURES, VERSION, 0) * 1000
        try:
            for _ in range(1000):
                front.socket.sendall(message)
        except BlockingIOError:
            pass
        self.ask("query-version")

    def test_one_who_never_reads_and_breaks_a_queue(self):
        front = self.front().good()
        front.socket.setblocking(False)
        message = struct.pack("=III", GET_FEATURES, VERSION, 0) * 100
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                front.socket.sendall(message)
            except BlockingIOError:
                break
        CHAINS["an empty buffer"](front)
        front.show(0)
        time.sleep(0.1)
        self.ask("query-version")

    def test_flood(self):
        front = self.front().negotiate()
        message = struct.pack("=III", SET_OWNER, VERSION, 0) * 1000
        for _ in range(100):
            front.socket.sendall(message)
        self.ask("query-version")
        self.assertTrue(front.number(GET_FEATURES))

    def test_file_descriptors_are_not_collected(self):
        front = self.front().good()
        before = self.descriptors()
        for _ in range(300):
            front.must(SET_VRING_CALL, struct.pack(NUMBER, 0), [front.call])
            self.assertFalse(front.ack(GET_VRING_BASE + 100, b"", [front.kick] * 8))
        wait_until(lambda: self.descriptors() <= before, "descriptors to be closed")

    def test_kicks_in_vain(self):
        """A counter that never becomes empty must not keep a thread busy so that others starve."""
        front = self.front()
        front.kick = front.keep(os.eventfd(0xffffffff, os.EFD_NONBLOCK | os.EFD_SEMAPHORE))
        front.good()
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)
        self.ask("query-version")

    def test_a_call_that_is_full(self):
        front = self.front().good()
        os.eventfd_read(front.call)
        os.eventfd_write(front.call, ALL_ONES - 1)
        front.request(IN, data=4096)
        front.show(0)
        wait_until(lambda: front.get(USED + 2, "H")[0] == 1, "the request")
        os.eventfd_read(front.call)

    def test_log_is_not_flooded(self):
        front = self.front().negotiate()
        for _ in range(1000):
            self.assertFalse(front.ack(SET_VRING_NUM, struct.pack(STATE, 9, 1)))
        front.close()
        said = self.end(self.daemon)
        self.assertEqual(said.count("SET_VRING_NUM"), 1)
        self.daemon = self.serve("--blockdev", "driver=file,node-name=d,filename=disk", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,num-queues=4")

    def test_memory_in_slots(self):
        front = self.front().negotiate()
        half = MEMORY // 2
        front.must(ADD_MEM_REG, region(front, size=half), [front.memfd])
        front.must(ADD_MEM_REG, region(front, guest=GUEST + half, user=USER + half, size=half, offset=half),
                   [front.memfd])
        self.assertFalse(front.ack(ADD_MEM_REG, region(front, size=half), [front.memfd]))
        front.start()
        front.header(IN)
        front.chain((HEADER, 16, False), (half - 1024, 2048, True), (STATUS_BYTE, 1, True))
        self.assertEqual(front.run(), OK)
        front.must(REM_MEM_REG, region(front, guest=GUEST + half, user=USER + half, size=half), [front.kick])
        front.memory[STATUS_BYTE] = 0xff
        front.show(0)
        self.assertEqual(front.wait(), "broken")


if __name__ == "__main__":
    unittest.main()
