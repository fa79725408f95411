#!/usr/bin/python3
"""The configuration of a vhost-user-blk device."""
import os
import socket
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs
from vhost_front import *  # noqa: F403

DISCARD_LIMITS = 36         # where they are: sectors, ranges, alignment; then sectors of write-zeroes


class Config(programs.Program):
    def test_ranges_are_whole_blocks(self):
        """What is longer than the limit is cut there by the driver."""
        daemon = self.serve("--blockdev", "driver=null-co,node-name=d,size=1G")
        for block in (512, 4096, 16384, 65536):
            self.ask("block-export-add", "type=vhost-user-blk", "id=e", "node-name=d", "writable=true",
                     "addr.type=unix", "addr.path=vhost", f"logical-block-size={block}")
            front = Front(self.path("vhost")).negotiate()
            said = front.ask(GET_CONFIG, struct.pack("=III", DISCARD_LIMITS, 16, 0) + bytes(16))[12:]
            discard, _, alignment, zeroes = struct.unpack("<IIII", said)
            self.assertEqual(alignment, block // 512)
            for sectors in (discard, zeroes):
                self.assertGreater(sectors, 0)
                self.assertEqual(sectors % alignment, 0, block)
            front.close()
            self.ask("block-export-del", "id=e", "mode=hard")
            programs.wait_until(lambda: self.ask("query-block-exports") == [], "the end of the export")
        self.end(daemon)

    def test_changes_are_told_to_who_knows_of_them(self):
        daemon = self.serve("--blockdev", "driver=null-co,node-name=d,size=1M", "--export",
                            "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d")
        for mebibytes, protocol, told in ((2, PROTOCOL, True), (3, PROTOCOL & ~CONFIG, False)):
            front = Front(self.path("vhost")).negotiate(protocol=protocol)
            ours, theirs = socket.socketpair()
            front.must(SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            theirs.close()
            self.ask("block_resize", "node-name=d", f"size={mebibytes << 20}")
            front.close()
            with ours:
                ours.settimeout(programs.PATIENCE)
                self.assertEqual(ours.recv(100), struct.pack("=III", 2, VERSION, 0) if told else b"")
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
