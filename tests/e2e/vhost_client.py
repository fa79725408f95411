"""Running cairn-vhost-bench: what the tests of vhost-user-blk share."""
import json
import os
import subprocess

import programs

BENCH = os.path.join(programs.BUILD, "cairn-vhost-bench")
MIX = "--mix read=50,write=40,flush=2,discard=3,write-zeroes=3,get-id=2"


class VhostTest(programs.Program):
    def command(self, *options):
        return [BENCH, *options, "vhost"]

    def run_bench(self, *options):
        return subprocess.run(self.command(*options), cwd=self.folder, env=self.environment, capture_output=True,
                              text=True, timeout=4 * programs.PATIENCE, check=False)

    def bench(self, *options):
        """What it measured; it must be content."""
        result = self.run_bench("--json", *options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def bench_fails(self, text, *options):
        result = self.run_bench(*options)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn(text, result.stderr)

    def start_bench(self, *options):
        process = subprocess.Popen(self.command("--json", *options), cwd=self.folder, env=self.environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, process)
        return process
