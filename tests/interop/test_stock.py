#!/usr/bin/python3
"""Stock NBD clients and image tools against the daemon; what is not installed is skipped."""
import json
import os
import random
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
import programs
from test_nbd import MIB, NbdTest as _NbdTest

os.environ["PATH"] += ":/usr/sbin:/sbin"


def needs(*tools):
    missing = [tool for tool in tools if not shutil.which(tool)]
    return unittest.skipIf(missing, f"not installed: {' '.join(missing)}")


class Stock(_NbdTest):
    OPTIONS = ("--nbd-server", "id=tcp,addr.type=inet,addr.host=127.0.0.1,addr.port=0")

    def setUp(self):
        super().setUp()
        self.ask("block-export-add", "type=nbd", "id=tcp", "node-name=disk", "server=tcp", "writable=on")
        self.port = [s for s in self.ask("query-nbd-servers") if s["id"] == "tcp"][0]["addr"]["port"]
        self.tcp = f"nbd://127.0.0.1:{self.port}/disk"
        # Data, a hole and an odd piece of data.
        rng = random.Random(7)
        with open(self.path("model"), "wb") as model:
            model.write(rng.randbytes(MIB + 512))
            model.seek(3 * MIB)
            model.write(rng.randbytes(70000))
            model.truncate(4 * MIB)

    def uri(self, name="disk"):
        return f"nbd+unix:///{name}?socket={self.path('nbd')}"

    def tool(self, *command, code=0):
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=programs.PATIENCE,
                                stdin=subprocess.DEVNULL, check=False)
        self.assertEqual(result.returncode, code, f"{command}\n{result.stdout}{result.stderr}")
        return result.stdout + result.stderr

    def fill(self):
        """Makes the disk what the model is, holes and all."""
        with open(self.path("model"), "rb") as model, open(self.path("disk"), "r+b") as disk:
            disk.write(model.read(MIB + 512))
            disk.seek(3 * MIB)
            model.seek(3 * MIB)
            disk.write(model.read(70000))

    def same(self, one, two="model"):
        self.tool("cmp", one, two)

    @needs("nbdinfo")
    def test_nbdinfo(self):
        self.fill()
        exports = json.loads(self.tool("nbdinfo", "--list", "--json", self.uri("")))["exports"]
        self.assertEqual([export["export-name"] for export in exports], ["disk", "read-only", "big"])
        self.assertEqual([export["export-size"] for export in exports], [4 * MIB, 4 * MIB, 1 << 50])
        self.assertEqual([export["is_read_only"] for export in exports], [False, True, False])
        self.assertEqual(exports[0]["description"], "the disk")
        for uri in (self.uri(), self.tcp):
            info = json.loads(self.tool("nbdinfo", "--json", uri))
            self.assertEqual((info["protocol"], info["structured"]), ("newstyle-fixed", True))
            export = info["exports"][0]
            for name in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
                self.assertTrue(export[f"can_{name}"], name)
            self.assertEqual((export["block_size_minimum"], export["block_size_maximum"]), (1, 32 * MIB))
        self.assertEqual(self.tool("nbdinfo", "--size", self.uri("big")).strip(), str(1 << 50))
        self.tool("nbdinfo", "--can", "write", self.uri())
        self.tool("nbdinfo", "--is", "read-only", self.uri("read-only"))
        self.assertIn("nope", self.tool("nbdinfo", self.uri("nope"), code=1))

    @needs("nbdinfo")
    def test_nbdinfo_map(self):
        self.fill()
        extents = json.loads(self.tool("nbdinfo", "--map", "--json", self.uri()))
        self.assertEqual(sum(extent["length"] for extent in extents), 4 * MIB)
        at = 0
        for extent in extents:
            self.assertEqual(extent["offset"], at)
            at += extent["length"]
        holes = [(extent["offset"], extent["length"]) for extent in extents if extent["type"] == 3]
        self.assertEqual(len(holes), 2)
        self.assertTrue(MIB < holes[0][0] <= MIB + 65536 and sum(holes[0]) == 3 * MIB and sum(holes[1]) == 4 * MIB)
        big = json.loads(self.tool("nbdinfo", "--map", "--totals", "--json", self.uri("big")))
        self.assertEqual([extent["size"] for extent in big], [1 << 50])

    @needs("nbdcopy")
    def test_nbdcopy(self):
        for uri in (self.uri(), self.tcp):
            self.tool("nbdcopy", "--flush", "model", uri)
            self.same("disk")
            self.tool("nbdcopy", "--connections=4", "--requests=64", uri, "back")
            self.same("back")
            self.tool("nbdcopy", "--destination-is-zero", uri, "null:")
            os.unlink(self.path("back"))
        self.assertLess(os.stat(self.path("disk")).st_blocks * 512, 2 * MIB)
        self.assertTrue(self.tool("nbdcopy", "model", self.uri("read-only"), code=1))

    def test_nbdsh(self):
        try:
            __import__("nbd")
        except ImportError:
            self.skipTest("no python3-libnbd")
        self.write("script.py", f"""
import nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri({self.uri()!r})
assert h.get_size() == {4 * MIB} and h.get_structured_replies_negotiated() and h.get_protocol() == "newstyle-fixed"
data = bytes(range(256)) * 512
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(len(data), 12345) == data
chunks = []
h.pread_structured(65536, 12000, lambda data, offset, status, err: chunks.append((offset, bytes(data), status)),
                   nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0][1][345:] == data[:65536 - 345]
h.zero(1000, 12345, nbd.CMD_FLAG_NO_HOLE)
h.trim(65536, 65536)
h.cache(65536, 0)
h.flush()
assert h.pread(1002, 12344) == bytes(1001) + data[1000:1001]
extents = []
h.block_status({4 * MIB}, 0, lambda name, offset, entries, err: extents.append((name, list(entries))))
assert extents[0][0] == "base:allocation" and sum(extents[0][1][::2]) == {4 * MIB}
# Many at once, in any order.
cookies = {{}}
buffers = [nbd.Buffer(4096) for _ in range(200)]
for i, buffer in enumerate(buffers):
    cookies[h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i] * 4096)), {MIB} + i * 4096)] = i
while h.aio_in_flight():
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
for i, buffer in enumerate(buffers):
    cookies[h.aio_pread(buffer, {MIB} + i * 4096)] = i
while h.aio_in_flight():
    h.poll(-1)
assert all(bytes(buffer.to_bytearray()) == bytes([i] * 4096) for i, buffer in enumerate(buffers))
h.set_strict_mode(0)
for call in (lambda: h.pread(512, {4 * MIB}), lambda: h.pwrite(b"x", {4 * MIB}), lambda: h.trim(1, 1 << 62)):
    try:
        call()
        raise SystemExit("no error")
    except nbd.Error as error:
        assert error.errnum in (22, 28), error
assert h.pread(1, 0) == b"\\0"
h.shutdown()
""")
        self.tool("/usr/bin/python3", "script.py")

    @needs("qemu-img")
    def test_qemu_img(self):
        for uri in (self.uri(), self.tcp):
            self.tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "model", uri)
            self.same("disk")
            self.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "model", uri)
            self.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, "back")
            self.same("back")
            self.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, "image")
            self.tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "image", uri)
        extents = json.loads(self.tool("qemu-img", "map", "--output=json", "-f", "raw", self.uri()))
        self.assertEqual(sum(extent["length"] for extent in extents), 4 * MIB)
        self.assertTrue(any(extent["zero"] and not extent["data"] for extent in extents))
        self.assertEqual(json.loads(self.tool("qemu-img", "info", "--output=json", "-f", "raw", self.uri("big")))
                         ["virtual-size"], 1 << 50)
        with open(self.path("model"), "r+b") as model:
            model.seek(2 * MIB)
            model.write(b"different")
        self.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "model", self.uri(), code=1)

    @needs("qemu-io")
    def test_qemu_io(self):
        said = self.tool("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1000 70000", "-c", "write -f -P 0x11 2M 64k",
                         "-c", "write -z -u 1M 64k", "-c", "aio_write -P 7 3M 4k", "-c", "aio_read 0 64k",
                         "-c", "aio_flush", "-c", "discard 2M 32k", "-c", "flush", "-c", "read -P 0x5a 1000 70000",
                         "-c", "read -P 0 1M 64k", "-c", "read -P 7 3M 4k", "-c", "read -P 0x11 2080k 32k",
                         self.uri())
        self.assertNotIn("failed", said)
        self.assertNotIn("rror", said)
        self.tool("qemu-io", "-f", "raw", "-c", "write 0 1k", self.uri("read-only"), code=1)

    @needs("fio")
    def test_fio_verifies(self):
        if "nbd" not in self.tool("fio", "--enghelp").split():
            self.skipTest("fio without nbd")
        for number, uri in enumerate((self.uri(), self.tcp)):
            said = self.tool("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
                             "--size=4m", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
                             f"--randseed={number + 1}", "--thread")
            self.assertIn("err= 0", said)

    @needs("nbdkit", "nbdcopy")
    def test_nbdkit_in_front(self):
        self.fill()
        self.tool("nbdkit", "-U", "-", "nbd", f"uri={self.uri()}", "--run", "nbdcopy \"$uri\" back")
        self.same("back")
        shutil.copyfile(self.path("model"), self.path("half"))
        with open(self.path("half"), "r+b") as half:
            half.write(bytes(MIB))
        self.tool("nbdkit", "-U", "-", "nbd", f"uri={self.tcp}", "--run", "nbdcopy half \"$uri\"")
        self.same("disk", "half")

    @needs("nbd-client")
    def test_nbd_client_lists(self):
        said = self.tool("nbd-client", "-l", "127.0.0.1", "-N", "", str(self.port))
        self.assertIn("disk", said.split())

    @needs("qemu-io", "qemu-img")
    def test_image_locks(self):
        """A qcow2 image lets nobody else write to it: neither while we hold it nor while they do."""
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "image", "1M")
        add = ("blockdev-add", "driver=file", "node-name=image", "filename=image")
        export = ("block-export-add", "type=nbd", "id=image", "node-name=image")
        self.ask(*add)
        self.ask(*export, "writable=on")
        for command in ("write 0 512", "read 0 512"):
            self.assertIn('"write" lock', self.tool("qemu-io", "-f", "qcow2", "-c", command, "image", code=1))
        self.tool("qemu-io", "-r", "-U", "-f", "qcow2", "-c", "read 0 512", "image")
        self.ask("block-export-del", "id=image")
        self.tool("qemu-io", "-f", "qcow2", "-c", "write 0 512", "image")
        self.ask(*export)
        self.tool("qemu-io", "-f", "qcow2", "-c", "write 0 512", "image")
        self.ask("block-export-del", "id=image")
        holder = subprocess.Popen(["qemu-io", "-f", "qcow2", "image"], cwd=self.folder, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, holder)
        holder.stdin.write("read 0 512\n")
        holder.stdin.flush()
        while "512/512 bytes" not in (line := holder.stdout.readline()):
            self.assertTrue(line)
        self.assert_fails(self.cairnctl(*export, "writable=on"), '"write" lock')
        self.assertEqual([each for each in self.ask("query-block-exports") if each["id"] == "image"], [])
        holder.communicate("quit\n", timeout=programs.PATIENCE)
        self.ask(*export, "writable=on")


if __name__ == "__main__":
    unittest.main()
