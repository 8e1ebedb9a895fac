"""Virtual boards: a real SSH server on a loopback port, in front of an emulated processor or this machine's own.

One that runs Android has adbd instead (`virtual_android`).

A board's folder below the cache holds home/ (what was deployed, kept between starts), etc/ (keys and configuration),
root/ (where its file system is mounted, inside its name spaces only) and state.json (process and port).
Starting needs no privileges and takes a fraction of a second once the parts are fetched.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgellm import cache, virtual_android, virtual_namespace, virtual_parts
from edgellm.address import AdbAddress, SshAddress
from edgellm.boards import Board
from edgellm.errors import VirtualBoardError
from edgellm.files import write_atomically
from edgellm.virtual_parts import Progress

USER = "pi"
_START_S = 30.0
_ATTEMPTS = 3

_SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey /etc/ssh/board/host_key
AuthorizedKeysFile /etc/ssh/board/authorized_keys
AllowUsers {user}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
PidFile none
PrintMotd no
MaxStartups 64
MaxSessions 64
Subsystem sftp /usr/lib/openssh/sftp-server
"""


@dataclass(frozen=True)
class State:
    """A board that runs. started: in clock ticks since the boot named by boot_id, so that a reused pid is noticed."""

    pid: int
    started: int
    boot_id: str
    port: int


def availability(board: Board) -> str | None:
    """Why this machine cannot run the virtual board, with the remedy; None if it can. Starts nothing."""
    section = board.virtual_section
    if section is None:
        return f"{board.id} is not a virtual board"
    return virtual_namespace.obstacle(bool(section.qemu), _is_android(board)) or virtual_parts.missing_tool()


def start(board: Board, progress: Progress | None = None) -> SshAddress | AdbAddress:
    """Start a virtual board, or find it running, and say where it is reached.

    progress: told about the first start's downloads.
    Raises VirtualBoardError if the machine cannot run it, the parts cannot be fetched, or it does not answer.
    """
    if reason := availability(board):
        raise VirtualBoardError(f"{board.id} cannot run on this machine: {reason}")
    folder = _folder(board)
    for name in ("home", "etc", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with virtual_parts.locked(folder / ".lock"):
        state = status(board)
        if state is not None and _is_android(board) and not virtual_android.answers(folder):
            virtual_namespace.end(folder, state.pid)  # somebody ended its adb server
            state = None
        if state is None:
            virtual_namespace.end(folder)  # what outlived its first process
            root, emulator = fetch(board, progress)
            state = (_launch_android if _is_android(board) else _launch)(board, folder, root, emulator)
        return _address(board, state)


def fetch(board: Board, progress: Progress | None = None) -> tuple[Path, Path | None]:
    """Bring a board's parts here, so that starting it needs no network: its root folder, and its emulator if any.

    Raises VirtualBoardError if they cannot be fetched.
    """
    report = progress or (lambda what, fraction: None)
    parts, section = _cache() / "parts", board.virtual_section
    emulator = virtual_parts.ensure_emulator(section.qemu, parts, report) if section and section.qemu else None
    if _is_android(board):
        assert emulator is not None
        virtual_android.ensure_adb(parts, report)
        return virtual_android.ensure_root(parts, report, emulator), emulator
    gpu = section is not None and section.gpu
    return virtual_parts.ensure_root(board.arch, parts, report, emulator, gpu), emulator


def stop(board: Board) -> bool:
    """End a virtual board and all it runs; False if it was not running. What is deployed on it stays.

    What still runs of one whose first process has ended, or was killed, ends too.
    """
    state = status(board)
    virtual_namespace.end(_folder(board), state.pid if state else None)
    if state is None:
        return False
    (_folder(board) / "state.json").unlink(missing_ok=True)
    return True


def status(board: Board) -> State | None:
    """The board's process and port while it runs."""
    try:
        state = State(**json.loads((_folder(board) / "state.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    alive = state.boot_id == _boot_id() and virtual_namespace.start_ticks(state.pid) == state.started
    return state if alive else None


def address(board: Board) -> SshAddress | AdbAddress | None:
    """Where a running board is reached; None if it does not run."""
    state = status(board)
    return _address(board, state) if state else None


def _is_android(board: Board) -> bool:
    return board.os == "android"


def _address(board: Board, state: State) -> SshAddress | AdbAddress:
    if _is_android(board):
        adb = virtual_android.ensure_adb(_cache() / "parts", lambda what, fraction: None)
        return virtual_android.address(_folder(board), adb)
    etc = _folder(board) / "etc"
    return SshAddress("127.0.0.1", state.port, USER, etc / "login_key", etc / "known_hosts")


def _cache() -> Path:
    return cache.root() / "virtual"


def _folder(board: Board) -> Path:
    return _cache() / "boards" / board.id


def _launch_android(board: Board, folder: Path, root: Path, emulator: Path | None) -> State:
    assert emulator is not None
    assert board.virtual_section is not None
    adb = virtual_android.ensure_adb(_cache() / "parts", lambda what, fraction: None)
    pid = virtual_android.launch(folder, board.id, root, adb, emulator, board.virtual_section.qemu_cpu)
    started = virtual_namespace.start_ticks(pid)
    if started is None:
        raise VirtualBoardError(f"{board.id} ended right after its start (log: {folder / 'log'})")
    state = State(pid, started, _boot_id(), virtual_android.PORT)
    write_atomically(folder / "state.json", json.dumps(asdict(state)).encode())
    return state


def _launch(board: Board, folder: Path, root: Path, emulator: Path | None) -> State:
    _ensure_keys(folder)
    log = folder / "log"
    for attempt in range(_ATTEMPTS):
        port = _port(folder, fresh=attempt > 0)
        _configure(board, folder, port)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        if board.virtual_section and board.virtual_section.qemu_cpu:
            environment["QEMU_CPU"] = board.virtual_section.qemu_cpu
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/board/sshd_config"]
        pid = virtual_namespace.launch(command, root, folder, board.id, emulator, environment, log)
        started = virtual_namespace.start_ticks(pid)
        if started is not None and _wait_for_banner(pid, port):
            state = State(pid, started, _boot_id(), port)
            write_atomically(folder / "state.json", json.dumps(asdict(state)).encode())
            return state
        virtual_namespace.end(folder, pid)
        if "in use" not in log.read_text(errors="replace"):
            break
    lines = log.read_text(errors="replace").split("\n")
    reason = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    raise VirtualBoardError(f"{board.id} did not start: {reason} (log: {log})")


def _configure(board: Board, folder: Path, port: int) -> None:
    config = _SSHD_CONFIG.format(port=port, user=USER)
    if board.virtual_section and board.virtual_section.qemu_cpu:
        config += f"SetEnv QEMU_CPU={board.virtual_section.qemu_cpu}\n"  # sshd starts sessions with a clean environment
    etc = folder / "etc"
    (etc / "sshd_config").write_text(config)
    host_key = (etc / "host_key.pub").read_text()
    (etc / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")


def _ensure_keys(folder: Path) -> None:
    """One key pair for the board and one to log in with, made at the first start."""
    etc = folder / "etc"
    for name in ("host_key", "login_key"):
        if (etc / f"{name}.pub").exists():
            continue
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_atomically(etc / name, private, mode=0o600)
        write_atomically(etc / f"{name}.pub", key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (etc / "authorized_keys").write_bytes((etc / "login_key.pub").read_bytes() + b"\n")


def _port(folder: Path, fresh: bool) -> int:
    """A free loopback port; the one used last, if it is free."""
    try:
        last = 0 if fresh else int(json.loads((folder / "state.json").read_text())["port"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        last = 0
    for port in (last, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise VirtualBoardError("no free loopback port")


def _wait_for_banner(pid: int, port: int) -> bool:
    """True as soon as an SSH server answers; False if the process ends or stays silent."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and virtual_namespace.start_ticks(pid) is not None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_START_S) as connection:
                if connection.recv(4) == b"SSH-":
                    return virtual_namespace.start_ticks(pid) is not None
        except OSError:
            time.sleep(0.02)
    return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
