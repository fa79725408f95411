"""NBD servers of all kinds, and a daemon over one of them: what the tests of the nbd driver share."""
import os
import random
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20
SIZE = 8 * MIB
SEED = int(os.environ.get("CAIRN_SEED", "1"))
STEPS = 200


class NbdDriver(programs.Program):
    """A server of any kind on the socket "server", and a daemon with a node "disk" over it, exported from two iothreads."""

    def setUp(self):
        super().setUp()
        with open(self.path("image"), "wb") as image:
            image.truncate(SIZE)
        self.daemon = self.server = None

    def tearDown(self):
        if self.daemon and self.daemon.poll() is None:
            self.assertNotIn("Sanitizer", self.end(self.daemon))

    # Servers.

    def spawn(self, *command):
        process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        self.addCleanup(self.reap, process)
        return process

    def start_server(self, *command, export="disk"):
        """Waits until it answers to a whole handshake."""
        def answers():
            self.assertIsNone(self.server.poll(), command)
            try:
                with NbdClient(self.path("server")) as client:
                    client.go(export)
                return True
            except (OSError, EOFError):
                return False

        if os.path.exists(self.path("server")):
            os.unlink(self.path("server"))
        self.server = self.spawn(*command)
        programs.wait_until(answers, "the server")

    def qemu_nbd(self, *options):
        self.start_server("qemu-nbd", "-f", "raw", "-t", "-e", "16", "-x", "disk", "--discard=unmap", "-k",
                          self.path("server"), *options, "image")

    def nbdkit(self, *options, plugin=("file", "image")):
        self.start_server("nbdkit", "-f", "-U", self.path("server"), *(o for o in options if "=" not in o or o[0] == "-"),
                          *plugin, *(o for o in options if "=" in o and o[0] != "-"))

    def storage_daemon(self):
        self.start_server("qemu-storage-daemon", "--blockdev", "driver=file,filename=image,node-name=disk,discard=unmap",
                          "--nbd-server", f"addr.type=unix,addr.path={self.path('server')}",
                          "--export", "type=nbd,id=disk,node-name=disk,writable=on")

    def cairn(self):
        self.start_server(programs.CAIRND, "--blockdev", "driver=file,filename=image,node-name=disk,discard=unmap",
                          "--nbd-server", f"addr.type=unix,addr.path={self.path('server')}",
                          "--export", "type=nbd,id=disk,node-name=disk,writable=on")

    def kill_server(self):
        self.server.kill()
        self.server.wait()

    # The daemon.

    def start_daemon(self, *options, node="", extra=()):
        """options: of the node. Exports "a" and "b" are served by iothreads of their own."""
        over = ",".join(["driver=nbd,node-name=disk,discard=unmap,server.type=unix",
                         f"server.path={self.path('server')},export=disk", *options])
        if self.daemon:
            self.reap(self.daemon)
        self.daemon = self.serve(
            "--object", "iothread,id=one", "--object", "iothread,id=two",
            "--blockdev", over, *extra, "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
            "--export", f"type=nbd,id=a,name=a,node-name={node or 'disk'},writable=on,iothread=one",
            "--export", f"type=nbd,id=b,name=b,node-name={node or 'disk'},writable=on,iothread=two")

    def client(self, name="a", **how):
        client = NbdClient(self.path("nbd"), programs.PATIENCE)
        self.addCleanup(client.close)
        return client.go(name, **how)

    def property(self, name):
        return self.ask("qom-get", "path=/nodes/disk", f"property={name}")

    def load(self, clients, model, rng, steps=STEPS):
        for step in range(steps):
            client = rng.choice(clients)
            unit = rng.choice((1, 512, 4096, 65536))
            offset = rng.randrange(len(model)) // unit * unit
            length = min(rng.choice((1, 7, 512, 4096, 12345, 65536, 300000)), len(model) - offset)
            kind = rng.choice((READ, READ, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH))
            flags = rng.choice((0, 0, FUA))
            if kind == READ:
                self.assertEqual(client.do(READ, offset, length).data, model[offset:offset + length], f"step {step}")
                continue
            data = rng.randbytes(length) if kind == WRITE else b""
            if kind == ZEROES:
                flags |= rng.choice((0, NO_HOLE))
            reply = client.do(FLUSH) if kind == FLUSH else client.do(kind, offset, length, flags, data)
            self.assertEqual(reply.error, 0, f"step {step}: {kind} {offset} {length} {flags}")
            if kind in (WRITE, ZEROES):
                model[offset:offset + length] = data or bytes(length)
            elif kind == TRIM:
                model[offset:offset + length] = client.do(READ, offset, length).data

    def assert_stored(self, model):
        with open(self.path("image"), "rb") as image:
            stored = image.read()
        self.assertEqual(len(stored), len(model))
        self.assertTrue(stored == bytes(model), "what the server stored is not what was written")

    def round_trip(self, *options):
        rng = random.Random(SEED)
        with open(self.path("image"), "r+b") as image:
            image.write(rng.randbytes(MIB))
        self.start_daemon(*options)
        clients = [self.client(name, structured=structured) for name in "ab" for structured in (False, True)]
        self.assertEqual(clients[0].size, SIZE)
        model = bytearray(clients[0].do(READ, 0, SIZE).data)
        self.assertTrue(model.strip(b"\0"))
        self.load(clients, model, rng)
        self.assertEqual(clients[0].do(FLUSH).error, 0)
        self.assert_stored(model)
        return clients
