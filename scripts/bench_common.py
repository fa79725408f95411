"""What the sections of scripts/bench share: servers, load, rows and how they are judged and shown."""
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CAIRND = os.path.join(ROOT, "build/cairnd")
LOAD = os.path.join(ROOT, "build/bench/nbd_load")
SIZE = 1 << 30
READY_SECONDS = 10


class Server:
    """One server on one disk. Every server has a file of its own, so that none is warmed by another's rows."""

    def __init__(self, name, command, folder, export):
        self.name, self.export = name, export
        self.socket = os.path.join(folder, name + ".sock")
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        start = time.monotonic()
        self.process = subprocess.Popen(command(self.socket), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > start + READY_SECONDS:
                raise SystemExit(f"{name} does not start")
            time.sleep(0.001)
        self.ready_ms = (time.monotonic() - start) * 1000

    def load(self, options, seconds):
        """What nbd_load finds; None if the server does not survive it."""
        result = subprocess.run([LOAD, "--unix", self.socket, "--export", self.export, "--pid", str(self.process.pid),
                                 "--seconds", str(seconds), *options], capture_output=True, text=True, check=False,
                                timeout=seconds + 60)
        return json.loads(result.stdout) if result.returncode == 0 else None

    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket}"

    def resident_kib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return [int(line.split()[1]) for line in status if line.startswith("VmRSS")][0]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# Commands of servers: functions of the socket's path.

def cairn(node, threads, *more):
    """node: options of the node "d"; more: options of cairnd before it."""
    objects = [part for i in range(threads) for part in ("--object", f"iothread,id=t{i}")]
    spread = "".join(f",iothreads.{i}=t{i}" for i in range(threads))
    return lambda path: [CAIRND, *objects, *more, "--blockdev", node,
                         "--nbd-server", f"addr.type=unix,addr.path={path}",
                         "--export", f"type=nbd,id=e,node-name=d,writable=on{spread}"]


def qsd(node):
    return lambda path: ["qemu-storage-daemon", "--blockdev", node, "--nbd-server", f"addr.type=unix,addr.path={path}",
                         "--export", "type=nbd,id=e,node-name=d,writable=on"]


def nbdkit(*plugin):
    return lambda path: ["nbdkit", "-f", "-U", path, *plugin]


def make_file(folder, name):
    """A full disk of SIZE bytes."""
    path = os.path.join(folder, name + ".raw")
    if not os.path.exists(path):
        block = os.urandom(1 << 20)
        with open(path, "wb") as disk:
            for _ in range(SIZE >> 20):
                disk.write(block)
            os.fsync(disk.fileno())
    return path


def warm(path):
    """The file, all of it in the page cache: some systems take pages back that nobody asked for lately."""
    with open(path, "rb", buffering=0) as disk:
        while disk.read(1 << 24):
            pass
    return path


def cold(path):
    """The file, nothing of it in the page cache."""
    with open(path, "rb") as disk:
        os.fsync(disk.fileno())
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@dataclass
class Row:
    """One load on several servers.

    servers: of a folder: (name, command, export) of each; ours are called cairn...
    iops_bar: so many times the IOPS of the best peer, or of Cairn's own row "base"; cpu_bar: at most such a part of
    the least server CPU per request of a peer; 0: no bar. floor: of a folder and seconds: the IOPS that are to be had;
    floor_bar: such a part of them.
    """
    name: str
    servers: Callable
    load: list = field(default_factory=list)
    iops_bar: float = 0
    cpu_bar: float = 0
    floor: Callable = None
    floor_bar: float = 0
    server: type = Server


def in_turn(servers, number):
    """The order of a round: another one begins each time, since who comes after whom finds other memory and caches."""
    first = number % len(servers)
    return servers[first:] + servers[:first]


def median(samples):
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def measure(row, folder, options):
    """Rounds of all servers one after the other; the row as a dictionary, judged."""
    running = [row.server(*server[:2], folder, server[2]) for server in row.servers(folder)]
    samples = {server.name: [] for server in running}
    floors = []
    try:
        for number in range(options.rounds):
            for server in in_turn(running, number):
                if sample := server.load(row.load, options.seconds):
                    samples[server.name].append(sample)
            if row.floor:
                floors.append(row.floor(folder, options.seconds))
    finally:
        for server in running:
            server.stop()
    return judge({"name": row.name, "iops_bar": row.iops_bar, "cpu_bar": row.cpu_bar, "floor_bar": row.floor_bar,
                  "servers": {server: median(taken) for server, taken in samples.items() if taken},
                  "floor_iops": statistics.median(floors) if floors and all(floors) else None,
                  "failed": [server for server, taken in samples.items() if not taken]})


def judge(row):
    """Adds ratios, and whether all bars are met; None where there is nothing to compare with."""
    servers = row["servers"]
    peers = [figures for name, figures in servers.items() if not name.startswith("cairn")]
    ours = [figures for name, figures in servers.items() if name.startswith("cairn")]
    row["iops_ratio"] = row["cpu_ratio"] = row["floor_ratio"] = None
    row["met"] = bool(ours)
    if not ours:
        return row
    own = max(ours, key=lambda figures: figures["iops"])
    if peers:
        row["iops_ratio"] = own["iops"] / max(peer["iops"] for peer in peers)
        row["cpu_ratio"] = own["server_cpu_us"] / min(peer["server_cpu_us"] for peer in peers)
        row["met"] = row["iops_ratio"] >= row["iops_bar"] and (not row["cpu_bar"] or row["cpu_ratio"] <= row["cpu_bar"])
    if row.get("floor_iops"):
        row["floor_ratio"] = own["iops"] / row["floor_iops"]
        row["met"] = row["met"] and row["floor_ratio"] >= row["floor_bar"]
    return row


def show(row):
    """A line with ratios and bars, and one for each server."""
    parts = [f"{row[key + '_ratio']:.2f} x the {what}" + (f" (bar {row[key + '_bar']:.2f})" if row[key + "_bar"] else "")
             for key, what in (("iops", "IOPS"), ("cpu", "CPU"), ("floor", "floor's IOPS")) if row.get(key + "_ratio")]
    bars = any(row.get(key) for key in ("iops_bar", "cpu_bar", "floor_bar"))
    print(f"\n{row['name']}: {', '.join(parts)}" + (f": {'met' if row['met'] else 'NOT MET'}" if bars else ""))
    for name, figures in row["servers"].items():
        print(f"  {name:16} {figures['iops']:10.0f}/s {figures['mib_s']:8.0f} MiB/s  p50 {figures['p50_us']:7.1f} us  "
              f"p99 {figures['p99_us']:8.1f} us  " +
              (f"p99.9 {figures['p999_us']:8.1f} us  " if "p999_us" in figures else "") +
              f"server {figures['server_cpu_us']:7.2f} us  "
              f"client {figures['client_cpu_us']:7.2f} us" +
              (f"  ready {figures['ready_ms']:5.1f} ms" if "ready_ms" in figures else ""), flush=True)
    for name in row["failed"]:
        print(f"  {name:16} did not survive the load")
    if row.get("floor_iops"):
        print(f"  {'floor':16} {row['floor_iops']:10.0f}/s", flush=True)


def run_rows(rows, folder, options):
    """Measures and shows those that were asked for."""
    taken = []
    for row in rows:
        if options.rows in row.name:
            taken.append(measure(row, folder, options))
            show(taken[-1])
    return taken


def fio(arguments, seconds, kind):
    """IOPS of a fio job; None if it fails."""
    command = ["fio", "--name=bench", "--output-format=json", "--time_based", f"--runtime={max(1, round(seconds))}",
               *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
    if result.returncode or "{" not in result.stdout:
        return None
    return json.loads(result.stdout[result.stdout.index("{"):])["jobs"][0][kind]["iops"]


def have(program):
    return shutil.which(program) is not None
