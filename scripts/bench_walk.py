#!/usr/bin/python3
"""The walk of a request alone: ns per request and per pass-through layer, and, where valgrind is there, instructions per
request, which are the same on each run of one build. usage: scripts/bench_walk.py (after `make benches`)"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WALK = os.path.join(ROOT, "build/bench/walk")
REQUESTS = 20000
STACKS = [("raw", 0)] + [(kind, layers) for kind in ("raw", "delay", "throttle", "blkdebug", "copy-on-read", "mixed")
                         for layers in (1, 4, 10)]


def instructions(kind, layers):
    """Per request, client's share of filling it in included."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
                                 "--collect-atstart=no", "--toggle-collect=walk_requests", WALK, kind, str(layers),
                                 str(REQUESTS)], capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode or not found:
        sys.exit(f"callgrind failed:\n{result.stderr}")
    return int(found.group(1)) / REQUESTS


def measure():
    """Prints both tables; returns instructions per request by kind and count of layers, if they can be counted."""
    subprocess.run([WALK], check=True)
    if not shutil.which("valgrind"):
        print("no valgrind: instructions are not counted")
        return {}
    counts = {}
    print(f"\n{'layers':12} {'count':>6} {'instructions/request':>22} {'/layer':>8}")
    for kind, layers in STACKS:
        count = counts[f"{kind} {layers}"] = instructions(kind, layers)
        bare = counts[f"{STACKS[0][0]} 0"]
        share = f"{(count - bare) / layers:8.1f}" if layers else ""
        print(f"{kind if layers else 'none':12} {layers:6} {count:22.1f} {share}", flush=True)
    return counts


if __name__ == "__main__":
    measure()
