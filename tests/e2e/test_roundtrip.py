#!/usr/bin/python3
"""What is written is what is there: a random mixed load over NBD against a model, on every kind of file, ring and
socket, compared by stock tools. CAIRN_SEED replays."""
import os
import random
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs

SIZE = 8 << 20
WINDOW = 1 << 20        # where the raw window begins
STEPS = 400
SEED = int(os.environ.get("CAIRN_SEED", "1"))


class RoundTrip(programs.Program):
    def load(self, clients, model, rng):
        """Random requests, one at a time, over any of the connections."""
        for step in range(STEPS):
            client = rng.choice(clients)
            unit = rng.choice((1, 512, 4096, 65536))
            offset = rng.randrange(len(model)) // unit * unit
            length = min(rng.choice((1, 7, 512, 4096, 12345, 65536, 300000)) * rng.choice((1, 1, 3)), len(model) - offset)
            kind = rng.choice((READ, READ, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH))
            fua = rng.choice((0, 0, FUA))
            if kind == READ:
                self.assertEqual(client.do(READ, offset, length).data, model[offset:offset + length], f"step {step}")
                continue
            data = rng.randbytes(length) if kind == WRITE else b""
            if kind == ZEROES:
                fua |= rng.choice((0, NO_HOLE))
            reply = client.do(FLUSH) if kind == FLUSH else client.do(kind, offset, length, fua, data)
            self.assertEqual(reply.error, 0, f"step {step}")
            if kind in (WRITE, ZEROES):
                model[offset:offset + length] = data or bytes(length)
            elif kind == TRIM:
                # Undefined by the protocol: what it is from now on, a read tells.
                model[offset:offset + length] = client.do(READ, offset, length).data

    def round_trip(self, ring, direct, window, tcp):
        rng = random.Random(SEED)
        with open(self.path("disk"), "wb") as disk:
            disk.write(rng.randbytes(WINDOW))
            disk.truncate(WINDOW + SIZE)
        options = ["--ring", ring, "--blockdev",
                   f"driver=file,filename=disk,node-name=file,discard=unmap,cache.direct={direct}"]
        if window:
            options += ["--blockdev", f"driver=raw,node-name=disk,file=file,offset={WINDOW},discard=unmap"]
        else:
            options[-1] = options[-1].replace("node-name=file", "node-name=disk")
        options += ["--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=0" if tcp
                    else f"addr.type=unix,addr.path={self.path('nbd')}",
                    "--export", "type=nbd,id=disk,node-name=disk,writable=on"]
        daemon = self.serve(*options)
        address = self.path("nbd")
        if tcp:
            address = ("127.0.0.1", int(self.ask("query-nbd-servers")[0]["addr"]["port"]))
        clients = [NbdClient(address).go("disk", extended=bool(i % 2), structured=i == 2) for i in range(3)]
        model = bytearray(clients[0].do(READ, 0, clients[0].size).data)
        self.assertEqual(len(model), SIZE if window else WINDOW + SIZE)
        self.load(clients, model, rng)
        # Grown, and shrunk to an odd size.
        for change in (100001, -300007):
            self.ask("block_resize", "node-name=disk", f"size={len(model) + change}")
            model = model[:len(model) + change] if change < 0 else model + bytes(change)
            self.load(clients, model, rng)
        self.assertEqual(clients[0].do(FLUSH).error, 0)
        for client in clients:
            client.close()
        said = self.end(daemon)
        self.assertNotIn("Sanitizer", said)
        with open(self.path("disk"), "rb") as disk:
            disk.seek(WINDOW if window else 0)
            self.assertEqual(disk.read(), bytes(model))

    def test_every_way(self):
        for ring in ("io_uring", "threads"):
            for direct, window, tcp in (("off", False, False), ("off", True, True), ("on", False, True),
                                        ("on", True, False)):
                with self.subTest(ring=ring, direct=direct, window=window, tcp=tcp, seed=SEED):
                    try:
                        self.round_trip(ring, direct, window, tcp)
                    except AssertionError as error:
                        if direct == "on" and "does not support O_DIRECT" in str(error):
                            continue
                        raise

    def test_stock_tools_agree(self):
        with open(self.path("model"), "wb") as model:
            model.write(os.urandom(1 << 20))
            model.seek(5 << 20)
            model.write(os.urandom(300000))
            model.truncate(SIZE)
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(SIZE)
        daemon = self.serve("--blockdev", "driver=file,filename=disk,node-name=disk,discard=unmap",
                            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                            "--export", "type=nbd,id=disk,node-name=disk,writable=on")
        uri = "nbd+unix:///disk?socket=nbd"
        subprocess.run(["nbdcopy", "model", uri], cwd=self.folder, check=True, timeout=60)
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", "model", uri], cwd=self.folder, check=True,
                       timeout=60, stdout=subprocess.DEVNULL)
        subprocess.run(["nbdcopy", uri, "back"], cwd=self.folder, check=True, timeout=60)
        subprocess.run(["cmp", "model", "back"], cwd=self.folder, check=True, timeout=60)
        # Holes are holes here, there and on the wire.
        self.assertLess(os.stat(self.path("disk")).st_blocks * 512, 3 << 20)
        found = subprocess.run(["nbdinfo", "--map", uri], cwd=self.folder, check=True, timeout=60, text=True,
                               capture_output=True).stdout
        self.assertIn("hole,zero", found)
        self.end(daemon)


if __name__ == "__main__":
    unittest.main()
