"""The name spaces a virtual board runs in: its own file system, its own host name, its own emulator.

An ordinary user may make them: inside a user namespace of its own, a process may mount, and since Linux 6.7 it may
have a binfmt_misc of its own, in which "a program for another processor" means "run it under QEMU".
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import VirtualBoardError

_OWN_USERS = ("unshare", "--user", "--map-root-user", "--mount", "--uts")
_AS_ROOT = ("unshare", "--mount", "--uts")

# (magic, mask) of the first 20 bytes of an ELF file: class, byte order, type and machine (Linux, binfmt_misc.rst)
_ELF_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_ELF_MAGIC = {
    "qemu-aarch64": r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    "qemu-arm": r"\x7f\x45\x4c\x46\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00",
}

_BINFMT = "mount --make-rprivate / && mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"

# $1 root folder, $2 the board's folder, $3 host name, $4 binfmt registration or nothing, $5 folders to mount, a line
# each, $6 a command line for what runs beside the board, or nothing, then the board's command.
# The root folder is shared by all boards and read-only; home, /tmp, /run and the terminals are the board's own.
_ENTER = r"""set -e
root=$1 board=$2 name=$3 format=$4 binds=$5 beside=$6; shift 6
mount --make-rprivate /
if [ -n "$format" ]; then
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  printf '%s' "$format" > /proc/sys/fs/binfmt_misc/register
fi
if command -v hostname >/dev/null; then hostname "$name"; fi
mount --bind "$root" "$board/root"
cd "$board"
printf '%s\n' "$binds" | while read -r from to; do mount --bind "$from" "root/$to"; done
mount --rbind /proc root/proc
mount --rbind /sys root/sys
mount --rbind /dev root/dev
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs root/tmp
mount -t tmpfs tmpfs root/run
mount -o remount,bind,ro root
if [ -n "$beside" ]; then
  chroot root /bin/toybox ifconfig lo up
  echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
  eval "exec setpriv --pdeathsig KILL $beside" >beside.log 2>&1 &
fi
exec "$@"
"""


@dataclass(frozen=True)
class Inside:
    """How a board looks from inside.

    binds     folders of the board's, and where they are mounted below its root
    user      the user and group that it runs as
    beside    a command of this machine's that runs and ends with the board's; the two then share a network of their own
    launcher  a command of this machine's that starts the board's
    """

    binds: Mapping[str, str]
    user: int = 1000
    beside: Sequence[str] = ()
    launcher: Sequence[str] = ()


SSH_BOARD = Inside({"home": "home/pi", "etc": "etc/ssh/board"})


def obstacle(emulated: bool, network: bool = False) -> str | None:
    """Why this machine cannot give a board its name spaces, with the remedy; None if it can.

    emulated: the board's processor is another one, so it needs binfmt_misc as well. network: it needs one of its own.
    """
    if not shutil.which("unshare") or not shutil.which("mount"):
        return "it needs the programs unshare and mount; install them with `sudo apt-get install util-linux mount`"
    if _prefix() is None:
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").exists():
            remedy = "run `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run this as root"
        else:
            remedy = "run this as root"
        return f"this system lets an ordinary user mount nothing in a user namespace; {remedy}"
    if emulated and not _works((*_OWN_USERS, "sh", "-c", _BINFMT)):
        release = os.uname().release
        return f"a user namespace has no binfmt_misc of its own on Linux {release}; it needs Linux 6.7 or newer"
    if network and not _works((*(_prefix() or ()), "--net", "true")):
        return "this system gives an ordinary user no network name space of its own; run this as root"
    return None


def launch(
    command: list[str],
    root: Path,
    board: Path,
    name: str,
    emulator: Path | None,
    env: dict[str, str],
    log: Path,
    inside: Inside = SSH_BOARD,
) -> int:
    """Start a command inside a board's name spaces and return its process id.

    root: the folder to be `/`; board: a folder with root/ and those of `inside` in it; name: its host name.
    The process belongs to nobody but init: it outlives this one, and is never a zombie of it.
    """
    prefix = _prefix()
    if prefix is None:
        raise VirtualBoardError("this system allows no name spaces")
    registration = f":{emulator.name}:M::{_ELF_MAGIC[emulator.name]}:{_ELF_MASK}:{emulator}:PF" if emulator else ""
    user = inside.user
    if prefix == _OWN_USERS:
        inner = ["unshare", "--user", f"--map-user={user}", f"--map-group={user}", f"--root={board / 'root'}", *command]
    else:
        inner = ["chroot", f"--userspec={user}:{user}", str(board / "root"), *command]
        for folder in (board / each for each in inside.binds):
            for path in (folder, *folder.iterdir()):
                os.chown(path, user, user)  # sshd becomes that user for good, and reads its keys as that
    if inside.beside:
        prefix = (*prefix, "--net")
    binds = "\n".join(f"{source} {place}" for source, place in inside.binds.items())
    setting = [str(root), str(board), name, registration, binds, shlex.join(inside.beside)]
    entered = [*prefix, "sh", "-c", _ENTER, "sh", *setting, *inside.launcher, *inner]
    # The shell starts the board in a session of its own, tells its process id, and ends: init inherits the board.
    with log.open("w") as output:
        started = subprocess.run(
            ["sh", "-c", 'setsid "$@" </dev/null >&2 & echo $!', "sh", *entered],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=env,
            check=True,
        )
    return int(started.stdout)


def members(pid: int) -> list[int]:
    """Every process that shares a board's file system with process `pid`, itself included."""
    space = _mount_namespace(pid)
    if space is None or space == _mount_namespace(os.getpid()):
        return []
    return [each for each in _processes() if _mount_namespace(each) == space]


def left_over(board: Path) -> list[int]:
    """Every process whose `/` is that board's, also where the one that `launch` started has ended before them."""
    root, own = os.path.realpath(board / "root"), _mount_namespace(os.getpid())
    return [each for each in _processes() if _root(each) == root and _mount_namespace(each) not in (None, own)]


def end(board: Path, pid: int | None = None, timeout_s: float = 10.0) -> None:
    """End every process of a board. pid: what `launch` returned, if that still runs. Raises VirtualBoardError if some
    survive.
    """
    deadline = time.monotonic() + timeout_s
    wanted = [*(members(pid) if pid is not None else ()), *left_over(board)]
    while wanted and time.monotonic() < deadline:
        for each in wanted:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
        wanted = [each for each in wanted if _mount_namespace(each) is not None] or left_over(board)
    if wanted:
        raise VirtualBoardError(f"processes {wanted} of the virtual board do not end")


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _root(pid: int) -> str | None:
    """What a process has as `/`, as this one sees it."""
    try:
        return os.readlink(f"/proc/{pid}/root")
    except OSError:
        return None


def _mount_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:  # gone, a zombie, or somebody else's: in no case ours
        return None


def _prefix() -> tuple[str, ...] | None:
    """How to get name spaces in which mounting is allowed; None if nothing does."""
    for prefix in (_OWN_USERS, _AS_ROOT) if os.geteuid() == 0 else (_OWN_USERS,):
        if _works((*prefix, "mount", "-t", "tmpfs", "tmpfs", "/tmp")):
            return prefix
    return None


def _works(command: tuple[str, ...]) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
