"""The parts of a virtual board: a small Debian root folder and an emulator, fetched from the machine's own mirror.

Nothing of the system is touched: apt works on private lists, a private cache and an empty status file, and packages
are unpacked with `dpkg-deb -x`, never installed. The root folder is Debian 12 on every host, like the Raspberry Pi OS
that many boards run; the emulator is Debian 12's backport of QEMU 10, the first that shows a program the emulated
processor's /proc/cpuinfo instead of the host's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgellm.errors import VirtualBoardError

Progress = Callable[[str, float], None]
"""Told what is being done and which fraction of it is done, from 0 to 1."""

RELEASE = "bookworm"

PACKAGES = (
    *("openssh-server", "openssh-sftp-server", "busybox-static", "base-files", "libc6"),
    # what sshd is linked with
    *("libwrap0", "libaudit1", "libpam0g", "libselinux1", "libgssapi-krb5-2", "libkrb5-3", "libcom-err2", "libssl3"),
    *("zlib1g", "libcrypt1", "libsystemd0", "libcap-ng0", "libpcre2-8-0", "liblzma5", "libzstd1", "liblz4-1"),
    *("libgcrypt20", "libgpg-error0", "libcap2", "libkrb5support0", "libk5crypto3", "libkeyutils1", "libnsl2"),
    "libtirpc3",
)
GPU_PACKAGES = (
    *("mesa-vulkan-drivers", "libvulkan1", "libllvm15", "libdrm2", "libdrm-common", "libdrm-amdgpu1", "libelf1"),
    *("libexpat1", "libgcc-s1", "libstdc++6", "libwayland-client0", "libx11-6", "libx11-xcb1", "libxcb1"),
    *("libxcb-dri2-0", "libxcb-dri3-0", "libxcb-present0", "libxcb-randr0", "libxcb-sync1", "libxcb-xfixes0"),
    *("libxcb-shm0", "libxcb-keysyms1", "libxau6", "libxdmcp6", "libbsd0", "libmd0", "libxshmfence1", "libedit2"),
    *("libtinfo6", "libxml2", "libicu72", "libz3-4", "libffi8", "libsensors5", "libgomp1"),
)
"""Mesa's lavapipe, a program that plays a GPU, and what it is linked with. The backport, because Debian 12's own
Mesa 22.3 cannot convert float16 on AArch64 (LLVM: "Cannot select fp_extend")."""

DEBIAN_ARCHES = {"aarch64": "arm64", "armv7": "armhf", "x86_64": "amd64"}
EMULATORS = ("qemu-aarch64", "qemu-arm")

_REVISION = "2"
"""Raised when the way parts are put together changes, so that old ones are made anew."""

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\npi:x:1000:1000:pi:/home/pi:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\npi:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")


def missing_tool() -> str | None:
    """Why parts cannot be fetched on this machine, with the remedy; None if they can."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            return f"it is put together from Debian packages, and this machine has no {tool}"
    if not _mirror():
        return "it needs a Debian mirror, and apt knows none here; set EDGELLM_DEBIAN_MIRROR to the address of one"
    if not _keyring():
        return "it needs Debian's archive keys; install them with `sudo apt-get install debian-archive-keyring`"
    return None


def ensure_emulator(name: str, directory: Path, progress: Progress) -> Path:
    """The static emulator `name`, fetched if need be. Raises VirtualBoardError if it cannot be."""
    return ensure_part(directory, "qemu", (RELEASE + "-backports",), progress, _make_emulators) / name


def ensure_packages(
    directory: Path,
    name: str,
    packages: Sequence[str],
    what: str,
    progress: Progress,
    *,
    arch: str | None = None,
    backports: bool = False,
    finish: Callable[[Path], None] | None = None,
    recipe: Sequence[str] = (),
) -> Path:
    """A folder with packages of Debian's, unpacked over each other, fetched if need be.

    what: told to `progress`. arch: Debian's name of an architecture, by default this machine's. backports: newer
    packages come before RELEASE's own. finish: changes the folder before it is shown; recipe: what that depends on.
    Raises VirtualBoardError if they cannot be fetched.
    """

    def make(folder: Path, report: Progress) -> None:
        suites = (RELEASE, RELEASE + "-backports") if backports else (RELEASE,)
        with _private_apt(arch or host_architecture(), suites, report) as apt:
            for package in apt.download(packages, what):
                run(["dpkg-deb", "-x", str(package), str(folder)])
        for unwanted in _UNWANTED:
            shutil.rmtree(folder / unwanted, ignore_errors=True)
        if finish is not None:
            finish(folder)

    return ensure_part(directory, name, (*packages, *recipe), progress, make)


def host_architecture() -> str:
    """This machine's architecture, as Debian calls it."""
    return output(["dpkg", "--print-architecture"]).strip()


def ensure_root(arch: str, directory: Path, progress: Progress, emulator: Path | None, gpu: bool = False) -> Path:
    """The root folder of an architecture, fetched if need be.

    emulator: runs that architecture's programs here; None if this machine does. gpu: with a Vulkan device.
    Raises VirtualBoardError if it cannot be fetched.
    """

    def make(folder: Path, report: Progress) -> None:
        _make_root(DEBIAN_ARCHES[arch], folder, report, emulator)
        if gpu:
            _add_gpu(DEBIAN_ARCHES[arch], folder, report)

    name, recipe = DEBIAN_ARCHES[arch], PACKAGES + tuple(_FILES.values())
    return ensure_part(
        directory, f"{name}-gpu" if gpu else name, recipe + (GPU_PACKAGES if gpu else ()), progress, make
    )


def ensure_part(
    directory: Path, name: str, recipe: Sequence[str], progress: Progress, make: Callable[[Path, Progress], None]
) -> Path:
    """The part `name`, made in a temporary folder and renamed, so that half a part is never seen."""
    key = hashlib.sha256("\n".join((_REVISION, RELEASE, *recipe)).encode()).hexdigest()[:12]
    part = directory / f"{name}-{key}"
    if part.is_dir():
        return part
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock"):
        if not part.is_dir():
            with tempfile.TemporaryDirectory(
                prefix=f".{name}-", dir=directory, ignore_cleanup_errors=True
            ) as temporary:
                folder = Path(temporary) / "part"
                folder.mkdir()
                make(folder, progress)
                folder.rename(part)
    return part


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it even if this process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_emulators(folder: Path, progress: Progress) -> None:
    host = host_architecture()
    with _private_apt(host, (RELEASE + "-backports",), progress) as apt:
        for package in apt.download(["qemu-user"], "fetching the emulator (QEMU 10, 63 MB)"):
            unpacked = folder / "unpacked"
            run(["dpkg-deb", "-x", str(package), str(unpacked)])
            for name in EMULATORS:
                (unpacked / "usr/bin" / name).rename(folder / name)
            shutil.rmtree(unpacked)


def _make_root(arch: str, folder: Path, progress: Progress, emulator: Path | None) -> None:
    with _private_apt(arch, (RELEASE,), progress) as apt:
        packages = apt.download(PACKAGES, f"fetching the board's {len(PACKAGES)} Debian packages ({arch}, 8 MB)")
        for count, package in enumerate(packages, 1):
            run(["dpkg-deb", "-x", str(package), str(folder)])
            progress("unpacking", count / len(packages))
    for name in _UNWANTED:
        shutil.rmtree(folder / name, ignore_errors=True)
    for mount_point in ("proc", "sys", "dev", "tmp", "run", "home/pi", "etc/ssh/board"):
        (folder / mount_point).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (folder / name).write_text(text)
    busybox = folder / "bin/busybox"
    for applet in output([*([str(emulator)] if emulator else []), str(busybox), "--list"]).split():
        if not any((folder / place / applet).exists() for place in ("bin", "sbin", "usr/bin", "usr/sbin")):
            (folder / "bin" / applet).symlink_to("busybox")


def _add_gpu(arch: str, folder: Path, progress: Progress) -> None:
    with _private_apt(arch, (RELEASE, RELEASE + "-backports"), progress) as apt:
        for package in apt.download(GPU_PACKAGES, f"fetching the board's Vulkan driver ({arch}, 70 MB)"):
            run(["dpkg-deb", "-x", str(package), str(folder)])
    for name in _UNWANTED:
        shutil.rmtree(folder / name, ignore_errors=True)
    drivers = (*folder.glob("usr/lib/*/libvulkan_*.so"), *folder.glob("usr/share/vulkan/icd.d/*.json"))
    for driver in drivers:
        if not driver.name.startswith(("libvulkan_lvp", "lvp_icd")):
            driver.unlink()


class _PrivateApt:
    """apt-get on files of its own below `folder`, for one architecture."""

    def __init__(self, folder: Path, arch: str, suites: Sequence[str], progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        sources = [f"deb [arch={arch} signed-by={_keyring()}] {_mirror()} {suite} main" for suite in suites]
        (folder / "sources.list").write_text("\n".join(sources) + "\n")
        settings = {
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Default-Release": suites[-1],
            "APT::Sandbox::User": "root",  # the folder may be closed to the user _apt
            "Acquire::Languages": "none",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": folder / "status",
            "Dir::State::Extended_States": folder / "extended",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
        }
        self._options = [f"-o{key}={value}" for key, value in settings.items()]

    def update(self) -> None:
        self._apt(["update", "--error-on=any"], "reading the package lists (9 MB)")

    def download(self, packages: Sequence[str], what: str) -> list[Path]:
        """Fetches and authenticates packages; returns the files."""
        self._apt(["download", *packages], what)
        found = sorted((self._folder / "debs").glob("*.deb"))
        if len(found) != len(packages):
            raise VirtualBoardError(f"the mirror gave {len(found)} of {len(packages)} packages of Debian {RELEASE}")
        return found

    def _apt(self, arguments: Sequence[str], what: str) -> None:
        self._progress(what, 0.0)
        reader, writer = os.pipe()
        with (
            (self._folder / "log").open("w+") as log,
            subprocess.Popen(
                ["apt-get", "-q", "-y", *self._options, f"-oAPT::Status-Fd={writer}", *arguments],
                cwd=self._folder / "debs",
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
            ) as process,
        ):
            os.close(writer)
            with os.fdopen(reader, errors="replace") as lines:
                for line in lines:
                    if match := re.match(r"dlstatus:[^:]*:([\d.]+):", line):
                        self._progress(what, min(float(match[1]) / 100, 1.0))
            code = process.wait()
            if code:
                log.seek(0)
                reasons = [line for line in log.read().splitlines() if line.startswith("E:")] or ["no reason given"]
                raise VirtualBoardError(f"{what}: apt-get failed: {reasons[-1].removeprefix('E: ')}")
        self._progress(what, 1.0)


@contextmanager
def _private_apt(arch: str, suites: Sequence[str], progress: Progress) -> Iterator[_PrivateApt]:
    with tempfile.TemporaryDirectory(prefix="edgellm-apt-") as folder:
        apt = _PrivateApt(Path(folder), arch, suites, progress)
        apt.update()
        yield apt


def _mirror() -> str | None:
    """The Debian mirror this machine is set up to use; None if apt has none."""
    chosen = os.environ.get("EDGELLM_DEBIAN_MIRROR")
    return chosen or next((uri for uri, suites in package_sources() if _SUITES & suites), None)


_SUITES = {"bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"}
"""Names that only Debian itself gives to the releases on its mirrors."""


def package_sources(directory: Path = Path("/etc/apt")) -> Iterator[tuple[str, set[str]]]:
    """(address, suites) of each package source apt is configured with, in both of apt's formats (sources.list(5))."""
    for file in (directory / "sources.list", *sorted((directory / "sources.list.d").glob("*.list"))):
        for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
            words = re.sub(r"\[.*?\]", "", line.partition("#")[0]).split()
            if len(words) > 2 and words[0] == "deb":
                yield words[1], {words[2]}
    for file in sorted((directory / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text(errors="replace")):
            pairs = (line.partition(":") for line in stanza.splitlines() if line[:1] not in ("#", " ", "\t"))
            fields = {key.strip().lower(): value.split() for key, _, value in pairs}
            if "deb" in fields.get("types", ()) and fields.get("enabled") != ["no"]:
                for uri in fields.get("uris", ()):
                    yield uri, set(fields.get("suites", ()))


def _keyring() -> str | None:
    places = ("/usr/share/keyrings/debian-archive-keyring", "/etc/apt/trusted.gpg.d/debian-archive-keyring")
    files = [Path(place + suffix) for place in places for suffix in (".gpg", ".pgp")]
    return next((str(file) for file in files if file.is_file()), None)


def output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VirtualBoardError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def run(command: Sequence[str]) -> None:
    output(command)
