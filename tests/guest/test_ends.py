#!/usr/bin/python3
"""Machines that end in the middle of their work, and the next one."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from guest_test import SIZE, GuestTest as _GuestTest, programs


class Ends(_GuestTest):
    def test_machines_that_end_in_the_middle(self):
        """A reset, and a QEMU that is killed, both under load: the daemon serves the next one."""
        with open(self.disk("disk"), "wb") as disk:
            disk.truncate(SIZE)
        self.start_daemon(f"driver=file,node-name=disk,discard=unmap,filename={self.disk('disk')}")
        guest = self.start_guest()
        self.make_files()
        self.start_load()
        before = self.open_files()
        guest.said = ""
        guest.qmp("system_reset")
        guest.boot()
        guest.run("mount /dev/vda /mnt")
        self.check_files()
        self.start_load()
        guest.process.kill()
        guest.process.wait()
        programs.wait_until(lambda: self.open_files() < before, "the daemon to let go of the machine")
        guest = self.start_guest(queues=1)
        guest.run("mount /dev/vda /mnt")
        self.check_files()
        guest.run("umount /mnt && /sbin/e2fsck -fn /dev/vda")
        self.check_no_errors()
        guest.power_off()
        self.assertEqual(self.end(self.daemon), "")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))


if __name__ == "__main__":
    unittest.main()
