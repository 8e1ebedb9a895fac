"""A whole arm64 board in software: Debian's kernel under qemu-system, an ext4 disk, an SSH server. Its power can fail.

kill -9 of the emulator takes what the board's kernel had not written to its disk yet, as a power cut does: a file that
was closed without fsync comes back empty, a rename without fsync of its folder is undone. The disk itself keeps what it
was given, so a drive that lies about flushing is not covered.

Everything comes from Debian's mirror (edgellm.virtual_parts) but the emulator, which must be installed.
"""

from __future__ import annotations

import gzip
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from edgellm import cache, virtual, virtual_parts
from edgellm.address import SshAddress
from edgellm.boards import load_board

EMULATOR = "qemu-system-aarch64"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
_BOOT_S = 600.0  # under emulation, on a machine that does other things

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /lib/$module.ko || exit; done
while [ ! -e /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /disk && exec /bin/busybox switch_root /disk /sbin/board-init
"""
_BOARD_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts; mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /tmp; mount -t tmpfs tmpfs /run; mkdir -p /run/sshd
hostname full-board; ifconfig lo 127.0.0.1; ifconfig eth0 10.0.2.15 netmask 255.255.255.0
chown -R 1000:1000 /home/pi
exec /usr/sbin/sshd -D -e -f /etc/ssh/board/sshd_config
"""


def missing() -> str | None:
    """What this machine lacks for it, with the remedy; None if nothing."""
    if shutil.which(EMULATOR) is None:
        return f"there is no {EMULATOR}; install it with `sudo apt-get install qemu-system-arm`"
    if shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") is None:
        return "there is no mke2fs; install it with `sudo apt-get install e2fsprogs`"
    return virtual_parts.missing_tool()


class FullBoard:
    """One board with a disk of its own in `folder`. `with` it, or call kill()."""

    memory_mb = 512

    def __init__(self, folder: Path, disk_mb: int = 128) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._kernel, self._initrd = _kernel()
        self._disk = folder / "disk"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        etc = folder / "etc"
        etc.mkdir(exist_ok=True)
        virtual._ensure_keys(folder)
        self.address = SshAddress("127.0.0.1", self.port, virtual.USER, etc / "login_key", etc / "known_hosts")
        (etc / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {(etc / 'host_key.pub').read_text()}\n")
        config = virtual._SSHD_CONFIG.format(port=22, user=virtual.USER).replace("127.0.0.1", "0.0.0.0")
        (etc / "sshd_config").write_text(config)
        if not self._disk.exists():
            self._make_disk(disk_mb)

    def _make_disk(self, disk_mb: int) -> None:
        root, _ = virtual.fetch(load_board("virtual-rpi5"))
        tree = self.folder / "tree"
        shutil.copytree(root, tree, symlinks=True)
        shutil.copytree(self.folder / "etc", tree / "etc/ssh/board", dirs_exist_ok=True)
        with (tree / "etc/passwd").open("a") as file:
            file.write("sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
        self._fill(tree)
        mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin")
        assert mke2fs
        command = [mke2fs, "-q", "-t", "ext4", "-d", str(tree), str(self._disk), f"{disk_mb}M"]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(tree)

    def _fill(self, tree: Path) -> None:
        """Puts what runs first, /sbin/board-init, into the root folder."""
        (tree / "sbin/board-init").write_text(_BOARD_INIT)
        (tree / "sbin/board-init").chmod(0o755)

    def start(self, *, clock: str = "utc", writes_per_s: int = 0) -> None:
        """Boots, and returns when SSH answers. clock: what its clock says; writes_per_s: how slow its disk is."""
        throttle = f",throttling.iops-write={writes_per_s}" if writes_per_s else ""
        command = [EMULATOR, "-M", "virt", "-cpu", "cortex-a76", "-smp", "2", "-m", str(self.memory_mb)]
        command += ["-accel", "tcg,thread=multi"]
        command += ["-nographic", "-no-reboot", "-kernel", str(self._kernel), "-initrd", str(self._initrd)]
        command += ["-append", "console=ttyAMA0 quiet", "-rtc", f"base={clock}"]
        command += ["-drive", f"file={self._disk},format=raw,if=none,id=d0{throttle}"]
        command += ["-device", "virtio-blk-pci,drive=d0", "-device", "virtio-net-pci,netdev=n0,romfile="]
        command += ["-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"]
        with (self.folder / "console").open("wb") as console:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        end = time.monotonic() + _BOOT_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(0.3)
        raise RuntimeError(f"the board does not start: {(self.folder / 'console').read_text(errors='replace')[-500:]}")

    def kill(self) -> None:
        """Cuts the power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> FullBoard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def _kernel() -> tuple[Path, Path]:
    """Debian's cloud kernel for arm64 and an initial RAM disk that finds the board's own disk."""

    def make(folder: Path, progress: virtual_parts.Progress) -> None:
        with virtual_parts._private_apt("arm64", (virtual_parts.RELEASE,), progress) as apt:
            query = ["apt-cache", *apt._options, "depends", "linux-image-cloud-arm64"]
            said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            name = re.search(r"Depends: (linux-image-\S+)", said)
            if name is None:
                raise RuntimeError("the mirror has no linux-image-cloud-arm64")
            for package in apt.download([name[1]], "fetching a kernel"):
                subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "package")], check=True)
        (found,) = (folder / "package/boot").glob("vmlinuz-*")
        found.rename(folder / "kernel")
        root, _ = virtual.fetch(load_board("virtual-rpi5"))
        modules = {file.name.partition(".")[0].replace("-", "_"): file for file in folder.rglob("*.ko")}
        wanted = list(dict.fromkeys(name for module in MODULES for name in _with_needs(module, modules)))
        files = {"init": (0o755, _INIT.format(modules=" ".join(wanted)).encode())}
        files["bin/busybox"] = (0o755, (root / "bin/busybox").read_bytes())
        files |= {f"lib/{name}.ko": (0o644, modules[name].read_bytes()) for name in wanted}
        (folder / "initrd").write_bytes(gzip.compress(_cpio(files), 1))
        shutil.rmtree(folder / "package")

    parts = cache.root() / "virtual" / "parts"
    part = virtual_parts.ensure_part(parts, "kernel", (*MODULES, _INIT), lambda what, share: None, make)
    return part / "kernel", part / "initrd"


def _with_needs(name: str, modules: dict[str, Path]) -> Iterator[str]:
    """A kernel module after all that it needs; one that is built in is no file."""
    if name in modules:
        needs = re.search(rb"\0depends=([^\0]*)", b"\0" + modules[name].read_bytes())
        for need in needs[1].decode().split(",") if needs else ():
            yield from _with_needs(need.replace("-", "_"), modules)
        yield name


def _cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive as the kernel unpacks it (its Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    entries = [(name, 0o40755, b"") for name in (*folders, "dev", "disk", "proc", "sys")]
    entries += [(name, 0o100000 | mode, data) for name, (mode, data) in files.items()]
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
