"""A virtual Android device: Debian's build of adbd for arm64 under QEMU, with Android's own shell and commands.

The shell is mksh and the commands are toybox, as on a phone; what was written lands in /data/local/tmp, where the user
`shell` may make no hard links. Programs that are linked with bionic run on musl, which a small library gives bionic's
names. Not there: bionic itself, SELinux, the low-memory killer, getprop.

adbd takes connections from anybody, on every address and on vsock, which no name space confines. So it runs in a
network name space of its own together with the adb server, which is reached through a socket in the board's folder;
and its port is one that only the machine's own root may open on vsock, so that this one stays closed.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from edgellm import virtual_namespace, virtual_parts
from edgellm.adb_client import AdbClient
from edgellm.address import AdbAddress
from edgellm.errors import RemoteError, VirtualBoardError
from edgellm.virtual_parts import Progress

PORT = 555
SERIAL = f"127.0.0.1:{PORT}"
USER = 2000
"""AID_SHELL of Android."""

_ADB_PACKAGES = (
    *("adb", "libc6", "libgcc-s1", "libstdc++6", "android-liblog", "android-libbase", "android-libboringssl"),
    *("android-libcutils", "android-libziparchive", "libbrotli1", "liblz4-1", "zlib1g", "libprotobuf32", "libcap2"),
    *("libudev1", "libusb-1.0-0", "libzstd1"),
)
_ADBD_PACKAGES = (
    *("adbd", "mksh", "toybox", "libc6", "libgcc-s1", "libstdc++6", "libcrypt1", "android-liblog", "android-libbase"),
    *("android-libboringssl", "android-libcutils", "libbrotli1", "liblz4-1", "zlib1g", "libprotobuf32", "libcap2"),
    *("libgpg-error0", "libgcrypt20", "liblzma5", "libzstd1", "libsystemd0", "libc-bin", "musl"),
)
_ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
_FILES = {
    "etc/passwd": f"root:x:0:0:root:/:/bin/sh\nshell:x:{USER}:{USER}:shell:/:/bin/sh\n",
    "etc/group": f"root:x:0:\nshell:x:{USER}:\n",
}
_ADB = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/{loader}" --argv0 adb --library-path "{libraries}" "$here/usr/lib/android-sdk/platform-tools/adb" "$@"
"""
_START_S = 30.0
_SOCKET_PATH_CAP = 107  # sun_path has 108 bytes (unix(7))


def ensure_adb(directory: Path, progress: Progress) -> Path:
    """adb for this machine, fetched if need be. It starts no server by itself. VirtualBoardError if it cannot be."""

    def finish(folder: Path) -> None:
        loader = next((folder / "lib").glob("*/ld-linux-*.so.*")).relative_to(folder)
        triple = loader.parent.name
        places = (f"usr/lib/{triple}/android", f"lib/{triple}", f"usr/lib/{triple}")
        text = _ADB.format(loader=loader, libraries=":".join(f"$here/{place}" for place in places))
        (folder / "adb").write_text(text)
        (folder / "adb").chmod(0o755)

    what = f"fetching adb ({len(_ADB_PACKAGES)} Debian packages, 7 MB)"
    part = virtual_parts.ensure_packages(
        directory, "adb", _ADB_PACKAGES, what, progress, backports=True, finish=finish, recipe=(_ADB,)
    )
    return part / "adb"


_BIONIC = Path(__file__).with_name("virtual_bionic.c")
_OWN_LIBRARIES = b"c.pthread.rt.m.dl.util.xnet."
"""What musl's linker takes to be itself (ldso/dynlink.c); the phone's libdl.so must be another."""


def ensure_root(directory: Path, progress: Progress, emulator: Path) -> Path:
    """The device's root folder, fetched if need be. VirtualBoardError if it cannot be."""

    def finish(folder: Path) -> None:
        (folder / "system").mkdir()
        (folder / "bin").rename(folder / "system/bin")
        (folder / "bin").symlink_to("system/bin")
        commands = folder / "system/bin"
        (commands / "mksh").rename(commands / "sh")
        for name in virtual_parts.output([str(emulator), "-L", str(folder), str(commands / "toybox")]).split():
            if not (commands / name).exists():
                (commands / name).symlink_to("toybox")
        _add_bionic(folder)
        for mount_point in ("proc", "sys", "dev", "tmp", "run", "data/local/tmp"):
            (folder / mount_point).mkdir(parents=True, exist_ok=True)
        for name, text in _FILES.items():
            (folder / name).write_text(text)

    what = f"fetching the device's {len(_ADBD_PACKAGES)} Debian packages (arm64, 11 MB)"
    return virtual_parts.ensure_packages(
        directory,
        "android-arm64",
        _ADBD_PACKAGES,
        what,
        progress,
        arch="arm64",
        backports=True,
        finish=finish,
        recipe=(*_FILES.values(), _BIONIC.read_text()),
    )


def _add_bionic(folder: Path) -> None:
    """The linker that programs of Android's name, and the library that stands in for bionic."""
    musl = (folder / "lib/ld-musl-aarch64.so.1").read_bytes()
    assert musl.count(_OWN_LIBRARIES) == 1
    linker = folder / "system/bin/linker64"
    linker.write_bytes(musl.replace(_OWN_LIBRARIES, _OWN_LIBRARIES.replace(b"dl", b"??")))
    linker.chmod(0o755)
    for place in ("system/etc", "system/lib64"):
        (folder / place).mkdir()
    (folder / "system/etc/ld-musl-aarch64.path").write_text("/system/lib64\n")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-shared", "-Os"]
    virtual_parts.run([*zig, str(_BIONIC), "-o", str(folder / "system/lib64/libdl.so")])


def launch(folder: Path, name: str, root: Path, adb: Path, emulator: Path, qemu_cpu: str) -> int:
    """Starts device and server and waits until they answer; returns the device's process id."""
    place = _socket(folder)
    place.parent.mkdir(mode=0o700, exist_ok=True)  # whoever may open the socket commands the device
    place.unlink(missing_ok=True)
    server = ["env", f"HOME={place.parent}", str(adb), "-L", f"localfilesystem:{place}", "server", "nodaemon"]
    launcher = [sys.executable, "-IS", str(Path(__file__).with_name("virtual_confine.py"))]
    inside = virtual_namespace.Inside({"home": "data/local/tmp"}, USER, server, launcher)
    environment = {"PATH": "/system/bin:/usr/bin:/bin:/usr/sbin:/sbin", "ADBD_PORT": str(PORT), "QEMU_CPU": qemu_cpu}
    log = folder / "log"
    pid = virtual_namespace.launch([_ADBD], root, folder, name, emulator, environment, log, inside)
    deadline = time.monotonic() + _START_S
    reason = "adb's server does not answer"
    while time.monotonic() < deadline and virtual_namespace.start_ticks(pid) is not None:
        if answers(folder):
            try:
                AdbClient(address(folder, adb)).choose(SERIAL)
                return pid
            except RemoteError as error:  # adbd, which is emulated, needs longer than the server
                reason = str(error)
        time.sleep(0.05)
    virtual_namespace.end(folder, pid)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise VirtualBoardError(f"{name} did not start: {reason} (log: {log}: {lines[-1] if lines else 'empty'})")


def address(folder: Path, adb: Path) -> AdbAddress:
    return AdbAddress(SERIAL, adb, f"localfilesystem:{_socket(folder)}")


def answers(folder: Path) -> bool:
    """Whether the adb server of a device takes connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(_socket(folder)))
        except OSError:
            return False
        return True


def _socket(folder: Path) -> Path:
    path = folder / "adb" / "socket"
    if len(os.fsencode(path)) > _SOCKET_PATH_CAP:
        raise VirtualBoardError(f"{path} is too long for a socket's name; set EDGELLM_CACHE to a shorter folder")
    return path
