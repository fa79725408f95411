#!/usr/bin/python3
"""How long clients stand still when a filter is pushed onto their disk, or popped: build/bench/graph_stall on a null disk,
4k reads, queue depth 32. usage: scripts/bench_graph.py (after `make benches`)"""
import json
import os
import subprocess
import sys
import tempfile

import bench_common

STALL = os.path.join(bench_common.ROOT, "build/bench/graph_stall")
CAIRNCTL = os.path.join(bench_common.ROOT, "build/cairnctl")
ROUNDS = 1000
BAR_US, AIM_US = 2000, 500      # p99 of the stall
QUANTILES = ("p50", "p90", "p99", "p99.9", "max")


def measure(folder, rounds):
    server = bench_common.Server("stall", lambda path: [
        bench_common.CAIRND, "--qmp", path + ".qmp", "--object", "iothread,id=t0", "--blockdev",
        "driver=null-co,node-name=disk0,size=1G", "--nbd-server", f"addr.type=unix,addr.path={path}"], folder, "disk")
    try:
        for command in (["source-add", "id=disk", "node=disk0"],
                        ["block-export-add", "type=nbd", "id=disk", "node-name=disk", "iothread=t0"]):
            subprocess.run([CAIRNCTL, "-s", server.socket + ".qmp", *command], check=True, stdout=subprocess.DEVNULL)
        result = subprocess.run([STALL, "--nbd", server.socket, "--qmp", server.socket + ".qmp", "--rounds", str(rounds)],
                                check=True, capture_output=True, text=True)
        return json.loads(result.stdout)
    finally:
        server.stop()


def run(folder, options):
    found = measure(folder, max(100, ROUNDS * options.rounds // 3))
    print(f"{'longest latency, us':22}" + "".join(f"{name:>10}" for name in QUANTILES))
    for kind in ("nothing", "push", "pop", "command"):
        print(f"{kind:22}" + "".join(f"{found[kind][name]:10.0f}" for name in QUANTILES), flush=True)
    rows = []
    for kind in ("push", "pop"):
        # What the machine itself does to clients while nothing changes, in stretches of the same length, is not the change's.
        stall = max(0, found[kind]["p99"] - found["nothing"]["p99"])
        met = stall <= BAR_US
        print(f"{kind}: p99 {found[kind]['p99']:.0f} us, {stall:.0f} us more than without a change (bar {BAR_US}, aim "
              f"{AIM_US}): {'met' if met else 'NOT MET'}")
        rows.append({"name": f"stall of a {kind}", "met": met, "stall_us": stall})
    return {"rows": rows, "latencies_us": found}


if __name__ == "__main__":
    class Options:
        rounds = 3
    with tempfile.TemporaryDirectory(prefix="cairn-bench-") as scratch:
        sys.exit(not all(row["met"] for row in run(scratch, Options)["rows"]))
