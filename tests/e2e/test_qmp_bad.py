#!/usr/bin/python3
"""Bad QMP inputs: each is answered with an error that tells, the session lives on, and nothing has changed."""
import json
import os
import socket
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from qmp_bad_inputs import TABLE
import programs

RESET = b"\xff"     # ends what is left of a broken message


class QmpBad(programs.Program):
    def setUp(self):
        super().setUp()
        for name in ("disk", "locked"):
            with open(self.path(name), "wb") as disk:
                disk.truncate(1 << 20)
        self.daemon = self.serve(
            "--object", "qom-type=iothread,id=io",
            "--blockdev", "driver=file,filename=disk,node-name=disk",
            "--blockdev", "driver=file,filename=locked,node-name=locked,read-only=on",
            "--nbd-server", "addr.type=unix,addr.path=nbd",
            "--export", "type=nbd,id=e,node-name=disk")

    def tearDown(self):
        self.assertNotIn("Sanitizer", self.end(self.daemon))

    def connect(self, negotiate=True):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(programs.PATIENCE)
        connection.connect(self.socket)
        stream = connection.makefile("rwb", buffering=0)
        self.addCleanup(stream.close)
        self.addCleanup(connection.close)
        self.assertIn("QMP", json.loads(stream.readline()))
        if negotiate:
            self.assertEqual(self.tell(connection, stream, b'{"execute": "qmp_capabilities"}', b""), [{"return": {}}])
        return connection, stream

    def tell(self, connection, stream, data, reset=RESET, name="query-version"):
        """All answers to some input; the question after it shows where they end and that the session is alive."""
        connection.sendall(data + b"\n" + reset + b'{"execute": "%s", "id": "end"}\n' % name.encode())
        answers = []
        while True:
            line = stream.readline()
            self.assertTrue(line, f"hung up after {data[:200]}")
            answer = json.loads(line)
            if answer.get("id") == "end":
                return answers
            answers.append(answer)

    def state(self):
        nodes = {node["node-name"]: node["image"]["virtual-size"] for node in self.ask("query-named-block-nodes")}
        iothreads = [{name: value for name, value in row.items() if name not in ("polled-ns", "poll-hits", "sleeps")}
                     for row in self.ask("query-iothreads")]
        return (nodes, self.ask("query-block-exports"), iothreads, self.ask("query-sources"),
                self.ask("query-nbd-servers"), sorted(os.listdir(self.folder)))

    def assert_error(self, answers, kind, text):
        self.assertTrue(answers)
        self.assertIn("error", answers[0])
        self.assertEqual(answers[0]["error"]["class"], kind)
        self.assertIn(text, answers[0]["error"]["desc"])

    def test_table(self):
        before = self.state()
        connection, stream = self.connect()
        count = 0
        for command, kind, prefix, rows in TABLE:
            for given, text in rows:
                given = prefix + given
                if command is not None:
                    given = f'{{"execute": "{command}", "arguments": {given}}}'
                with self.subTest(given=given):
                    self.assert_error(self.tell(connection, stream, given.encode()), kind, text)
                count += 1
        self.assertGreaterEqual(count, 150)
        self.assertEqual(self.state(), before)

    def test_bytes(self):
        connection, stream = self.connect()
        for data, text in (
                (b'{"execute": "\xc3"}', "JSON parse error"), (b'{"execute": "\xff"}', "JSON parse error"),
                (b'{"execute": "\xc0\x80"}', "JSON parse error"), (b'{"execute": "\xed\xa0\x80"}', "JSON parse error"),
                (b'{"execute": "\xf4\x90\x80\x80"}', "JSON parse error"), (b"\x80", "JSON parse error"),
                (b'{"execute": "\xe2\x82', "JSON parse error"), (b"\xef\xbb\xbf{}", "JSON parse error"),
                (b"\0", "JSON parse error"), (bytes(range(1, 9)), "JSON parse error"),
                (b'{"execute": "a\0b"}', "JSON parse error"), (RESET * 3, "JSON parse error")):
            with self.subTest(data=data):
                self.assert_error(self.tell(connection, stream, data), "GenericError", text)

    def test_size_and_depth(self):
        connection, stream = self.connect()
        for data, text in (
                (b"[" * 65, "depth limit"), (b"[" * 100000, "depth limit"), (b'{"a":' * 1000, "depth limit"),
                (b"[" * 64 + b"]" * 64, "must be a JSON object"), (b"[" * 65 + b"]" * 65, "depth limit"),
                (b'{"execute": "query-version", "arguments": ' + b'{"a":' * 70 + b"1" + b"}" * 71, "depth limit"),
                (b'{"execute": "block_resize", "arguments": {"node-name": "%s", "size": 1}}' % (b"x" * (8 << 20)), ""),
                (b'{"execute": "blockdev-add", "arguments": {"driver": "%s"}}' % (b"y" * (1 << 20)), "driver"),
                (b'{"execute": "blockdev-add", "arguments": {"%s": 1, "driver": "null-co"}}' % (b"z" * (1 << 20)), ""),
                (b"[" + b"1," * 200000 + b"1]", "limit"),
                (b'{"execute": "block_resize", "arguments": {"node-name": "disk", "size": %s}}' % (b"9" * 100000), "")):
            with self.subTest(data=data[:60], size=len(data)):
                answers = self.tell(connection, stream, data)
                self.assert_error(answers, "GenericError", text)
                self.assertLessEqual(len(answers), 2)      # the second one: to the reset byte
                self.assertLess(len(answers[0]["error"]["desc"]), 5000)
        connection.sendall(b'{"execute": "%s"}\n' % (b"a" * (1 << 20)))
        self.assertEqual(json.loads(stream.readline())["error"]["class"], "CommandNotFound")

    def test_before_negotiation(self):
        for data, kind, text in (
                (b'{"execute": "query-version"}', "CommandNotFound", "Expecting capabilities negotiation"),
                (b'{"execute": "quit"}', "CommandNotFound", "Expecting capabilities negotiation"),
                (b'{"execute": "nope"}', "CommandNotFound", ""), (b"{}", "GenericError", "lacks member 'execute'"),
                (b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}', "GenericError", ""),
                (b'{"execute": "qmp_capabilities", "arguments": {"enable": ["nope"]}}', "GenericError", ""),
                (b'{"execute": "qmp_capabilities", "arguments": {"enable": 1}}', "GenericError", "enable"),
                (b'{"execute": "qmp_capabilities", "arguments": {"x": 1}}', "GenericError", "'x' is unexpected"),
                (b"junk", "GenericError", "JSON parse error"), (b"[1,", "GenericError", "JSON parse error")):
            with self.subTest(data=data):
                connection, stream = self.connect(negotiate=False)
                self.assert_error(self.tell(connection, stream, data), kind, text)
                self.assertEqual(self.tell(connection, stream, b'{"execute": "qmp_capabilities"}', b""),
                                 [{"return": {}}])

    def test_cut_anywhere(self):
        message = b'{"execute": "block_resize", "arguments": {"node-name": "disk", "size": 4096}, "id": [1, {}]}'
        for size in range(len(message)):
            connection, stream = self.connect()
            connection.sendall(message[:size])
            if size % 2:
                connection.shutdown(socket.SHUT_WR)
                self.assertNotIn(b"return", stream.read(4096) or b"")
            connection.close()
        self.assertEqual(os.stat(self.path("disk")).st_size, 1 << 20)
        self.assertEqual(self.cairnctl("query-version").returncode, 0)


if __name__ == "__main__":
    unittest.main()
