"""What filters cost that let everything pass: a null disk through 0 to 10 of them, over NBD and vhost-user-blk. Each stack
is compared with the bare node of the same round."""
import statistics

import bench_common
import bench_vhost
from bench_common import SIZE, Server, in_turn, median

LAYERS = (0, 1, 4, 10)
MOST = LAYERS[-1]
IOPS_BAR, NS_BAR = 0.95, 5      # of the bare node's, over NBD; for each layer, over vhost-user-blk
NULL = f"driver=null-co,node-name={{}},size={SIZE}"


def stacked(cairn, layers):
    """The command of a null node, "d" or below so many filters of which the highest is "d"."""
    names = [f"f{i}" for i in range(layers)][:-1] + ["d"]
    if not layers:
        return cairn(NULL.format("d"), 1)
    below = ["null"] + names[:-1]
    nodes = [f"driver=delay,node-name={name},file={child}" for name, child in zip(names, below)]
    words = [word for node in [NULL.format("null"), *nodes[:-1]] for word in ("--blockdev", node)]
    return cairn(nodes[-1], 1, *words)


def measure(name, kind, cairn, export, load, folder, options):
    """kind: of Server. The medians of each stack, and for each round what the highest has of the bare one's IOPS."""
    running = [kind(f"{name}-{layers}", stacked(cairn, layers), folder, export) for layers in LAYERS]
    samples = {server.name: [] for server in running}
    try:
        for number in range(options.rounds):
            for server in in_turn(running, number):
                samples[server.name].append(server.load(load, options.seconds))
    finally:
        for server in running:
            server.stop()
    bare, most = samples[f"{name}-0"], samples[f"{name}-{MOST}"]
    return {layers: median(samples[f"{name}-{layers}"]) for layers in LAYERS}, [
        high["iops"] / low["iops"] for high, low in zip(most, bare)]


def judged(name, text, met, figures):
    print(f"\n{name}: {text}: {'met' if met else 'NOT MET'}")
    for layers, taken in figures.items():
        print(f"  {layers:2} filters {taken['iops']:10.0f}/s  server {taken['server_cpu_us']:7.3f} us", flush=True)
    return {"name": name, "servers": figures, "met": met}


def run(folder, options):
    rows = []
    name = "null 4k read QD32 through filters, NBD"
    if options.rows in name:
        figures, ratios = measure("nbd", Server, bench_common.cairn, "d", [], folder, options)
        ratio = statistics.median(ratios)
        rows.append(judged(name, f"{MOST} have {ratio:.3f} x the IOPS of none (bar {IOPS_BAR})", ratio >= IOPS_BAR, figures))
    name = "null 4k read QD32 through filters, vhost-user-blk, polling"
    if options.rows in name:
        figures, ratios = measure("vhost", bench_vhost.VhostServer, bench_vhost.cairn, "", ["--depth", "32", "--poll"],
                                  folder, options)
        bare_ns = 1e9 / figures[0]["iops"]
        each = bare_ns * (1 / statistics.median(ratios) - 1) / MOST
        rows.append(judged(name, f"each takes {each:.1f} ns (bar {NS_BAR}) of a request's {bare_ns:.0f}", each <= NS_BAR,
                           figures))
    return {"rows": rows}
