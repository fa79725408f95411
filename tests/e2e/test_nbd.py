#!/usr/bin/python3
"""The NBD server as its protocol describes it."""
import json
import os
import resource
import socket
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs

MIB = 1 << 20


class NbdTest(programs.Program):
    """A daemon with a file of 4 MiB ("disk", writable; "read-only" over the same node) and a null disk of 1 PiB."""

    OPTIONS = ()

    def setUp(self):
        super().setUp()
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(4 * MIB)
        self.daemon = self.serve(
            "--blockdev", "driver=file,filename=disk,node-name=disk,discard=unmap",
            "--blockdev", f"driver=null-co,node-name=big,size={1 << 50},read-zeroes=on,discard=unmap",
            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}", *self.OPTIONS,
            "--export", "type=nbd,id=disk,node-name=disk,writable=on,description=the disk",
            "--export", "type=nbd,id=ro,node-name=disk,name=read-only",
            "--export", "type=nbd,id=big,node-name=big,writable=on")

    def tearDown(self):
        said = self.end(self.daemon)
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            self.assertNotIn(sign, said)

    def client(self, name="disk", **how):
        client = NbdClient(self.path("nbd"))
        self.addCleanup(client.close)
        return client.go(name, **how)

    def raw(self):
        client = NbdClient(self.path("nbd"))
        self.addCleanup(client.close)
        return client


class Negotiation(NbdTest):
    def test_list(self):
        client = self.raw()
        client.greet()
        replies = client.ask(LIST)
        names = [data[4:4 + struct.unpack(">I", data[:4])[0]] for kind, data in replies if kind == SERVER]
        self.assertEqual(names, [b"disk", b"read-only", b"big"])
        self.assertTrue(replies[0][1].endswith(b"the disk"))
        self.assertEqual(replies[-1], (ACK, b""))

    def test_info_then_go(self):
        client = self.raw()
        client.greet()
        replies = client.ask(INFO, client.name_data("disk", 1, 2, 3))
        kinds = {struct.unpack(">H", data[:2])[0]: data[2:] for kind, data in replies if kind == REP_INFO}
        self.assertEqual(kinds[1], b"disk")
        self.assertEqual(kinds[2], b"the disk")
        self.assertEqual(struct.unpack(">III", kinds[3]), (1, 4096, 32 * MIB))
        self.assertEqual(struct.unpack(">Q", kinds[0][:8])[0], 4 * MIB)
        self.assertEqual(client.ask(INFO, client.name_data("nope"))[-1][0], UNKNOWN)
        self.assertEqual(client.ask(GO, client.name_data("disk"))[-1][0], ACK)
        self.assertEqual(client.do(READ, 0, 16).data, bytes(16))

    def test_export_name(self):
        for flags, rest in ((1, 124), (3, 0)):
            client = self.raw()
            client.greet(flags)
            client.option(EXPORT_NAME, b"disk")
            self.assertEqual(struct.unpack(">Q", client.receive(8))[0], 4 * MIB)
            client.receive(2 + rest)
            self.assertEqual(client.do(READ, 0, 16).error, 0)
        client = self.raw()
        client.greet()
        client.option(EXPORT_NAME, b"nope")
        self.assertTrue(client.hangs_up())

    def test_options_that_say_no(self):
        client = self.raw()
        client.greet()
        for number, data, answer in (
                (STARTTLS, b"", UNSUP), (4, b"", UNSUP), (99, b"abc", UNSUP), (LIST, b"x", INVALID),
                (STRUCTURED, b"x", INVALID), (SET_CONTEXT, client.context_data("disk", "base:allocation"), INVALID),
                (GO, b"", INVALID), (GO, client.name_data("disk") + b"x", INVALID), (GO, b"\xff" * 8, INVALID)):
            with self.subTest(number=number, data=data):
                self.assertEqual(client.ask(number, data)[-1][0], answer)
        client.option(INFO, bytes(MIB))
        self.assertEqual(client.option_reply()[1], TOO_BIG)
        self.assertEqual(client.ask(STRUCTURED), [(ACK, b"")])

    def test_extended_headers_come_before_structured_replies(self):
        client = self.raw()
        client.greet()
        self.assertEqual(client.ask(EXTENDED), [(ACK, b"")])
        self.assertEqual(client.ask(STRUCTURED)[-1][0], EXT_REQD)

    def test_contexts(self):
        client = self.raw()
        client.greet()
        client.ask(STRUCTURED)
        for queries, count in (((), 1), (("base:",), 1), (("base:allocation", "x:y"), 1), (("qemu:",), 0)):
            replies = client.ask(LIST_CONTEXT, client.context_data("disk", *queries))
            self.assertEqual(sum(kind == CONTEXT for kind, _ in replies), count, queries)
        self.assertEqual(client.ask(SET_CONTEXT, client.context_data("nope", "base:allocation"))[-1][0], UNKNOWN)
        self.assertEqual(client.ask(SET_CONTEXT, client.context_data("disk")), [(ACK, b"")])

    def test_abort(self):
        client = self.raw()
        client.greet()
        self.assertEqual(client.ask(ABORT), [(ACK, b"")])
        self.assertTrue(client.hangs_up())

    def test_option_and_requests_in_one_packet(self):
        client = self.raw()
        client.receive(18)
        data = client.name_data("disk")
        client.send(struct.pack(">IQII", 3, IHAVEOPT, GO, len(data)) + data +
                    struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 7, 0, 512))
        while client.option_reply()[1] != ACK:
            pass
        cookie, reply = client.reply(READ, 512)
        self.assertEqual((cookie, reply.data), (7, bytes(512)))


class Transmission(NbdTest):
    def test_read_write_in_every_dialect(self):
        for how in ({}, {"structured": True}, {"extended": True}):
            with self.subTest(**how):
                client = self.client(**how)
                for offset, size in ((0, 1), (511, 3), (4095, 8193), (65536, 65536), (100001, 3 * MIB), (4 * MIB - 1, 1)):
                    data = os.urandom(size)
                    self.assertEqual(client.do(WRITE, offset, data=data).error, 0)
                    self.assertEqual(client.do(READ, offset, size).data, data)
                    with open(self.path("disk"), "rb") as disk:
                        disk.seek(offset)
                        self.assertEqual(disk.read(size), data)
                self.assertEqual(client.do(READ, 0, 0).error, 0)
                self.assertEqual(client.do(WRITE, 0, 0).error, 0)

    def test_flags(self):
        client = self.client(extended=True)
        self.assertEqual(client.do(WRITE, 0, data=b"x" * 8192, flags=FUA).error, 0)
        self.assertEqual(client.do(FLUSH).error, 0)
        self.assertEqual(client.do(READ, 0, 100, flags=DF).data, b"x" * 100)
        self.assertEqual(client.do(CACHE, 0, 8192).error, 0)
        self.assertEqual(client.do(ZEROES, 0, 4096, flags=NO_HOLE | FUA).error, 0)
        self.assertEqual(client.do(TRIM, 4096, 4096, flags=FUA).error, 0)
        self.assertEqual(client.do(READ, 0, 4096).data, bytes(4096))
        self.assertIn(client.do(ZEROES, 0, 4096, flags=FAST).error, (0, ENOTSUP))

    def test_errors(self):
        for how in ({}, {"structured": True}, {"extended": True}):
            client = self.client(**how)
            for kind, offset, length, flags, data, error in (
                    (READ, 4 * MIB - 1, 2, 0, b"", EINVAL), (READ, 1 << 63, 1, 0, b"", EINVAL),
                    (READ, 0, 33 * MIB, 0, b"", EINVAL), (WRITE, 4 * MIB, 1, 0, b"x", ENOSPC),
                    (WRITE, (1 << 64) - 1, 2, 0, b"xy", ENOSPC), (ZEROES, 4 * MIB, 1, 0, b"", ENOSPC),
                    (TRIM, 4 * MIB, 1, 0, b"", EINVAL), (CACHE, 4 * MIB, 1, 0, b"", EINVAL),
                    (STATUS, 0, 4096, 0, b"", EINVAL), (42, 0, 0, 0, b"", EINVAL), (READ, 0, 1, 0x4000, b"", EINVAL),
                    (FLUSH, 0, 0, NO_HOLE, b"", EINVAL)):
                with self.subTest(how=how, kind=kind, offset=offset, length=length):
                    self.assertEqual(client.do(kind, offset, length, flags, data).error, error)
            self.assertEqual(client.do(READ, 0, 512).error, 0)

    def test_a_refused_write_keeps_the_stream_in_step(self):
        client = self.client("read-only")
        self.assertTrue(client.flags & 2)
        self.assertEqual(client.do(WRITE, 0, data=bytes(MIB)).error, EPERM)
        for kind in (TRIM, ZEROES):
            self.assertEqual(client.do(kind, 0, 4096).error, EPERM)
        self.assertEqual(client.do(READ, 0, 512).error, 0)
        client = self.client()
        self.assertEqual(client.do(WRITE, 4 * MIB, data=bytes(3 * MIB)).error, ENOSPC)
        self.assertEqual(client.do(READ, 0, 512).error, 0)

    def test_a_refused_write_is_answered_behind_its_payload(self):
        """Clients that are still sending do not look for an answer: libnbd takes one for a fault of the server."""
        for name, error in (("read-only", EPERM), ("disk", ENOSPC)):
            client = self.client(name)
            client.request(WRITE, 4 * MIB, 3 * MIB, data=bytes(MIB))
            client.socket.settimeout(0.2)
            with self.assertRaises(TimeoutError):
                client.receive(1)
            client.socket.settimeout(programs.PATIENCE)
            client.send(bytes(2 * MIB))
            self.assertEqual(client.reply(WRITE)[1].error, error)
            self.assertEqual(client.do(READ, 0, 512).error, 0)
            client.request(WRITE, 4 * MIB, 3 * MIB, data=bytes(MIB))
            client.close()

    def test_block_status(self):
        client = self.client(structured=True, context=True)
        client.do(WRITE, MIB, data=b"x" * MIB)
        self.assertEqual(client.do(STATUS, 0, 4 * MIB).extents, [(MIB, 3), (MIB, 0), (2 * MIB, 3)])
        self.assertEqual(client.do(STATUS, 4096, 8192, flags=ONE).extents, [(8192, 3)])
        self.assertEqual(client.do(STATUS, 0, 0).error, EINVAL)

    def test_64_bit_lengths(self):
        client = self.client("big", extended=True, context=True)
        self.assertEqual(client.do(ZEROES, 4096, (1 << 50) - 4096).error, 0)
        self.assertEqual(client.do(TRIM, 0, 1 << 50).error, 0)
        self.assertEqual(client.do(STATUS, 0, 1 << 50).extents, [(1 << 50, 2)])

    def test_many_requests_in_one_packet(self):
        client = self.client()
        data = os.urandom(4096)
        batch = b"".join(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, i, i * 4096, 4096) + data for i in range(300))
        client.send(batch)
        self.assertEqual({client.reply(WRITE)[0] for _ in range(300)}, set(range(300)))
        batch = b"".join(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, i, i * 4096, 4096) for i in range(300))
        client.send(batch)
        for _ in range(300):
            self.assertEqual(client.reply(READ, 4096)[1].data, data)

    def test_a_byte_at_a_time(self):
        client = self.client()
        for part in struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 5, 100, 3) + b"abc":
            client.send(bytes([part]))
            time.sleep(0.001)
        self.assertEqual(client.reply(WRITE)[0], 5)
        self.assertEqual(client.do(READ, 99, 5).data, b"\0abc\0")

    def test_resize_is_seen(self):
        client = self.client()
        self.ask("block_resize", "node-name=disk", f"size={8 * MIB}")
        self.assertEqual(client.do(WRITE, 7 * MIB, data=b"new").error, 0)
        self.assertEqual(self.client().size, 8 * MIB)
        self.ask("block_resize", "node-name=disk", f"size={2 * MIB}")
        self.assertEqual(client.do(READ, 3 * MIB, 1).error, EINVAL)

    def test_multi_conn_flush(self):
        one, two = self.client(), self.client()
        self.assertTrue(one.flags & 256)
        one.do(WRITE, 0, data=b"seen")
        self.assertEqual(two.do(FLUSH).error, 0)
        self.assertEqual(two.do(READ, 0, 4).data, b"seen")


class Failure(NbdTest):
    def test_a_failed_write_is_answered_and_told(self):
        resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (MIB, MIB))
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(self.socket)
            stream = monitor.makefile("rwb")
            stream.readline()
            stream.write(b'{"execute": "qmp_capabilities"}\n')
            stream.flush()
            stream.readline()
            client = self.client()
            self.assertEqual(client.do(WRITE, 2 * MIB, data=bytes(4096)).error, ENOSPC)
            event = json.loads(stream.readline())
            stream.close()
        self.assertEqual(event["event"], "BLOCK_IO_ERROR")
        self.assertEqual((event["data"]["device"], event["data"]["node-name"], event["data"]["operation"]),
                         ("disk", "disk", "write"))
        self.assertEqual(client.do(READ, 0, 512).error, 0)


class Limits(NbdTest):
    OPTIONS = ("--nbd-server", "id=small,addr.type=inet,addr.host=127.0.0.1,addr.port=0,max-connections=2,"
                               "handshake-max-seconds=1")

    def setUp(self):
        super().setUp()
        self.ask("block-export-add", "type=nbd", "id=small", "node-name=disk", "server=small", "name=x")
        self.port = int([s for s in self.ask("query-nbd-servers") if s["id"] == "small"][0]["addr"]["port"])

    def connect(self):
        client = NbdClient(("127.0.0.1", self.port))
        self.addCleanup(client.close)
        return client

    def test_max_connections(self):
        one, two = self.connect().go("x"), self.connect().go("x")
        three = self.connect()
        three.socket.settimeout(0.3)
        with self.assertRaises(socket.timeout):
            three.receive(1)
        one.close()
        three.socket.settimeout(30)
        three.go("x")
        self.assertEqual(two.do(READ, 0, 1).error, 0)

    def test_handshake_deadline(self):
        client = self.connect()
        client.greet()
        self.assertTrue(client.hangs_up())

    def test_names_are_per_server(self):
        client = self.connect()
        client.greet()
        self.assertEqual(client.ask(GO, client.name_data("disk"))[-1][0], UNKNOWN)
        result = self.cairnctl("block-export-add", "type=nbd", "id=again", "node-name=disk", "server=small", "name=x")
        self.assert_fails(result, "already has export named 'x'")

    def test_ipv6(self):
        self.ask("nbd-server-start", "id=six", "addr.type=inet", "addr.data.host=::1", "addr.data.port=0")
        self.ask("block-export-add", "type=nbd", "id=six", "node-name=disk", "server=six")
        port = int([s for s in self.ask("query-nbd-servers") if s["id"] == "six"][0]["addr"]["port"])
        with NbdClient(("::1", port)) as client:
            self.assertEqual(client.go("disk").do(READ, 0, 1).error, 0)
            self.ask("nbd-server-stop", "id=six")
            self.assertTrue(client.hangs_up())


if __name__ == "__main__":
    unittest.main()
