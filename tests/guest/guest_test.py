"""The life of a virtual machine on a vhost-user-blk export: it makes a file system, fills it, reboots, sees the disk
grow, does not notice that the daemon is killed and started again, is paused, and has the disk unplugged."""
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
from guest import Guest
from guest_image import FOLDER
import programs

MIB = 1 << 20
SIZE = 96 * MIB
GROWN = 128 * MIB
# Writes files and their checksums until it is told to stop.
LOAD = """
load() {
  n=0
  while [ ! -e /tmp/stop ]; do
    n=$((n+1)); f=/mnt/load/$1-$((n%6))
    dd if=/dev/urandom of=/tmp/data-$1 bs=64k count=$((1+n%8)) 2>/dev/null
    dd if=/tmp/data-$1 of=$f bs=64k conv=fsync 2>/dev/null || echo load-failed
    cmp /tmp/data-$1 $f || echo load-differs
    sha256sum $f > /tmp/sum-$1-$((n%6))
    echo $n > /tmp/count-$1
  done
}
"""


class GuestTest(programs.Program):
    def setUp(self):
        super().setUp()
        os.makedirs(FOLDER, exist_ok=True)
        # Not in /tmp, which may be a file system without O_DIRECT.
        folder = tempfile.TemporaryDirectory(prefix="disk-", dir=FOLDER)
        self.addCleanup(folder.cleanup)
        self.disks = folder.name
        self.daemon = self.guest = None

    def disk(self, name):
        return os.path.join(self.disks, name)

    def start_daemon(self, *nodes):
        self.nodes = nodes or self.nodes
        options = [word for node in self.nodes for word in ("--blockdev", node)]
        self.daemon = self.serve("--object", "iothread,id=one", *options, "--export", ",".join(self.EXPORT))

    # Seconds: long enough for the guest to find its disk gone while it has requests for it.
    AWAY = 0.2
    EXPORT = ("type=vhost-user-blk", "id=vm", "node-name=disk", "writable=on", "addr.type=unix", "addr.path=vhost",
              "num-queues=4", "iothread=one")

    def kill_daemon(self):
        self.daemon.kill()
        self.daemon.wait()

    def start_guest(self, **how):
        self.guest = Guest(self, self.path("vhost"), **how).boot()
        self.assertIn("vda", self.guest.run("ls /dev"))
        return self.guest

    def make_files(self):
        guest = self.guest
        guest.run("/sbin/mke2fs -q -t ext4 -E nodiscard /dev/vda && mount /dev/vda /mnt && mkdir /mnt/load")
        guest.run("for n in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/file$n bs=100k count=$n 2>/dev/null; done")
        guest.run("cp /mnt/file8 /mnt/goes; cd /mnt; sha256sum file* > sums; cd /; sync; rm /mnt/goes; sync")

    def check_files(self):
        self.guest.run("echo 3 > /proc/sys/vm/drop_caches; cd /mnt; sha256sum -c -s sums; r=$?; cd /; [ $r = 0 ]")

    def check_no_errors(self):
        said = self.guest.run("dmesg")
        for sign in ("I/O error", "EXT4-fs error", "blk_update_request", "Buffer I/O", "hung", "timed out"):
            self.assertNotIn(sign, said)

    def start_load(self):
        # One line of the console is at most 4095 bytes.
        self.guest.run(LOAD)
        self.guest.run("rm -f /tmp/stop; for i in a b; do load $i > /tmp/said-$i 2>&1 & done")
        self.wait_for_load(1)

    def wait_for_load(self, more):
        """Until each writer has done so many rounds more."""
        for name in "ab":
            self.guest.run(f"c=0; [ -e /tmp/count-{name} ] && c=$(cat /tmp/count-{name}); "
                           f"while [ ! -e /tmp/count-{name} ] || [ $(cat /tmp/count-{name}) -lt $((c+{more})) ]; "
                           "do usleep 50000; done")

    def end_load(self):
        self.guest.run("touch /tmp/stop; wait")
        self.assertEqual(self.guest.run("cat /tmp/said-a /tmp/said-b"), "")
        self.guest.run("sync; echo 3 > /proc/sys/vm/drop_caches; cat /tmp/sum-* | sha256sum -c -s")
        self.check_no_errors()

    def come_and_go(self, ends):
        """The daemon, ended in each of these ways, and its export, under load; and the machine is paused."""
        for end in ends:
            end()
            time.sleep(self.AWAY)
            self.start_daemon()
            self.wait_for_load(2)
        self.ask("block-export-del", "id=vm", "mode=hard")
        time.sleep(self.AWAY)
        self.ask("block-export-add", *self.EXPORT)
        self.wait_for_load(2)
        self.guest.qmp("stop")
        self.guest.qmp("cont")
        self.wait_for_load(2)

    def life(self):
        """The whole of it, on a disk of SIZE bytes."""
        guest = self.start_guest()
        self.make_files()
        used = self.storage()
        self.assertIn("trimmed", guest.run("fstrim -v /mnt"))
        self.assertLess(self.storage(), used + MIB)
        guest.run("umount /mnt")
        self.check_no_errors()

        guest.reboot()
        guest.run("mount /dev/vda /mnt")
        self.check_files()

        self.ask("block_resize", "node-name=disk", f"size={GROWN}")
        guest.run(f"while [ $(blockdev --getsize64 /dev/vda) != {GROWN} ]; do usleep 50000; done")
        guest.run(f"dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\\0' x | dd of=/dev/vda bs=1M seek={GROWN // MIB - 4} "
                  "conv=fsync 2>/dev/null")

        self.start_load()
        self.come_and_go(3 * [self.kill_daemon])
        self.end_load()
        self.check_files()

        guest.qmp("device_del", id="disk0")
        guest.run("umount -l /mnt; while [ -e /dev/vda ]; do usleep 50000; done")
        guest.plug(driver="vhost-user-blk-pci", id="disk1", chardev="disk", **{"num-queues": 4})
        guest.run("while [ ! -e /dev/vda ]; do usleep 50000; done; mount /dev/vda /mnt")
        self.check_files()
        guest.run("umount /mnt && /sbin/e2fsck -fn /dev/vda")
        guest.power_off()
        self.assertEqual(self.end(self.daemon), "")

    def storage(self):
        return sum(os.stat(self.disk(name)).st_blocks * 512 for name in os.listdir(self.disks))

    def raw(self, *options):
        with open(self.disk("disk"), "wb") as disk:
            disk.truncate(SIZE)
        self.start_daemon(",".join(["driver=file,node-name=disk,discard=unmap", f"filename={self.disk('disk')}", *options]))
        self.life()
        with open(self.disk("disk"), "rb") as disk:
            disk.seek(GROWN - 4 * MIB)
            self.assertEqual(disk.read(), b"x" * 4 * MIB)
