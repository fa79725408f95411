"""Daemons with a few nodes and an export, and stock tools: what tests of drivers share."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nbd_client import *  # noqa: F403
import programs


class Filters(programs.Program):
    def uri(self, export="disk"):
        return f"nbd+unix:///{export}?socket={self.path('nbd')}"

    def file(self, name, size, byte=None):
        with open(self.path(name), "wb") as disk:
            if byte is not None:
                disk.write(bytes([byte]) * size)
            disk.truncate(size)
        return self.path(name)

    def daemon(self, *nodes, export="disk", options=()):
        """Starts cairnd with these nodes (dictionaries) and an export of the one called `export`."""
        arguments = ["--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}", *options]
        for node in nodes:
            arguments += ["--blockdev", json.dumps(node)]
        if export:
            arguments += ["--export", f"type=nbd,id={export},node-name={export},writable=on"]
        return self.serve(*arguments)

    def client(self, export="disk", **how):
        client = NbdClient(self.path("nbd")).go(export, **how)
        self.addCleanup(client.close)
        return client

    def run_tool(self, *command, check=True):
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=programs.PATIENCE,
                                check=False)
        if check:
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def qemu_io(self, *commands, export="disk", check=True):
        arguments = [part for command in commands for part in ("-c", command)]
        return self.run_tool("qemu-io", "-f", "raw", *arguments, self.uri(export), check=check)
