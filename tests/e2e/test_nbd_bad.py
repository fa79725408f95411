#!/usr/bin/python3
"""Bad bytes at every state of an NBD connection: each is refused as the protocol wants it or ends its own connection;
the daemon, another client and the disk are unharmed, and nothing is left behind."""
import os
import socket
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs
from test_nbd import MIB, NbdTest

HANGUP = "hangup"   # the server ends the connection
WAITS = "waits"     # the message is incomplete: the server says nothing, and the client leaves
PATIENCE = 8        # seconds; less than a handshake may take, so that its deadline is not what ends the connection


def opt(number, data=b"", length=None, magic=IHAVEOPT):
    return struct.pack(">QII", magic, number, len(data) if length is None else length) + data


def req(kind, offset=0, length=0, flags=0, data=b"", magic=REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, kind, 1, offset, length) + data


def ext(kind, offset=0, length=0, flags=0, data=b"", magic=EXTENDED_REQUEST_MAGIC):
    return struct.pack(">IHHQQQ", magic, flags, kind, 1, offset, length) + data


def name(size, text=b"disk", rest=b"\0\0"):
    return struct.pack(">I", size) + text + rest


# After the greeting, before the client's flags.
FLAGS = (
    ("unknown flag", struct.pack(">I", 1 << 31), HANGUP), ("all flags", b"\xff" * 4, HANGUP),
    ("flag 2", struct.pack(">I", 7), HANGUP), ("cut flags", b"\0\0", WAITS), ("nothing", b"", WAITS),
    ("oldstyle", struct.pack(">I", 0) + b"\0" * 16, HANGUP), ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HANGUP),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 64, HANGUP),
)

# Options: a number is the error that answers them, then the connection goes on.
OPTIONS = (
    ("bad magic", opt(LIST, magic=0), HANGUP), ("the reply's magic", opt(LIST, magic=OPTION_REPLY), HANGUP),
    ("almost the magic", opt(LIST, magic=IHAVEOPT ^ 1), HANGUP), ("a request", req(READ, 0, 512), HANGUP),
    ("zeroes", bytes(16), HANGUP), ("ones", b"\xff" * 16, HANGUP), ("cut magic", b"IHAVE", WAITS),
    ("cut head", opt(LIST)[:15], WAITS), ("cut data", opt(GO, b"abc", 100), WAITS),
    ("option 0", opt(0), UNSUP), ("option 4", opt(4), UNSUP), ("option 2^32-1", opt(0xffffffff), UNSUP),
    ("unknown with data", opt(12345, b"x" * 1000), UNSUP), ("TLS", opt(STARTTLS), UNSUP),
    ("list with data", opt(LIST, b"x"), INVALID), ("structured with data", opt(STRUCTURED, b"xy"), INVALID),
    ("extended with data", opt(EXTENDED, b"xy"), INVALID),
    ("go without data", opt(GO), INVALID), ("go, short", opt(GO, b"\0\0\0"), INVALID),
    ("go, name too long", opt(GO, name(100)), INVALID), ("go, name 2^32-1", opt(GO, name(0xffffffff)), INVALID),
    ("go, name 2^31", opt(GO, name(1 << 31)), INVALID), ("go, no count", opt(GO, name(4, rest=b"")), INVALID),
    ("go, half a count", opt(GO, name(4, rest=b"\0")), INVALID),
    ("go, too many infos", opt(GO, name(4, rest=b"\xff\xff")), INVALID),
    ("go, too few infos", opt(GO, name(4, rest=b"\0\2\0\3")), INVALID),
    ("go, bytes left", opt(GO, name(4, rest=b"\0\0x")), INVALID),
    ("go, nobody", opt(GO, name(4, b"nope")), UNKNOWN), ("go, NUL in it", opt(GO, name(5, b"disk\0")), None),
    ("go, not UTF-8", opt(GO, name(4, b"\xff\xfe\x80\xc0")), None), ("go, path", opt(GO, name(7, b"../disk")), UNKNOWN),
    ("go, 4096 bytes", opt(GO, name(4096, b"x" * 4096)), UNKNOWN),
    ("go, 4097 bytes", opt(GO, name(4097, b"x" * 4097)), None),
    ("info without data", opt(INFO), INVALID), ("info, name too long", opt(INFO, name(5, b"disk", b"")), INVALID),
    ("info, nobody", opt(INFO, name(1, b"d")), UNKNOWN),
    ("contexts too early", opt(SET_CONTEXT, name(4, rest=bytes(4))), INVALID),
    ("list contexts too early", opt(LIST_CONTEXT, name(4, rest=bytes(4))), INVALID),
    ("an option of 1 MiB", opt(LIST, bytes(MIB)), TOO_BIG), ("an option of 2^32-1", opt(LIST, b"", 0xffffffff), HANGUP),
    ("export name, nobody", opt(EXPORT_NAME, b"nope"), HANGUP),
    ("export name, NUL", opt(EXPORT_NAME, b"disk\0"), HANGUP),
    ("export name, 5000 bytes", opt(EXPORT_NAME, b"x" * 5000), HANGUP),
)

# The same after structured replies were agreed.
CONTEXTS = (
    ("no data", opt(SET_CONTEXT), INVALID), ("no count", opt(SET_CONTEXT, name(4, rest=b"")), INVALID),
    ("count too big", opt(SET_CONTEXT, name(4, rest=struct.pack(">I", 0xffffffff))), INVALID),
    ("count of 1, none", opt(SET_CONTEXT, name(4, rest=struct.pack(">I", 1))), INVALID),
    ("query too long", opt(SET_CONTEXT, name(4, rest=struct.pack(">II", 1, 99) + b"base:")), INVALID),
    ("query 2^32-1", opt(SET_CONTEXT, name(4, rest=struct.pack(">II", 1, 0xffffffff) + b"base:")), INVALID),
    ("bytes left", opt(SET_CONTEXT, name(4, rest=struct.pack(">I", 0) + b"x")), INVALID),
    ("nobody", opt(SET_CONTEXT, name(4, b"nope", struct.pack(">I", 0))), UNKNOWN),
    ("list, no data", opt(LIST_CONTEXT), INVALID),
    ("list, nobody", opt(LIST_CONTEXT, name(1, b"x", bytes(4))), UNKNOWN),
)

# Requests. A number is the error in the reply, then the connection goes on.
REQUESTS = (
    ("bad magic", req(READ, 0, 1, magic=0), HANGUP), ("the reply's magic", req(READ, 0, 1, magic=SIMPLE_MAGIC), HANGUP),
    ("extended magic", req(READ, 0, 1, magic=EXTENDED_REQUEST_MAGIC), HANGUP), ("zeroes", bytes(28), HANGUP),
    ("ones", b"\xff" * 28, HANGUP), ("an option", opt(LIST) + bytes(12), HANGUP), ("cut", req(READ, 0, 1)[:27], WAITS),
    ("cut data", req(WRITE, 0, 1000, data=b"x" * 999), WAITS), ("command 8", req(8), EINVAL),
    ("command 65535", req(65535, 0, 1), EINVAL), ("all flags", req(READ, 0, 1, 0xffff), EINVAL),
    ("read past the end", req(READ, 4 * MIB, 1), EINVAL), ("read over the end", req(READ, 4 * MIB - 1, 2), EINVAL),
    ("read at 2^64-1", req(READ, (1 << 64) - 1, 1), EINVAL),
    ("read that wraps", req(READ, (1 << 64) - 512, 1024), EINVAL),
    ("read at 2^63-1", req(READ, (1 << 63) - 1, 1), EINVAL), ("read of 2^32-1", req(READ, 0, 0xffffffff), EINVAL),
    ("read of 32 MiB + 1", req(READ, 0, 32 * MIB + 1), EINVAL),
    ("write over the end", req(WRITE, 4 * MIB - 1, 2, data=b"xy"), ENOSPC),
    ("write that wraps", req(WRITE, (1 << 64) - 1, 2, data=b"xy"), ENOSPC),
    ("write with DF", req(WRITE, 0, 2, DF, b"xy"), EINVAL), ("write of 2^32-1", req(WRITE, 0, 0xffffffff), HANGUP),
    ("trim over the end", req(TRIM, 4 * MIB - 1, 2), EINVAL),
    ("trim that wraps", req(TRIM, (1 << 64) - 1, 0xffffffff), EINVAL),
    ("zeroes that wrap", req(ZEROES, (1 << 64) - 4096, 0xfffff000), ENOSPC),
    ("cache past the end", req(CACHE, 1 << 62, 1), EINVAL), ("status without a context", req(STATUS, 0, 4096), EINVAL),
    ("flush with FAST", req(FLUSH, 0, 0, FAST), EINVAL), ("read with PAYLOAD", req(READ, 0, 1, PAYLOAD), EINVAL),
)

EXTENDED_REQUESTS = (
    ("plain magic", ext(READ, 0, 1, magic=REQUEST_MAGIC), HANGUP), ("cut", ext(READ, 0, 1)[:31], WAITS),
    ("read of 2^64-1", ext(READ, 0, (1 << 64) - 1), EINVAL), ("read that wraps", ext(READ, (1 << 64) - 1, 2), EINVAL),
    ("zeroes of 2^64-1", ext(ZEROES, 1, (1 << 64) - 1), ENOSPC), ("trim of 2^63", ext(TRIM, 0, 1 << 63), EINVAL),
    ("write of 2^64-1", ext(WRITE, 0, (1 << 64) - 1, PAYLOAD), HANGUP), ("status", ext(STATUS, 0, 4096), EINVAL),
    ("write of 2^40", ext(WRITE, 0, 1 << 40, PAYLOAD), HANGUP), ("command 99", ext(99), EINVAL),
    ("payload where none is due", ext(FLUSH, 0, 4, PAYLOAD, b"abcd"), EINVAL),
)


class NbdBad(NbdTest):
    def setUp(self):
        super().setUp()
        with open(self.path("disk"), "r+b") as disk:
            disk.write(b"precious" * 512)
        self.other = self.client()
        self.before = self.descriptors()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def tearDown(self):
        self.assertEqual(self.other.do(READ, 0, 4096).data, b"precious" * 512)
        programs.wait_until(lambda: self.descriptors() <= self.before, "the descriptors to be given back")
        self.assertEqual(self.cairnctl("query-version").returncode, 0)
        super().tearDown()

    def check(self, table, prepare, answer, lives):
        for what, data, expected in table:
            with self.subTest(what), NbdClient(self.path("nbd"), timeout=PATIENCE) as client:
                prepare(client)
                try:
                    client.send(data)
                except ConnectionError:
                    self.assertEqual(expected, HANGUP)
                if expected == HANGUP:
                    self.assertTrue(client.hangs_up())
                elif expected == WAITS:
                    client.socket.settimeout(0.05)
                    with self.assertRaises(socket.timeout):
                        client.receive(1)
                else:
                    got = answer(client)
                    if expected is None:
                        self.assertNotIn(got, (0, ACK))
                    else:
                        self.assertEqual(got, expected)
                    lives(client)
            self.assertEqual(self.other.do(READ, 0, 8).data, b"precious")

    def check_options(self, table, *agreed):
        def prepare(client):
            client.greet()
            for number in agreed:
                self.assertEqual(client.ask(number), [(ACK, b"")])

        self.check(table, prepare, lambda client: client.option_reply()[1],
                   lambda client: self.assertEqual(client.ask(LIST)[-1], (ACK, b"")))

    def check_requests(self, table, **how):
        def lives(client):
            self.assertEqual(client.do(READ, 0, 8).data, b"precious")

        self.check(table, lambda client: client.go("disk", **how), lambda client: client.reply(WRITE)[1].error, lives)

    def test_flags(self):
        self.check(FLAGS, lambda client: client.receive(18), None, None)

    def test_options(self):
        self.check_options(OPTIONS)

    def test_contexts(self):
        self.check_options(CONTEXTS, STRUCTURED)
        self.check_options(CONTEXTS, EXTENDED)

    def test_requests(self):
        self.check_requests(REQUESTS)
        self.check_requests(REQUESTS, structured=True)

    def test_extended_requests(self):
        self.check_requests(EXTENDED_REQUESTS, extended=True)

    def test_a_write_never_half_arrives(self):
        for size in (1, 4096, 99999):
            with NbdClient(self.path("nbd")) as client:
                client.go("disk").send(req(WRITE, 0, 100000, data=b"x" * size))
        time.sleep(0.1)
        self.assertEqual(self.other.do(READ, 0, 4096).data, b"precious" * 512)

    def test_every_byte_of_a_request_flipped(self):
        good = req(READ, 512, 512)
        for index in range(len(good)):
            data = bytearray(good)
            data[index] ^= 0xff
            with self.subTest(index=index), NbdClient(self.path("nbd")) as client:
                client.go("disk").send(bytes(data))
                client.socket.shutdown(socket.SHUT_WR)
                self.assertTrue(client.hangs_up())
            self.assertEqual(self.other.do(READ, 0, 8).data, b"precious")

    def test_every_byte_of_an_option_flipped(self):
        good = opt(GO, NbdClient.name_data("disk", 3))
        for index in range(len(good)):
            data = bytearray(good)
            data[index] ^= 0xff
            with self.subTest(index=index), NbdClient(self.path("nbd")) as client:
                client.greet()
                client.send(bytes(data))
                client.socket.shutdown(socket.SHUT_WR)
                self.assertTrue(client.hangs_up())

    def test_endless_options(self):
        with NbdClient(self.path("nbd")) as client:
            client.greet()
            client.send(opt(99) * 2000)
            for _ in range(2000):
                self.assertEqual(client.option_reply()[1], UNSUP)


if __name__ == "__main__":
    unittest.main()
