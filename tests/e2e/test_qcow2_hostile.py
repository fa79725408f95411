#!/usr/bin/python3
"""Damaged qcow2 images in one daemon, added and removed, written and read: each is refused with one clear error, or does
what it can; the daemon lives, stays small, and never writes over what it did not understand. The engine's own test
(tests/engine/test_hostile.c) has more damage."""
import os
import random
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
from qcow2_images import MIB, SEED, Qcow2 as _Qcow2
from qmp_client import QmpClient, QmpError

# Of the header: name, offset, bytes.
FIELDS = [
    ("magic", 0, 4), ("version", 4, 4), ("backing offset", 8, 8), ("backing size", 16, 4), ("cluster bits", 20, 4),
    ("size", 24, 8), ("encryption", 32, 4), ("L1 entries", 36, 4), ("L1 offset", 40, 8), ("refcount table offset", 48, 8),
    ("refcount table clusters", 56, 4), ("snapshots", 60, 4), ("snapshots offset", 64, 8), ("incompatible", 72, 8),
    ("compatible", 80, 8), ("autoclear", 88, 8), ("refcount order", 96, 4), ("header length", 100, 4),
    ("compression", 104, 1), ("extension", 112, 4), ("extension's length", 116, 4),
]
ENTRIES = [1, 0x200, 0x3000, 0x4000, 1 << 30, 1 << 40, 1 << 55, 1 << 62, 1 << 63, 1 << 63 | 0x3000, 1 << 63 | 0x4200,
           3 << 62 | 0x4000, (1 << 62) - 1, (1 << 64) - 1]
MOST_MEMORY = 256 * 1024    # KiB above what the daemon has at the start


def edges(size):
    """Values at the edges of a field."""
    top = 1 << 8 * size
    return sorted(value for value in {0, 1, 2, 9, 63, 511, 4095, 65536, top // 2 - 1, top // 2, top - 1} if value < top)


class Hostile(_Qcow2):
    def memory(self):
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))

    def use(self):
        """Whatever is answered, it is answered."""
        self.qmp.call("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
        client = NbdClient(self.path("nbd")).go("disk")
        rng = random.Random(SEED)
        for _ in range(6):
            length = min(4096, client.size)
            at = rng.randrange(min(client.size, MIB) - length + 1)
            if length:
                client.do(READ, at, length)
                client.do(WRITE, at, data=b"x" * length)
        client.do(FLUSH)
        client.close()
        self.qmp.call("block-export-del", id="disk", mode="hard")
        with self.assertRaises(QmpError):
            self.qmp.call("block_resize", node_name="disk", size=1 << 62)

    def attempt(self, pristine, damage, where):
        """True if the image was refused."""
        image = bytearray(pristine)
        for offset, data in damage:
            image[offset:offset + len(data)] = data
        self.raw("disk", image)
        try:
            self.qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": "disk", "discard": "unmap",
                                              "file": {"driver": "file", "filename": self.path("disk")}})
        except QmpError as error:
            self.assertGreater(len(str(error)), 10, where)
            self.assertNotIn("\n", str(error), where)
            with open(self.path("disk"), "rb") as stream:
                self.assertEqual(stream.read(), image, f"{where}: was changed and refused")
            return True
        self.use()
        self.qmp.call("blockdev-del", node_name="disk")
        with open(self.path("disk"), "rb") as stream:
            self.assertEqual(stream.read(8), image[:8], f"{where}: the header is gone")
        return False

    def test_damage(self):
        self.create("disk", "cluster_size=4k", size=MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -P 2 512k 4k", "disk")
        with open(self.path("disk"), "rb") as stream:
            pristine = stream.read()
        self.daemon = self.serve("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        self.qmp = QmpClient(self.socket)
        self.addCleanup(self.qmp.close)
        before, count, refused = self.memory(), 0, 0
        for name, offset, size in FIELDS:
            for value in edges(size):
                refused += self.attempt(pristine, [(offset, value.to_bytes(size, "big"))], f"{name} = {value:#x}")
                count += 1
        tables = [struct.unpack_from(">Q", pristine, offset)[0] for offset in (40, 48)]
        tables.append(struct.unpack_from(">Q", pristine, tables[0])[0] & ~(1 << 63))
        for table in tables:
            for value in ENTRIES:
                refused += self.attempt(pristine, [(table, struct.pack(">Q", value))], f"table {table:#x}: {value:#x}")
                count += 1
        self.assertGreaterEqual(count, 120)
        self.assertGreater(refused, 60)
        self.assertFalse(self.attempt(pristine, [], "no damage"))
        self.assertLess(self.memory() - before, MOST_MEMORY)
        self.stop_quietly()

    def test_snapshots_of_great_size(self):
        """A table of snapshots whose entries have gigabytes of extra data, in a file that is a hole."""
        self.create("disk", "cluster_size=512", size=MIB)
        with open(self.path("disk"), "r+b") as image:
            at = table = os.fstat(image.fileno()).st_size + 511 & ~511
            for _ in range(4):
                image.seek(at)
                image.write(struct.pack(">QIHHIIQII", 0, 0, 0, 0, 0, 0, 0, 0, 0xffffffff))
                at += 40 + 0xffffffff
            image.truncate(at + 512)
            image.seek(60)
            image.write(struct.pack(">IQ", 4, table))
        self.daemon = self.serve()
        before = self.memory()
        for read_only in ("true", "false"):
            self.assert_fails(self.cairnctl("blockdev-add", "driver=qcow2", "node-name=disk", f"read-only:={read_only}",
                                            "file.driver=file", "file.filename=" + self.path("disk")), "napshot table")
        self.assertLess(self.memory() - before, MOST_MEMORY // 4)
        self.stop_quietly()

    def test_holes(self):
        """What is looked at when an image is opened does not depend on how long its file is, or what is named again and
        again: a dirty image in a hole of many terabytes, and snapshots that have one L1 table, but a large one."""
        self.create("dirty", "cluster_size=4k,lazy_refcounts=on", size=MIB)
        with open(self.path("dirty"), "r+b") as image:
            image.seek(72)
            image.write(struct.pack(">Q", 1))
            image.truncate(16 * 10 ** 12)
        self.create("many", "cluster_size=512", size=MIB)
        with open(self.path("many"), "r+b") as image:
            table = os.fstat(image.fileno()).st_size + 511 & ~511
            l1 = table + 65536 * 40
            image.seek(table)
            image.write(struct.pack(">QIHHIIQII", l1, 4 * MIB, 0, 0, 0, 0, 0, 0, 0) * 65536)
            image.truncate(l1 + 32 * MIB)
            image.seek(60)
            image.write(struct.pack(">IQ", 65536, table))
        self.daemon = self.serve()
        for name in ("dirty", "many"):
            begun = time.monotonic()
            self.ask("blockdev-add", "driver=qcow2", f"node-name={name}", "file.driver=file",
                     "file.filename=" + self.path(name))
            self.assertLess(time.monotonic() - begun, 20)
            self.ask("blockdev-del", f"node-name={name}")
        os.truncate(self.path("dirty"), MIB)
        self.check("dirty")
        self.stop_quietly()

    def test_many_tables(self):
        """Each table of a disk is looked at: what is kept of them is little beside the cache."""
        self.create("disk", "cluster_size=512", size=1024 * MIB)
        with open(self.path("disk"), "r+b") as image:
            end = os.fstat(image.fileno()).st_size + 511 & ~511
            image.seek(36)
            count, l1 = struct.unpack(">IQ", image.read(12))
            image.seek(l1)
            image.write(struct.pack(">Q", end) * count)
            image.truncate(end + 512)
        self.daemon = self.open_disk(options=",read-only=on,l2-cache-size=1M", export="writable=off")
        before, at = self.memory(), 0
        with self.client(structured=True, context=True) as client:
            while at < 1024 * MIB:
                at += sum(length for length, _ in client.do(STATUS, at, 1024 * MIB - at).extents)
        self.assertLess(self.memory() - before, 32 * 1024)
        self.stop_quietly()

    def test_window(self):
        """An image in a window of a file, whose table leads out of it: what lies there is neither read nor written."""
        self.create("disk", "cluster_size=4k", size=MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "disk")
        with open(self.path("disk"), "rb") as stream:
            image = bytearray(stream.read())
        image += bytes(-len(image) % 4096)
        l1, = struct.unpack_from(">Q", image, 40)
        l2 = struct.unpack_from(">Q", image, l1)[0] & ~(1 << 63)
        struct.pack_into(">QQ", image, l2, len(image) | 1 << 63, len(image) + 4096 | 1 << 63)
        self.raw("whole", bytes(image) + b"s" * 8192)
        self.daemon = self.open_disk(blockdev="driver=qcow2,node-name=disk,discard=unmap,file.driver=raw,file.offset=0,"
                                     f"file.size={len(image)},file.file.driver=file,file.file.filename=whole")
        with self.client() as client:
            self.assertNotEqual(client.do(READ, 0, 4096).error, 0)
            self.assertNotEqual(client.do(WRITE, 0, data=b"x" * 4096).error, 0)
            for kind in (ZEROES, TRIM):
                client.do(kind, 0, 4096)
            client.do(FLUSH)
            self.assertEqual(client.do(READ, 32768, 4096).data, b"\1" * 4096)
        self.stop_quietly()
        with open(self.path("whole"), "rb") as stream:
            self.assertEqual(stream.read()[len(image):], b"s" * 8192)

    def stop_quietly(self):
        said = self.end(self.daemon)
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            self.assertNotIn(sign, said)


if __name__ == "__main__":
    unittest.main()
