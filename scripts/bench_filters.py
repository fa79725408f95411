"""What filters cost that let everything pass: a null disk through 0 to 10 of them, over NBD and vhost-user-blk. There is one
server, whose export goes from one stack to the other: two servers differ by more than filters cost."""
import os
import subprocess

import bench_common
import bench_vhost
from bench_common import ROOT, SIZE, Server, in_turn, median

CAIRNCTL = os.path.join(ROOT, "build/cairnctl")
LAYERS = (0, 1, 4, 10)
MOST = LAYERS[-1]
IOPS_BAR, NS_BAR = 0.95, 5      # of the bare node's, over NBD; for each layer, over vhost-user-blk
NULL = f"driver=null-co,node-name=d,size={SIZE}"


def stack(layers):
    """Options of so many filters over "d", of which the highest is "top<layers>"."""
    names = ["d"] + [f"f{layers}.{i}" for i in range(1, layers)] + [f"top{layers}"]
    return [f"driver=delay,node-name={name},file={child}" for child, name in zip(names, names[1:])]


def command(cairn):
    """d comes first: each stack is on it."""
    def words(path):
        nodes = [word for layers in LAYERS if layers for node in stack(layers) for word in ("--blockdev", node)]
        whole = cairn(NULL, 1, "--qmp", path + ".qmp")(path)
        at = whole.index("--blockdev") + 2
        return whole[:at] + nodes + whole[at:]
    return words


def put_on(server, layers):
    subprocess.run([CAIRNCTL, "-s", server.socket + ".qmp", "x-blockdev-change", "parent=e", "child=root",
                    f"node={f'top{layers}' if layers else 'd'}"], check=True)


def measure(name, kind, cairn, export, load, folder, options):
    """kind: of Server. The medians of each stack, of many short rounds: the difference is small."""
    server = kind(f"filters-{name}", command(cairn), folder, export)
    samples = {layers: [] for layers in LAYERS}
    try:
        for number in range(3 * options.rounds):
            for layers in in_turn(LAYERS, number):
                put_on(server, layers)
                samples[layers].append(server.load(load, options.seconds / 2))
    finally:
        server.stop()
    return {layers: median(samples[layers]) for layers in LAYERS}


def judged(name, text, met, figures):
    print(f"\n{name}: {text}: {'met' if met else 'NOT MET'}")
    for layers, taken in figures.items():
        print(f"  {layers:2} filters {taken['iops']:10.0f}/s  server {taken['server_cpu_us']:7.3f} us", flush=True)
    return {"name": name, "servers": figures, "met": met}


def run(folder, options):
    rows = []
    name = "null 4k read QD32 through filters, NBD"
    if options.rows in name:
        figures = measure("nbd", Server, bench_common.cairn, "d", [], folder, options)
        ratio = figures[MOST]["iops"] / figures[0]["iops"]
        rows.append(judged(name, f"{MOST} have {ratio:.3f} x the IOPS of none (bar {IOPS_BAR})", ratio >= IOPS_BAR, figures))
    name = "null 4k read QD32 through filters, vhost-user-blk, polling"
    if options.rows in name:
        figures = measure("vhost", bench_vhost.VhostServer, bench_vhost.cairn, "", ["--depth", "32", "--poll"], folder,
                          options)
        bare_ns = 1e9 / figures[0]["iops"]
        each = (1e9 / figures[MOST]["iops"] - bare_ns) / MOST
        rows.append(judged(name, f"each takes {each:.1f} ns (bar {NS_BAR}) of a request's {bare_ns:.0f}", each <= NS_BAR,
                           figures))
    return {"rows": rows}
