"""doctor on emulated boards: busybox behind a real SSH server, which shows the board's own processor."""

from __future__ import annotations

import json

import pytest

from edgellm.boards import load_board
from edgellm.cli import main
from edgellm.examination import examine
from edgellm.findings import ERROR, OK, board_findings
from edgellm.ssh import SshRemote


@pytest.mark.parametrize(
    ("board_id", "arch", "bits", "tier"),
    [("virtual-rpi5", "aarch64", 64, "dotprod"), ("virtual-rpi2", "armv7", 32, "armv7-neon")],
)
def test_an_emulated_board(start_board, board_id, arch, bits, tier):
    with SshRemote(start_board(board_id), board_id) as remote:
        seen = examine(remote)
    assert (seen.system, seen.arch, seen.bits) == ("Linux", arch, bits)
    assert seen.glibc is not None
    assert seen.glibc >= (2, 28)
    assert seen.disk_free_bytes
    found = {each.subject: each for each in board_findings(seen, load_board(board_id)) if each.level == OK}
    assert f"tier {tier}" in found["processor"].text
    assert {"architecture", "C library", "page size", "memory"} <= set(found)


def test_the_wrong_type_of_board_is_an_error(start_board, capsys):
    with SshRemote(start_board("virtual-rpi2"), "virtual-rpi2") as remote:
        found = board_findings(examine(remote), load_board("rpi5"))
    assert [each.level for each in found if each.subject == "architecture"] == [ERROR]


def test_the_command(start_board, capsys):
    start_board("virtual-rpi5")
    assert main(["doctor", "--board", "virtual-rpi5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["subject"].startswith("virtual-rpi5")
    assert answer["level"] != ERROR
