"""Virtual boards: a real SSH server that shows the emulated processor, and stops without a trace."""

import os
import signal
import stat

import pytest

from edgellm import virtual, virtual_namespace
from edgellm.boards import load_board
from edgellm.cli import main
from edgellm.errors import VirtualBoardError
from edgellm.ssh import SshRemote


def shell(remote: SshRemote, script: str) -> bytes:
    return remote.run(["sh", "-c", script]).stdout


@pytest.mark.parametrize(
    ("board_id", "machine", "part"),
    [("virtual-rpi5", "aarch64", "0xd0b"), ("virtual-rpi4", "aarch64", "0xd08"), ("virtual-rpi2", "armv7l", "0xc07")],
)
def test_board_shows_its_own_processor(start_board, board_id, machine, part):
    with SshRemote(start_board(board_id), board_id) as remote:
        assert shell(remote, "uname -m").strip() == machine.encode()
        cpuinfo = shell(remote, "cat /proc/cpuinfo").decode()
        assert part in cpuinfo
        features = set(next(line for line in cpuinfo.splitlines() if line.startswith("Features")).split()[2:])
        # What the kernels will use must really be there. QEMU writes no evtstrm, and vfpv4 has its own name.
        tier = load_board(board_id).target().tier
        assert features >= set(tier.requires)


def test_user_is_pi_and_the_system_is_read_only(start_board):
    with SshRemote(start_board("virtual-rpi5"), "virtual-rpi5") as remote:
        assert shell(remote, "id -un; pwd; hostname").split() == [b"pi", b"/home/pi", b"virtual-rpi5"]
        assert shell(remote, "touch /etc/x /bin/x /x; ls /x /bin/x /etc/x; true") == b""


def test_home_survives_a_restart_and_everything_ends_at_a_stop(virtual_cache, start_board):
    board = load_board("virtual-rpi5")
    with SshRemote(start_board(board.id), board.id) as remote:
        shell(remote, "echo kept > ~/file; sleep 1000 >/dev/null 2>&1 </dev/null & echo started")
    state = virtual.status(board)
    assert state is not None
    running = virtual_namespace.members(state.pid)
    assert len(running) > 1
    assert virtual.stop(board)
    assert virtual.status(board) is None
    assert all(virtual_namespace.start_ticks(pid) is None for pid in running)
    assert not virtual.stop(board)
    with SshRemote(virtual.start(board), board.id) as remote:
        assert shell(remote, "cat ~/file") == b"kept\n"


def test_nothing_outlives_a_board_that_was_killed(start_board):
    """As the out-of-memory killer does it: the first process is gone, and what it had started goes on."""
    board = load_board("virtual-local")

    def kill_board() -> int:
        with SshRemote(start_board(board.id), board.id) as remote:
            pid = int(shell(remote, "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"))
        state = virtual.status(board)
        assert state is not None
        os.kill(state.pid, signal.SIGKILL)
        while virtual.status(board) is not None:
            pass
        assert virtual_namespace.start_ticks(pid) is not None
        return pid

    left = kill_board()
    virtual.stop(board)
    assert virtual_namespace.start_ticks(left) is None
    left = kill_board()
    start_board(board.id)
    assert virtual_namespace.start_ticks(left) is None


def test_second_start_finds_the_running_board(start_board):
    first = start_board("virtual-rpi5")
    assert virtual.start(load_board("virtual-rpi5")) == first
    assert virtual.address(load_board("virtual-rpi5")) == first


def test_private_keys_are_private(start_board):
    key = start_board("virtual-rpi5").key_path
    assert key is not None
    for path in (key, key.with_name("host_key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_command_line_starts_tells_and_stops(start_board, capsys):
    start_board("virtual-local")
    assert main(["board", "start", "virtual-local"]) == 0
    assert "pi@127.0.0.1" in capsys.readouterr().out
    assert main(["board", "status", "virtual-local"]) == 0
    assert "runs at pi@127.0.0.1" in capsys.readouterr().out
    assert main(["board", "stop", "virtual-local"]) == 0
    assert "virtual-local is stopped" in capsys.readouterr().out


def test_machine_without_the_tools_says_what_to_install(monkeypatch, virtual_cache, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    board = load_board("virtual-rpi5")
    assert "sudo apt-get install" in str(virtual.availability(board))
    with pytest.raises(VirtualBoardError, match="virtual-rpi5 cannot run on this machine"):
        virtual.start(board)


def test_unreachable_mirror_leaves_nothing_behind(monkeypatch, tmp_path):
    board = load_board("virtual-rpi5")
    if reason := virtual.availability(board):
        pytest.skip(reason)
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGELLM_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(VirtualBoardError, match="reading the package lists"):
        virtual.start(board)
    assert [name for name in os.listdir(tmp_path / "cache" / "virtual" / "parts") if name != ".lock"] == []
