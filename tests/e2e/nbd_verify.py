"""A load over NBD that knows what every byte must be: each client has a part of the disk to itself, writes stamped blocks,
and compares whatever it reads. Runs in threads until it is stopped."""
import random
import struct
import threading
import time

from nbd_client import FLUSH, FUA, READ, TRIM, WRITE, ZEROES, NbdClient

BLOCK = 4096


class Client(threading.Thread):
    def __init__(self, address, export, number, clients, size, seed):
        super().__init__(daemon=True)
        self.nbd = NbdClient(address, timeout=60).go(export)
        self.rng = random.Random(seed * 1000 + number)
        self.blocks = size // BLOCK // clients
        self.first = number * self.blocks
        self.stamps = {}            # block: what its content repeats; unknown at first
        self.done, self.longest = 0, 0.0
        self.fault, self.stop = None, False
        self.going = threading.Event()
        self.going.set()
        self.resting = threading.Event()

    def content(self, block, count):
        return b"".join(struct.pack(">QQ", block + i, self.stamps[block + i]) * (BLOCK // 16)
                        if self.stamps[block + i] else bytes(BLOCK) for i in range(count))

    def expect(self, reply, what):
        if reply.error:
            raise AssertionError(f"{what}: error {reply.error}")
        return reply.data

    def step(self):
        count = self.rng.choice((1, 1, 1, 2, 16, 33))
        block = self.first + self.rng.randrange(self.blocks - count + 1)
        where, size = block * BLOCK, count * BLOCK
        kind = self.rng.choice((READ, READ, READ, WRITE, WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH))
        flags = self.rng.choice((0, 0, 0, FUA))
        if kind == WRITE:
            self.stamps.update((block + i, self.rng.getrandbits(63) + 1) for i in range(count))
            self.expect(self.nbd.do(WRITE, where, flags=flags, data=self.content(block, count)), f"write at {where}")
        elif kind == ZEROES:
            self.expect(self.nbd.do(ZEROES, where, size, flags), f"zeroes at {where}")
            self.stamps.update((block + i, 0) for i in range(count))
        elif kind == TRIM:
            self.expect(self.nbd.do(TRIM, where, size, flags), f"trim at {where}")
            for i in range(count):
                self.stamps.pop(block + i, None)
        elif kind == FLUSH:
            self.expect(self.nbd.do(FLUSH), "flush")
        else:
            self.check(block, count)

    def check(self, block, count):
        data = self.expect(self.nbd.do(READ, block * BLOCK, count * BLOCK), f"read at {block * BLOCK}")
        for i in range(count):
            if block + i in self.stamps and data[i * BLOCK:(i + 1) * BLOCK] != self.content(block + i, 1):
                raise AssertionError(f"block {block + i} is not what was written")

    def run(self):
        try:
            while not self.stop:
                if not self.going.is_set():
                    self.resting.set()
                    self.going.wait()
                    self.resting.clear()
                start = time.monotonic()
                self.step()
                self.longest = max(self.longest, time.monotonic() - start)
                self.done += 1
            for block in sorted(self.stamps):
                self.check(block, 1)
        except Exception as fault:  # what went wrong is told by the test
            self.fault = fault
        self.nbd.close()


class Load:
    """with Load(...) as load: change the graph."""

    def __init__(self, test, address, export, size, clients=4, seed=1):
        self.test = test
        self.clients = [Client(address, export, number, clients, size, seed) for number in range(clients)]

    def __enter__(self):
        for client in self.clients:
            client.start()
        return self

    @property
    def done(self):
        return sum(client.done for client in self.clients)

    def faults(self):
        return [str(client.fault) for client in self.clients if client.fault]

    def wait_for(self, more):
        """Until so many more steps are done, by each client at least one."""
        marks = [client.done for client in self.clients]
        end, want = time.monotonic() + 60, self.done + more
        while self.done < want or any(c.done == mark for c, mark in zip(self.clients, marks)):
            if self.faults() or time.monotonic() > end:
                break
            time.sleep(0.002)
        self.test.assertEqual(self.faults(), [])
        self.test.assertLess(time.monotonic(), end, "clients hang")

    def pause(self):
        """Until resume() nothing is under way."""
        for client in self.clients:
            client.going.clear()
        for client in self.clients:
            while not client.resting.wait(0.1) and not client.fault:
                pass

    def resume(self):
        for client in self.clients:
            client.going.set()

    def __exit__(self, kind, *_):
        self.resume()
        for client in self.clients:
            client.stop = True
        for client in self.clients:
            client.join(60)
            if kind is None:
                self.test.assertFalse(client.is_alive(), "a client hangs")
        if kind is None:
            self.test.assertEqual(self.faults(), [])
