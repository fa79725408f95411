"""Images for the tests of qcow2: made and checked by stock tools, served over NBD, compared with a model."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20
SIZE = 24 * MIB + 512 * 7
STEPS = 250
SEED = int(os.environ.get("CAIRN_SEED", "1"))


class Qcow2(programs.Program):
    served = None

    def tool(self, *command, code=0):
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=programs.PATIENCE,
                                stdin=subprocess.DEVNULL, check=False)
        self.assertEqual(result.returncode, code, f"{command}\n{result.stdout}{result.stderr}")
        return result.stdout + result.stderr

    def begin(self):
        """What a failed part of a test left behind is ended."""
        if self.served:
            self.reap(self.served)

    def convert(self, options, *more):
        self.begin()
        self.tool("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", *more, "-o", options, "source", "disk")

    def create(self, name, options="", size=SIZE, backing=None, backing_format="qcow2"):
        self.begin()
        below = ["-b", backing, "-F", backing_format] if backing else []
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), *below, name,
                  str(size))

    def check(self, name):
        """Neither corrupt nor leaking."""
        self.tool("qemu-img", "check", "-q", "-f", "qcow2", name)

    def check_json(self):
        """What qemu-img check finds; nothing if the image is locked."""
        return subprocess.run(["qemu-img", "check", "-f", "qcow2", "--output=json", "disk"], cwd=self.folder, text=True,
                              capture_output=True, timeout=programs.PATIENCE, check=False).stdout

    def pattern(self, rng, size=SIZE):
        """Data, holes and zeroes of all lengths."""
        model, at = bytearray(size), 0
        while at < size:
            length = min(rng.choice((512, 3000, 4096, 65536, 200000, 2 * MIB)), size - at)
            if rng.random() < 0.5:
                model[at:at + length] = rng.randbytes(length)
            at += length
        return model

    def raw(self, name, data):
        with open(self.path(name), "wb") as stream:
            stream.write(data)

    def open_disk(self, name="disk", options="", threads=0, export="writable=on", blockdev=None):
        """A daemon that serves the image as "disk"."""
        objects = [part for i in range(threads) for part in ("--object", f"iothread,id=t{i}")]
        spread = "".join(f",iothreads.{i}=t{i}" for i in range(threads))
        image = blockdev or f"driver=qcow2,node-name=disk,file.driver=file,file.filename={name}{options}"
        self.served = self.serve(*objects, "--blockdev", image,
                                 "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                                 "--export", f"type=nbd,id=disk,node-name=disk,{export}{spread}")
        return self.served

    def client(self, **how):
        client = NbdClient(self.path("nbd"))
        self.addCleanup(client.close)
        return client.go("disk", **how)

    def stop(self, daemon):
        said = self.end(daemon)
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error", "failed"):
            self.assertNotIn(sign, said)

    def same(self, image, model, image_format="qcow2"):
        self.raw("model", bytes(model))
        self.tool("qemu-img", "compare", "-q", "-f", image_format, "-F", "raw", image, "model")

    def read_all(self, client, size=SIZE, unit=MIB):
        return b"".join(client.do(READ, at, min(unit, size - at)).data for at in range(0, size, unit))

    def load(self, client, model, rng, steps=STEPS, share=(0, 1)):
        """Random requests on the blocks of 4 KiB of whose numbers the remainder is ours."""
        mine, of = share
        for step in range(steps):
            length = min(rng.choice((1, 512, 4096, 4096, 12345, 65536, 300000)), len(model))
            offset = rng.randrange(len(model) - length + 1)
            if rng.random() < 0.7:
                offset = offset // 4096 * 4096
            if of > 1:
                offset = (offset // 4096 // of * of + mine) * 4096
                if offset + 4096 > len(model):
                    continue
                offset, length = offset + rng.choice((0, 0, 100)), min(length, 3996)
            kind = rng.choice((READ, READ, WRITE, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH))
            fua = rng.choice((0, 0, 0, FUA))
            if kind == READ:
                self.assertEqual(client.do(READ, offset, length).data, model[offset:offset + length],
                                 f"step {step}: {length} at {offset}")
                continue
            data = rng.randbytes(length) if kind == WRITE else b""
            if kind == ZEROES:
                fua |= rng.choice((0, NO_HOLE))
            reply = client.do(FLUSH) if kind == FLUSH else client.do(kind, offset, length, fua, data)
            self.assertEqual(reply.error, 0, f"step {step}: {kind}, {length} at {offset}")
            if kind in (WRITE, ZEROES):
                model[offset:offset + length] = data or bytes(length)
            elif kind == TRIM:
                model[offset:offset + length] = client.do(READ, offset, length).data
