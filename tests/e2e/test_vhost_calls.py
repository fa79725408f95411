#!/usr/bin/python3
"""When a front end is called: once for what ended in a turn, and only if it waits for some of it."""
import os
import select
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs
from vhost_front import *  # noqa: F403
from programs import wait_until

BATCH = 12      # more than is shown at once


class Calls(programs.Program):
    def setUp(self):
        super().setUp()
        self.daemon = self.serve("--blockdev", "driver=null-co,node-name=d,size=4M", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,writable=on")

    def calls(self, event):
        """How often the driver is called for a batch if it waits for the entry of that number."""
        front = Front(self.path("vhost")).good(features=INDIRECT_DESC | EVENT_IDX)
        front.header(GET_ID)
        for i, piece in enumerate(((HEADER, 16, NEXT), (DATA, 20, NEXT | WRITE), (STATUS_BYTE, 1, WRITE))):
            front.desc(i, *piece, i + 1, at=TABLE)
        for head in range(BATCH):
            front.desc(head, TABLE, 48, INDIRECT)
        front.put(AVAIL + 4 + 2 * SIZE, "H", event)
        wait_until(lambda: select.select([front.call], [], [], 0)[0], "the call of the start")
        os.eventfd_read(front.call)
        front.show(*range(BATCH))
        wait_until(lambda: front.get(USED + 2, "H")[0] == BATCH, "the requests")
        # The queue stops when its turn is over.
        front.ask(GET_VRING_BASE, struct.pack("=II", 0, 0))
        count = os.eventfd_read(front.call) if select.select([front.call], [], [], 0)[0] else 0
        front.close()
        return count

    def test_calls_of_a_batch(self):
        for event in (0, 6, 7, 8, BATCH - 1):
            self.assertEqual(self.calls(event), 1, event)
        for event in (BATCH, 0xffff):
            self.assertEqual(self.calls(event), 0, event)
        self.end(self.daemon)


if __name__ == "__main__":
    unittest.main()
