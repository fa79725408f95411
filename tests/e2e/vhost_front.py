"""A vhost-user front end that sends what it is told to, right or wrong."""
import array
import mmap
import os
import select
import socket
import struct

import programs

(GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD, SET_VRING_NUM,
 SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, GET_PROTOCOL_FEATURES,
 SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE) = range(1, 19)
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE = 31, 32, 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40

VERSION, REPLY, NEED_REPLY = 1, 4, 8
MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT, RESET, MEM_SLOTS, STATUS = (1 << bit for bit in
                                                                          (0, 3, 5, 9, 12, 13, 15, 16))
PROTOCOL = MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT | RESET | MEM_SLOTS | STATUS
INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1, RING_PACKED = (1 << bit for bit in (28, 29, 30, 32, 34))
BLK_DISCARD, BLK_ZEROES, BLK_FLUSH, BLK_WCE = (1 << bit for bit in (13, 14, 9, 11))
NEXT, WRITE, INDIRECT = 1, 2, 4
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
NEEDS_RESET = 0x40

SIZE = 16                   # of the ring
MEMORY = 1 << 20
GUEST, USER = 1 << 32, 0x7000_0000_0000
DESC, AVAIL, USED, TABLE, HEADER, DATA, STATUS_BYTE = 0, 0x1000, 0x2000, 0x3000, 0x4000, 0x8000, 0x5000


class Closed(Exception):
    """The daemon has closed the connection."""


class Front:
    def __init__(self, path, memory=MEMORY):
        self.fds = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(programs.PATIENCE)
        self.socket.connect(path)
        self.memfd = self.keep(os.memfd_create("guest"))
        os.ftruncate(self.memfd, memory)
        self.memory = mmap.mmap(self.memfd, memory)
        self.kick, self.call, self.broken = (self.keep(os.eventfd(0, os.EFD_NONBLOCK)) for _ in range(3))
        self.packed = False
        self.avail = self.used = 0
        self.wrap = True

    def keep(self, fd):
        self.fds.append(fd)
        return fd

    def close(self):
        self.socket.close()
        self.memory.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    # Messages.

    def send(self, request, payload=b"", fds=(), flags=VERSION, size=None):
        message = struct.pack("=III", request, flags, len(payload) if size is None else size) + payload
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([message], control)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def take(self, count):
        data = b""
        while len(data) < count:
            try:
                part, control, _, _ = self.socket.recvmsg(count - len(data), socket.CMSG_SPACE(4))
            except ConnectionResetError as error:
                raise Closed from error
            for _, _, fd in control:
                self.keep(struct.unpack("=i", fd[:4])[0])
            if not part:
                raise Closed
            data += part
        return data

    def receive(self):
        request, flags, size = struct.unpack("=III", self.take(12))
        assert flags == VERSION | REPLY, flags
        return request, self.take(size)

    def ask(self, request, payload=b"", fds=()):
        self.send(request, payload, fds)
        answer, data = self.receive()
        assert answer == request, answer
        return data

    def number(self, request):
        return struct.unpack("=Q", self.ask(request))[0]

    def ack(self, request, payload=b"", fds=(), **how):
        """Whether the message was carried out."""
        self.send(request, payload, fds, VERSION | NEED_REPLY, **how)
        answer, data = self.receive()
        assert answer == request and len(data) == 8, (answer, data)
        return data == bytes(8)

    def must(self, request, payload=b"", fds=()):
        assert self.ack(request, payload, fds), request

    # A good device.

    def negotiate(self, features=INDIRECT_DESC | BLK_DISCARD | BLK_ZEROES | BLK_FLUSH, protocol=PROTOCOL):
        offered = self.number(GET_FEATURES)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("=Q", self.number(GET_PROTOCOL_FEATURES) & protocol))
        self.send(SET_OWNER)
        self.features = offered & (features | VERSION_1 | PROTOCOL_FEATURES)
        self.packed = bool(self.features & RING_PACKED)
        self.send(SET_FEATURES, struct.pack("=Q", self.features))
        return self

    def region(self, guest=GUEST, size=MEMORY, user=USER, offset=0):
        return struct.pack("=QQQQ", guest, size, user, offset)

    def share(self):
        self.must(SET_MEM_TABLE, struct.pack("=II", 1, 0) + self.region(), [self.memfd])
        return self

    def addresses(self, index=0, desc=USER + DESC, used=USER + USED, avail=USER + AVAIL, flags=0):
        return struct.pack("=IIQQQQ", index, flags, desc, used, avail, 0)

    def start(self, index=0, size=SIZE, base=None, addresses=None):
        if base is None:
            base = 0x80008000 if self.packed else 0
        self.must(SET_VRING_NUM, struct.pack("=II", index, size))
        self.must(SET_VRING_BASE, struct.pack("=II", index, base))
        self.must(SET_VRING_ADDR, addresses or self.addresses(index))
        self.must(SET_VRING_ERR, struct.pack("=Q", index), [self.broken])
        self.must(SET_VRING_CALL, struct.pack("=Q", index), [self.call])
        self.must(SET_VRING_KICK, struct.pack("=Q", index), [self.kick])
        self.must(SET_VRING_ENABLE, struct.pack("=II", index, 1))
        return self

    def good(self, **how):
        return self.negotiate(**how).share().start()

    # The ring.

    def put(self, at, form, *values):
        struct.pack_into("<" + form, self.memory, at, *values)

    def get(self, at, form):
        return struct.unpack_from("<" + form, self.memory, at)

    def desc(self, index, offset, size, flags=0, following=0, at=DESC):
        """offset: in the memory, or a whole guest address if it is larger."""
        guest = offset if offset >= MEMORY else GUEST + offset
        if self.packed:
            # The first one is shown last, by show(): a daemon that polls would take a chain that is still being made.
            avail = 0x80 if at == DESC and index and self.wrap else 0
            self.put(at + 16 * index, "QIHH", guest, size, following, flags | avail)
        else:
            self.put(at + 16 * index, "QIHH", guest, size, flags, following)

    def header(self, kind, sector=0):
        self.put(HEADER, "IIQ", kind, 0, sector)
        self.memory[STATUS_BYTE] = 0xff

    def chain(self, *pieces):
        """Descriptors from 0 on: (offset, size, writable)."""
        order = list(enumerate(pieces))
        for i, (offset, size, writable) in reversed(order):
            last = i == len(pieces) - 1
            self.desc(i, offset, size, (WRITE if writable else 0) | (0 if last else NEXT), 0 if last else i + 1)

    def request(self, kind, sector=0, data=0):
        self.header(kind, sector)
        pieces = [(HEADER, 16, False)]
        if data:
            pieces.append((DATA, data, kind not in (OUT, DISCARD, WRITE_ZEROES)))
        self.chain(*pieces, (STATUS_BYTE, 1, True))

    def show(self, *heads, index=None):
        """Makes chains available, and kicks."""
        if self.packed:
            self.put(DESC + 14, "H", self.get(DESC + 14, "H")[0] | 0x80)
        else:
            for head in heads:
                self.put(AVAIL + 4 + 2 * (self.avail % SIZE), "H", head)
                self.avail += 1
            self.put(AVAIL + 2, "H", (self.avail if index is None else index) & 0xffff)
        os.eventfd_write(self.kick, 1)

    def wait(self):
        """"done" or "broken"."""
        poll = select.poll()
        for fd in (self.call, self.broken, self.socket.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll(programs.PATIENCE * 1000))
            assert ready, "neither answered nor broken"
            if self.broken in ready:
                return "broken"
            if self.socket.fileno() in ready:
                raise Closed
            os.eventfd_read(self.call)
            if self.packed and self.get(DESC + 14, "H")[0] & 0x8000 or self.get(USED + 2, "H")[0] == self.avail != 0:
                return "done"

    def run(self, *heads):
        """The status byte."""
        self.show(*heads or (0,))
        assert self.wait() == "done"
        return self.memory[STATUS_BYTE]
