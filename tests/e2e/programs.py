"""Starting the programs in a scratch folder: what the tests of the programs share."""
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("CAIRN_BUILD", os.path.join(ROOT, "build")))
CAIRND = os.path.join(BUILD, "cairnd")
CAIRNCTL = os.path.join(BUILD, "cairnctl")
PATIENCE = 60   # seconds; sanitizers on a loaded machine are slow


def wait_until(condition, what):
    """Waits for condition() to be true and returns its value."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"gave up waiting for {what}")


class Program(unittest.TestCase):
    """A scratch folder as working directory, and processes that do not outlive the test."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="cairn-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.environment = {name: value for name, value in os.environ.items()
                            if name not in ("CAIRN_SOCKET", "NOTIFY_SOCKET", "JOURNAL_STREAM")}
        self.environment["HOME"] = self.folder
        self.socket = os.path.join(self.folder, "qmp")

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as stream:
            stream.write(text)
        return self.path(name)

    def cairnd(self, *options, **keywords):
        """Runs cairnd to its end."""
        return subprocess.run([CAIRND, *options], cwd=self.folder, env=self.environment, capture_output=True,
                              text=True, timeout=PATIENCE, check=False, **keywords)

    def start(self, *options, **keywords):
        """Starts cairnd in the background; does not wait until it is ready."""
        keywords.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen([CAIRND, *options], cwd=self.folder, env=keywords.pop("env", self.environment),
                                   text=True, **keywords)
        self.addCleanup(self.reap, process)
        return process

    @staticmethod
    def reap(process):
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()

    def serve(self, *options):
        """Starts cairnd with QMP and waits until it can be asked."""
        process = self.start("--qmp", "qmp", *options)
        wait_until(lambda: process.poll() is not None or self.cairnctl("query-version").returncode == 0, "cairnd")
        self.assertIsNone(process.poll(), process.poll() and process.stderr.read())
        return process

    def end(self, process):
        """Stops it, and returns what it said."""
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, said)
        return said

    def cairnctl(self, *arguments, **keywords):
        return subprocess.run([CAIRNCTL, "-s", self.socket, *arguments], cwd=self.folder, env=self.environment,
                              capture_output=True, text=True, timeout=PATIENCE, check=False, **keywords)

    def ask(self, *arguments):
        """What a command returns."""
        result = self.cairnctl("--raw", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)["return"]

    def assert_fails(self, result, text):
        self.assertEqual(result.returncode, 1, result.stderr)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertIn(text, lines[0])
