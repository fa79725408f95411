#!/usr/bin/python3
"""Front ends whose machine is paused, or whose connection ends, and which go on where they were."""
import os
import socket
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs
from vhost_front import *  # noqa: F403
from programs import wait_until

FEATURES = INDIRECT_DESC | BLK_FLUSH | BLK_WCE
WCE = 32                    # where it is in the configuration


class Pause(programs.Program):
    def setUp(self):
        super().setUp()
        self.start_daemon()
        self.fronts = []

    def tearDown(self):
        for front in self.fronts:
            front.close()
        said = self.end(self.daemon)
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            self.assertNotIn(sign, said)

    def start_daemon(self):
        self.daemon = self.serve("--blockdev", "driver=null-co,node-name=d,size=1M,read-zeroes=on", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,writable=on")

    def front(self, features):
        self.fronts.append(Front(self.path("vhost")).negotiate(features=features).share())
        return self.fronts[-1]

    def pause(self, front):
        """What QEMU 7.2 sends when a machine is paused; returns the base."""
        front.must(SET_STATUS, bytes(8))
        front.must(SET_VRING_ENABLE, struct.pack("=II", 0, 0))
        base = struct.unpack("=II", front.ask(GET_VRING_BASE, bytes(8)))[1]
        front.must(SET_FEATURES, struct.pack("=Q", front.features))
        return base

    def test_queues_go_on(self):
        front = self.front(FEATURES).start()
        for done in range(1, 4):
            front.request(IN, data=4096)
            self.assertEqual(front.run(), OK)
            base = self.pause(front)
            self.assertEqual(base, done)
            front.start(base=base)

    def test_packed_queues_go_on(self):
        front = self.front(FEATURES | RING_PACKED).start()
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)
        self.assertEqual(self.pause(front), 0x80038003)

    def reconnect(self, front):
        front.socket.close()
        front.socket = socket.socket(socket.AF_UNIX)
        front.socket.settimeout(programs.PATIENCE)
        front.socket.connect(self.path("vhost"))
        return front.negotiate(features=front.features).share()

    def in_flight(self, front, entries=SIZE):
        """Lets the device know a region for what is in flight, now and whenever it is called."""
        region = front.ask(GET_INFLIGHT_FD, struct.pack("=QQHH", 0, 0, 1, entries))
        fd = front.fds[-1]
        return lambda: front.must(SET_INFLIGHT_FD, region, [fd])

    def get_id(self, front, place):
        """A request at this place of a packed ring."""
        front.header(GET_ID)
        for i, piece in enumerate(((HEADER, 16, 0), (DATA, 20, WRITE), (STATUS_BYTE, 1, WRITE))):
            front.desc(i, *piece, at=TABLE)
        front.put(DESC + 16 * place, "QIHH", GUEST + TABLE, 48, 0, INDIRECT | 0x80)
        os.eventfd_write(front.kick, 1)
        wait_until(lambda: front.get(DESC + 16 * place + 14, "H")[0] & 0x8000, "the request")
        self.assertEqual(front.memory[STATUS_BYTE], OK)

    def test_packed_queues_go_on_after_a_disconnect(self):
        """QEMU 7.2 does not know how far a packed ring was used, and says what it said at first."""
        front = self.front(FEATURES | RING_PACKED)
        tell = self.in_flight(front)
        for place in range(4):
            tell()
            front.start()
            self.get_id(front, place)
            if place == 1:
                self.end(self.daemon)
                self.start_daemon()
            self.reconnect(front)

    def test_a_driver_uses_less_of_a_queue(self):
        front = self.front(FEATURES)
        tell = self.in_flight(front, 4 * SIZE)
        tell()
        front.start()
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)
        self.reconnect(front)
        tell()
        front.start(base=1)
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)

    def test_the_cache_mode_survives_daemons(self):
        """No front end says it again, and a driver that has chosen write-through does not flush."""
        for packed in (0, RING_PACKED):
            front = self.front(FEATURES | packed)
            tell = self.in_flight(front)
            tell()
            front.start()
            for mode in (0, 1, 0):
                self.set_mode(front, mode)
                for restarts in (False, True):
                    if restarts:
                        self.end(self.daemon)
                        self.start_daemon()
                    self.reconnect(front)
                    tell()
                    self.assertEqual(self.mode(front), mode)
                    front.start()
            # With the queues stopped in good order, and started.
            base = self.pause(front)
            self.reconnect(front)
            tell()
            front.start(base=base)
            self.pause(front)
            self.reconnect(front)
            tell()
            self.assertEqual(self.mode(front), 0)
            front.must(RESET_DEVICE)
            self.reconnect(front)
            tell()
            self.assertEqual(self.mode(front), 1)
            front.close()

    def set_mode(self, front, mode):
        front.must(SET_CONFIG, struct.pack("=III", WCE, 1, 0) + bytes([mode]))

    def mode(self, front):
        return front.ask(GET_CONFIG, struct.pack("=III", WCE, 1, 0) + bytes(1))[12]

    def test_the_cache_mode_stays(self):
        def mode():
            return self.mode(front)

        front = self.front(FEATURES).start()
        self.assertEqual(mode(), 1)
        self.set_mode(front, 0)
        front.start(base=self.pause(front))
        self.assertEqual(mode(), 0)
        front.must(RESET_DEVICE)
        self.assertEqual(mode(), 1)
        # Who cannot flush has nothing to flush.
        front.must(SET_FEATURES, struct.pack("=Q", front.features & ~BLK_FLUSH))
        self.assertEqual(mode(), 0)
        front.must(SET_FEATURES, struct.pack("=Q", front.features))
        self.assertEqual(mode(), 1)


if __name__ == "__main__":
    unittest.main()
