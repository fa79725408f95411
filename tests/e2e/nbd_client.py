"""A small NBD client that can also speak wrongly: fixed newstyle, structured replies, extended headers."""
import socket
import struct

REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC = 0x25609513, 0x21e41c71
SIMPLE_MAGIC, STRUCTURED_MAGIC, EXTENDED_MAGIC = 0x67446698, 0x668e33ef, 0x6e8a278c
IHAVEOPT, OPTION_REPLY = 0x49484156454f5054, 0x0003e889045565a9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_CONTEXT, SET_CONTEXT, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, REP_INFO, CONTEXT = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN, TOO_BIG, EXT_REQD = (1 << 31) + 1, (1 << 31) + 3, (1 << 31) + 6, (1 << 31) + 9, (1 << 31) + 10
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, ONE, FAST, PAYLOAD = 1, 2, 4, 8, 16, 32
EPERM, EIO, EINVAL, ENOSPC, ENOTSUP = 1, 5, 22, 28, 95


class Reply:
    """error: number, 0 if all is well; data: what a read gave; extents: [(length, flags)] of a block status."""

    def __init__(self, error=0, data=b"", extents=None):
        self.error, self.data, self.extents = error, data, extents or []


class Refused(AssertionError):
    """The server does not have the export, or does not give it."""


class NbdClient:
    def __init__(self, address, timeout=30):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.extended = self.structured = False
        self.size = self.flags = None
        self.cookie = 0

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, size):
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError("the server hung up")
            data += part
        return bytes(data)

    def hangs_up(self):
        """Whether the server ends the connection, after whatever it still says."""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionError:
            return True
        except socket.timeout:
            return False

    # Negotiation.

    def greet(self, flags=3):
        greeting = self.receive(18)
        self.send(struct.pack(">I", flags))
        return greeting

    def option(self, number, data=b"", length=None):
        self.send(struct.pack(">QII", IHAVEOPT, number, len(data) if length is None else length) + data)

    def option_reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY
        return option, kind, self.receive(length)

    def ask(self, number, data=b""):
        """All replies to an option: [(kind, data)]; the last one is the acknowledgement or an error."""
        self.option(number, data)
        replies = []
        while True:
            _, kind, text = self.option_reply()
            replies.append((kind, text))
            if kind == ACK or kind >> 31:
                return replies

    @staticmethod
    def name_data(name, *kinds):
        name = name.encode()
        return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)

    @staticmethod
    def context_data(name, *queries):
        name = name.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query.encode()
        return data

    def go(self, name="", structured=False, extended=False, context=False):
        self.greet()
        if extended:
            assert self.ask(EXTENDED) == [(ACK, b"")]
        elif structured:
            assert self.ask(STRUCTURED) == [(ACK, b"")]
        self.extended, self.structured = extended, structured or extended
        if context:
            replies = self.ask(SET_CONTEXT, self.context_data(name, "base:allocation"))
            assert [kind for kind, _ in replies] == [CONTEXT, ACK], replies
        replies = self.ask(GO, self.name_data(name))
        if replies[-1][0] != ACK:
            raise Refused(replies)
        for kind, data in replies:
            if kind == REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        return self

    # Transmission.

    def request(self, kind, offset=0, length=0, flags=0, data=b"", magic=None):
        self.cookie += 1
        if self.extended:
            if kind == WRITE:
                flags |= PAYLOAD
            head = struct.pack(">IHHQQQ", magic or EXTENDED_REQUEST_MAGIC, flags, kind, self.cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", magic or REQUEST_MAGIC, flags, kind, self.cookie, offset, length)
        self.send(head + data)
        return self.cookie

    def reply(self, kind, length=0):
        """The whole reply to a request of that kind, all its chunks."""
        magic = struct.unpack(">I", self.receive(4))[0]
        if magic == SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            assert not self.extended
            return cookie, Reply(error, self.receive(length) if kind == READ and not error else b"")
        reply, done = Reply(data=bytearray(length if kind == READ else 0)), False
        while not done:
            if self.extended:
                assert magic == EXTENDED_MAGIC, hex(magic)
                flags, chunk, cookie, _, size = struct.unpack(">HHQQQ", self.receive(28))
            else:
                assert magic == STRUCTURED_MAGIC, hex(magic)
                flags, chunk, cookie, size = struct.unpack(">HHQI", self.receive(16))
            self.chunk(reply, chunk, self.receive(size))
            done = flags & 1
            if not done:
                magic = struct.unpack(">I", self.receive(4))[0]
        reply.data = bytes(reply.data) if kind == READ else b""
        return cookie, reply

    def chunk(self, reply, kind, data):
        if kind == 1:
            reply.data = data[8:]
        elif kind == 5:
            assert data[:4] == b"\0\0\0\1"
            reply.extents = list(struct.iter_unpack(">II", data[4:]))
        elif kind == 6:
            context, count = struct.unpack(">II", data[:8])
            reply.extents = list(struct.iter_unpack(">QQ", data[8:]))
            assert context == 1 and count == len(reply.extents)
        elif kind >> 15:
            reply.error = struct.unpack(">I", data[:4])[0]
        else:
            assert kind == 0 and not data

    def do(self, kind, offset=0, length=0, flags=0, data=b""):
        cookie = self.request(kind, offset, len(data) or length, flags, data)
        got, reply = self.reply(kind, length)
        assert got == cookie
        return reply
