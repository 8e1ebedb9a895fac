"""Boards over adb: the real adb, and Debian's adbd for arm64 with Android's shell in a network name space."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crosscompile.runtime import build_runtime
from crosscompile.target import target_of_tier
from edgellm import virtual, virtual_android, virtual_namespace
from edgellm.adb import AdbRemote
from edgellm.adb_client import AdbClient
from edgellm.address import AdbAddress
from edgellm.board_session import BoardSession, ask_once, install, proven_bytes
from edgellm.boards import load_board
from edgellm.cli import main
from edgellm.errors import CommandError, LinkError, LoginError, RemoteError, UnreachableError, UsageError
from edgellm.probe import probe
from edgellm.remote import FileToSend, Process, Remote

BOARD = "virtual-android"
HOME = "/data/local/tmp/edgellm"
MUTE_PORT = 557


@pytest.fixture(scope="module")
def start(start_board: Callable[[str], AdbAddress]) -> Callable[[], AdbAddress]:
    """Starts the device, or finds it running; skips, and says why, where this machine cannot run it."""
    return lambda: start_board(BOARD)


@pytest.fixture
def phone(start: Callable[[], AdbAddress]) -> Iterator[AdbRemote]:
    with AdbRemote(start(), BOARD) as remote:
        yield remote


@pytest.fixture(scope="module")
def program() -> Path:
    """edgellm-rt for Android."""
    return build_runtime(target_of_tier("armv8-neon", "android"))


def pids() -> tuple[int, int]:
    """(the device, adb's server)."""
    state = virtual.status(load_board(BOARD))
    assert state is not None
    for pid in virtual_namespace.members(state.pid):
        if b"nodaemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return state.pid, pid
    raise AssertionError("adb's server does not run")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_commands_keep_status_outputs_and_words_apart(phone: AdbRemote) -> None:
    done = phone.run(["sh", "-c", 'printf "out\\n"; printf "err\\n" >&2; exit "$1"', "x", "7"])
    assert (done.status, done.stdout, done.stderr) == (7, b"out\n", "err\n")
    words = ["", "two words", "it's", '"$HOME"', "a\nb", "ü;|&*", "-n"]
    assert phone.run(["printf", "%s|", *words]).text == "".join(f"{word}|" for word in words)
    assert phone.run(["no-such-command"]).status == 127
    assert phone.run(["sh", "-c", "kill -9 $$"]).status == 137
    with pytest.raises(CommandError, match=r"status 1.*No such file"):
        phone.check(["cat", "absent"])
    assert phone.script('printf "%s %s %s %s" "$PWD" "$HOME" "$TMPDIR" "$(umask)"').text.split() == [HOME] * 3 + ["022"]
    shell = phone.script('readlink -f "$(command -v tar)"; echo "$KSH_VERSION"; uname -m').text
    assert "toybox" in shell and "MIRBSD KSH" in shell and "aarch64" in shell  # noqa: PT018


def test_bytes_come_through_unchanged_in_both_directions(phone: AdbRemote) -> None:
    data = os.urandom(40_000) + bytes(range(256))
    assert phone.run(["cat"], stdin=data).stdout == data


def test_output_comes_as_it_is_written_and_closing_ends_a_command(phone: AdbRemote) -> None:
    with phone.start(["sh", "-c", "echo one; read -r x; echo $x; cat >got; echo ended >>got"]) as process:
        assert process.read(100) == b"one\n"
        with pytest.raises(TimeoutError):
            process.read(100, timeout_s=0.2)
        process.write(b"two\n")
        assert process.read(100) == b"two\n"
    deadline = time.monotonic() + 20
    while phone.run(["sh", "-c", "ps -A -o ARGS | grep -c '[c]at >got'"]).text.strip() != "0":
        assert time.monotonic() < deadline
    with phone.start(["true"]) as process, pytest.raises(BrokenPipeError):
        write_on(process)


def write_on(process: Process) -> None:
    while True:
        process.write(bytes(100_000))


def test_files_go_there_and_back(phone: AdbRemote, tmp_path: Path) -> None:
    data = os.urandom(1_000_001)
    (tmp_path / "a").write_bytes(data)
    phone.run(["rm", "-rf", "files"])
    phone.script("mkdir files")
    moved: list[int] = []
    phone.put(tmp_path / "a", "files/a b", progress=moved.append)
    assert sum(moved) == len(data)
    phone.script('head -c 5000 "files/a b" >files/part')
    phone.put(tmp_path / "a", "files/part", offset=5000)
    phone.put_all([FileToSend(tmp_path / "a", "deep/c", executable=True)], f"{HOME}/files")
    for name in ("a b", "part", "deep/c"):
        phone.get(f"files/{name}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
    assert phone.run(["sh", "-c", "[ -x files/deep/c ] && [ ! -x 'files/a b' ]"]).status == 0
    with pytest.raises(CommandError, match="reading absent failed"):
        phone.get("absent", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_tunnel_reaches_what_listens_on_the_device(phone: AdbRemote) -> None:
    with pytest.raises(RemoteError, match="nothing answers on the board's port 4444"):
        phone.tunnel(4444)
    with phone.start(["nc", "-L", "-s", "127.0.0.1", "-p", "4444", "cat"]):
        deadline = time.monotonic() + 20
        while not phone._listens(4444):
            assert time.monotonic() < deadline
        for text in (b"one", b"two"):
            tunnel = phone.tunnel(4444)
            tunnel.send(text)
            assert tunnel.recv(10) == text
            assert isinstance(tunnel, socket.socket)
            assert tunnel.gettimeout() is None
            tunnel.close()


def test_what_the_device_says_of_itself(phone: AdbRemote, start: Callable[[], AdbAddress]) -> None:
    facts = probe(phone)
    assert (facts.home, facts.arch) == (HOME, "aarch64")
    assert "asimddp" in facts.cpu_features
    assert main(["doctor", "--board", BOARD]) == 0


# ---- when it does not work ----


def test_nothing_listens_outside_its_own_network(start: Callable[[], AdbAddress]) -> None:
    start()
    own = os.readlink("/proc/self/ns/net")
    device, server = pids()
    assert own != os.readlink(f"/proc/{device}/ns/net") == os.readlink(f"/proc/{server}/ns/net")
    for host in ("127.0.0.1", "::1"):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
            assert client.connect_ex((host, virtual_android.PORT)) in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL)
    if not hasattr(socket, "AF_VSOCK") or os.geteuid() != 0:
        return  # only root may open this port, which is why it was chosen
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe_socket:
        probe_socket.bind((socket.VMADDR_CID_ANY, virtual_android.PORT))  # adbd would have it otherwise


def send_until(address: AdbAddress, file: Path, sha256: str, at_byte: int, fault: Callable[[], None]) -> int:
    """Sends a file into the store; after at_byte bytes `fault` happens. Returns the bytes sent; LinkError comes out."""
    sent = [0]

    def count(n_bytes: int) -> None:
        before = sent[0]
        sent[0] += n_bytes
        if before < at_byte <= sent[0]:
            fault()

    broken = pytest.raises(LinkError, match="the connection broke")
    with AdbRemote(address, BOARD) as remote, broken, BoardSession(remote, HOME) as board:
        board.send(file, sha256, 0, False, count)
        board.collect()
    return sent[0]


@pytest.mark.parametrize("fault", ["unplugged", "device dies", "server dies"])
def test_a_device_that_goes_in_the_middle_of_a_push_loses_at_most_a_megabyte(
    fault: str, start: Callable[[], AdbAddress], program: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(6_000_000))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    address = start()
    with AdbRemote(address) as remote:
        remote.run(["rm", "-rf", ".edgellm"])
        install(remote, HOME, program)

    def happens() -> None:
        device, server = pids()
        if fault == "unplugged":
            AdbClient(address).run("disconnect", virtual_android.SERIAL)
        else:
            os.kill(device if fault == "device dies" else server, signal.SIGKILL)

    sent = send_until(address, file, sha256, 3_000_000, happens)
    with AdbRemote(start()) as remote, BoardSession(remote, HOME) as board:
        there = board.survey().parts.get(sha256, 0)
        proven = proven_bytes(file, board.blocks(sha256), there)
        assert sent - proven <= 1 << 20
        board.send(file, sha256, proven, False, None)
        board.collect()
        assert board.survey().store[sha256] == len(file.read_bytes())
    with AdbRemote(start()) as remote:
        ask_once(remote, HOME, "gc")
        assert remote.script("ls .edgellm/store").text == ""


def test_a_lost_connection_is_never_taken_for_success(phone: AdbRemote, start: Callable[[], AdbAddress]) -> None:
    """adb itself ends with 0 when the device is unplugged."""
    client = AdbClient(start())
    with phone.start(["sh", "-c", "echo begun; sleep 30"]) as process:
        assert process.read(100) == b"begun\n"
        client.run("disconnect", virtual_android.SERIAL)
        assert process.read(100) == b""
        with pytest.raises(LinkError, match=r"the connection broke.*check that the device is connected"):
            process.wait()
    with pytest.raises(LinkError, match="not found"):
        phone.run(["true"])
    with AdbRemote(start()) as again:  # a device over the network is connected by itself
        assert again.run(["true"]).status == 0


def test_what_hangs_is_given_up(phone: AdbRemote, start: Callable[[], AdbAddress]) -> None:
    device, server = pids()
    with stopped(device):
        with pytest.raises(LinkError, match="no answer for 1 s"):
            phone.run(["true"], silence_s=1)
        with phone.start(["cat"], silence_s=1) as process, pytest.raises(LinkError, match="stalled while sending"):
            write_on(process)
    with stopped(server), pytest.raises(LinkError, match=r"`adb devices` gave no answer for 1 s.*adb kill-server"):
        AdbClient(start_again := start()).run("devices", limit_s=1)
    assert AdbRemote(start_again).run(["true"]).status == 0


@pytest.fixture
def mute_phone(start: Callable[[], AdbAddress]) -> Iterator[str]:
    """A second device of the same server, which has not allowed this computer. Its serial."""
    address = start()
    script = str(Path(__file__).with_name("mute_phone.py"))
    enter = ["nsenter", "-t", str(pids()[1]), "--user", "--net", "--preserve-credentials", "--"]
    serial = f"127.0.0.1:{MUTE_PORT}"
    with subprocess.Popen([*enter, sys.executable, script, str(MUTE_PORT)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"listening\n"
        yield serial
        AdbClient(address).run("disconnect", serial)
        process.kill()


def test_a_device_that_is_not_ready_says_what_to_do(start: Callable[[], AdbAddress], mute_phone: str) -> None:
    address = start()

    def of(serial: str | None) -> AdbAddress:
        return AdbAddress(serial, address.program, address.server)

    with pytest.raises(LoginError, match="has not allowed this computer yet: unlock it"):
        AdbRemote(of(mute_phone))
    with pytest.raises(UsageError, match=rf"several devices; add --host adb:SERIAL.*: .*{mute_phone} \((un)?author"):
        AdbRemote(of(None))
    with pytest.raises(UnreachableError, match=r"R58M123ABC is not connected.*connected now: 127\.0\.0\.1:555"):
        AdbRemote(of("R58M123ABC"))
    with pytest.raises(UnreachableError, match=r"cannot be connected: .*Connection refused"):
        AdbRemote(of("127.0.0.1:9"))
    AdbClient(address).run("disconnect")  # all of them
    with pytest.raises(UnreachableError, match="adb knows no device; enable USB debugging"):
        AdbRemote(of(None))
    assert isinstance(AdbRemote(of(virtual_android.SERIAL)), Remote)
