"""One export over 1, 2, 4 and 8 iothreads: null, a raw file and a qcow2 image in the page cache, over NBD with as many
connections and over vhost-user-blk with as many queues. Needs twice as many CPUs as iothreads: the clients run here too.
"""
import json
import os
import subprocess

from bench_common import CAIRND, LOAD, ROOT, SIZE, Server, make_file, median, warm

VHOST = os.path.join(ROOT, "build/cairn-vhost-bench")
THREADS = (1, 2, 4, 8)
DISKS = ("null", "raw", "qcow2")
# At so many iothreads, so many times the IOPS of one.
BARS = {"vhost": {8: 5.0}, "nbd": {4: 2.5}}
CONNECTIONS = 8     # over NBD, whatever the iothreads, so that the clients' share is the same


def node(disk, folder):
    if disk == "null":
        return f"driver=null-co,node-name=d,size={SIZE}"
    raw = make_file(folder, "scaling")
    if disk == "raw":
        return f"driver=file,node-name=d,filename={raw}"
    image = os.path.join(folder, "scaling.qcow2")
    if not os.path.exists(image):
        subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, image], check=True, timeout=600)
    return f"driver=qcow2,node-name=d,file.driver=file,file.filename={image}"


def command(kind, disk, threads, folder):
    objects = [part for i in range(threads) for part in ("--object", f"iothread,id=t{i}")]
    spread = "".join(f",iothreads.{i}=t{i}" for i in range(threads))
    disk = node(disk, folder)
    if kind == "nbd":
        return lambda path: [CAIRND, *objects, "--blockdev", disk, "--nbd-server", f"addr.type=unix,addr.path={path}",
                             "--export", f"type=nbd,id=e,node-name=d,writable=on{spread}"]
    return lambda path: [CAIRND, *objects, "--blockdev", disk, "--export",
                         f"type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues={threads},addr.type=unix,"
                         f"addr.path={path}{spread}"]


def vhost_load(server, queues, seconds):
    result = subprocess.run([VHOST, "--json", "--poll", "--queues", str(queues), "--threads", str(queues),
                             "--seconds", str(seconds), "--pid", str(server.process.pid), server.socket],
                            capture_output=True, text=True, check=False, timeout=seconds + 60)
    return json.loads(result.stdout) if result.returncode == 0 else None


def load(kind, server, threads, seconds):
    """IOPS, or None."""
    if kind == "nbd":
        sample = server.load(["--connections", str(CONNECTIONS)], seconds)
    else:
        sample = vhost_load(server, threads, seconds)
    return {"iops": sample["iops"]} if sample else None


def measure(kind, disk, folder, options):
    counts = [threads for threads in THREADS if threads <= max(1, (os.cpu_count() or 1) // 2)] or [1]
    samples = {threads: [] for threads in counts}
    command(kind, disk, 1, folder)
    for name in ("scaling.raw", "scaling.qcow2"):
        if disk != "null" and os.path.exists(os.path.join(folder, name)):
            warm(os.path.join(folder, name))
    for _ in range(options.rounds):
        for threads in counts:
            server = Server(f"{kind}-{threads}", command(kind, disk, threads, folder), folder, "d")
            try:
                if sample := load(kind, server, threads, options.seconds):
                    samples[threads].append(sample)
            finally:
                server.stop()
    iops = {threads: median(taken)["iops"] for threads, taken in samples.items() if taken}
    return judge({"name": f"{kind} {disk}", "iops": iops, "failed": [t for t in counts if t not in iops]})


def judge(row):
    """met: None where this machine has too few CPUs to tell."""
    one, bars = row["iops"].get(1), BARS[row["name"].split()[0]]
    row["scale"] = {threads: iops / one for threads, iops in row["iops"].items()} if one else {}
    row["bars"] = bars
    told = [row["scale"][threads] >= bar for threads, bar in bars.items() if threads in row["scale"]]
    row["met"] = all(told) if told else None
    return row


def show(row):
    verdict = {True: "met", False: "NOT MET", None: "too few CPUs to tell"}[row["met"]]
    bars = ", ".join(f"{bar} x at {threads}" for threads, bar in row["bars"].items())
    print(f"\n{row['name']} (bar {bars}): {verdict}")
    for threads, iops in row["iops"].items():
        print(f"  {threads:2} iothreads {iops:12.0f}/s  {row['scale'].get(threads, 0):5.2f} x", flush=True)
    for threads in row["failed"]:
        print(f"  {threads:2} iothreads: failed")


def run(folder, options):
    rows = []
    if not os.path.exists(LOAD):
        raise SystemExit("build/bench/nbd_load is missing: make benches")
    for kind in BARS:
        for disk in DISKS:
            if options.rows in f"{kind} {disk}":
                rows.append(measure(kind, disk, folder, options))
                show(rows[-1])
    return {"rows": rows}
