"""README.md keeps what it says."""
import os
import re
import signal
import subprocess
import tempfile
import unittest

from programs import BUILD, PATIENCE, ROOT, wait_until


class Readme(unittest.TestCase):
    """The tour of README.md, run as it stands."""

    def test_tour(self):
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as stream:
            blocks = re.findall(r"^```sh tour\n(.*?)^```$", stream.read(), re.MULTILINE | re.DOTALL)
        self.assertGreater(len(blocks), 5)
        with tempfile.TemporaryDirectory(prefix="cairn-tour-") as folder:
            os.symlink(BUILD, os.path.join(folder, "build"))
            try:
                result = subprocess.run(["bash", "-c", "set -euxo pipefail\n" + "".join(blocks)], cwd=folder,
                                        env=dict(os.environ, LC_ALL="C.UTF-8"), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, timeout=4 * PATIENCE, check=False)
            finally:
                self.stop(os.path.join(folder, "run", "tour.pid"))
            self.assertEqual(result.returncode, 0, result.stdout)
            for text in ("Images are identical.", "export e0 (nbd)", "└─ root: first (raw, 64 MiB, read-only)",
                         '"offset": 0', "in use", '"id": "e2"'):
                self.assertIn(text, result.stdout)
            wait_until(lambda: not self.left(folder), "the end of the daemon")

    @staticmethod
    def left(folder):
        return [name for name in os.listdir(os.path.join(folder, "run")) if name.endswith((".sock", ".pid"))]

    @staticmethod
    def stop(pidfile):
        """Only if the tour did not get to its end."""
        try:
            with open(pidfile, encoding="utf-8") as stream:
                os.kill(int(stream.read()), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            pass


if __name__ == "__main__":
    unittest.main(verbosity=2)
