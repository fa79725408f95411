#!/usr/bin/python3
"""qcow2 images of every pair of options that qemu-img create has: what stock tools wrote is read byte for byte, what is
written over several connections on several threads is what stock tools find, in an image without damage or leaks.
CAIRN_SEED replays."""
import concurrent.futures
import os
import random
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import pairwise
import programs
from qcow2_images import MIB, SEED, Qcow2 as _Qcow2
from qmp_client import QmpClient

DISK = 3 * MIB + 512 * 7
THREADS = 3
FACTORS = {
    "cluster": [512 << i for i in range(13)],
    "refcount": [1, 2, 4, 8, 16, 32, 64],
    "compat": ["0.10", "1.1"],
    "compression": [None, "zlib", "zstd"],
    "extended": [False, True],
    "data": [None, "plain", "raw"],
    "lazy": [False, True],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "depth": [0, 1, 2, 4],
}
# Sanitizers are slow.
SHARE = 4 if "-" in os.path.basename(programs.BUILD) else 1


def valid(has):
    """Whether qemu-img makes such an image."""
    old = has["compat"] == "0.10"
    return not (old and (has["refcount"] != 16 or has["extended"] or has["data"] or has["lazy"] or
                         has["compression"] == "zstd") or
                has["extended"] and has["cluster"] < 16384 or
                has["data"] and has["compression"] or
                has["data"] == "raw" and has["depth"] or
                has["compression"] and has["preallocation"] != "off" or
                has["depth"] and has["preallocation"] != "off" and not has["extended"])


def options(has, name):
    text = f"cluster_size={has['cluster']},compat={has['compat']},preallocation={has['preallocation']}"
    if has["compat"] != "0.10":
        text += f",refcount_bits={has['refcount']}"
    if has["lazy"]:
        text += ",lazy_refcounts=on"
    if has["extended"]:
        text += ",extended_l2=on"
    if has["compression"]:
        text += f",compression_type={has['compression']}"
    if has["data"]:
        text += f",data_file={name}.data,data_file_raw={'on' if has['data'] == 'raw' else 'off'}"
    return text


class Pairs(_Qcow2):
    def make_chain(self):
        """Four images, each over the one before, and what the disk at each depth shows."""
        rng = random.Random(SEED)
        self.shown = {0: bytearray(DISK)}
        model = self.pattern(rng, 2 * MIB + 1024)
        self.raw("source", model)
        self.tool("qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", "source",
                  "below1")
        layers = ["extended_l2=on,cluster_size=16k", "compat=0.10,cluster_size=2k", "compression_type=zstd"]
        for depth in range(1, 5):
            if depth > 1:
                name, size = f"below{depth}", (3 * MIB, 2 * MIB, DISK)[depth - 2]
                self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", layers[depth - 2], "-b",
                          f"below{depth - 1}", "-F", "qcow2", name, str(size))
                model = (model + bytes(DISK))[:size]
                commands = []
                for _ in range(12):
                    length = rng.choice((512, 4096, 40960))
                    at, byte = rng.randrange((size - length) // 512) * 512, rng.randrange(256)
                    commands += ["-c", f"write -P {byte} {at} {length}"]
                    model[at:at + length] = bytes([byte]) * length
                self.tool("qemu-io", "-f", "qcow2", *commands, name)
            self.shown[depth] = (model + bytes(DISK))[:DISK]

    def make(self, number, has):
        """The image, written by stock tools; its content."""
        rng = random.Random(SEED * 1000 + number)
        name, model = f"disk{number}", bytearray(self.shown[has["depth"]])
        below = ["-b", f"below{has['depth']}", "-F", "qcow2"] if has["depth"] else []
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options(has, name), *below, name, str(DISK))
        commands, cluster = [], has["cluster"]
        clusters = rng.sample(range(DISK // cluster), min(6, DISK // cluster)) if has["compression"] else []
        for at in clusters:
            byte = rng.randrange(256)
            commands += ["-c", f"write -c -P {byte} {at * cluster} {cluster}"]
            model[at * cluster:(at + 1) * cluster] = bytes([byte]) * cluster
        for _ in range(10):
            length = rng.choice((512, 4096, 66048, 300032))
            at, byte = rng.randrange((DISK - length) // 512) * 512, rng.randrange(256)
            zero = rng.random() < 0.3
            commands += ["-c", f"write {rng.choice(('-z', '-z -u')) if zero else f'-P {byte}'} {at} {length}"]
            model[at:at + length] = bytes([0 if zero else byte]) * length
        self.tool("qemu-io", "-f", "qcow2", *commands, name)
        return model

    def add(self, number, has, rng):
        name = self.path(f"disk{number}")
        node = {"driver": "qcow2", "node-name": "disk", "discard": "unmap", "file": {"driver": "file", "filename": name}}
        if has["data"]:
            node["data-file"] = {"driver": "file", "filename": name + ".data"}
        if rng.random() < 0.5:
            node.update({"l2-cache-size": 1, "refcount-cache-size": 1})
        self.qmp.execute("blockdev-add", node)
        self.qmp.call("block-export-add", type="nbd", id="disk", node_name="disk", writable=True,
                      iothreads=[f"t{i}" for i in range(THREADS)])
        return [NbdClient(self.path("nbd")).go("disk") for _ in range(THREADS)]

    def batch(self, clients, model, rng):
        """Requests that do not overlap, sent over all connections before any answer is awaited."""
        sent, at = [], rng.randrange(4096)
        while at < len(model) - 1 and len(sent) < 24:
            length = min(rng.choice((1, 512, 512, 4096, 4096, 20000, 65536, 200000)), len(model) - at)
            kind = rng.choice((READ, WRITE, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH))
            flags = rng.choice((0, 0, 0, FUA)) if kind not in (READ, FLUSH) else 0
            data = rng.randbytes(length) if kind == WRITE else b""
            if kind == ZEROES:
                flags |= rng.choice((0, NO_HOLE))
            client = rng.choice(clients)
            if kind == FLUSH:
                sent.append((client, client.request(FLUSH), FLUSH, 0, 0, b""))
            else:
                sent.append((client, client.request(kind, at, length, flags, data), kind, at, length, data))
            at += length + rng.choice((0, 0, 512, 3 * len(model) // 40))
        rng.shuffle(clients)
        for client in clients:
            mine = {cookie: rest for owner, cookie, *rest in sent if owner is client}
            while mine:
                # Only a read's answer has data: its length is known by its cookie.
                cookie, error = self.head(client)
                kind, at, length, data = mine.pop(cookie)
                self.assertEqual(error, 0, f"{kind}, {length} at {at}")
                if kind == READ:
                    self.assertEqual(client.receive(length), model[at:at + length], f"{length} at {at}")
                elif kind in (WRITE, ZEROES):
                    model[at:at + length] = data or bytes(length)
        for client, _, kind, at, length, _ in sent:
            if kind == TRIM:
                model[at:at + length] = client.do(READ, at, length).data

    @staticmethod
    def head(client):
        magic, error, cookie = struct.unpack(">IIQ", client.receive(16))
        assert magic == SIMPLE_MAGIC
        return cookie, error

    def play(self, number, has, model):
        rng = random.Random(SEED * 1000 + number)
        clients = self.add(number, has, rng)
        self.assertEqual(self.read_all(clients[0], DISK), model)
        for _ in range(3):
            self.batch(clients, model, rng)
        size = rng.randrange(2 * MIB // 512, 4 * MIB // 512) * 512
        self.qmp.call("block_resize", node_name="disk", size=size)
        model = (model + bytes(4 * MIB))[:size]
        self.batch(clients, model, rng)
        self.qmp.call("block_resize", node_name="disk", size=DISK)
        model = (model + bytes(4 * MIB))[:DISK]
        self.batch(clients, model, rng)
        self.assertEqual(self.read_all(clients[1], DISK), model)
        for client in clients:
            client.close()
        self.qmp.call("block-export-del", id="disk", mode="hard")
        self.qmp.call("blockdev-del", node_name="disk")
        return model

    def look(self, number, has, model):
        """Stock tools find what was written, in an image that is whole."""
        name = f"disk{number}"
        self.check(name)
        self.raw(f"model{number}", model)
        self.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", name, f"model{number}")
        if has["data"] == "raw":
            with open(self.path(name + ".data"), "rb") as stream:
                self.assertEqual(stream.read(), model, "the data file is the disk")
        for path in (name, f"model{number}", name + ".data"):
            if os.path.exists(self.path(path)):
                os.unlink(self.path(path))

    def test_all_pairs(self):
        combinations = pairwise.sample(FACTORS, valid, random.Random(SEED))[::SHARE]
        self.make_chain()
        daemon = self.serve(*(part for i in range(THREADS) for part in ("--object", f"iothread,id=t{i}")),
                            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        self.qmp = QmpClient(self.socket)
        self.addCleanup(self.qmp.close)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            made = [pool.submit(self.make, *numbered) for numbered in enumerate(combinations)]
            looked = []
            for number, has in enumerate(combinations):
                with self.subTest(number=number, seed=SEED, **has):
                    model = self.play(number, has, made[number].result())
                    looked.append((number, has, pool.submit(self.look, number, has, model)))
            for number, has, result in looked:
                with self.subTest(number=number, seed=SEED, **has):
                    result.result()
        self.stop(daemon)


if __name__ == "__main__":
    unittest.main()
