"""cairnctl from outside, on a pipe and on a terminal."""
import json
import os
import pty
import re
import select
import socket
import subprocess
import time
import unittest

from programs import CAIRNCTL, PATIENCE, Program, wait_until


class Cairnctl(Program):
    def setUp(self):
        super().setUp()
        self.process = self.serve("--blockdev", "null-co,node-name=n,size=1G")

    def tearDown(self):
        if self.process.poll() is None:
            self.end(self.process)

    def test_typed_arguments(self):
        self.ask("blockdev-add", "driver=raw", "node-name=r", "offset=0x200", "size=64K", "read-only=on",
                 "file.driver=null-co", "file.size=1048576B", "file.latency-ns=010")
        options = json.loads(self.cairnctl("node", "options", "r").stdout)
        self.assertEqual((options["offset"], options["size"], options["read-only"]), (512, 65536, True))
        self.assertEqual((options["file"]["size"], options["file"]["latency-ns"]), (1 << 20, 10))

    def test_lists_and_json(self):
        self.ask("transaction", "actions.0.type=blockdev-add", "actions.0.data.driver=null-co",
                 "actions.0.data.node-name=a", "actions.1.type=blockdev-add",
                 'actions.1.data:={"driver": "null-co", "node-name": "b"}')
        self.ask("blockdev-add", '{"driver": "raw", "node-name": "c"}', "file=a")
        result = self.cairnctl("blockdev-add", "-", input='{"driver": "null-co", "node-name": "d"}')
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual({node["node-name"] for node in self.ask("query-named-block-nodes")}, set("nabcd"))

    def test_options_make_the_node_again(self):
        self.ask("blockdev-add", "driver=raw", "node-name=r", "offset=4K", "file=n")
        before = self.cairnctl("node", "options", "r").stdout
        self.ask("blockdev-del", "node-name=r")
        self.assertEqual(self.cairnctl("blockdev-add", "-", input=before).returncode, 0)
        self.assertEqual(self.cairnctl("node", "options", "r").stdout, before)

    def test_output(self):
        self.assertEqual(self.cairnctl("blockdev-add", "driver=null-co", "node-name=a").stdout, "")
        self.assertEqual(self.cairnctl("--raw", "blockdev-del", "node-name=a").stdout, '{"return": {}}\n')
        text = self.cairnctl("query-version").stdout
        self.assertTrue(text.startswith("{\n  \""))
        self.assertNotIn("\033", text)
        self.assertEqual(json.loads(text)["name"], "cairnd")
        self.assertIn("\033[", self.cairnctl("--color=always", "query-version").stdout)

    def test_exit_status(self):
        result = self.cairnctl("blockdev-del", "node-name=absent")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"^cairnctl: GenericError: .*absent.*\n$")
        self.assertEqual(self.cairnctl("nope").returncode, 1)
        self.assertRegex(self.cairnctl("nope").stderr, "^cairnctl: CommandNotFound: ")
        result = self.cairnctl("--raw", "nope")
        self.assertEqual((result.returncode, json.loads(result.stdout)["error"]["class"]), (1, "CommandNotFound"))
        for arguments in (["--nonsense"], [], ["blockdev-del", "x"], ["blockdev-del", "=x"], ["blockdev-del", "a:=["],
                          ["blockdev-del", "[]"], ["blockdev-del", "node-name=a", "node-name=b"],
                          ["blockdev-del", "a=b", "a.b=c"], ["blockdev-del", "a..b=c"], ["--color=red", "quit"],
                          ["node"], ["node", "options"], ["tree", "x"], ["events", "-n", "0"], ["help", "nope"]):
            with self.subTest(arguments=arguments):
                self.assertEqual(self.cairnctl(*arguments).returncode, 2)
        self.assertIn("options come before the command", self.cairnctl("query-version", "--raw").stderr)
        self.socket = self.path("absent")
        result = self.cairnctl("query-version")
        self.assertEqual(result.returncode, 3)
        self.assertIn("absent", result.stderr)

    def test_wrong_types_are_the_daemons_to_judge(self):
        for arguments in (["driver=null-co", "node-name=x", "size=huge"], ["driver=null-co", "node-name=x", "what=1"],
                          ["driver=nope", "node-name=x"], ["driver=raw", "node-name=x", "file.driver=nope"]):
            self.assertEqual(self.cairnctl("blockdev-add", *arguments).returncode, 1)

    def test_not_qmp(self):
        self.socket = self.path("other")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.socket)
            listener.listen()
            for text in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{}\n", b"[1]\n", b""):
                client = subprocess.Popen([CAIRNCTL, "-s", self.socket, "query-version"], stderr=subprocess.PIPE)
                connection, _ = listener.accept()
                connection.sendall(text)
                connection.close()
                client.communicate(timeout=PATIENCE)
                self.assertEqual(client.returncode, 3)

    def test_socket_from_environment(self):
        self.environment["CAIRN_SOCKET"] = self.socket
        result = subprocess.run([CAIRNCTL, "query-version"], env=self.environment, capture_output=True, check=False)
        self.assertEqual(result.returncode, 0)
        del self.environment["CAIRN_SOCKET"]
        os.mkdir(self.path("run"))
        os.symlink(self.socket, self.path("run/cairn.sock"))
        result = subprocess.run([CAIRNCTL, "query-version"], env=self.environment, cwd=self.folder,
                                capture_output=True, check=False)
        self.assertEqual(result.returncode, 0)

    def test_tree(self):
        self.ask("blockdev-add", "driver=raw", "node-name=r", "read-only=on", "file=n")
        self.ask("source-add", "id=s", "node=r")
        self.ask("blockdev-add", "driver=null-co", "node-name=alone", "size=1536")
        self.environment["LC_ALL"] = "C"
        text = self.cairnctl("tree").stdout
        self.assertIn("source s\n`- top: r (raw, 1 GiB, read-only)\n   `- file: n (null-co, 1 GiB)\n", text)
        self.assertIn("\nalone (null-co, 1.5 KiB)\n", text)
        self.environment["LC_ALL"] = "C.UTF-8"
        self.assertIn("source s\n└─ top: r", self.cairnctl("tree").stdout)

    def test_help(self):
        text = self.cairnctl("help").stdout
        self.assertIn("  tree ", text)
        self.assertIn("  blockdev-add\n", text)
        text = self.cairnctl("help", "blockdev-add", "driver=null-co").stdout
        self.assertIn("[latency-ns=int]", text)
        self.assertRegex(text, r"driver=(\S+\|)?file\|")

    def test_events(self):
        self.ask("nbd-server-start", "addr.type=unix", "addr.data.path=nbd")
        events = subprocess.Popen([CAIRNCTL, "-s", self.socket, "events", "-n", "2", "BLOCK_EXPORT_DELETED"],
                                  stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, events)

        def exports_until_seen():
            for name in ("e1", "e2"):
                self.ask("block-export-add", "type=nbd", f"id={name}", "node-name=n")
                self.ask("block-export-del", f"id={name}")
                time.sleep(0.05)
            return events.poll() is not None

        wait_until(exports_until_seen, "two events")
        lines = events.stdout.read().splitlines()
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} BLOCK_EXPORT_DELETED id=e[12]$")

    def test_script(self):
        result = self.cairnctl("shell", input='# comment\n\nblockdev-add driver=null-co "node-name=a"\n'
                                              'blockdev-add {"driver": "null-co", "node-name": "b"}\n'
                                              "blockdev-del node-name='absent'\nblockdev-del node-name=a\n")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(len(result.stderr.splitlines()), 1)
        self.assertEqual({node["node-name"] for node in self.ask("query-named-block-nodes")}, {"n", "b"})
        self.assertEqual(self.cairnctl("shell", input='"open\n').returncode, 2)
        self.assertEqual(self.cairnctl("shell", input="exit\nnope\n").returncode, 0)


class Shell(Program):
    """The shell on a terminal."""

    def setUp(self):
        super().setUp()
        self.process = self.serve("--blockdev", "null-co,node-name=disk0")
        self.environment.update(TERM="xterm", LC_ALL="C.UTF-8")
        self.open_shell()

    def open_shell(self):
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.execve(CAIRNCTL, ["cairnctl", "-s", self.socket, "--color=never", "shell"], self.environment)
        self.addCleanup(os.close, self.terminal)
        self.seen = ""
        self.expect("cairn> ")

    def expect(self, text):
        """Reads up to text; forgets everything up to there."""
        def arrived():
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.terminal, 65536).decode(errors="replace")
                except OSError:
                    pass
            return text in self.plain()

        try:
            wait_until(arrived, text)
        except AssertionError:
            self.fail(f"expected {text!r}, saw {self.seen!r}")
        self.seen = ""

    def plain(self):
        """What is seen, without the ways in which the cursor gets there."""
        return re.sub(r"\r?\033\[[0-9;?]*[A-Za-z]", "", self.seen)

    def type(self, text):
        os.write(self.terminal, text.encode())

    def leave(self):
        self.type("\x04")
        _, status = os.waitpid(self.child, 0)
        return os.waitstatus_to_exitcode(status)

    def test_commands_and_history(self):
        self.type("query-version\n")
        self.expect('"name": "cairnd"')
        self.type("nope\n")
        self.expect("CommandNotFound")
        self.assertEqual(self.leave(), 0)
        self.assertTrue(os.path.exists(self.path(".cairnctl_history")))
        self.open_shell()
        self.type("\x10\x10\n")     # two lines back
        self.expect('"name": "cairnd"')
        self.assertEqual(self.leave(), 0)

    def test_completion(self):
        self.assertEqual(self.cairnctl("source-add", "id=stable", "node=disk0").returncode, 0)
        for typed, shown in (("query-na\t", "query-named-block-nodes "), ("blockdev-add dri\t", "driver="),
                             ("blockdev-add driver=nul\t", "null-co "),
                             ("blockdev-add driver=null-co lat\t", "latency-ns="),
                             ("blockdev-add driver=raw file.driver=host\t", "host_device "),
                             ("blockdev-add driver=raw file=d\t", "disk0 "), ("blockdev-del node-name=\t", "disk0 "),
                             ("source-push source=\t", "stable "), ("block-export-add node-name=s\t", "stable "),
                             ("x-blockdev-change parent=d\t", "disk0 "), ("x-blockdev-change parent=s\t", "stable "),
                             ("node \t", "options "), ("node options d\t", "disk0 "), ("help blockdev-d\t", "del "),
                             ("blockdev-add driver=null-co read-only=\t\t", "read-only=on")):
            with self.subTest(typed=typed):
                self.type(typed)
                self.expect(shown)
                self.type("\x03")   # forgets the line
                self.expect("cairn> ")
        self.assertEqual(self.leave(), 0)

    def test_events_and_end(self):
        self.type("query-ver")
        self.expect("query-ver")
        self.cairnctl("quit")
        self.expect("SHUTDOWN guest=false")
        _, status = os.waitpid(self.child, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 3)
        self.assertEqual(self.process.wait(timeout=PATIENCE), 0)

    def test_quit_asks(self):
        self.type("quit\n")
        self.expect("[y/N]")
        self.type("n\n")
        self.expect("cairn> ")
        self.assertIsNone(self.process.poll())
        self.type("quit\n")
        self.expect("[y/N]")
        self.type("y\n")
        self.assertEqual(self.process.wait(timeout=PATIENCE), 0)
        _, status = os.waitpid(self.child, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
