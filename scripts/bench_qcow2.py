"""The qcow2 rows of scripts/bench: allocated images, allocating writes, chains, a cache that is too small.

A row is met if Cairn has so many times the IOPS of the best peer, or so little of its server CPU per request. Rows that
compare with Cairn itself (a chain with one layer, qcow2 with raw) have a bar for IOPS alone.
"""
import os
import statistics
import struct
import subprocess
from dataclasses import dataclass, field

import bench_common

ALLOCATING_SIZE = 64 << 30      # more than any run fills: every random write finds a new cluster
FORMAT_EXTENSION = 0xe2792aca


@dataclass
class Row:
    name: str
    load: list                  # of nbd_load
    image: str = "full"         # full, new, over: an overlay of full data, or the number of layers of a chain
    create: str = ""            # -o of qemu-img create
    direct: bool = False
    iops_bar: float = 2.0
    cpu_bar: float = 0.5
    options: dict = field(default_factory=dict)     # of the node
    rival: str = ""             # "raw" or "one layer": what of our own it is compared with


READ, WRITE = ["--depth", "32"], ["--depth", "32", "--write"]
READ_256K = ["--size", "262144", "--sequential", "--depth", "8"]
WRITE_64K = ["--size", "65536", "--sequential", "--depth", "8", "--write"]
WRITE_1M = ["--size", "1048576", "--sequential", "--depth", "8", "--write"]


def cache_rows(kind, direct):
    """What is asked of the page cache and of the disk alike."""
    return [
        Row(f"qcow2 {kind} 4k read QD32", READ, direct=direct),
        Row(f"qcow2 {kind} 4k write QD32", WRITE, direct=direct),
        Row(f"qcow2 {kind} 256k read QD8", READ_256K, direct=direct, iops_bar=1.0, cpu_bar=1.0),
        Row(f"qcow2 {kind} 1M write QD8", WRITE_1M, direct=direct, iops_bar=1.0, cpu_bar=1.0),
        Row(f"qcow2 {kind} allocating 4k write QD32", WRITE, "new", direct=direct, iops_bar=3.0, cpu_bar=1 / 3),
        Row(f"qcow2 {kind} allocating 64k write QD8", WRITE_64K, "new", direct=direct),
        Row(f"qcow2 {kind} overlay 4k write QD32", WRITE, "over", direct=direct),
        Row(f"qcow2 {kind} overlay 4k write QD32 extended L2", WRITE, "over", "extended_l2=on", direct),
        Row(f"qcow2 {kind} allocating 64k write QD8 beside raw", WRITE_64K, "new", direct=direct, iops_bar=0.9, cpu_bar=0,
            rival="raw"),
        Row(f"qcow2 {kind} 4k read QD32 beside raw", READ, direct=direct, iops_bar=0.9, cpu_bar=0, rival="raw"),
        Row(f"qcow2 {kind} 4k write QD32 beside raw", WRITE, direct=direct, iops_bar=0.9, cpu_bar=0, rival="raw"),
    ]


ROWS = [
    *cache_rows("buffered", False),
    *cache_rows("direct", True),
    Row("qcow2 small L2 cache 4k read QD32", READ, options={"l2-cache-size": 65536}),
    Row("qcow2 chain of 20 4k read QD32", READ, "20"),
    Row("qcow2 chain of 200 4k read QD32", READ, "200"),
    Row("qcow2 chain of 200 beside one layer", READ, "200", iops_bar=0.8, cpu_bar=0, rival="one layer"),
]


def tool(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)


def create(path, options, size, backing=None):
    tool("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []),
         *(["-b", backing, "-F", "qcow2"] if backing else []), path, str(size))


def name_backing(path, backing):
    """Writes a backing file's name into the header of a new image: quicker than a tool that opens the chain."""
    with open(path, "r+b") as image:
        image.seek(100)
        length, = struct.unpack(">I", image.read(4))
        image.seek(length)
        image.write(struct.pack(">II8s8x", FORMAT_EXTENSION, 5, b"qcow2") + backing.encode())
        image.seek(8)
        image.write(struct.pack(">QI", length + 24, len(backing)))


def full(bench, folder, name):
    path = os.path.join(folder, name + ".qcow2")
    if not os.path.exists(path):
        tool("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", bench.make_file(folder, "cairn"), path)
        # What waits in the page cache would be written back under the first load.
        with open(path, "rb") as disk:
            os.fsync(disk.fileno())
    return path


def repeated(bench, folder, name):
    """A full image that shows its data again and again, so that no run fills an overlay of it. Only to be read."""
    path = os.path.join(folder, name + "-repeated.qcow2")
    if not os.path.exists(path):
        os.rename(full(bench, folder, name), path)
        with open(path, "r+b") as disk:
            disk.seek(36)
            count, offset = struct.unpack(">IQ", disk.read(12))
            disk.seek(offset)
            table = disk.read(8 * count) * (ALLOCATING_SIZE // bench.SIZE)
            disk.seek(offset)
            disk.write(table)
            disk.seek(24)
            disk.write(struct.pack(">Q", ALLOCATING_SIZE))
            disk.seek(36)
            disk.write(struct.pack(">I", len(table) // 8))
    return path


def chain(bench, folder, layers):
    """The top of so many layers, all of whose data is in the lowest."""
    top = full(bench, folder, "chain")
    for number in range(2, layers + 1):
        path = os.path.join(folder, f"chain-{number}.qcow2")
        if not os.path.exists(path):
            create(path, "", bench.SIZE)
            name_backing(path, os.path.basename(top))
        top = path
    return top


def prepared(path, row):
    """The file as the page cache should have it when it is measured: O_DIRECT pays for each page that is there, and in
    what sequential reads leave there the kernel takes ten times as long for a small write."""
    return bench_common.cold(path) if row.direct or "--write" in row.load else bench_common.warm(path)


def image(bench, row, folder, name):
    """The image of one server, as the row wants it; new ones are made for each run."""
    if row.image == "full":
        return prepared(full(bench, folder, name), row)
    if row.image.isdigit():
        return chain(bench, folder, int(row.image))
    path = os.path.join(folder, name + "-new.qcow2")
    if os.path.exists(path):
        os.unlink(path)
    if row.image == "new":
        create(path, row.create, ALLOCATING_SIZE)
    else:
        create(path, row.create, ALLOCATING_SIZE, repeated(bench, folder, name))
    return path


def node(row, path, more=""):
    direct = "on" if row.direct else "off"
    options = "".join(f",{name}={value}" for name, value in row.options.items())
    return (f"driver=qcow2,node-name=d,discard=unmap,cache.direct={direct},file.driver=file,file.filename={path},"
            f"file.cache.direct={direct}{more}{options}")


def raw(bench, row, folder):
    """The file that a row is compared with: full, or one of holes that is filled by the load."""
    if row.image == "full":
        return prepared(bench.make_file(folder, "cairn"), row)
    path = os.path.join(folder, "raw-new.raw")
    # Not cut off: ext4 writes such a file out when it is closed.
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "wb") as disk:
        disk.truncate(ALLOCATING_SIZE)
    return path


def commands(bench, row, folder):
    """Name and a function that makes the image and says the command, for each server; Cairn first."""
    rows = [("cairn", lambda: bench.cairn(node(row, image(bench, row, folder, "cairn")), 1))]
    if row.rival == "raw":
        rows.append(("raw", lambda: bench.cairn(f"driver=file,node-name=d,filename={raw(bench, row, folder)},"
                                                f"cache.direct={'on' if row.direct else 'off'}", 1)))
    elif row.rival:
        rows.append((row.rival, lambda: bench.cairn(node(row, chain(bench, folder, 1)), 1)))
    else:
        rows += [("qsd", lambda: bench.qsd(node(row, image(bench, row, folder, "qsd")))),
                 ("qsd-io_uring", lambda: bench.qsd(node(row, image(bench, row, folder, "qsd-io_uring"),
                                                         ",file.aio=io_uring")))]
    return rows


def measure(bench, row, folder, rounds, seconds):
    """A server for each sample, since what was written is allocated the next time."""
    samples, ready = {}, {}
    for number in range(rounds):
        for name, make in bench.in_turn(commands(bench, row, folder), number):
            server = bench.Server(name.replace(" ", "-"), make(), folder, "d")
            try:
                if sample := server.load(row.load, seconds):
                    samples.setdefault(name, []).append(sample)
                ready.setdefault(name, []).append(server.ready_ms)
            finally:
                server.stop()
    figures = {name: {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
               for name, taken in samples.items()}
    for name, taken in figures.items():
        taken["ready_ms"] = statistics.median(ready[name])
    return judge(row, figures, [name for name in ready if name not in samples])


def judge(row, figures, failed):
    own = figures.get("cairn", {"iops": 0, "server_cpu_us": float("inf")})
    peers = [taken for name, taken in figures.items() if name != "cairn"]
    result = {"name": row.name, "servers": figures, "failed": failed, "iops_bar": row.iops_bar, "cpu_bar": row.cpu_bar,
              "iops_ratio": own["iops"] / max((peer["iops"] for peer in peers), default=1),
              "cpu_ratio": own["server_cpu_us"] / min((peer["server_cpu_us"] for peer in peers), default=1)}
    result["met"] = result["iops_ratio"] >= row.iops_bar or result["cpu_ratio"] <= row.cpu_bar
    return result


def run(folder, options):
    rows = []
    for row in ROWS:
        if options.rows in row.name:
            rows.append(measure(bench_common, row, folder, options.rounds, options.seconds))
            bench_common.show(rows[-1])
    return {"rows": rows}
