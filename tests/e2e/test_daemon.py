"""cairnd from outside: its options, its start and its end."""
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import time
import unittest

from nbd_client import FLUSH, NbdClient, READ, WRITE
from programs import CAIRNCTL, CAIRND, PATIENCE, Program, ROOT, wait_until


class Options(Program):
    def test_information(self):
        self.assertRegex(self.cairnd("--version").stdout, r"^cairnd \d+\.\d+\.\d+\n$")
        self.assertEqual(self.cairnd("-V").returncode, 0)
        usage = self.cairnd("--help")
        self.assertEqual(usage.returncode, 0)
        for option in ("blockdev", "export", "nbd-server", "object", "chardev", "monitor", "qmp", "config", "daemonize",
                       "pidfile", "schema", "ring", "log-level"):
            self.assertIn(f"--{option}", usage.stdout)
        schema = json.loads(self.cairnd("--schema").stdout)
        self.assertEqual(schema["$schema"], "https://json-schema.org/draft/2020-12/schema")

    def test_help_of_options(self):
        drivers = self.cairnd("--blockdev", "help").stdout.split()
        for driver in ("file", "host_device", "null-co", "raw"):
            self.assertIn(driver, drivers)
        self.assertIn("latency-ns=", self.cairnd("--blockdev", "null-co,help").stdout)
        self.assertIn("latency-ns=", self.cairnd("--blockdev", "driver=null-co,help").stdout)
        self.assertIn("iothread", self.cairnd("--object", "help").stdout)
        self.assertIn("nbd", self.cairnd("--export", "help").stdout)
        self.assertIn("addr=", self.cairnd("--nbd-server", "help").stdout)
        self.assertIn("socket,id=", self.cairnd("--chardev", "help").stdout)
        self.assertIn("chardev=", self.cairnd("--monitor", "help").stdout)
        self.assert_fails(self.cairnd("--blockdev", "nope,help"), "nope")

    def test_full_device(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            result = subprocess.run([CAIRND, "--schema"], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output", result.stderr)

    def test_errors(self):
        null = "null-co,node-name=n"
        for options, text in (
                (["--nonsense"], "cairnd: --nonsense: there is no such option"),
                (["stray"], "stray: unexpected argument"),
                (["--blockdev"], "--blockdev: an argument is missing"),
                (["--blockdev", "nope,node-name=n"],
                 "--blockdev nope,node-name=n: Parameter 'driver' does not accept value 'nope'"),
                (["--blockdev", "null-co"], "--blockdev null-co: 'node-name' must be specified"),
                (["--blockdev", "null-co,node-name=n,size=huge"], "size"),
                (["--blockdev", "null-co,node-name=n,what=1"], "what"),
                (["--blockdev", '{"driver": "null-co"'], "JSON"),
                (["--blockdev", null, "--blockdev", null], "Duplicate nodes with node-name='n'"),
                (["--blockdev", "file,node-name=n,filename=absent"], "absent"),
                (["--blockdev", "raw,node-name=n,file=later", "--blockdev", "null-co,node-name=later"], "later"),
                (["--export", "nbd,id=e,node-name=absent"], "--export nbd,id=e,node-name=absent: "),
                (["--object", "nothing,id=o"], "nothing"),
                (["--nbd-server", "addr.type=unix"], "addr.path"),
                (["--nbd-server", "addr.type=unix,addr.path=/nonexistent/s"], "/nonexistent/s"),
                (["--qmp", "/nonexistent/s"], "/nonexistent/s"),
                (["--qmp", "x" * 200], "too long"),
                (["--monitor", "c"], "Chardev 'c' not found"),
                (["--monitor", "c,mode=readline"], "readline"),
                (["--chardev", "socket,id=c"], "is needed"),
                (["--chardev", "socket,path=p"], "Parameter 'id' is missing"),
                (["--chardev", "id=c"], "Parameter 'backend' is missing"),
                (["--chardev", "pty,id=c"], "Parameter 'backend' does not accept value 'pty'"),
                (["--chardev", "socket,id=c,path=p,color=red"], "Parameter 'color' is unexpected"),
                (["--chardev", "socket,id=c,path=p,server=maybe"], "Parameter 'server' expects 'on' or 'off'"),
                (["--chardev", "socket,id=c,path=p,server=on,wait=on"], "wait"),
                (["--chardev", "socket,id=c,fd=77"], "77"),
                (["--chardev", "socket,id=c,fd=x"], "fd"),
                (["--chardev", "stdio,id=c", "--chardev", "stdio,id=c"], "Chardev with id 'c' already exists"),
                (["--chardev", "socket,id=c,path=absent", "--monitor", "c"], "absent"),
                (["--log-level", "loud"], "loud"),
                (["--ring", "epoll"], "epoll"),
                (["--pidfile", "/nonexistent/pid"], "/nonexistent/pid"),
                (["--config", "absent"], "--config absent: No such file or directory"),
                (["--config", "/"], "Is a directory")):
            with self.subTest(options=options):
                result = self.cairnd(*options)
                self.assert_fails(result, text)
                self.assertTrue(result.stderr.startswith("cairnd: "))
        self.assertEqual(os.listdir(self.folder), [])

    def test_failed_start_leaves_nothing(self):
        result = self.cairnd("--qmp", "qmp", "--nbd-server", "addr.type=unix,addr.path=nbd", "--pidfile", "pid",
                             "--blockdev", "null-co,node-name=n", "--export", "nbd,id=e,node-name=n", "--export",
                             "nbd,id=e,node-name=n")
        self.assert_fails(result, "'e'")
        self.assertEqual(os.listdir(self.folder), [])


class Config(Program):
    def test_forms(self):
        add = [{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": name}} for name in "ab"]
        lines = "".join(json.dumps(command) + "\n" for command in add)
        for text in (json.dumps(add), json.dumps(add, indent=4), lines, lines.strip(), "\n \n" + lines + "\n\n"):
            with self.subTest(text=text):
                process = self.serve("--config", self.write("config", text))
                self.assertEqual({node["node-name"] for node in self.ask("query-named-block-nodes")}, {"a", "b"})
                self.end(process)

    def test_quit(self):
        self.assertEqual(self.cairnd("--config", self.write("config", '[{"execute": "quit"}]')).returncode, 0)
        self.assertEqual(self.cairnd("--config", self.write("empty", ""), "--config", "config").returncode, 0)

    def test_errors(self):
        for text, expected in (
                ('{"execute": "nope"}', "line 1: nope: "),
                ('\n\n{"execute": "blockdev-add", "arguments": {}}', "line 3: blockdev-add: "),
                ('[{"execute": "query-version"}, {"execute": "blockdev-del", "arguments": {"node-name": "x"}}]',
                 "command 2: blockdev-del: "),
                ('{"execute": "query-version"', "line 1: the file ends inside a command"),
                ("[1]", "command 1: "), ("7", "line 1: "), ("nonsense", "line 1: "), ('{"execute": 3}', "line 1: "),
                ("\0", "NUL")):
            with self.subTest(text=text):
                result = self.cairnd("--config", self.write("config", text))
                self.assert_fails(result, expected)
                self.assertIn("--config ", result.stderr)


class Life(Program):
    def test_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(signal=number):
                process = self.serve("--nbd-server", "addr.type=unix,addr.path=nbd", "--pidfile", "pid", "--object",
                                     "iothread,id=io1", "--blockdev", "null-co,node-name=n", "--blockdev",
                                     "raw,node-name=r,file=n", "--export", "nbd,id=e,node-name=r,iothread=io1")
                events = subprocess.Popen([CAIRNCTL, "-s", self.socket, "--raw", "events"], stdout=subprocess.PIPE,
                                          text=True)
                self.addCleanup(self.reap, events)
                self.ask("query-version")
                time.sleep(0.3)     # until it follows
                process.send_signal(number)
                _, said = process.communicate(timeout=PATIENCE)
                self.assertEqual((process.returncode, said), (0, ""))
                seen = [json.loads(line) for line in events.communicate(timeout=PATIENCE)[0].splitlines()]
                self.assertEqual(events.returncode, 0)
                self.assertEqual(seen[0]["event"], "SHUTDOWN")
                self.assertEqual(seen[0]["data"], {"guest": False, "reason": "host-signal"})
                self.assertIn(("BLOCK_EXPORT_DELETED", "e"), [(e["event"], e["data"].get("id")) for e in seen])
                self.assertEqual(os.listdir(self.folder), [])

    def test_quit(self):
        process = self.serve()
        self.assertEqual(self.cairnctl("quit").returncode, 0)
        self.assertEqual(process.wait(timeout=PATIENCE), 0)
        self.assertFalse(os.path.exists(self.socket))

    def test_signal_during_start(self):
        for _ in range(20):
            process = self.start("--qmp", "qmp", "--blockdev", "null-co,node-name=n")
            wait_until(lambda: self.catches(process.pid, signal.SIGTERM), "the signal handler")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=PATIENCE), 0)
            self.assertEqual(os.listdir(self.folder), [])

    @staticmethod
    def catches(pid, number):
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            return int(re.search(r"SigCgt:\s*(\w+)", status.read()).group(1), 16) >> (number - 1) & 1

    def test_rings(self):
        for ring in ("threads", "auto"):
            with self.subTest(ring=ring):
                process = self.serve("--ring", ring, "--log-level", "debug")
                self.end(process)

    @staticmethod
    def refuse_io_uring():
        """In the child: io_uring_setup(2) is not permitted from now on, as in many containers. Else seccomp lets all pass."""
        rules = ((0x20, 0, 0, 0), (0x15, 0, 1, 425), (6, 0, 0, 0x50000 | errno.EPERM), (6, 0, 0, 0x7fff0000))
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
        program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):   # no new privileges; a filter
            os._exit(99)

    def test_io_uring_refused(self):
        disk = self.write("disk", "x" * 65536)
        process = self.start("--qmp", "qmp", "--log-level", "debug", "--blockdev", f"file,node-name=n,filename={disk}",
                             "--nbd-server", "addr.type=unix,addr.path=nbd", "--export", "nbd,id=e,node-name=n,writable=on",
                             preexec_fn=self.refuse_io_uring)
        wait_until(lambda: process.poll() is not None or os.path.exists(self.socket), "cairnd")
        with NbdClient(self.path("nbd")) as client:
            client.go("n")
            self.assertEqual(client.do(WRITE, 4096, data=b"y" * 4096).error, 0)
            self.assertEqual(client.do(FLUSH).error, 0)
            self.assertEqual(client.do(READ, 0, 8192).data, b"x" * 4096 + b"y" * 4096)
        said = self.end(process)
        self.assertRegex(said, "(?m)^.*main: .*not permitted.*; using threads$")
        result = self.cairnd("--ring", "io_uring", preexec_fn=self.refuse_io_uring)
        self.assertEqual(result.returncode, 1)
        self.assertIn("not permitted", result.stderr)

    def test_many_descriptors(self):
        process = self.serve()
        with open(f"/proc/{process.pid}/limits", encoding="utf-8") as limits:
            soft, hard = re.search(r"Max open files\s+(\S+)\s+(\S+)", limits.read()).groups()
        self.assertEqual(soft, hard)
        self.end(process)


class Background(Program):
    def pid(self):
        with open(self.path("pid"), encoding="utf-8") as stream:
            return int(stream.read())

    def kill_daemon(self, number=signal.SIGTERM):
        """Ends the daemon whose number is in the pid file, and waits until it is gone."""
        descriptor = os.pidfd_open(self.pid())
        self.addCleanup(os.close, descriptor)
        signal.pidfd_send_signal(descriptor, number)
        self.assertTrue(select.select([descriptor], [], [], PATIENCE)[0])

    def test_daemonize(self):
        result = self.cairnd("--daemonize", "--pidfile", "pid", "--qmp", "qmp", "--blockdev", "null-co,node-name=n")
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
        try:
            # ready at once: nothing to wait for
            self.assertEqual(len(self.ask("query-named-block-nodes")), 1)
            pid = self.pid()
            self.assertNotEqual(os.getsid(pid), os.getsid(0))
            for descriptor in range(3):
                self.assertEqual(os.readlink(f"/proc/{pid}/fd/{descriptor}"), "/dev/null")
        finally:
            self.kill_daemon()
        self.assertEqual(os.listdir(self.folder), [])

    def test_closed_standard_files(self):
        """What is opened instead of them must not be written to: here the pid file, by a warning."""
        result = subprocess.run(["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', CAIRND, "--daemonize", "--pidfile", "pid",
                                 "--qmp", "qmp", "--chardev", "stdio,id=unused"], cwd=self.folder,
                                env=self.environment, timeout=PATIENCE, check=False)
        self.assertEqual(result.returncode, 0)
        with open(self.path("pid"), encoding="utf-8") as file:
            self.assertRegex(file.read(), r"\A\d+\n\Z")
        self.assertEqual(self.cairnctl("quit").returncode, 0)
        wait_until(lambda: not os.path.exists(self.path("pid")), "the end")

    def test_log_file_stays(self):
        with open(self.path("log"), "w", encoding="utf-8") as log:
            subprocess.run([CAIRND, "--daemonize", "--pidfile", "pid"], cwd=self.folder, stderr=log, timeout=PATIENCE,
                           check=True)
        target = os.readlink(f"/proc/{self.pid()}/fd/2")
        self.kill_daemon()
        self.assertEqual(os.path.basename(target), "log")

    def test_daemonize_failure(self):
        result = self.cairnd("--daemonize", "--pidfile", "pid", "--qmp", "qmp", "--blockdev", "null-co")
        self.assert_fails(result, "node-name")
        wait_until(lambda: os.listdir(self.folder) == [], "the end of the daemon")

    def test_pidfile(self):
        process = self.serve("--pidfile", "pid")
        self.assertEqual(self.pid(), process.pid)
        self.assert_fails(self.cairnd("--pidfile", "pid"), "--pidfile pid: locked by another process")
        self.assert_fails(self.cairnd("--daemonize", "--pidfile", "pid"), "locked by another process")
        self.assertEqual(self.pid(), process.pid)
        self.end(process)
        self.assertFalse(os.path.exists(self.path("pid")))

    def test_pidfile_of_a_killed_daemon(self):
        process = self.serve("--pidfile", "pid")
        process.kill()
        process.wait()
        self.assertTrue(os.path.exists(self.path("pid")))
        process = self.serve("--pidfile", "pid")    # also takes over the dead socket
        self.assertEqual(self.pid(), process.pid)
        self.end(process)

    def test_pidfile_lock_is_of_the_file(self):
        process = self.serve("--pidfile", "pid")
        with open(self.path("pid"), "r+", encoding="utf-8") as stream:
            with self.assertRaises(OSError):
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.end(process)


class Monitor(Program):
    def talk(self, sender, receiver):
        """Greeting, negotiation and one query over a pair of streams."""
        self.assertIn("QMP", json.loads(receiver.readline()))
        for command in ("qmp_capabilities", "query-version"):
            sender.write(json.dumps({"execute": command}) + "\n")
            sender.flush()
            self.assertIn("return", json.loads(receiver.readline()))

    def talk_socket(self, connection):
        connection.settimeout(PATIENCE)
        with connection.makefile("rw", encoding="utf-8") as stream:
            self.talk(stream, stream)

    def test_socket(self):
        process = self.start("--chardev", "socket,id=c,path=chardev,server=on,wait=off", "--monitor", "chardev=c")
        wait_until(lambda: os.path.exists(self.path("chardev")), "the socket")
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as connection:
                wait_until(lambda: connection.connect_ex(self.path("chardev")) == 0, "the listener")
                self.talk_socket(connection)
        self.end(process)
        self.assertEqual(os.listdir(self.folder), [])

    def test_client_mode(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("listener"))
            listener.listen()
            listener.settimeout(PATIENCE)
            process = self.start("--chardev", "socket,id=c,path=listener", "--monitor", "c")
            connection, _ = listener.accept()
            with connection:
                self.talk_socket(connection)
        self.end(process)

    def test_tcp(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = self.start("--chardev", f"socket,id=c,host=127.0.0.1,port={port},server=on", "--monitor", "c")
        with socket.socket() as connection:
            wait_until(lambda: connection.connect_ex(("127.0.0.1", port)) in (0, 106), "the listener")
            self.talk_socket(connection)
        self.end(process)

    def test_descriptors(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = self.start("--chardev", f"socket,id=c,fd={theirs.fileno()}", "--monitor", "c",
                                 pass_fds=[theirs.fileno()])
            self.talk_socket(ours)
            self.end(process)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("listener"))
            listener.listen()
            process = self.start("--chardev", f"socket,id=c,fd={listener.fileno()},server=on", "--monitor", "c",
                                 pass_fds=[listener.fileno()])
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.path("listener"))
                self.talk_socket(connection)
            self.end(process)

    def test_stdio(self):
        process = self.start("--chardev", "stdio,id=c", "--monitor", "c", stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
        self.talk(process.stdin, process.stdout)
        process.stdin.write('{"execute": "quit"}\n')
        process.stdin.flush()
        self.assertEqual(process.wait(timeout=PATIENCE), 0)

    def test_pretty(self):
        process = self.start("--chardev", "stdio,id=c", "--monitor", "c,pretty=on", stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
        out, _ = process.communicate('{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n', timeout=PATIENCE)
        self.assertEqual(process.returncode, 0)
        self.assertIn('\n    "return": {', out)

    def test_in_use(self):
        self.assert_fails(self.cairnd("--chardev", "socket,id=c,path=c,server=on", "--monitor", "c", "--monitor", "c"),
                          "Chardev 'c' is in use")


class ServiceManager(Program):
    def activate(self, names, *options):
        """Starts cairnd with listening sockets from descriptor 3 on, as systemd does."""
        listeners = []
        for name in names:
            listener = socket.socket(socket.AF_UNIX)
            self.addCleanup(listener.close)
            listener.bind(self.path(f"passed-{name}"))
            listener.listen()
            listeners.append(listener)
        # above the targets, so that none is overwritten before it is moved
        high = [fcntl.fcntl(listener, fcntl.F_DUPFD, 100) for listener in listeners]
        moves = " ".join(f"{3 + i}<&{fd}" for i, fd in enumerate(high))
        environment = dict(self.environment, LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))
        process = subprocess.Popen(["bash", "-c", f'export LISTEN_PID=$$; exec "$@" {moves}', "bash", CAIRND, *options],
                                   cwd=self.folder, env=environment, pass_fds=high, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, process)
        for descriptor in high:
            os.close(descriptor)
        return process

    def test_qmp_socket(self):
        process = self.activate(["qmp"])
        self.socket = self.path("passed-qmp")
        self.assertEqual(self.cairnctl("query-version").returncode, 0)
        self.end(process)
        self.assertTrue(os.path.exists(self.socket))    # it is the manager's

    def test_nbd_sockets(self):
        process = self.activate(["nbd", "nbd-second", "qmp"], "--blockdev", "null-co,node-name=n,size=1M", "--export",
                                "nbd,id=a,node-name=n", "--export", "nbd,id=b,node-name=n,server=second")
        self.socket = self.path("passed-qmp")
        self.assertEqual({server["id"] for server in self.ask("query-nbd-servers")}, {"", "second"})
        for name in ("passed-nbd", "passed-nbd-second"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(self.path(name))
                self.assertEqual(connection.recv(8, socket.MSG_WAITALL), b"NBDMAGIC")
        self.end(process)

    def test_unknown_name(self):
        process = self.activate(["qmp", "other"])
        self.socket = self.path("passed-qmp")
        self.assertEqual(self.cairnctl("query-version").returncode, 0)
        self.assertIn("socket 'other'", self.end(process))

    def test_notify(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(self.path("notify"))
            manager.settimeout(PATIENCE)
            process = self.start("--qmp", "qmp", env=dict(self.environment, NOTIFY_SOCKET=self.path("notify")))
            self.assertEqual(manager.recv(100), b"READY=1")
            self.assertEqual(self.cairnctl("query-version").returncode, 0)
            self.end(process)
            self.assertEqual(manager.recv(100), b"STOPPING=1")

    def test_notify_abstract(self):
        name = f"cairn-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("\0" + name)
            manager.settimeout(PATIENCE)
            process = self.start(env=dict(self.environment, NOTIFY_SOCKET="@" + name))
            self.assertEqual(manager.recv(100), b"READY=1")
            self.end(process)


class ServiceUnit(Program):
    """The unit that `make install` installs."""

    def members(self, name):
        if not name.startswith("@"):
            return {name}
        said = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True,
                              timeout=PATIENCE, check=True).stdout.split("\n")[1:]
        return set().union(*(self.members(line.strip()) for line in said if line.strip() and "#" not in line))

    def test_system_calls(self):
        allowed = set()
        with open(os.path.join(ROOT, "daemon/cairnd.service.in"), encoding="utf-8") as unit:
            for names in re.findall("^SystemCallFilter=(.*)$", unit.read(), re.MULTILINE):
                calls = set().union(*map(self.members, names.lstrip("~").split()))
                allowed = allowed - calls if names.startswith("~") else allowed | calls
        # iothreads with cpu-affinity; I/O; vhost-user; memory; the limit of descriptors
        for call in ("sched_setaffinity", "io_uring_setup", "io_uring_enter", "io_uring_register", "preadv2", "fallocate",
                     "recvmsg", "eventfd2", "mmap", "mprotect", "prlimit64"):
            self.assertIn(call, allowed)
        for call in ("setuid", "mount", "reboot", "sched_setscheduler"):
            self.assertNotIn(call, allowed)


if __name__ == "__main__":
    unittest.main(verbosity=2)
