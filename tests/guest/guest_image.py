"""The kernel and the initramfs of the guest: made of Debian packages, which are fetched once and kept under
build/guest. Nothing is installed."""
import fcntl
import glob
import gzip
import os
import re
import shutil
import stat
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDER = os.path.join(ROOT, "build", "guest")
MODULES = ("virtio_pci", "virtio_blk")
# What the guest has besides busybox, with the libraries that ldd names.
PROGRAMS = ("mke2fs", "e2fsck")
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"

# The console is the test's: nothing is echoed, nothing prompts.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /tmp
/bin/busybox --install -s /bin
export PATH=/sbin:/bin PS1= PS2=
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
dmesg -n 1
stty -echo -onlcr
echo guest-is-up
exec setsid cttyhack sh
"""


class Archive:
    """A cpio archive of the form "newc", as the kernel unpacks it."""

    def __init__(self):
        self.data = bytearray()
        self.number = 0
        self.names = set()

    def add(self, name, mode, data=b"", device=(0, 0)):
        self.number += 1
        encoded = name.encode() + b"\0"
        fields = (self.number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        self.data += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self.pad()
        self.data += data
        self.pad()

    def pad(self):
        self.data += bytes(-len(self.data) % 4)

    def folder(self, name):
        if name and name not in self.names:
            self.folder(os.path.dirname(name))
            self.names.add(name)
            self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name, source):
        if name not in self.names:
            self.folder(os.path.dirname(name))
            self.names.add(name)
            with open(source, "rb") as stream:
                self.add(name, stat.S_IFREG | 0o755, stream.read())

    def finish(self):
        self.add("TRAILER!!!", 0)
        return bytes(self.data)


def run(*command, **keywords):
    return subprocess.run(command, check=True, capture_output=True, text=True, **keywords).stdout


def fetch(package, into):
    """Unpacks a package below the folder `into`."""
    folder = os.path.join(FOLDER, "packages")
    os.makedirs(folder, exist_ok=True)
    pattern = os.path.join(folder, f"{package}_*.deb")
    if not glob.glob(pattern):
        try:
            run("apt-get", "-qq", "download", package, cwd=folder)
        except subprocess.CalledProcessError:
            # The lists of packages may be old, or missing.
            run("apt-get", "-qq", "update")
            run("apt-get", "-qq", "download", package, cwd=folder)
    run("dpkg-deb", "-x", glob.glob(pattern)[0], into)


def kernel_package():
    """The package that the newest linux-image-cloud stands for."""
    names = re.findall(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", "linux-image-cloud-amd64"))
    if not names:
        run("apt-get", "-qq", "update")
        names = re.findall(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", "linux-image-cloud-amd64"))
    return names[0]


def modules_in_order(root):
    """Paths of the modules that are needed, each after those that it depends on."""
    paths = {os.path.basename(path).split(".")[0].replace("-", "_"): path
             for path in glob.glob(f"{root}/lib/modules/*/kernel/**/*.ko", recursive=True)}
    ordered = []

    def visit(name):
        path = paths.get(name)
        if not path or path in ordered:
            return      # built in, or seen
        with open(path, "rb") as stream:
            depends = re.search(rb"\0depends=([^\0]*)\0", stream.read())
        for other in depends.group(1).decode().split(",") if depends else ():
            visit(other.replace("-", "_"))
        ordered.append(path)

    for name in MODULES:
        visit(name)
    return ordered


def add_program(archive, name):
    path = os.path.realpath(shutil.which(name, path=PATH))
    archive.file(f"sbin/{name}", path)
    for library in re.findall(r"(/\S+) \(0x", run("ldd", path)):
        archive.file(library.lstrip("/"), os.path.realpath(library))


def make_initramfs(root):
    archive = Archive()
    archive.folder("dev")
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.file("bin/busybox", f"{root}/bin/busybox")
    for name in PROGRAMS:
        add_program(archive, name)
    archive.folder("modules")
    for number, path in enumerate(modules_in_order(root)):
        archive.file(f"modules/{number:02}-{os.path.basename(path)}", path)
    archive.add("init", stat.S_IFREG | 0o755, INIT.encode())
    return gzip.compress(archive.finish(), 1)


def guest_image():
    """(kernel, initramfs): paths. Made if they are not there; one process at a time."""
    os.makedirs(FOLDER, exist_ok=True)
    kernel, initramfs = os.path.join(FOLDER, "vmlinuz"), os.path.join(FOLDER, "initramfs")
    with open(os.path.join(FOLDER, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = os.path.getmtime(__file__)
        if not all(os.path.exists(path) and os.path.getmtime(path) > source for path in (kernel, initramfs)):
            root = os.path.join(FOLDER, "root")
            shutil.rmtree(root, ignore_errors=True)
            fetch("busybox-static", root)
            fetch(kernel_package(), root)
            shutil.copyfile(glob.glob(f"{root}/boot/vmlinuz-*")[0], kernel)
            with open(initramfs, "wb") as stream:
                stream.write(make_initramfs(root))
            shutil.rmtree(root)
    return kernel, initramfs


if __name__ == "__main__":
    print(*guest_image())
