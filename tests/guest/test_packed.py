#!/usr/bin/python3
"""A guest with packed rings: the daemon is killed, ends, and takes the export away and brings it back, all under load."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from guest_test import SIZE, GuestTest as _GuestTest


class Packed(_GuestTest):
    def test_daemons_come_and_go(self):
        with open(self.disk("disk"), "wb") as disk:
            disk.truncate(SIZE)
        self.start_daemon(f"driver=file,node-name=disk,discard=unmap,filename={self.disk('disk')}")
        guest = self.start_guest(options=",packed=on,queue-size=1024")   # firmware uses less of it, and split
        features = guest.run("cat /sys/block/vda/device/features")
        self.assertEqual(features[34], "1")     # VIRTIO_F_RING_PACKED
        self.make_files()
        self.start_load()
        self.come_and_go([self.kill_daemon, lambda: self.end(self.daemon)])
        self.end_load()
        self.check_files()
        guest.run("umount /mnt && /sbin/e2fsck -fn /dev/vda")
        guest.power_off()
        self.assertEqual(self.end(self.daemon), "")


if __name__ == "__main__":
    unittest.main()
