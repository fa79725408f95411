"""What bad front ends send: messages, chains, rings and requests that break the rules of vhost-user and virtio."""
import struct

from vhost_front import *  # noqa: F403

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
