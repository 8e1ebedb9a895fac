"""`edgellm boards` and `edgellm board`, as a person and as a script see them."""

import io
import json

import pytest

from edgellm.boards import find_board
from edgellm.cli import main
from edgellm.errors import BoardError
from edgellm.instances import Instance, add_instance


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


def test_list_shows_types_and_own_boards(capsys):
    assert main(["boards", "add", "kitchen", "rpi5", "pi@kitchen.local"]) == 0
    capsys.readouterr()
    assert main(["boards"]) == 0
    text = capsys.readouterr().out
    assert "jetson-orin-nano" in text
    assert "pi@kitchen.local" in text


def test_list_as_json_has_every_board_with_its_tier(capsys):
    assert main(["boards", "--json"]) == 0
    boards = {board["id"]: board for board in json.loads(capsys.readouterr().out)["boards"]}
    assert boards["rpi5"]["target"]["tier"] == "dotprod"
    assert boards["virtual-rpi2"]["virtual"]["qemu"] == "qemu-arm"


def test_show_prints_sections_with_units(capsys):
    assert main(["boards", "show", "rpi5"]) == 0
    text = capsys.readouterr().out
    assert "[memory]" in text
    assert "17.1 GB/s" in text
    assert "16 KiB" in text


def test_show_as_json_takes_an_instance(capsys):
    main(["boards", "add", "kitchen", "rpi5", "pi@kitchen.local:2222"])
    capsys.readouterr()
    assert main(["boards", "show", "kitchen", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["host"], shown["port"]) == ("rpi5", "pi@kitchen.local", 2222)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["boards", "show", "nonesuch"], "there is no board 'nonesuch'"),
        (["boards", "add", "x", "nonesuch", "pi@x"], "there is no board 'nonesuch'"),
        (["boards", "add", "x", "virtual-rpi5", "pi@x"], "needs no address"),
        (["boards", "add", "x", "rpi5", "pi@x:99999"], "not an SSH address"),
        (["boards", "remove", "x"], "there is no board 'x' of yours"),
        (["board", "start", "rpi5"], "rpi5 is hardware"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(command, reason, capsys, tmp_path):
    assert main(command) == 1
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "config").exists()


def test_nothing_runs_at_first(capsys):
    assert main(["board", "stop"]) == 0
    assert "no virtual board was running" in capsys.readouterr().out
    assert main(["board", "status", "--json"]) == 0
    assert not any(row["running"] for row in json.loads(capsys.readouterr().out))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "host"), [("2\n", "pi@a"), ("hall\n", "pi@b"), ("3\n", None), ("", None)])
def test_ambiguous_board_is_asked_for_on_a_terminal(answer, host, monkeypatch):
    add_instance(Instance.at("kitchen", "rpi5", "pi@a"))
    add_instance(Instance.at("hall", "rpi5", "pi@b"))
    screen = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", screen)
    if host is None:
        with pytest.raises(BoardError, match="is none of them"):
            find_board("rpi5")
    else:
        assert find_board("rpi5").host == host
    assert "1  hall  pi@b" in screen.getvalue()
