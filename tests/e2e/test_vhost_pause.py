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

    def test_the_cache_mode_stays(self):
        def mode():
            return front.ask(GET_CONFIG, struct.pack("=III", WCE, 1, 0) + bytes(1))[12]

        front = self.front(FEATURES).start()
        self.assertEqual(mode(), 1)
        front.must(SET_CONFIG, struct.pack("=III", WCE, 1, 0) + bytes(1))
        front.start(base=self.pause(front))
        self.assertEqual(mode(), 0)
        front.must(RESET_DEVICE)
        self.assertEqual(mode(), 1)


if __name__ == "__main__":
    unittest.main()
