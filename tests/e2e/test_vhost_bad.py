#!/usr/bin/python3
"""Front ends that break the rules of vhost-user and virtio: each must be refused, and the next one must find the device
as it was."""
import os
import socket
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import programs
from vhost_front import *  # noqa: F403
from programs import wait_until

ALL_ONES = (1 << 64) - 1
STATE, NUMBER, REGION = "=II", "=Q", "=QQQQQ"

# Messages with the size of their payload and how many file descriptors they come with.
FORMS = {
    GET_FEATURES: (0, 0), SET_FEATURES: (8, 0), SET_OWNER: (0, 0), RESET_OWNER: (0, 0), SET_VRING_NUM: (8, 0),
    SET_VRING_ADDR: (40, 0), SET_VRING_BASE: (8, 0), GET_VRING_BASE: (8, 0), SET_VRING_KICK: (8, 1),
    SET_VRING_CALL: (8, 1), SET_VRING_ERR: (8, 1), GET_PROTOCOL_FEATURES: (0, 0), SET_PROTOCOL_FEATURES: (8, 0),
    GET_QUEUE_NUM: (0, 0), SET_VRING_ENABLE: (8, 0), SET_BACKEND_REQ_FD: (0, 1), RESET_DEVICE: (0, 0),
    GET_MAX_MEM_SLOTS: (0, 0), ADD_MEM_REG: (40, 1), REM_MEM_REG: (40, 0), SET_STATUS: (8, 0), GET_STATUS: (0, 0),
    GET_INFLIGHT_FD: (20, 0), SET_INFLIGHT_FD: (20, 1), GET_CONFIG: (12, 0), SET_CONFIG: (12, 0), SET_MEM_TABLE: (8, 0)}
# The payload may be longer.
PADDED = (GET_INFLIGHT_FD, SET_INFLIGHT_FD, GET_CONFIG, SET_CONFIG, SET_MEM_TABLE)
UNKNOWN = [0, SET_LOG_BASE, SET_LOG_FD, 19, 20, 22, 23, 26, 27, 28, 29, 30, 33, 35, 41, 42, 255, 1 << 31, (1 << 32) - 1]


def region(front, **changes):
    return struct.pack("=Q", 0) + front.region(**changes)


def table(front, *regions, count=None):
    return struct.pack("=II", len(regions) if count is None else count, 0) + b"".join(regions)


def inflight(size=4096, offset=0, queues=1, entries=SIZE):
    return struct.pack("=QQHH", size, offset, queues, entries)


def config(offset, size, data=b""):
    return struct.pack("=III", offset, size, 0) + data


# Each gets a front end that has negotiated, and returns (request, payload, fds).
MESSAGES = {
    "features that are not offered": lambda f: (SET_FEATURES, struct.pack(NUMBER, f.features | 1 << 41), ()),
    "all features": lambda f: (SET_FEATURES, struct.pack(NUMBER, ALL_ONES), ()),
    "all protocol features": lambda f: (SET_PROTOCOL_FEATURES, struct.pack(NUMBER, ALL_ONES), ()),
    "dirty log": lambda f: (SET_PROTOCOL_FEATURES, struct.pack(NUMBER, PROTOCOL | 2), ()),
    "a size of 0": lambda f: (SET_VRING_NUM, struct.pack(STATE, 0, 0), ()),
    "a size above the limit": lambda f: (SET_VRING_NUM, struct.pack(STATE, 0, 1025), ()),
    "a size of 65536": lambda f: (SET_VRING_NUM, struct.pack(STATE, 0, 65536), ()),
    "a size of 2^32-1": lambda f: (SET_VRING_NUM, struct.pack(STATE, 0, (1 << 32) - 1), ()),
    "size of queue 4": lambda f: (SET_VRING_NUM, struct.pack(STATE, 4, SIZE), ()),
    "base of queue 4": lambda f: (SET_VRING_BASE, struct.pack(STATE, 4, 0), ()),
    "enabling queue 4": lambda f: (SET_VRING_ENABLE, struct.pack(STATE, 4, 1), ()),
    "address of queue 4": lambda f: (SET_VRING_ADDR, f.addresses(4), ()),
    "address of queue 2^32-1": lambda f: (SET_VRING_ADDR, f.addresses((1 << 32) - 1), ()),
    "kick of queue 4": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 4), (f.kick,)),
    "call of queue 255": lambda f: (SET_VRING_CALL, struct.pack(NUMBER, 255), (f.call,)),
    "error of queue 4": lambda f: (SET_VRING_ERR, struct.pack(NUMBER, 4), (f.broken,)),
    "enabling by 2": lambda f: (SET_VRING_ENABLE, struct.pack(STATE, 0, 2), ()),
    "address flags": lambda f: (SET_VRING_ADDR, f.addresses(flags=1), ()),
    "no kick": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 0x100), ()),
    "a kick in vain": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 0), ()),
    "a kick with and without": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 0x100), (f.kick,)),
    "two kicks": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 0), (f.kick, f.call)),
    "unknown bits of a kick": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 1 << 20), (f.kick,)),
    "a kick that is a file": lambda f: (SET_VRING_KICK, struct.pack(NUMBER, 0), (f.memfd,)),
    "a call that is a socket": lambda f: (SET_VRING_CALL, struct.pack(NUMBER, 0), (f.socket.fileno(),)),
    "two calls": lambda f: (SET_VRING_CALL, struct.pack(NUMBER, 0), (f.kick, f.call)),
    "a channel that is no socket": lambda f: (SET_BACKEND_REQ_FD, b"", (f.memfd,)),
    "no channel": lambda f: (SET_BACKEND_REQ_FD, b"", ()),
    "a status of 2^32": lambda f: (SET_STATUS, struct.pack(NUMBER, 1 << 32), ()),
    "writing the capacity": lambda f: (SET_CONFIG, config(0, 8, bytes(8)), ()),
    "writing behind the configuration": lambda f: (SET_CONFIG, config(255, 2, bytes(2)), ()),
    "writing far behind it": lambda f: (SET_CONFIG, config((1 << 32) - 1, 1, bytes(1)), ()),
    "more configuration than is sent": lambda f: (SET_CONFIG, config(32, 1), ()),
    "2^32-1 bytes of configuration": lambda f: (SET_CONFIG, config(32, (1 << 32) - 1, bytes(1)), ()),
    "a cache mode of 2": lambda f: (SET_CONFIG, config(32, 1, b"\2"), ()),
    "9 regions": lambda f: (SET_MEM_TABLE, table(f, *[f.region()] * 8, count=9), [f.memfd] * 8),
    "2^32-1 regions": lambda f: (SET_MEM_TABLE, table(f, f.region(), count=(1 << 32) - 1), [f.memfd]),
    "fewer regions than fds": lambda f: (SET_MEM_TABLE, table(f, f.region()), [f.memfd] * 2),
    "more regions than fds": lambda f: (SET_MEM_TABLE, table(f, f.region(), f.region(guest=0)), [f.memfd]),
    "a table that is cut": lambda f: (SET_MEM_TABLE, table(f, f.region()[:-1]), [f.memfd]),
    "the same region twice": lambda f: (SET_MEM_TABLE, table(f, f.region(), f.region()), [f.memfd] * 2),
    "regions that overlap": lambda f: (SET_MEM_TABLE, table(f, f.region(), f.region(guest=GUEST + MEMORY - 1)),
                                       [f.memfd] * 2),
    "an empty region": lambda f: (SET_MEM_TABLE, table(f, f.region(size=0)), [f.memfd]),
    "a region larger than its file": lambda f: (SET_MEM_TABLE, table(f, f.region(size=MEMORY + 1)), [f.memfd]),
    "a region behind its file": lambda f: (SET_MEM_TABLE, table(f, f.region(offset=MEMORY)), [f.memfd]),
    "a region of 2^64-1 bytes": lambda f: (SET_MEM_TABLE, table(f, f.region(guest=0, user=0, size=ALL_ONES)), [f.memfd]),
    "a region of 2^62 bytes": lambda f: (SET_MEM_TABLE, table(f, f.region(size=1 << 62)), [f.memfd]),
    "a region at the end of the guest": lambda f: (SET_MEM_TABLE, table(f, f.region(guest=ALL_ONES - 4096)), [f.memfd]),
    "a region at the end of the user": lambda f: (SET_MEM_TABLE, table(f, f.region(user=ALL_ONES - 4096)), [f.memfd]),
    "an offset that wraps": lambda f: (SET_MEM_TABLE, table(f, f.region(offset=ALL_ONES - MEMORY + 1)), [f.memfd]),
    "memory that is an eventfd": lambda f: (SET_MEM_TABLE, table(f, f.region()), [f.kick]),
    "memory that is a socket": lambda f: (SET_MEM_TABLE, table(f, f.region()), [f.socket.fileno()]),
    "memory that is a folder": lambda f: (SET_MEM_TABLE, table(f, f.region(size=1)), [f.keep(os.open("/", os.O_RDONLY))]),
    "memory that may not be written": lambda f: (SET_MEM_TABLE, table(f, f.region()),
                                                 [f.keep(os.open(f"/proc/self/fd/{f.memfd}", os.O_RDONLY))]),
    "one more region without memory": lambda f: (ADD_MEM_REG, region(f), ()),
    "one more region with two": lambda f: (ADD_MEM_REG, region(f), [f.memfd] * 2),
    "one more region that is empty": lambda f: (ADD_MEM_REG, region(f, size=0), [f.memfd]),
    "removing a region that is not there": lambda f: (REM_MEM_REG, region(f, guest=1 << 40), ()),
    "removing half a region": lambda f: (REM_MEM_REG, region(f, size=MEMORY // 2), ()),
    "in-flight regions for no queue": lambda f: (SET_INFLIGHT_FD, inflight(queues=0), [f.memfd]),
    "in-flight regions for 65535 queues": lambda f: (SET_INFLIGHT_FD, inflight(queues=65535), [f.memfd]),
    "in-flight regions for queues of 0": lambda f: (SET_INFLIGHT_FD, inflight(entries=0), [f.memfd]),
    "in-flight regions for queues of 65535": lambda f: (SET_INFLIGHT_FD, inflight(entries=65535), [f.memfd]),
    "in-flight regions that are too small": lambda f: (SET_INFLIGHT_FD, inflight(size=100), [f.memfd]),
    "in-flight regions behind their file": lambda f: (SET_INFLIGHT_FD, inflight(offset=MEMORY), [f.memfd]),
    "in-flight regions at an odd offset": lambda f: (SET_INFLIGHT_FD, inflight(offset=1), [f.memfd]),
    "in-flight regions of 2^64-1 bytes": lambda f: (SET_INFLIGHT_FD, inflight(size=ALL_ONES), [f.memfd]),
    "in-flight regions in a socket": lambda f: (SET_INFLIGHT_FD, inflight(), [f.socket.fileno()]),
    "in-flight regions without memory": lambda f: (SET_INFLIGHT_FD, inflight(), ()),
}

# Where the ring is said to be. The front end has shared its memory.
ADDRESSES = {
    "descriptors nowhere": dict(desc=0x1000), "used ring nowhere": dict(used=0x1000),
    "available ring nowhere": dict(avail=ALL_ONES - 15), "guest addresses": dict(desc=GUEST),
    "odd descriptors": dict(desc=USER + 8), "odd available ring": dict(avail=USER + AVAIL + 1),
    "odd used ring": dict(used=USER + USED + 2), "descriptors across the end": dict(desc=USER + MEMORY - 16),
    "used ring across the end": dict(used=USER + MEMORY - 8), "available ring at the end": dict(avail=USER + MEMORY)}


def desc(*arguments, **keywords):
    """A good request whose descriptor (index, ...) is another one."""
    def change(front):
        front.request(IN, data=512)
        front.desc(*arguments, **keywords)
    return change


def chain(*pieces):
    def change(front):
        front.header(IN)
        front.chain(*pieces)
    return change


def indirect(size=48, where=TABLE, flags=INDIRECT, change=None):
    def fill(front):
        front.header(IN)
        for i, (at, count, more) in enumerate(((HEADER, 16, NEXT), (DATA, 512, NEXT | WRITE), (STATUS_BYTE, 1, WRITE))):
            front.desc(i, at, count, more, i + 1, at=TABLE)
        if change:
            front.desc(*change, at=TABLE)
        front.desc(0, where, size, flags, 1)
    return fill


# What is in the ring. All of these break the queue.
CHAINS = {
    "an address of 0": desc(1, GUEST - (1 << 32) + MEMORY, 512, NEXT | WRITE, 2),
    "an address behind the memory": desc(1, GUEST + MEMORY, 512, NEXT | WRITE, 2),
    "a buffer across the end": desc(1, MEMORY - 511, 512, NEXT | WRITE, 2),
    "a buffer of 2^32-1 bytes": desc(1, DATA, (1 << 32) - 1, NEXT | WRITE, 2),
    "an address of 2^64-1": desc(1, ALL_ONES, 1, NEXT | WRITE, 2),
    "an address that wraps": desc(1, ALL_ONES - 255, 512, NEXT | WRITE, 2),
    "an empty buffer": desc(1, DATA, 0, NEXT | WRITE, 2),
    "an empty header": desc(0, HEADER, 0, NEXT, 1),
    "a header outside": desc(0, GUEST + MEMORY, 16, NEXT, 1),
    "a status outside": desc(2, GUEST + MEMORY, 1, WRITE),
    "nothing to write": chain((HEADER, 16, False)),
    "nothing to read": chain((DATA, 512, True), (STATUS_BYTE, 1, True)),
    "a header of 15 bytes": chain((HEADER, 15, False), (DATA, 512, True)),
    "written before read": chain((DATA, 512, True), (HEADER, 16, False), (STATUS_BYTE, 1, True)),
    "an indirect table of no bytes": indirect(0),
    "an indirect table of 15 bytes": indirect(15),
    "an indirect table of 47 bytes": indirect(47),
    "an indirect table of 2^32-16 bytes": indirect((1 << 32) - 16),
    "an indirect table of 1025 entries": indirect(16 * 1025),
    "an indirect table outside": indirect(where=GUEST + MEMORY),
    "an indirect table across the end": indirect(where=MEMORY - 16),
    "an indirect table that goes on": indirect(flags=INDIRECT | NEXT),
    "a table in a table": indirect(change=(1, TABLE, 48, INDIRECT)),
    "a table with an address outside": indirect(change=(1, GUEST + MEMORY, 512, NEXT | WRITE, 2)),
    "a table with an empty buffer": indirect(change=(1, DATA, 0, NEXT | WRITE, 2)),
}
SPLIT_CHAINS = {
    "next outside of the ring": desc(1, DATA, 512, NEXT | WRITE, SIZE),
    "next far outside": desc(1, DATA, 512, NEXT | WRITE, 65535),
    "a loop of one": desc(1, DATA, 512, NEXT | WRITE, 1),
    "a loop of three": desc(2, STATUS_BYTE, 1, NEXT | WRITE, 0),
    "a loop in a table": indirect(change=(1, DATA, 512, NEXT | WRITE, 1)),
    "next outside of the table": indirect(change=(1, DATA, 512, NEXT | WRITE, 3)),
    "next at the end of the table": indirect(change=(2, STATUS_BYTE, 1, NEXT | WRITE, 3)),
}
# What is available, with a good request at 0.
AVAILABLE = {
    "descriptor 16 of 16": dict(heads=(SIZE,)), "descriptor 65535": dict(heads=(65535,)),
    "17 entries": dict(heads=(0,), index=SIZE + 1), "65535 entries": dict(heads=(0,), index=65535),
    "an index that goes back": dict(heads=(0,), index=-1)}

# Requests that fail, and break nothing: kind, sector, data, status.
REQUESTS = {
    "behind the end": (IN, 8192, 512, IOERR), "across the end": (IN, 8191, 1024, IOERR),
    "far behind the end": (IN, 1 << 62, 512, IOERR), "at the last sector": (OUT, ALL_ONES, 512, IOERR),
    "100 bytes": (OUT, 0, 100, IOERR), "an unknown kind": (77, 0, 512, UNSUPP), "all kinds": ((1 << 32) - 1, 0, 0, UNSUPP),
    "secure erase": (14, 0, 512, UNSUPP), "SCSI": (2, 0, 512, UNSUPP), "no data": (IN, 0, 0, OK),
    "no data to write": (OUT, 0, 0, OK), "discard of nothing": (DISCARD, 0, 0, IOERR),
    "half a range": (DISCARD, 0, 8, IOERR), "two ranges": (WRITE_ZEROES, 0, 32, IOERR), "no room for the id": (GET_ID, 0, 0, OK),
    "a short id": (GET_ID, 0, 1, OK), "a long id": (GET_ID, 0, 512, OK)}
# Sector, sectors, flags of a discard, of a write-zeroes; their statuses.
RANGES = [(0, 8, 0, OK, OK), (0, 0, 0, OK, OK), (0, 8, 1, UNSUPP, OK), (0, 8, 2, UNSUPP, UNSUPP),
          (0, 8, 1 << 31, UNSUPP, UNSUPP), (8191, 2, 0, IOERR, IOERR), (ALL_ONES, 1, 0, IOERR, IOERR),
          (0, (1 << 32) - 1, 0, IOERR, IOERR), (1 << 54, 1 << 20, 0, IOERR, IOERR)]


class BadFrontEnds(programs.Program):
    def setUp(self):
        super().setUp()
        self.fronts = []
        with open(self.path("disk"), "wb") as disk:
            disk.truncate(4 << 20)
        self.daemon = self.serve("--blockdev", "driver=file,node-name=d,filename=disk,discard=unmap", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,writable=on,"
                                 "num-queues=4")
        self.check()
        self.quiet = self.descriptors()

    def tearDown(self):
        for front in self.fronts:
            front.close()
        self.check()
        wait_until(lambda: self.descriptors() <= self.quiet, "descriptors to be closed")
        said = self.end(self.daemon)
        for sign in ("AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error"):
            self.assertNotIn(sign, said)

    def front(self):
        self.fronts.append(Front(self.path("vhost")))
        return self.fronts[-1]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def check(self):
        """A good front end is served, and when it is gone nothing of it is left."""
        front = self.front().good()
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)
        front.close()
        wait_until(lambda: self.ask("qom-get", "path=/exports/e", "property=clients") == 0, "the end of the front end")

    def assert_refused(self, front, *message, **how):
        try:
            self.assertFalse(front.ack(*message, **how))
        except Closed:
            pass
        front.close()

    def test_flags_and_sizes(self):
        for how in (dict(flags=0), dict(flags=2), dict(flags=3), dict(flags=VERSION | REPLY), dict(size=1025),
                    dict(size=4096), dict(size=(1 << 32) - 1), dict(size=1 << 31)):
            with self.subTest(how):
                front = self.front()
                front.send(GET_FEATURES, **how)
                with self.assertRaises(Closed):
                    front.receive()
                front.close()

    def test_unknown_messages(self):
        for request in UNKNOWN:
            for payload in (b"", bytes(8), bytes(1024)):
                with self.subTest(request, size=len(payload)):
                    self.assert_refused(self.front().negotiate(), request, payload)

    def test_payloads_of_other_sizes(self):
        for request, (size, fds) in FORMS.items():
            for change in (-1, 1, 500):
                if size + change >= 0 and (change < 0 or change > 1 or request not in PADDED):
                    with self.subTest(request, change=change):
                        front = self.front().negotiate()
                        self.assert_refused(front, request, bytes(size + change), [front.kick] * fds)

    def test_other_file_descriptors(self):
        for request, (size, fds) in FORMS.items():
            for count in (0, 1, 2, 8, 9, 200):
                if count != fds and (request, count) != (REM_MEM_REG, 1):
                    with self.subTest(request, count=count):
                        front = self.front().negotiate()
                        self.assert_refused(front, request, bytes(size), [front.kick] * count)

    def test_what_was_not_negotiated(self):
        for request, (size, fds) in FORMS.items():
            if request in (GET_QUEUE_NUM, SET_BACKEND_REQ_FD) or request >= GET_CONFIG:
                with self.subTest(request):
                    front = self.front().negotiate(protocol=REPLY_ACK)
                    self.assert_refused(front, request, bytes(size), [front.kick] * fds)

    def test_messages(self):
        for name, case in MESSAGES.items():
            with self.subTest(name):
                front = self.front().good()
                self.assert_refused(front, *case(front))

    def test_a_refused_message_changes_nothing(self):
        for name, case in MESSAGES.items():
            with self.subTest(name):
                front = self.front().good()
                front.request(IN, data=4096)
                self.assertFalse(front.ack(*case(front)))
                self.assertEqual(front.run(), OK)
                front.close()

    def test_configuration_that_is_not_there(self):
        for offset, size in ((256, 1), (0, 257), (255, 2), ((1 << 32) - 1, 2), (2, (1 << 32) - 1)):
            with self.subTest(offset, size=size):
                front = self.front().negotiate()
                self.assertEqual(front.ask(GET_CONFIG, config(offset, size)), b"")
                front.close()

    def test_rings_that_are_not_there(self):
        for packed in (0, RING_PACKED):
            for name, where in ADDRESSES.items():
                with self.subTest(name, packed=packed):
                    if packed and "odd av" in name:
                        where = dict(avail=USER + AVAIL + 2)
                    if packed and "used ring across" in name:
                        where = dict(used=USER + MEMORY)
                    front = self.front().negotiate(features=packed).share()
                    with self.assertRaises(AssertionError):
                        front.start(addresses=front.addresses(**where))
                    front.close()

    def test_rings_of_other_sizes(self):
        for size in (3, 15, 1023):
            with self.subTest(size):
                front = self.front().negotiate().share()
                with self.assertRaises(AssertionError):
                    front.start(size=size)
                front.close()
        for base in (16, 0x80100000, 0xffffffff):
            with self.subTest(base):
                front = self.front().negotiate(features=RING_PACKED).share()
                with self.assertRaises(AssertionError):
                    front.start(base=base)
                front.close()

    def test_settings_of_a_running_queue(self):
        front = self.front().good()
        self.assertFalse(front.ack(SET_VRING_NUM, struct.pack(STATE, 0, SIZE)))
        self.assertFalse(front.ack(SET_VRING_BASE, struct.pack(STATE, 0, 5)))
        self.assertFalse(front.ack(SET_VRING_ADDR, front.addresses(desc=USER + 0x6000)))
        self.assertTrue(front.ack(SET_VRING_ADDR, front.addresses()))
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)

    def assert_broken(self, front):
        self.assertEqual(front.wait(), "broken")
        self.assertTrue(front.number(GET_STATUS) & NEEDS_RESET)
        front.close()

    def test_chains(self):
        for features in (0, RING_PACKED, INDIRECT_DESC, INDIRECT_DESC | RING_PACKED):
            for name, fill in (CHAINS if features & RING_PACKED else CHAINS | SPLIT_CHAINS).items():
                with self.subTest(name, features=features):
                    front = self.front().good(features=features)
                    fill(front)
                    front.show(0)
                    self.assert_broken(front)

    def test_chains_without_end(self):
        front = self.front().good(features=RING_PACKED)
        front.chain(*[(HEADER, 16, False)] * SIZE)
        front.desc(SIZE - 1, HEADER, 16, NEXT)
        front.show()
        self.assert_broken(front)

    def test_available(self):
        for name, show in AVAILABLE.items():
            with self.subTest(name):
                front = self.front().good()
                front.request(IN, data=512)
                front.show(*show["heads"], index=show.get("index"))
                self.assert_broken(front)

    def test_a_device_that_was_reset_works(self):
        for packed in (0, RING_PACKED):
            for reset in (lambda f: f.must(RESET_DEVICE), lambda f: f.must(SET_STATUS, bytes(8)),
                          lambda f: f.ask(GET_VRING_BASE, bytes(8))):
                with self.subTest(packed=packed):
                    front = self.front().good(features=packed)
                    CHAINS["an empty buffer"](front)
                    front.show(0)
                    self.assertEqual(front.wait(), "broken")
                    os.eventfd_read(front.broken)
                    reset(front)
                    front.memory[:0x6000] = bytes(0x6000)
                    front.avail = 0
                    front.must(SET_FEATURES, struct.pack(NUMBER, front.features))
                    front.start()
                    front.request(IN, data=4096)
                    self.assertEqual(front.run(), OK)
                    front.close()

    def test_a_reset_beside_a_fault(self):
        """A fault that the reset has overtaken is not one of the device that is set up next."""
        resets = (lambda f: f.must(RESET_DEVICE), lambda f: f.must(SET_STATUS, bytes(8)),
                  lambda f: f.ask(GET_VRING_BASE, bytes(8)))
        front = self.front().good()
        for i in range(300):
            CHAINS["an empty buffer"](front)
            front.show(0)
            time.sleep(i % 10 * 0.00002)
            resets[i % 3](front)
            if select.select([front.broken], [], [], 0)[0]:
                os.eventfd_read(front.broken)
            front.memory[:0x6000] = bytes(0x6000)
            front.avail = 0
            front.must(SET_FEATURES, struct.pack(NUMBER, front.features))
            front.start()
            front.request(IN, data=4096)
            self.assertEqual(front.run(), OK)
            front.memory[:0x6000] = bytes(0x6000)
            front.avail = 0
            front.ask(GET_VRING_BASE, bytes(8))
            front.start()

    def test_requests(self):
        for packed in (0, RING_PACKED):
            for name, (kind, sector, data, status) in REQUESTS.items():
                with self.subTest(name, packed=packed):
                    front = self.front().good(features=packed | BLK_DISCARD | BLK_ZEROES)
                    front.request(kind, sector, data)
                    self.assertEqual(front.run(), status)
                    front.close()

    def test_ranges(self):
        front = self.front().good()
        for sector, sectors, flags, *statuses in RANGES:
            for kind, status in zip((DISCARD, WRITE_ZEROES), statuses):
                with self.subTest(kind, sector=sector, sectors=sectors, flags=flags):
                    front.request(kind, data=16)
                    front.put(DATA, "QII", sector, sectors, flags)
                    self.assertEqual(front.run(), status)

    def test_ranges_that_were_not_negotiated(self):
        front = self.front().good(features=0)
        for kind in (DISCARD, WRITE_ZEROES):
            front.request(kind, data=16)
            front.put(DATA, "QII", 0, 8, 0)
            self.assertEqual(front.run(), UNSUPP)

    def test_memory_that_vanishes(self):
        """The file below the mapping becomes shorter: the daemon must not die of SIGBUS."""
        for packed in (0, RING_PACKED):
            for left in (0, 0x4000):
                with self.subTest(packed=packed, left=left):
                    front = self.front().good(features=packed)
                    front.request(IN, data=4096)
                    if left:
                        front.show(0)
                        front.wait()
                    os.ftruncate(front.memfd, left)
                    os.eventfd_write(front.kick, 1)
                    if not left:    # the ring is gone; and it would be us who die if we looked at it
                        wait_until(lambda: select.select([front.broken], [], [], 1)[0], "the error")
                    self.assertIsNone(self.daemon.poll())
                    front.close()
                    self.check()

    def test_disconnect_in_a_message(self):
        whole = struct.pack("=III", SET_FEATURES, VERSION, 8) + bytes(8)
        for count in range(len(whole)):
            with self.subTest(count):
                front = self.front()
                front.socket.sendall(whole[:count])
                front.close()

    def test_disconnect_while_waiting(self):
        """Who waits for the end of the last front end, and goes away, is in nobody's way."""
        self.ask("blockdev-add", "driver=delay", "node-name=slow", "file=d", "latency-ns=1000000000")
        self.ask("block-export-add", "type=vhost-user-blk", "id=s", "addr.type=unix", "addr.path=slow", "node-name=slow")
        self.quiet = self.descriptors()
        first = Front(self.path("slow")).good()
        first.request(IN, data=512)
        first.show(0)
        time.sleep(0.1)     # until it is in flight: if it is not, the test shows less, and passes
        first.close()
        for _ in range(2):
            Front(self.path("slow")).close()
        last = Front(self.path("slow"))
        self.fronts.append(last)
        self.assertTrue(last.number(GET_FEATURES))

    def test_disconnect_after_each_message(self):
        class Enough(Exception):
            pass
        for limit in range(1, 40):
            front = self.front()
            send = front.send

            def counted(*arguments, **keywords):
                counted.left -= 1
                if counted.left < 0:
                    raise Enough
                send(*arguments, **keywords)
            counted.left = limit
            front.send = counted
            try:
                front.good()
                front.request(IN, data=4096)
                front.show(0)
                break
            except Enough:
                front.close()
        self.assertGreater(limit, 12)
        front.close()

    def test_slow_sender(self):
        front = self.front()
        for byte in struct.pack("=III", GET_FEATURES, VERSION, 0):
            front.socket.sendall(bytes([byte]))
            time.sleep(0.002)
        self.assertEqual(front.receive()[0], GET_FEATURES)

    def test_one_who_never_reads(self):
        front = self.front()
        front.socket.setblocking(False)
        message = struct.pack("=III", GET_FEATURES, VERSION, 0) * 1000
        try:
            for _ in range(1000):
                front.socket.sendall(message)
        except BlockingIOError:
            pass
        self.ask("query-version")

    def test_one_who_never_reads_and_breaks_a_queue(self):
        front = self.front().good()
        front.socket.setblocking(False)
        message = struct.pack("=III", GET_FEATURES, VERSION, 0) * 100
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                front.socket.sendall(message)
            except BlockingIOError:
                break
        CHAINS["an empty buffer"](front)
        front.show(0)
        time.sleep(0.1)
        self.ask("query-version")

    def test_flood(self):
        front = self.front().negotiate()
        message = struct.pack("=III", SET_OWNER, VERSION, 0) * 1000
        for _ in range(100):
            front.socket.sendall(message)
        self.ask("query-version")
        self.assertTrue(front.number(GET_FEATURES))

    def test_file_descriptors_are_not_collected(self):
        front = self.front().good()
        before = self.descriptors()
        for _ in range(300):
            front.must(SET_VRING_CALL, struct.pack(NUMBER, 0), [front.call])
            self.assertFalse(front.ack(GET_VRING_BASE + 100, b"", [front.kick] * 8))
        wait_until(lambda: self.descriptors() <= before, "descriptors to be closed")

    def test_kicks_in_vain(self):
        """A counter that never becomes empty must not keep a thread busy so that others starve."""
        front = self.front()
        front.kick = front.keep(os.eventfd(0xffffffff, os.EFD_NONBLOCK | os.EFD_SEMAPHORE))
        front.good()
        front.request(IN, data=4096)
        self.assertEqual(front.run(), OK)
        self.ask("query-version")

    def test_a_call_that_is_full(self):
        front = self.front().good()
        os.eventfd_read(front.call)
        os.eventfd_write(front.call, ALL_ONES - 1)
        front.request(IN, data=4096)
        front.show(0)
        wait_until(lambda: front.get(USED + 2, "H")[0] == 1, "the request")
        os.eventfd_read(front.call)

    def test_log_is_not_flooded(self):
        front = self.front().negotiate()
        for _ in range(1000):
            self.assertFalse(front.ack(SET_VRING_NUM, struct.pack(STATE, 9, 1)))
        front.close()
        said = self.end(self.daemon)
        self.assertEqual(said.count("SET_VRING_NUM"), 1)
        self.daemon = self.serve("--blockdev", "driver=file,node-name=d,filename=disk", "--export",
                                 "vhost-user-blk,id=e,addr.type=unix,addr.path=vhost,node-name=d,num-queues=4")

    def test_memory_in_slots(self):
        front = self.front().negotiate()
        half = MEMORY // 2
        front.must(ADD_MEM_REG, region(front, size=half), [front.memfd])
        front.must(ADD_MEM_REG, region(front, guest=GUEST + half, user=USER + half, size=half, offset=half),
                   [front.memfd])
        self.assertFalse(front.ack(ADD_MEM_REG, region(front, size=half), [front.memfd]))
        front.start()
        front.header(IN)
        front.chain((HEADER, 16, False), (half - 1024, 2048, True), (STATUS_BYTE, 1, True))
        self.assertEqual(front.run(), OK)
        front.must(REM_MEM_REG, region(front, guest=GUEST + half, user=USER + half, size=half), [front.kick])
        front.memory[STATUS_BYTE] = 0xff
        front.show(0)
        self.assertEqual(front.wait(), "broken")


if __name__ == "__main__":
    unittest.main()
