"""A virtual machine: QEMU without KVM, a Debian kernel and an initramfs with busybox, driven over its serial console."""
import json
import os
import select
import socket
import subprocess
import time

from guest_image import guest_image

PATIENCE = 120      # seconds; the processor is emulated, and the machine may be busy
MEMORY = "192M"
PROCESSORS = 4


class QemuError(Exception):
    """What QEMU's monitor refuses."""


class Guest:
    def __init__(self, test, disk, queues=4, options=""):
        """disk: path of the vhost-user socket. Started at once; boot() waits for it."""
        kernel, initramfs = guest_image()
        self.qmp_path = os.path.join(test.folder, "vm-qmp")
        self.said = ""          # what the console said since the last boot
        self.number = 0
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "pc,memory-backend=memory", "-cpu", "max",
             "-object", f"memory-backend-memfd,id=memory,share=on,size={MEMORY}", "-m", MEMORY, "-smp", str(PROCESSORS),
             "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
             "-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1",
             "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
             "-chardev", f"socket,id=disk,path={disk},reconnect=1",
             "-device", f"vhost-user-blk-pci,id=disk0,chardev=disk,num-queues={queues}{options}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=test.folder)
        test.addCleanup(self.end)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()

    # Console.

    def expect(self, text, patience=PATIENCE):
        """Waits until the console says it; returns what came before, and the rest of the line."""
        end = time.monotonic() + patience
        while True:
            before, found, after = self.said.partition(text)
            line, complete, rest = after.partition("\n")
            if found and complete:
                self.said = rest
                return before, line
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"the guest did not say {text!r}, but: {self.said[-2000:]!r}")
            if select.select([self.process.stdout], [], [], left)[0]:
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise AssertionError(f"QEMU has ended: {self.process.stderr.read().decode(errors='replace')}")
                self.said += data.decode(errors="replace").replace("\r", "")

    def boot(self):
        self.expect("guest-is-up")
        self.run("true")
        return self

    def send(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def run(self, command, code=0, patience=PATIENCE):
        """Runs a command in the guest's shell and returns what it says; fails unless it ends with code."""
        self.number += 1
        # The console takes no line longer than 4095 bytes.
        assert len(command) < 4000
        self.send(f"{command}\necho @@{self.number}@$?\n")
        said, ended = self.expect(f"@@{self.number}@", patience)
        if int(ended) != code:
            raise AssertionError(f"in the guest, {command!r} ended with {ended}: {said}")
        return said.strip()

    def reboot(self):
        self.send("reboot -f\n")
        return self.boot()

    def power_off(self):
        self.send("poweroff -f\n")
        self.process.wait(PATIENCE)

    # QEMU's monitor.

    def qmp(self, command, **arguments):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(PATIENCE)
            monitor.connect(self.qmp_path)
            stream = monitor.makefile("rw")
            stream.readline()
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                while True:
                    reply = json.loads(stream.readline())
                    if "event" not in reply:
                        break
                if "error" in reply:
                    raise QemuError(f"{command}: {reply['error']['desc']}")
            return reply["return"]

    def plug(self, **options):
        """Adds a device; one that had the same back end may just be going."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.qmp("device_add", **options)
            except QemuError as error:
                if "in use" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.1)
