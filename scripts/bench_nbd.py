"""NBD over a UNIX socket on a disk that does nothing: what the server itself costs, with the peers' clients beside ours."""
import os
import subprocess
import time

from bench_common import ROOT, SIZE, Row, Server, cairn, fio, have, median, nbdkit, qsd, run_rows

FLOOR = os.path.join(ROOT, "build/bench/floor")
NULL = f"driver=null-co,node-name=d,size={SIZE}"
COPY_SIZE = 4 << 30


def servers(_folder):
    return [("cairn", cairn(NULL, 1), "d"), ("cairn-2-threads", cairn(NULL, 2), "d"), ("qsd", qsd(NULL), "d"),
            ("nbdkit", nbdkit("null", str(SIZE)), "")]


ROWS = [
    Row("null 4k read QD1", servers, ["--depth", "1"], 1.5),
    Row("null 4k write QD1", servers, ["--depth", "1", "--write"], 1.5),
    Row("null 4k read QD32", servers, [], 2.5, 1 / 3),
    Row("null 4k write QD32", servers, ["--write"], 1.7),
    Row("null 4k read QD32 x4", servers, ["--connections", "4"], 2.5),
    Row("null 256k read QD8", servers, ["--size", "262144", "--sequential", "--depth", "8"], 1.2),
]


def copy_mib_s(uri):
    start = time.monotonic()
    result = subprocess.run(["nbdcopy", "--no-extents", uri, "null:"], check=False, stderr=subprocess.DEVNULL, timeout=300)
    return COPY_SIZE / (time.monotonic() - start) / (1 << 20) if result.returncode == 0 else None


def tools(folder, options):
    """The clients that people have: nbdcopy reading all, fio's nbd engine. The client is the limit of both."""
    node = f"driver=null-co,node-name=d,size={COPY_SIZE}"
    running = [Server("cairn", cairn(node, 1), folder, "d"), Server("qsd", qsd(node), folder, "d"),
               Server("nbdkit", nbdkit("null", str(COPY_SIZE)), folder, "")]
    table = {}
    for _ in range(options.rounds):
        for server in running:
            job = ["--ioengine=nbd", f"--uri={server.uri()}", "--rw=randread", "--bs=4k", "--iodepth=32"]
            sample = {"nbdcopy_mib_s": copy_mib_s(server.uri()) if have("nbdcopy") else None,
                      "fio_iops": fio(job, options.seconds, "read") if have("fio") else None}
            table.setdefault(server.name, []).append({key: value or 0 for key, value in sample.items()})
    for server in running:
        server.stop()
    table = {name: median(samples) for name, samples in table.items()}
    print("\nother clients on null:")
    for name, figures in table.items():
        print(f"  {name:16} nbdcopy {figures['nbdcopy_mib_s']:8.0f} MiB/s  fio 4k read QD32 "
              f"{figures['fio_iops']:10.0f}/s", flush=True)
    return table


def at_rest(folder):
    """Time until it serves, and memory without clients."""
    rows = {}
    print("\nat rest:")
    for name, command, export in servers(folder):
        server = Server(name, command, folder, export)
        time.sleep(0.3)
        rows[name] = {"ready_ms": server.ready_ms, "rss_kib": server.resident_kib()}
        server.stop()
        print(f"  {name:16} ready after {rows[name]['ready_ms']:6.1f} ms, {rows[name]['rss_kib']} KiB", flush=True)
    return rows


def floors():
    """What this machine gives to anybody."""
    result = subprocess.run([FLOOR], capture_output=True, text=True, check=True, timeout=60)
    print("\nfloors:")
    table = {}
    for line in result.stdout.splitlines():
        name, value, unit = line.rsplit(maxsplit=2)
        table[name] = {"value": float(value), "unit": unit}
        print(f"  {name:40} {float(value):12.1f} {unit}", flush=True)
    return table


def run(folder, options):
    results = {"rows": run_rows(ROWS, folder, options)}
    if options.rows in "other clients":
        results["other clients"] = tools(folder, options)
    if options.rows in "at rest":
        results["at rest"] = at_rest(folder)
    if options.rows in "floors":
        results["floors"] = floors()
    return results
