"""vhost-user-blk on a null disk, raw files and qcow2, beside qemu-storage-daemon with its defaults and at its best (an
iothread, io_uring), under cairn-vhost-bench."""
import json
import os
import subprocess

import bench_common
from bench_common import CAIRND, ROOT, Row, Server, cold, make_file, run_rows, warm
from bench_file import floor
from bench_qcow2 import full

BENCH = os.path.join(ROOT, "build/cairn-vhost-bench")
QUEUES = 4


class VhostServer(Server):
    def load(self, options, seconds):
        result = subprocess.run([BENCH, "--json", "--pid", str(self.process.pid), "--seconds", str(seconds), "--warmup",
                                 "0.3", *options, self.socket], capture_output=True, text=True, check=False,
                                timeout=seconds + 60)
        return json.loads(result.stdout) if result.returncode == 0 else None


def cairn(node, threads, *more):
    """node: options of the node "d"; more: options of cairnd before it."""
    objects = [part for i in range(threads) for part in ("--object", f"iothread,id=t{i}")]
    spread = "".join(f",iothreads.{i}=t{i}" for i in range(threads))
    return lambda path: [CAIRND, *objects, *more, "--blockdev", node, "--export",
                         f"type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={path},"
                         f"num-queues={QUEUES}{spread}"]


def qsd(node, iothread):
    thread = ["--object", "iothread,id=t"] if iothread else []
    return lambda path: ["qemu-storage-daemon", *thread, "--blockdev", node, "--export",
                         f"type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={path},"
                         f"num-queues={QUEUES}" + (",iothread=t" if iothread else "")]


def servers(node, threads=1):
    """node: of a server's name, and of what is added to its protocol's options."""
    return [("cairn", cairn(node("cairn", ""), threads), ""), ("qsd", qsd(node("qsd", ""), False), ""),
            ("qsd-iothread", qsd(node("qsd-iothread", ",aio=io_uring"), True), "")]


def null(threads=1):
    return lambda _folder: servers(lambda _name, _aio: "driver=null-co,node-name=d,size=1073741824", threads)


def raw(direct, prepare, threads=1):
    return lambda folder: servers(
        lambda name, aio: f"driver=file,node-name=d,filename={prepare(make_file(folder, name))},"
                          f"cache.direct={'on' if direct else 'off'}{aio}", threads)


READ, WRITTEN, DIRECT = raw(False, warm), raw(False, cold), raw(True, cold)    # as in bench_file.py


def qcow2(prepare):
    return lambda folder: servers(lambda name, aio: "driver=qcow2,node-name=d,file.driver=file,file.filename=" +
                                  prepare(full(bench_common, folder, name)) + (",file.aio=io_uring" if aio else ""))


def row(name, kind, load, iops_bar=0, cpu_bar=0, **more):
    return Row(name, kind, load.split(), iops_bar, cpu_bar, server=VhostServer, **more)


ROWS = [
    row("null QD1, calls", null(), "--depth 1", 3.0),
    row("null QD32, calls", null(), "--depth 32", 3.0),
    row("null QD32, calls, no event index", null(), "--depth 32 --no-event-idx"),
    row("null QD32, calls, packed", null(), "--depth 32 --packed"),
    row("null QD128, calls", null(), "--depth 128"),
    row("null QD1, polling", null(), "--depth 1 --poll", 1.8),
    row("null QD32, polling", null(), "--depth 32 --poll", 1.8),
    row("null QD128, polling", null(), "--depth 128 --poll", 1.8),
    row("null QD32 x 2, calls", null(2), "--depth 32 --queues 2", 2.0),
    row("null QD32 x 4, calls", null(4), "--depth 32 --queues 4", 2.0),
    row("raw buffered 4k read QD1", READ, "--depth 1"),
    row("raw buffered 4k read QD32", READ, "--depth 32", 1.5),
    row("raw buffered 4k write QD32", WRITTEN, "--depth 32 --mix write", 1.5),
    row("raw buffered 256k read QD8", READ, "--depth 8 --size 262144 --sequential", 1.0),
    row("raw buffered 1M write QD8", WRITTEN, "--depth 8 --size 1048576 --sequential --mix write", 1.0),
    row("raw direct 4k read QD1", DIRECT, "--depth 1", floor=floor("read", True, 1)),
    row("raw direct 4k read QD32", DIRECT, "--depth 32", 0, 0.5, floor=floor("read", True), floor_bar=0.95),
    row("raw direct 4k write QD32", DIRECT, "--depth 32 --mix write", 0, 0.5, floor=floor("write", True),
        floor_bar=0.95),
    row("raw direct 4k read QD128", DIRECT, "--depth 128", floor=floor("read", True, 128)),
    row("raw direct 256k read QD8", DIRECT, "--depth 8 --size 262144 --sequential", 1.0),
    row("raw direct 1M write QD8", DIRECT, "--depth 8 --size 1048576 --sequential --mix write", 1.0),
    row("qcow2 4k read QD1", qcow2(warm), "--depth 1"),
    row("qcow2 4k read QD32", qcow2(warm), "--depth 32", 1.5),
    row("qcow2 4k write QD32", qcow2(cold), "--depth 32 --mix write", 1.5),
]


def run(folder, options):
    return {"rows": run_rows(ROWS, folder, options)}
