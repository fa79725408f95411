#!/usr/bin/python3
"""qcow2 images over NBD, beside stock tools: what they wrote is read, what is written they find whole. CAIRN_SEED
replays."""
import json
import os
import random
import resource
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs
from qcow2_images import MIB, SEED, SIZE, STEPS, Qcow2 as _Qcow2

# For disks of many tables; all pairs of options are in test_qcow2_pairs.py.
LAYOUTS = [
    "compat=0.10,cluster_size=64k",
    "compat=1.1,cluster_size=512,refcount_bits=1",
    "compat=1.1,cluster_size=64k,refcount_bits=8,lazy_refcounts=on",
    "compat=1.1,cluster_size=16k,refcount_bits=32,extended_l2=on",
    "compat=1.1,cluster_size=2M,extended_l2=on",
    "compat=1.1,preallocation=falloc",
]


class Reads(_Qcow2):
    def test_all_layouts(self):
        rng = random.Random(SEED)
        model = self.pattern(rng)
        self.raw("source", model)
        for layout in LAYOUTS:
            with self.subTest(layout=layout):
                self.convert(layout)
                daemon = self.open_disk(export="writable=off", options=",read-only=on")
                client = self.client()
                self.assertEqual(client.size, SIZE)
                self.assertEqual(self.read_all(client), model)
                for _ in range(100):
                    length = rng.choice((1, 4096, 70000, 3 * MIB))
                    offset = rng.randrange(SIZE - length)
                    self.assertEqual(client.do(READ, offset, length).data, model[offset:offset + length])
                client.close()
                self.stop(daemon)

    def test_more_at_once_than_the_cache_holds(self):
        rng = random.Random(SEED)
        model = self.pattern(rng)
        self.raw("source", model)
        self.convert("cluster_size=512")
        daemon = self.open_disk(options=",l2-cache-size=0,refcount-cache-size=0", threads=2)
        clients = [self.client() for _ in range(2)]
        for _ in range(5):
            sent = []
            for number in range(128):
                offset = rng.randrange(SIZE // 4096) * 4096
                client = clients[number % 2]
                sent.append((client, client.request(READ, offset, 512), offset))
            for client in clients:
                mine = {cookie: offset for owner, cookie, offset in sent if owner is client}
                while mine:
                    cookie, reply = client.reply(READ, 512)
                    offset = mine.pop(cookie)
                    self.assertEqual((reply.error, reply.data), (0, model[offset:offset + 512]))
        for client in clients:
            client.close()
        self.stop(daemon)

    def test_compressed(self):
        rng = random.Random(SEED)
        text = (b"all work and no play " * 4000 + rng.randbytes(30000)) * 300
        model = text[:SIZE]
        self.raw("source", model)
        for layout in ("compression_type=zlib", "compression_type=zstd", "cluster_size=4k", "compat=0.10",
                       "cluster_size=2M,compression_type=zstd"):
            with self.subTest(layout=layout):
                self.convert(layout, "-c")
                daemon = self.open_disk()
                client = self.client()
                self.assertEqual(self.read_all(client, unit=100000), model)
                disk = bytearray(model)
                self.load(client, disk, rng, 100)
                client.close()
                self.stop(daemon)
                self.same("disk", disk)
                self.check("disk")

    def test_block_status(self):
        self.create("base", size=8 * MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write 1M 1M", "-c", "write -z 3M 1M", "base")
        self.create("disk", size=12 * MIB, backing="base")
        self.tool("qemu-io", "-f", "qcow2", "-c", "write 5M 64k", "-c", "write -z 1M 512k", "disk")
        daemon = self.open_disk()
        client = self.client(structured=True, context=True)
        extents, at = [], 0
        while at < 12 * MIB:
            for length, flags in client.do(STATUS, at, 12 * MIB - at).extents:
                if extents and extents[-1][1] == flags:
                    extents[-1][0] += length
                else:
                    extents.append([length, flags])
                at += length
        self.assertEqual(extents, [[MIB + MIB // 2, 3], [MIB // 2, 0], [3 * MIB, 3], [65536, 0], [7 * MIB - 65536, 3]])
        client.close()
        self.stop(daemon)


class Writes(_Qcow2):
    def test_all_layouts(self):
        for layout in LAYOUTS:
            with self.subTest(layout=layout, seed=SEED):
                rng = random.Random(SEED)
                self.create("disk", layout)
                daemon = self.open_disk(options=",discard=unmap", threads=2)
                clients = [self.client() for _ in range(2)]
                model = bytearray(SIZE)
                for _ in range(4):
                    self.load(rng.choice(clients), model, rng, STEPS // 4)
                for client in clients:
                    client.close()
                self.stop(daemon)
                self.check("disk")
                self.same("disk", model)
                # And again over what is there.
                daemon = self.open_disk(options=",discard=unmap,cache.direct=on,l2-cache-size=8192")
                client = self.client()
                self.load(client, model, rng, STEPS // 4)
                client.close()
                self.stop(daemon)
                self.check("disk")
                self.same("disk", model)

    def parallel(self, options, backing=None):
        """Three connections on three threads share every cluster."""
        model = [None] * 3
        start = bytearray(SIZE)
        if backing:
            start = self.pattern(random.Random(SEED))
            self.raw("base", start)
        self.create("disk", options, backing=backing, backing_format="raw")
        daemon = self.open_disk(options=",discard=unmap", threads=3)
        clients = [self.client() for _ in range(3)]
        failed = []

        def run(number):
            try:
                model[number] = bytearray(start)
                self.load(clients[number], model[number], random.Random(SEED * 10 + number), 2 * STEPS, (number, 3))
            except BaseException as error:  # pylint: disable=broad-except
                failed.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        whole = bytearray(start)
        for at in range(0, SIZE, 4096):
            whole[at:at + 4096] = model[at // 4096 % 3][at:at + 4096]
        self.assertEqual(self.read_all(clients[0]), whole)
        for client in clients:
            client.close()
        self.stop(daemon)
        self.check("disk")
        self.same("disk", whole)

    def test_parallel(self):
        for options, backing in (("", None), ("", "base"), ("extended_l2=on", "base"), ("cluster_size=2M", "base"),
                                 ("compat=0.10", "base"), ("cluster_size=4k,lazy_refcounts=on", None)):
            with self.subTest(options=options, backing=backing, seed=SEED):
                self.parallel(options, backing)

    def test_resized_under_load(self):
        rng = random.Random(SEED)
        self.create("disk")
        daemon = self.open_disk(options=",discard=unmap", threads=2)
        clients = [self.client() for _ in range(2)]
        models = [bytearray(SIZE) for _ in clients]
        failed = []

        def run(number):
            try:
                self.load(clients[number], models[number], random.Random(SEED + number), 2 * STEPS, (number, 2))
            except BaseException as error:  # pylint: disable=broad-except
                failed.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.ask("block_resize", "node-name=disk", f"size={SIZE + rng.randrange(1000) * 512}")
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        self.ask("block_resize", "node-name=disk", f"size={SIZE}")
        whole = bytearray(SIZE)
        for at in range(0, SIZE, 4096):
            whole[at:at + 4096] = models[at // 4096 % 2][at:at + 4096]
        for client in clients:
            client.close()
        self.stop(daemon)
        self.check("disk")
        self.same("disk", whole)

    def test_no_space(self):
        """Writes fail, what was answered stays, and all is well once there is space again."""
        for options in ("", "extended_l2=on", "cluster_size=512"):
            with self.subTest(options=options):
                self.create("disk", options)
                daemon = self.open_disk(options=",discard=unmap")
                client = self.client()
                model = bytearray(SIZE)
                resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (3 * MIB, resource.RLIM_INFINITY))
                errors = set()
                for at in range(0, 8 * MIB, 65536):
                    data = os.urandom(65536)
                    error = client.do(WRITE, at, data=data).error
                    errors.add(error)
                    if error:
                        model[at:at + 65536] = client.do(READ, at, 65536).data
                    else:
                        model[at:at + 65536] = data
                self.assertEqual(len(errors), 2, errors)
                resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                self.assertEqual(client.do(WRITE, 9 * MIB, data=b"y" * MIB).error, 0)
                model[9 * MIB:10 * MIB] = b"y" * MIB
                self.assertEqual(client.do(FLUSH).error, 0)
                client.close()
                self.end(daemon)
                self.check("disk")
                self.same("disk", model)

    def test_killed(self):
        """A daemon that is killed leaves an image that may leak, and no more; what was flushed is there."""
        rng = random.Random(SEED)
        for options in ("", "lazy_refcounts=on", "extended_l2=on,cluster_size=16k", "cluster_size=512"):
            with self.subTest(options=options, seed=SEED):
                self.create("disk", options)
                model = bytearray(SIZE)
                for _ in range(4):
                    daemon = self.open_disk(options=",discard=unmap,l2-cache-size=32768")
                    client = self.client()
                    self.assertEqual(self.read_all(client), model)
                    self.load(client, model, rng, 60)
                    self.assertEqual(client.do(FLUSH).error, 0)
                    for _ in range(200):
                        at = rng.randrange(SIZE // 4096) * 4096
                        # The same content: what is on the way is allocated or not.
                        client.request(WRITE, at, 4096, 0, bytes(model[at:at + 4096]).ljust(4096, b"\0")[:SIZE - at])
                    daemon.kill()
                    daemon.wait()
                    client.close()
                    # The kernel takes its time to let go of what a ring had open, and of its locks.
                    found = json.loads(programs.wait_until(self.check_json, "the locks of the killed"))
                    if "lazy" not in options:
                        self.assertEqual(found.get("corruptions", 0), 0, found)
                daemon = self.open_disk()
                client = self.client()
                self.assertEqual(self.read_all(client), model)
                client.close()
                self.stop(daemon)

    def test_internal_snapshot_stays(self):
        rng = random.Random(SEED)
        model = self.pattern(rng)
        self.raw("source", model)
        self.convert("compat=1.1")
        self.tool("qemu-img", "snapshot", "-c", "one", "disk")
        daemon = self.open_disk(options=",discard=unmap")
        client = self.client()
        disk = bytearray(model)
        self.load(client, disk, rng)
        client.close()
        self.ask("block_resize", "node-name=disk", f"size={2 * SIZE}")
        disk += bytes(SIZE)
        client = self.client()
        self.load(client, disk, rng)
        client.close()
        self.stop(daemon)
        self.check("disk")
        self.same("disk", disk)
        self.tool("qemu-img", "convert", "-q", "-l", "snapshot.name=one", "-f", "qcow2", "-O", "raw", "disk", "one")
        self.same("one", model, "raw")

    def test_data_file(self):
        for raw in ("off", "on"):
            with self.subTest(data_file_raw=raw):
                rng = random.Random(SEED)
                self.create("disk", f"data_file=data,data_file_raw={raw}")
                plain = "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk,discard=unmap"
                self.assertIn("'data-file' is required for this image", self.cairnd("--blockdev", plain).stderr)
                daemon = self.open_disk(blockdev=plain + ",data-file.driver=file,data-file.filename=data")
                client = self.client()
                model = bytearray(SIZE)
                self.load(client, model, rng)
                client.close()
                self.stop(daemon)
                self.check("disk")
                self.same("disk", model)
                if raw == "on":
                    self.same("data", model, "raw")

    def test_resize(self):
        rng = random.Random(SEED)
        self.create("base", size=3 * MIB)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 3M", "base")
        self.create("disk", size=2 * MIB, backing="base")
        daemon = self.open_disk(options=",discard=unmap")
        client = self.client()
        model = bytearray(b"\7" * (2 * MIB))
        for size in (5 * MIB, 4 * MIB + 512, 512, 40 * MIB, 600 * MIB, 2 * MIB):
            self.load(client, model, rng, 30)
            self.ask("block_resize", "node-name=disk", f"size={size}")
            # What is new reads as zeroes, whatever lies below.
            model = model[:size] + bytes(max(size - len(model), 0))
            at = max(size - MIB, 0)
            self.assertEqual(client.do(READ, at, size - at).data, model[at:], size)
        self.load(client, model, rng, 30)
        self.assert_fails(self.cairnctl("block_resize", "node-name=disk", "size=1000"), "multiple of 512")
        client.close()
        self.stop(daemon)
        self.check("disk")
        self.same("disk", model)

    def test_beyond_16_tib(self):
        """An L1 table that outgrows its place, and offsets that need more than 44 bits."""
        self.create("disk", size=MIB)
        daemon = self.open_disk()
        client = self.client()
        self.assertEqual(client.do(WRITE, 4096, 4096, data=b"a" * 4096).error, 0)
        for size in (1 << 40, 60 << 40):
            self.ask("block_resize", "node-name=disk", f"size={size}")
            self.assertEqual(client.do(WRITE, size - 70000, 65536, data=b"b" * 65536).error, 0)
        self.assertEqual(client.do(FLUSH).error, 0)
        self.assertEqual(client.do(READ, (60 << 40) - 70000, 70000).data, b"b" * 65536 + bytes(4464))
        client.close()
        self.stop(daemon)
        self.check("disk")
        self.tool("qemu-io", "-f", "qcow2", "-c", "read -P 97 4k 4k", "-c", f"read -P 98 {(60 << 40) - 70000} 65536",
                  "disk")

    def test_space_comes_back(self):
        self.create("disk", size=64 * MIB)
        daemon = self.open_disk(options=",discard=unmap")
        client = self.client()
        for at in range(0, 32 * MIB, MIB):
            client.do(WRITE, at, data=os.urandom(MIB))
        self.assertEqual(client.do(FLUSH).error, 0)
        self.assertGreater(os.stat(self.path("disk")).st_blocks * 512, 32 * MIB)
        self.assertEqual(client.do(TRIM, 0, 32 * MIB).error, 0)
        self.assertEqual(client.do(FLUSH).error, 0)
        client.close()
        self.stop(daemon)
        self.assertLess(os.stat(self.path("disk")).st_blocks * 512, 2 * MIB)
        self.check("disk")


if __name__ == "__main__":
    unittest.main()
