#!/usr/bin/python3
"""qcow2: backing chains, options, locks, damage, statistics."""
import json
import os
import random
import struct
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs
from qcow2_images import MIB, SEED, SIZE, Qcow2 as _Qcow2


class Chains(_Qcow2):
    def test_chain(self):
        rng = random.Random(SEED)
        sizes = [6 * MIB, 3 * MIB + 512 * 3, 9 * MIB, SIZE, SIZE]
        model = bytearray()
        os.mkdir(self.path("below"))
        for number, size in enumerate(sizes):
            name = f"below/{number}" if number < 4 else "disk"
            if number == 0:
                self.create(name, "cluster_size=4k", size)
            else:
                # Names are relative to the image.
                below = f"below/{number - 1}" if name == "disk" else str(number - 1)
                self.create(name, f"cluster_size={rng.choice(('4k', '64k', '1M'))}", size, below)
            model = model[:size] + bytes(max(size - len(model), 0))
            for _ in range(12):
                length = rng.choice((512, 4096, 100352))
                offset = rng.randrange((size - length) // 512) * 512
                byte = rng.randrange(1, 256)
                self.tool("qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {offset} {length}", name)
                model[offset:offset + length] = bytes((byte,)) * length
        self.same("disk", model)
        daemon = self.open_disk(options=",discard=unmap", threads=2)
        client = self.client()
        self.assertEqual(self.read_all(client), model)
        self.load(client, model, rng)
        names = self.ask("query-named-block-nodes")
        self.assertEqual(len([row for row in names if row["drv"] == "qcow2"]), 5)
        top = [row for row in names if row["node-name"] == "disk"][0]
        self.assertEqual((top["backing_file_depth"], top["backing_file"]), (4, "below/3"))
        self.assertEqual(top["image"]["backing-filename-format"], "qcow2")
        self.assertIn(top["image"]["cluster-size"], (4096, 65536, MIB))
        self.assertTrue(all(row["ro"] for row in names if row["drv"] == "qcow2" and row["node-name"] != "disk"))
        client.close()
        self.stop(daemon)
        self.check("disk")
        self.same("disk", model)

    def test_backing_by_option(self):
        self.create("base", size=MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "base")
        self.create("other", size=MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 1M", "other")
        self.create("disk", size=MIB, backing="base")
        plain = "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk"
        inline = ",backing.driver=qcow2,backing.file.driver=file,backing.file.filename=other"
        null = json.dumps({"driver": "qcow2", "node-name": "disk", "backing": None,
                           "file": {"driver": "file", "filename": "disk"}})
        for blockdev, byte in ((plain, 1), (plain + inline, 2), (plain + ",backing=", 0), (null, 0)):
            with self.subTest(blockdev=blockdev):
                daemon = self.open_disk(blockdev=blockdev)
                self.assertEqual(self.client().do(READ, 0, MIB).data, bytes((byte,)) * MIB)
                self.stop(daemon)
        daemon = self.serve("--blockdev", "driver=qcow2,node-name=o,read-only=on,file.driver=file,file.filename=other",
                            "--blockdev", plain + ",backing=o", "--nbd-server",
                            f"addr.type=unix,addr.path={self.path('nbd')}", "--export",
                            "type=nbd,id=disk,node-name=disk,writable=on")
        self.assertEqual(self.client().do(READ, 0, MIB).data, b"\2" * MIB)
        self.assert_fails(self.cairnctl("blockdev-del", "node-name=o"), "in use")
        self.stop(daemon)

    def header_says(self, backing, backing_format="qcow2", size=MIB):
        """An image whose header names whatever it likes."""
        self.create("disk", size=size)
        name = backing.encode()
        with open(self.path("disk"), "r+b") as image:
            extension = b""
            if backing_format:
                text = backing_format.encode()
                extension = struct.pack(">II", 0xe2792aca, len(text)) + text + bytes(-len(text) % 8)
            image.seek(100)
            length, = struct.unpack(">I", image.read(4))
            image.seek(length)
            image.write(extension + bytes(8) + name)
            image.seek(8)
            image.write(struct.pack(">QI", length + len(extension) + 8, len(name)))

    def test_refused_names(self):
        self.create("base", size=MIB)
        for name, backing_format, text in (
                ("json:{\"driver\":\"null-co\"}", "qcow2", "is no plain file name"),
                ("nbd://localhost/x", "raw", "is no plain file name"),
                ("file:base", "qcow2", "is no plain file name"),
                ("base", None, "without a format"),
                ("base", "vmdk", "neither qcow2 nor raw"),
                ("missing", "qcow2", "No such file"),
                ("disk", "qcow2", "above it in its chain")):
            with self.subTest(name=name, backing_format=backing_format):
                self.header_says(name, backing_format)
                result = self.cairnd("--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk")
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(text, result.stderr)

    def test_loop(self):
        self.create("one", size=MIB)
        self.create("two", size=MIB, backing="one")
        self.header_says("two")
        os.rename(self.path("disk"), self.path("one"))
        for read_only in ("on", "off"):
            result = self.cairnd("--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=two,"
                                 f"read-only={read_only}")
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("above it in its chain", result.stderr)

    def test_long_chain(self):
        """A chain of 200 images is read and written through."""
        self.create("0", size=64 * MIB)
        for number in range(1, 200):
            # A copy of the first with another name in its header: quicker than 200 tools.
            self.header_says(str(number - 1), size=64 * MIB)
            os.rename(self.path("disk"), self.path(str(number)))
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1M", "0")
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 8 5M 64k", "100")
        daemon = self.open_disk("199")
        client = self.client(structured=True, context=True)
        self.assertEqual(client.do(READ, MIB, MIB).data, b"\x09" * MIB)
        self.assertEqual(client.do(READ, 5 * MIB, 65536).data, b"\x08" * 65536)
        self.assertEqual(client.do(READ, 9 * MIB, MIB).data, bytes(MIB))
        self.assertEqual(client.do(STATUS, MIB, MIB).extents, [(MIB, 0)])
        client.do(WRITE, MIB + 4096, data=b"x" * 4096)
        self.assertEqual(client.do(READ, MIB, 65536).data, b"\x09" * 4096 + b"x" * 4096 + b"\x09" * (65536 - 8192))
        client.close()
        self.stop(daemon)
        self.check("199")


class Care(_Qcow2):
    def test_options(self):
        self.create("disk", size=MIB)
        self.create("old", "compat=0.10", size=MIB)
        for image, options, text in (
                ("disk", "cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M", "may not be set at the same time"),
                ("disk", "cache-size=1M,l2-cache-size=2M", "l2-cache-size may not exceed cache-size: 2097152 > 1048576"),
                ("disk", "cache-size=1M,refcount-cache-size=2M", "refcount-cache-size may not exceed cache-size: 2097152 > 1048576"),
                ("disk", "l2-cache-entry-size=1000", "must be a power of two between 512 and the cluster size (65536)"),
                ("disk", "l2-cache-entry-size=128K", "must be a power of two between 512 and the cluster size (65536)"),
                ("disk", "l2-cache-entry-size=64K", "is not supported: it is 4096 here"),
                ("disk", "refcount-cache-size=9223372036854775807", "Refcount cache size too big"),
                ("disk", "overlap-check=foo", "does not accept value 'foo'"),
                ("disk", "data-file.driver=null-co", "images with an external data file"),
                ("old", "discard-no-unref=on", "discard-no-unref is only supported since qcow2 version 3"),
                ("old", "lazy-refcounts=on", "azy refcounts require a qcow2 image")):
            with self.subTest(options=options):
                result = self.cairnd("--blockdev",
                                     f"driver=qcow2,node-name=d,file.driver=file,file.filename={image},{options}")
                self.assertEqual(result.returncode, 1)
                self.assertIn(text, result.stderr)
        for options in ("cache-size=1M", "cache-size=1M,l2-cache-size=1M", "l2-cache-size=0,refcount-cache-size=0",
                        "l2-cache-entry-size=4096", "overlap-check=all", "overlap-check.template=none",
                        "overlap-check.main-header=off", "lazy-refcounts=on", "cache-clean-interval=1",
                        "pass-discard-request=off,pass-discard-other=on,discard-no-unref=on"):
            with self.subTest(options=options):
                daemon = self.open_disk(options="," + options)
                self.client().do(WRITE, 0, data=b"x" * 100000)
                self.stop(daemon)
                self.check("disk")

    def test_not_qcow2(self):
        self.raw("disk", bytes(MIB))
        result = self.cairnd("--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk")
        self.assertIn("not in qcow2 format", result.stderr)

    def test_locks(self):
        self.create("disk", size=MIB)
        daemon = self.open_disk()
        self.assertIn("lock", self.tool("qemu-io", "-f", "qcow2", "-c", "write 0 4k", "disk", code=1))
        self.stop(daemon)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write 0 4k", "disk")
        # Locks come before the first look, and go with what did not become a node.
        self.raw("other", bytes(MIB))
        daemon = self.serve("--blockdev", "driver=file,node-name=file,filename=other")
        self.assert_fails(self.cairnctl("blockdev-add", "driver=qcow2", "node-name=q", "file=file"), "not in qcow2 format")
        self.tool("qemu-io", "-f", "raw", "-c", "write 0 4k", "other")
        holder = subprocess.Popen(["qemu-io", "-f", "raw", "other"], cwd=self.folder, stdin=subprocess.PIPE, text=True,
                                  stdout=subprocess.DEVNULL)
        self.addCleanup(self.reap, holder)
        programs.wait_until(lambda: "lock" in self.cairnctl("blockdev-add", "driver=qcow2", "node-name=q",
                                                            "file=file").stderr, "the other's lock")
        self.stop(daemon)

    def test_removed(self):
        """A node that goes leaves a whole image behind, while the daemon lives on."""
        self.create("base", size=MIB)
        self.create("disk", "lazy_refcounts=on", size=8 * MIB, backing="base")
        daemon = self.open_disk(options=",discard=unmap")
        with self.client() as client:
            client.do(WRITE, 0, data=b"x" * 100000)
            client.do(TRIM, 0, 65536)
            self.assert_fails(self.cairnctl("blockdev-del", "node-name=disk"), "in use")
        self.ask("block-export-del", "id=disk", "mode=hard")
        programs.wait_until(lambda: not self.ask("query-block-exports"), "the export's end")
        self.ask("blockdev-del", "node-name=disk")
        self.assertEqual(self.ask("query-named-block-nodes"), [])
        self.check("disk")
        self.tool("qemu-io", "-f", "qcow2", "-c", "read -P 0 0 65536", "-c", "read -P 120 65536 34464", "disk")
        # And again, all in one.
        self.ask("transaction", json.dumps({"actions": [
            {"type": "blockdev-add", "data": {"driver": "qcow2", "node-name": "disk",
                                              "file": {"driver": "file", "filename": "disk"}}},
            {"type": "block-export-add", "data": {"type": "nbd", "id": "disk", "node-name": "disk"}}]}))
        with self.client() as client:
            self.assertEqual(client.do(READ, 65536, 512).data, b"x" * 512)
        self.stop(daemon)

    def test_discard_options(self):
        for options, unmapped, spared in ((",discard=ignore", False, False), (",discard=unmap", True, True),
                                          (",discard=unmap,pass-discard-request=off", True, False)):
            with self.subTest(options=options):
                for kind in (TRIM, ZEROES):
                    self.create("disk", size=8 * MIB)
                    daemon = self.open_disk(options=options)
                    with self.client() as client:
                        client.do(WRITE, 0, data=b"x" * (4 * MIB))
                        self.assertEqual(client.do(kind, 0, 2 * MIB).error, 0)
                        self.assertEqual(client.do(READ, 0, 1).data, b"\0" if unmapped or kind == ZEROES else b"x")
                    self.stop(daemon)
                    self.check("disk")
                    self.assertEqual(os.stat(self.path("disk")).st_blocks * 512 < 3 * MIB, spared)

    def test_discards_of_a_data_file(self):
        for raw, options, kind, spared in (("off", "discard=unmap", TRIM, True), ("off", "discard=unmap", ZEROES, True),
                                           ("on", "discard=unmap", TRIM, True), ("off", "discard=ignore", TRIM, False),
                                           ("off", "discard=unmap,pass-discard-request=off", TRIM, False)):
            with self.subTest(raw=raw, options=options, kind=kind):
                self.create("disk", f"data_file=data,data_file_raw={raw}", size=8 * MIB)
                daemon = self.open_disk(options=f",{options},data-file.driver=file,data-file.filename=data")
                model = bytearray(b"x" * 4 * MIB + bytes(4 * MIB))
                with self.client() as client:
                    client.do(WRITE, 0, data=b"x" * (4 * MIB))
                    self.assertEqual(client.do(kind, 0, 2 * MIB).error, 0)
                    if "ignore" not in options:
                        model[:2 * MIB] = bytes(2 * MIB)
                    self.assertEqual(client.do(READ, 0, 8 * MIB).data, model)
                self.stop(daemon)
                self.check("disk")
                self.same("disk", model)
                self.assertEqual(os.stat(self.path("data")).st_blocks * 512 < 3 * MIB, spared)
                os.unlink(self.path("disk"))
                os.unlink(self.path("data"))

    def test_discarded_in_place(self):
        """With discard-no-unref clusters stay where they are; what is in them goes, if discards are passed on."""
        for options, more, kind, passed in (("cluster_size=64k", "", TRIM, True), ("extended_l2=on", "", TRIM, True),
                                            ("cluster_size=64k", ",pass-discard-request=off", TRIM, False),
                                            ("cluster_size=64k", "", ZEROES, True)):
            with self.subTest(options=options, more=more, kind=kind):
                self.create("disk", options, size=8 * MIB)
                self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "disk")
                before = json.loads(self.tool("qemu-img", "map", "--output=json", "disk"))
                daemon = self.open_disk(options=",discard=unmap,discard-no-unref=on" + more)
                model = bytearray(b"\1" * 4 * MIB + bytes(4 * MIB))
                with self.client() as client:
                    self.assertEqual(client.do(kind, MIB, 2 * MIB).error, 0)
                    model[MIB:3 * MIB] = bytes(2 * MIB)
                    self.assertEqual(client.do(READ, 0, 8 * MIB).data, model)
                    self.assertEqual(os.stat(self.path("disk")).st_blocks * 512 < 3 * MIB, passed)
                    # What is written there again is where it was.
                    self.assertEqual(client.do(WRITE, MIB, data=b"2" * 2 * MIB).error, 0)
                    model[MIB:3 * MIB] = b"2" * 2 * MIB
                self.stop(daemon)
                self.check("disk")
                self.same("disk", model)
                self.assertEqual(json.loads(self.tool("qemu-img", "map", "--output=json", "disk")), before)

    def test_shrunk_and_grown(self):
        """What was behind the end does not come back: not from a cluster that was cut, a backing file, or a data file."""
        self.raw("base", b"b" * 2 * MIB)
        for options, backing in (("", None), ("compat=0.10", "base"), ("extended_l2=on", "base"), ("", "base"),
                                 ("data_file=data,data_file_raw=on", None)):
            with self.subTest(options=options, backing=backing):
                self.create("disk", options, size=4 * MIB, backing=backing, backing_format="raw")
                data = ",data-file.driver=file,data-file.filename=data" if "data_file" in options else ""
                daemon = self.open_disk(options=data)
                client = self.client()
                self.assertEqual(client.do(WRITE, 0, data=b"x" * 4 * MIB).error, 0)
                self.ask("block_resize", "node-name=disk", f"size={MIB + 512}")
                self.ask("block_resize", "node-name=disk", f"size={4 * MIB}")
                self.assertEqual(self.read_all(client, 4 * MIB), b"x" * (MIB + 512) + bytes(3 * MIB - 512))
                client.close()
                self.stop(daemon)
                self.check("disk")
                os.unlink(self.path("disk"))

    def test_behind_the_end_of_the_data_file(self):
        """A data file ends with the disk, in a cluster; then the disk becomes longer."""
        for direct in ("off", "on"):
            with self.subTest(direct=direct):
                self.create("disk", "data_file=data", size=100 * 1024 + 512)
                daemon = self.open_disk(options=f",cache.direct={direct},data-file.driver=file,data-file.filename=data,"
                                        f"data-file.cache.direct={direct}")
                client = self.client()
                model = bytearray(b"x" * (100 * 1024 + 512) + bytes(924 * 1024 - 512))
                self.assertEqual(client.do(WRITE, 0, data=bytes(model[:100 * 1024 + 512])).error, 0)
                self.ask("block_resize", "node-name=disk", f"size={MIB}")
                for at in (120000, 110000, 65536):
                    self.assertEqual(client.do(WRITE, at, data=b"y" * 100).error, 0)
                    model[at:at + 100] = b"y" * 100
                self.assertEqual(client.do(FLUSH).error, 0)
                self.assertEqual(client.do(READ, 0, MIB).data, model)
                client.close()
                self.stop(daemon)
                self.check("disk")
                self.same("disk", model)
                os.unlink(self.path("disk"))
                os.unlink(self.path("data"))

    def corrupt(self):
        """An image of whose data one cluster is said to be where the table is."""
        self.create("disk", size=8 * MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 2M", "disk")
        with open(self.path("disk"), "r+b") as image:
            image.seek(40)
            l1, = struct.unpack(">Q", image.read(8))
            image.seek(l1)
            l2 = struct.unpack(">Q", image.read(8))[0] & ~(1 << 63)
            image.seek(l2 + 8)
            image.write(struct.pack(">Q", l2 | 1 << 63))

    def test_corrupted_has_no_more_writers(self):
        """Not by way of another layer either; readers come, and a filter gets in between and out."""
        self.corrupt()
        daemon = self.open_disk(blockdev=json.dumps({
            "driver": "raw", "node-name": "disk", "file": {
                "driver": "qcow2", "node-name": "image", "file": {"driver": "file", "filename": "disk"}}}))
        with self.client() as client:
            self.assertNotEqual(client.do(WRITE, 65536, data=b"x" * 4096).error, 0)
            self.ask("blockdev-add", "driver=raw", "node-name=layer", "file=image")
            for name in ("image", "layer"):
                self.assert_fails(self.cairnctl("block-export-add", "type=nbd", "id=more", "name=more",
                                                f"node-name={name}", "writable:=true"),
                                  "'image' is corrupted and cannot be written")
                self.ask("block-export-add", "type=nbd", f"id={name}", f"name={name}", f"node-name={name}")
            self.ask("source-push", json.dumps({"parent": "disk", "child": "file",
                                                "filter": {"driver": "delay", "node-name": "between"}}))
            self.ask("source-pop", "parent=disk", "child=file", "filter=between")
            self.assertNotEqual(client.do(WRITE, MIB, data=b"x" * 4096).error, 0)
            self.assertEqual(client.do(READ, 0, 65536).data, b"\1" * 65536)
        self.end(daemon)

    def test_corruption(self):
        """Data that a table puts onto a table: found before it is written; reads go on, one event is sent."""
        self.corrupt()
        daemon = self.open_disk(options=",discard=unmap")
        events = subprocess.Popen([programs.CAIRNCTL, "-s", self.socket, "--raw", "events"], stdout=subprocess.PIPE,
                                  text=True, cwd=self.folder)
        self.addCleanup(self.reap, events)
        time.sleep(0.3)
        client = self.client()
        self.assertEqual(client.do(READ, 0, 65536).data, b"\1" * 65536)
        self.assertNotEqual(client.do(WRITE, 65536, data=b"x" * 4096).error, 0)
        self.assertNotEqual(client.do(WRITE, 4 * MIB, data=b"x" * 4096).error, 0)
        self.assertNotEqual(client.do(TRIM, 0, MIB).error, 0)
        self.assertEqual(client.do(READ, 0, 65536).data, b"\1" * 65536)
        self.assertTrue(self.ask("qom-get", "path=/nodes/disk", "property=corrupted"))
        client.close()
        self.end(daemon)
        said = events.communicate(timeout=10)[0]
        self.assertEqual(said.count("BLOCK_IMAGE_CORRUPTED"), 1, said)
        with open(self.path("disk"), "rb") as image:
            image.seek(72)
            self.assertEqual(struct.unpack(">Q", image.read(8))[0] & 2, 2)
        result = self.cairnd("--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk")
        self.assertIn("corrupt", result.stderr.lower())

    def test_cache_is_cleaned(self):
        """Tables that nobody asks for leave the memory, once they are written."""
        self.create("disk", "cluster_size=4k", size=64 * MIB)
        for interval, left in ((1, True), (0, False)):
            daemon = self.open_disk(options=f",cache-clean-interval={interval}")
            client = self.client()
            for at in range(0, 64 * MIB, 2 * MIB):
                self.assertEqual(client.do(WRITE, at, data=b"x" * 4096).error, 0)
            self.assertGreaterEqual(self.ask("qom-get", "path=/nodes/disk", "property=l2-used"), 1 if left else 32)
            client.do(FLUSH)
            if left:
                programs.wait_until(lambda: self.ask("qom-get", "path=/nodes/disk", "property=l2-used") == 0, "cleaning")
            self.assertEqual(client.do(READ, 2 * MIB, 4096).data, b"x" * 4096)
            client.close()
            self.stop(daemon)
        self.check("disk")

    STRUCTURES = ("main-header", "active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table",
                  "inactive-l1", "inactive-l2", "bitmap-directory")
    CONSTANT = ("main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory")

    def structures(self):
        """An image with all structures; where each is, and where the table of the first clusters is."""
        self.create("whole", "cluster_size=4k", size=4 * MIB)
        self.tool("qemu-img", "bitmap", "--add", "whole", "bitmap")
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "whole")
        self.tool("qemu-img", "snapshot", "-c", "before", "whole")
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 64k", "whole")
        with open(self.path("whole"), "rb") as stream:
            image = stream.read()

        def word(at):
            return struct.unpack_from(">Q", image, at)[0] & ~(1 << 63)

        at, = struct.unpack_from(">I", image, 100)
        while struct.unpack_from(">I", image, at)[0] != 0x23852875:
            at += 8 + (struct.unpack_from(">I", image, at + 4)[0] + 7) // 8 * 8
        l1, refcounts, snapshots = word(40), word(48), word(64)
        places = (0, l1, word(l1), refcounts, word(refcounts), snapshots, word(snapshots), word(word(snapshots)),
                  word(at + 24))
        return image, dict(zip(self.STRUCTURES, places)), word(l1)

    def test_overlap_check(self):
        """Data that a table puts onto a structure is found if the structure is to be looked at, and only then."""
        image, places, table = self.structures()
        daemon = self.serve("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        for kind, place in places.items():
            damaged = bytearray(image)
            # The first cluster has no other name than as compressed data.
            struct.pack_into(">Q", damaged, table + 8 * 8, place | 1 << 63 if place else 1 << 62 | 512)
            for check, found in (({"template": "none", kind: True}, True), ({"template": "all", kind: False}, False),
                                 ("none", False), ("all", True), ("cached", kind != "inactive-l2"),
                                 ("constant", kind in self.CONSTANT)):
                with self.subTest(kind=kind, check=check):
                    self.raw("disk", bytes(damaged))
                    self.ask("blockdev-add", json.dumps({
                        "driver": "qcow2", "node-name": "disk", "overlap-check": check,
                        "file": {"driver": "file", "filename": self.path("disk")}}))
                    self.ask("block-export-add", "type=nbd", "id=disk", "node-name=disk", "writable:=true")
                    with self.client() as client:
                        self.assertEqual(client.do(WRITE, 16384, data=b"x" * 4096).error != 0, found)
                    self.ask("block-export-del", "id=disk", "mode=hard")
                    programs.wait_until(lambda: not self.ask("query-block-exports"), "the export's end")
                    self.ask("blockdev-del", "node-name=disk")
        self.end(daemon)

    def test_resized_with_snapshots(self):
        """The disk becomes longer and shorter; the snapshots are what they were. Not in version 2: sizes are not told."""
        for compat in ("1.1", "0.10"):
            self.create("disk", f"compat={compat},cluster_size=4k", size=4 * MIB)
            self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "disk")
            self.tool("qemu-img", "snapshot", "-c", "before", "disk")
            daemon = self.open_disk(options=",discard=unmap")
            if compat == "0.10":
                self.assert_fails(self.cairnctl("block_resize", "node-name=disk", "size=8M"), "which has snapshots")
                self.stop(daemon)
                continue
            client = self.client()
            self.ask("block_resize", "node-name=disk", f"size={9 * MIB}")
            self.assertEqual(client.do(WRITE, 3 * MIB, data=b"x" * 5 * MIB).error, 0)
            self.ask("block_resize", "node-name=disk", f"size={MIB}")
            self.ask("block_resize", "node-name=disk", f"size={2 * MIB}")
            self.assertEqual(client.do(READ, 0, 2 * MIB).data, b"\1" * MIB + bytes(MIB))
            client.close()
            self.stop(daemon)
            self.check("disk")
            self.tool("qemu-img", "snapshot", "-a", "before", "disk")
            self.check("disk")
            self.same("disk", b"\1" * 4 * MIB)

    def test_statistics(self):
        self.create("disk", size=MIB)
        daemon = self.open_disk()
        client = self.client()
        client.do(WRITE, 0, data=b"x" * 4096)
        for _ in range(5):
            client.do(READ, 0, 4096)
        self.assertEqual(self.ask("qom-get", "path=/nodes/disk", "property=cluster-size"), 65536)
        self.assertGreaterEqual(self.ask("qom-get", "path=/nodes/disk", "property=l2-hits"), 5)
        self.assertGreaterEqual(self.ask("qom-get", "path=/nodes/disk", "property=l2-dirty"), 1)
        self.assertEqual(client.do(FLUSH).error, 0)
        self.assertEqual(self.ask("qom-get", "path=/nodes/disk", "property=l2-dirty"), 0)
        client.close()
        self.stop(daemon)


if __name__ == "__main__":
    unittest.main()
