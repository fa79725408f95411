#!/usr/bin/python3
"""The nbd driver against other people's servers and our own: data, holes, options, errors, servers that lie."""
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
from nbd_client import *  # noqa: F403
from nbd_servers import MIB, SEED, SIZE, NbdDriver as _NbdDriver
import programs


class Data(_NbdDriver):
    def test_qemu_nbd(self):
        self.qemu_nbd()
        self.round_trip()
        uri = f"nbd+unix:///disk?socket={self.path('server')}"
        self.assertEqual([node["file"] for node in self.ask("query-named-block-nodes")], [uri])
        # It allows several connections: each loop has one of its own.
        programs.wait_until(lambda: self.property("connections") == 2, "a connection for each loop")

    def test_nbdkit(self):
        self.nbdkit()
        self.round_trip()

    def test_storage_daemon(self):
        self.storage_daemon()
        self.round_trip()

    def test_cairn(self):
        self.cairn()
        self.round_trip()

    def test_one_connection_only(self):
        """A server that serves one client: the other loops send their requests to the loop that has the connection."""
        self.start_server("qemu-nbd", "-f", "raw", "-t", "-e", "1", "-x", "disk", "-k", self.path("server"), "image")
        self.round_trip()
        self.assertEqual(self.property("connections"), 1)

    def test_a_server_that_can_do_little(self):
        self.nbdkit("--filter=nozero", "--filter=fua", "--filter=noextents", "--filter=multi-conn",
                    "fuamode=discard", "multi-conn-mode=disable")
        clients = self.round_trip()
        self.assertEqual(self.property("connections"), 1)
        self.assertEqual(clients[0].do(ZEROES, 0, MIB, FAST).error, ENOTSUP)

    def test_whole_blocks_only(self):
        for block in (512, 4096):
            with self.subTest(block=block):
                self.nbdkit("--filter=blocksize-policy", f"blocksize-minimum={block}", "blocksize-preferred=4096",
                            "blocksize-maximum=65536", "blocksize-error-policy=error")
                self.round_trip()
                self.end(self.daemon)
                self.kill_server()

    def test_writers_of_one_block(self):
        """Parts of the same blocks are written from two loops at once: none undoes the other's."""
        self.nbdkit("--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-preferred=4096",
                    "blocksize-maximum=65536", "blocksize-error-policy=error")
        self.start_daemon()
        clients = [self.client(name) for name in "abab"]

        def write(number):
            for step in range(100):
                offset = step * 4096 + number * 1000
                self.assertEqual(clients[number].do(WRITE, offset, data=bytes([number + 1]) * 1000).error, 0)

        self.together(write, 4)
        self.assert_stored(b"".join(b"\1" * 1000 + b"\2" * 1000 + b"\3" * 1000 + b"\4" * 1000 + bytes(96)
                                    for _ in range(100)) + bytes(SIZE - 409600))

    def together(self, entry, count):
        """Runs entry(0 .. count - 1) in threads of their own; what one of them raises is raised here."""
        raised = []

        def run(number):
            try:
                entry(number)
            except BaseException as error:   # noqa: B902
                raised.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def test_holes(self):
        with open(self.path("image"), "r+b") as image:
            image.seek(2 * MIB)
            image.write(b"data" * 65536)
        self.nbdkit()
        self.start_daemon()
        extents = json.loads(subprocess.run(["nbdinfo", "--map", "--json", f"nbd+unix:///a?socket={self.path('nbd')}"],
                                            check=True, capture_output=True, timeout=programs.PATIENCE).stdout)
        self.assertEqual([(e["offset"], e["length"], e["type"]) for e in extents],
                         [(0, 2 * MIB, 3), (2 * MIB, 262144, 0), (2 * MIB + 262144, SIZE - 2 * MIB - 262144, 3)])
        client = self.client("b")
        self.assertEqual(client.do(TRIM, 2 * MIB, 262144).error, 0)
        self.assertEqual(os.stat(self.path("image")).st_blocks, 0)

    def test_reopen(self):
        """Other options, and another server, while clients write."""
        self.qemu_nbd()
        self.start_daemon()
        client, rng = self.client(), random.Random(SEED)
        model = bytearray(SIZE)
        self.load([client], model, rng, 50)
        first, options = self.server, {"driver": "nbd", "node-name": "disk", "discard": "unmap", "export": "disk",
                                       "server": {"type": "unix", "path": self.path("first")}, "reconnect-delay": 60}
        os.rename(self.path("server"), self.path("first"))
        self.ask("blockdev-reopen", json.dumps({"options": [options]}))
        self.load([client], model, rng, 50)
        # The same image by another server: what was acknowledged is there.
        self.nbdkit()
        options["server"]["path"] = self.path("server")
        self.ask("blockdev-reopen", json.dumps({"options": [options]}))
        first.kill()
        first.wait()
        self.load([client], model, rng, 50)
        self.assertEqual(client.do(FLUSH).error, 0)
        self.assert_stored(model)
        options["export"] = "nope"
        self.kill_server()
        self.cairn()
        programs.wait_until(lambda: self.property("connected"), "the connection")
        self.assert_fails(self.cairnctl("blockdev-reopen", json.dumps({"options": [options]})), "no export named 'nope'")
        self.load([client], model, rng, 50)

    def test_tcp(self):
        """Host name and port; many requests in flight."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = self.spawn("nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", "image")
        self.daemon = self.serve(
            "--blockdev", f"driver=nbd,node-name=disk,server.type=inet,server.host=localhost,server.port={port},"
            "server.keep-alive=on,open-timeout=30", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
            "--export", "type=nbd,id=a,name=a,node-name=disk,writable=on")
        client, rng = self.client(), random.Random(SEED)
        blocks = list(range(0, SIZE, 65536))
        data = rng.randbytes(SIZE)
        for kind in (WRITE, READ):
            rng.shuffle(blocks)
            cookies = {client.request(kind, at, 65536, data=data[at:at + 65536] if kind == WRITE else b""): at
                       for at in blocks[:64]}
            for _ in range(64):
                cookie, reply = client.reply(kind, 65536)
                self.assertEqual(reply.error, 0)
                at = cookies.pop(cookie)
                if kind == READ and at in written:
                    self.assertEqual(reply.data, data[at:at + 65536])
            written = set(blocks[:64])

    def test_qcow2(self):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "image", "32M"], cwd=self.folder, check=True)
        # The image grows: on a device of a size of its own.
        os.truncate(self.path("image"), 40 * MIB)
        self.qemu_nbd()
        self.start_daemon(node="top", extra=("--blockdev", "driver=qcow2,node-name=top,file=disk,discard=unmap"))
        clients, rng = [self.client(name) for name in "ab"], random.Random(SEED)
        model = bytearray(clients[0].size)
        self.assertEqual(len(model), 32 * MIB)
        self.load(clients, model, rng, 100)
        self.assertNotIn("Sanitizer", self.end(self.daemon))
        self.kill_server()
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", "image"], cwd=self.folder, check=True)
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "raw"], cwd=self.folder, check=True)
        with open(self.path("raw"), "rb") as raw:
            self.assertTrue(raw.read() == bytes(model))


class Errors(_NbdDriver):
    def test_of_the_server_reach_the_client(self):
        self.nbdkit("--filter=error", "error-pread=EIO", "error-pread-rate=100%", "error-pwrite=ENOSPC",
                    "error-pwrite-rate=100%", "error-trim=EPERM", "error-trim-rate=100%", "error-zero=EIO",
                    "error-zero-rate=100%")
        self.start_daemon()
        for client in (self.client("a"), self.client("b", structured=True)):
            self.assertEqual(client.do(READ, 0, 4096).error, EIO)
            self.assertEqual(client.do(WRITE, 0, data=bytes(4096)).error, ENOSPC)
            self.assertEqual(client.do(TRIM, 0, 4096).error, EPERM)
            self.assertEqual(client.do(ZEROES, 0, 4096).error, EIO)
            self.assertEqual(client.do(FLUSH).error, 0)
        self.assertTrue(self.property("connected"))

    def test_one_piece_of_many_fails(self):
        """Half of the requests fail: each tells the truth about itself."""
        self.nbdkit("--filter=error", "error-pwrite=EIO", "error-pwrite-rate=50%")
        self.start_daemon()
        client, model, failed = self.client(), bytearray(SIZE), 0
        for step in range(200):
            data = bytes([1 + step % 255]) * 4096
            reply = client.do(WRITE, step * 4096, data=data)
            if reply.error == 0:
                model[step * 4096:step * 4096 + 4096] = data
            failed += reply.error != 0
        self.assertTrue(0 < failed < 200, failed)
        self.assert_stored(model)

    def test_options(self):
        self.qemu_nbd("-r")
        self.daemon = self.serve("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        path = self.path("server")
        for arguments, text in (
                (f"server.type=unix server.path={path} export=nope",
                 f"Could not open export 'nope' of NBD server '{path}' (options 'export', 'server'): "
                 "handshake: server has no export named 'nope'"),
                ("server.type=unix server.path=/nowhere/at/all", "'/nowhere/at/all' (options 'export', 'server'): connect: "
                 "No such file or directory"),
                ("server.type=unix server.path=" + "x" * 200, f"UNIX socket path '{'x' * 200}' is too long"),
                ("server.type=inet server.host=127.0.0.1 server.port=65536", "Port '65536' is not in range"),
                ("server.type=fd server.str=3", "'server.type' expects 'inet' or 'unix', not 'fd'"),
                ("server.type=unix", "server.path"),
                (f"server.type=unix server.path={path} export={'x' * 4097}", "export"),
                (f"server.type=unix server.path={path} export=disk reconnect-delay=-1", "reconnect-delay"),
                (f"server.type=unix server.path={path} export=disk",
                 "Export 'disk' is read-only: node 'disk' needs read-only=on")):
            with self.subTest(arguments=arguments[:60]):
                self.assert_fails(self.cairnctl("blockdev-add", "driver=nbd", "node-name=disk", *arguments.split()), text)
        self.assertEqual(self.ask("query-named-block-nodes"), [])
        self.ask("blockdev-add", "driver=nbd", "node-name=disk", "read-only=on", "server.type=unix",
                 f"server.path={path}", "export=disk")
        self.ask("block-export-add", "type=nbd", "id=a", "name=a", "node-name=disk")
        self.assertEqual(self.client().do(READ, 0, 4096).data, bytes(4096))
        self.assertIn("read-only", self.cairnctl("block-export-add", "type=nbd", "id=b", "name=b", "node-name=disk",
                                                 "writable=on").stderr)
        auto = ["driver=nbd", "node-name=auto", "auto-read-only=on", "server.type=unix", f"server.path={path}",
                "export=disk"]
        self.ask("blockdev-add", *auto)
        self.assertTrue(self.ask("qom-get", "path=/nodes/auto", "property=read-only"))
        self.assert_fails(self.cairnctl("block-export-add", "type=nbd", "id=b", "node-name=auto", "writable=on"),
                          "Block node 'auto' is read-only")
        writer = json.dumps({"type": "nbd", "id": "b", "node-name": "auto", "writable": True})
        options = json.dumps({**self.ask("query-node-options", "node-name=auto")[0], "reconnect-delay": 1})
        self.assert_fails(self.cairnctl("transaction", '{"actions": [{"type": "blockdev-reopen", "data": {"options": ['
                                        f'{options}]}}}}, {{"type": "block-export-add", "data": {writer}}}]}}'),
                          "Block node 'auto' is read-only")

    def test_open_timeout(self):
        daemon = self.start("--qmp", "qmp", "--blockdev", "driver=nbd,node-name=disk,server.type=unix,"
                            f"server.path={self.path('server')},export=disk,open-timeout=60")
        time.sleep(0.5)
        self.assertIsNone(daemon.poll())
        self.qemu_nbd()
        programs.wait_until(lambda: self.cairnctl("query-version").returncode == 0, "cairnd")
        self.assertTrue(self.property("connected"))
        self.end(daemon)
        self.kill_server()
        self.assertIn("connect: Connection refused", self.cairnd(
            "--blockdev", "driver=nbd,node-name=disk,server.type=unix,"
            f"server.path={self.path('server')},export=disk,open-timeout=1").stderr)

    def fake(self, conversation):
        """A server that says what conversation(socket) says to each client that comes, and hangs up."""
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.path("server"))
        listener.listen(16)

        def serve():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    try:
                        conversation(client)
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()

    def test_servers_that_speak_wrongly(self):
        greeting = struct.pack(">QQH", 0x4e42444d41474943, IHAVEOPT, 3)
        for name, said, text in (("silence", b"", "disconnected"), ("noise", os.urandom(64), "magic"),
                                 ("half", greeting[:10], ""), ("then nothing", greeting, ""),
                                 ("huge", struct.pack(">QQQI", 0x4e42444d41474943, 0x00420281861253, 1 << 63, 3) + bytes(124),
                                  "more than a node can have")):
            with self.subTest(name):
                if os.path.exists(self.path("server")):
                    os.unlink(self.path("server"))
                self.fake(lambda client, said=said, name=name: (client.sendall(said), name == "huge" and client.recv(9)))
                result = self.cairnd("--blockdev", "driver=nbd,node-name=disk,server.type=unix,"
                                     f"server.path={self.path('server')}")
                self.assertEqual(result.returncode, 1)
                self.assertIn("xport ''", result.stderr)
                self.assertIn(text, result.stderr)

    def test_replies_that_lie(self):
        """What was not read is not given away as data; a connection that makes no sense is dropped, and made again."""
        def serve(client, reply):
            def receive(size):
                data = b""
                while len(data) < size:
                    part = client.recv(size - len(data))
                    if not part:
                        raise OSError
                    data += part
                return data

            client.sendall(struct.pack(">QQH", 0x4e42444d41474943, IHAVEOPT, 3))
            receive(4)
            while True:
                _, option, length = struct.unpack(">QII", receive(16))
                receive(length)
                head = struct.pack(">QI", OPTION_REPLY, option)
                if option == STRUCTURED:
                    client.sendall(head + struct.pack(">II", ACK, 0))
                elif option == SET_CONTEXT:
                    name = b"base:allocation"
                    client.sendall(head + struct.pack(">III", CONTEXT, 4 + len(name), 1) + name + head +
                                   struct.pack(">II", ACK, 0))
                elif option == GO:
                    client.sendall(head + struct.pack(">IIHQH", REP_INFO, 12, 0, SIZE, 1) + head +
                                   struct.pack(">II", ACK, 0))
                    break
                else:
                    client.sendall(head + struct.pack(">II", UNSUP, 0))
            while True:
                _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", receive(28))
                receive(length if kind == WRITE else 0)
                client.sendall(reply(kind, cookie, offset, length) if kind in (READ, STATUS) else chunk(cookie, 0, b""))

        def chunk(cookie, kind, data, flags=1):
            return struct.pack(">IHHQI", STRUCTURED_MAGIC, flags, kind, cookie, len(data)) + data

        def half(kind, cookie, offset, length):
            if kind == STATUS:
                return chunk(cookie, 5, struct.pack(">III", 1, 0, 0))
            return chunk(cookie, 1, struct.pack(">Q", offset) + b"x" * (length // 2))

        def other(kind, cookie, offset, length):
            if kind == STATUS:
                return chunk(cookie, 5, struct.pack(">I", 1) + struct.pack(">II", 1 << 31, 3) * 4)
            return chunk(cookie + 1, 1, struct.pack(">Q", offset) + b"x" * length)

        def beyond(kind, cookie, offset, length):
            if kind == STATUS:
                return chunk(cookie, 5, struct.pack(">I", 1))
            return chunk(cookie, 1, struct.pack(">Q", offset + length) + b"x" * length)

        for reply in (half, other, beyond):
            with self.subTest(reply.__name__):
                if os.path.exists(self.path("server")):
                    os.unlink(self.path("server"))
                self.fake(lambda client, reply=reply: serve(client, reply))
                self.start_daemon()
                client = self.client(structured=True, context=True)
                for _ in range(3):
                    programs.wait_until(lambda: client.do(WRITE, 0, data=b"secret" * 1000).error == 0, "a connection")
                    got = client.do(READ, 4096, 4096)
                    self.assertTrue(got.error == EIO or (not got.error and not got.data.strip(b"x").strip(b"\0")), got.data)
                    client.do(STATUS, 0, 65536)
                self.end(self.daemon)


if __name__ == "__main__":
    unittest.main()
