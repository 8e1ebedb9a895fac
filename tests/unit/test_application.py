"""Applications: what app.toml may say, what a board must have, and how a version is put there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgellm import app_install, app_remove, application, service
from edgellm.application import BoardPython
from edgellm.errors import CommandError, UnsuitableError, UsageError
from edgellm.fake import FakeRemote
from edgellm.probe import Facts, probe

GOOD = {
    "name": '"tiny"',
    "module": '"tiny"',
    "config": '"tiny.toml"',
    "python": '"3.10"',
    "wheels": "[]",
}
MAIN = """import pathlib, sys
if "--check" in sys.argv:
    sys.exit("no microphone" if "broken" in pathlib.Path(sys.argv[-1]).read_text() else 0)
pathlib.Path(sys.argv[1]).with_name("ran").write_text("yes")
import time
time.sleep(600)
"""


def write(folder: Path, extra: str = "", **changes: str) -> Path:
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / "tiny" / "__main__.py").write_text(MAIN)
    (folder / "tiny.toml").write_text("mode = 'good'\n")
    lines = [f"{key} = {value}" for key, value in {**GOOD, **changes}.items() if value]
    (folder / "app.toml").write_text("\n".join([*lines, extra]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"name": '"Tiny App"'}, "", "'name' must be a name"),
        ({"module": ""}, "", "'module' must be a name"),
        ({"config": '"../x.toml"'}, "", "'config' must be a name"),
        ({"python": "3.1"}, "", ""),
        ({"python": '"2.7"'}, "", "'python' must be the oldest version"),
        ({"wheels": '["--index-url=http://evil.example"]'}, "", "'wheels' must be a list of texts"),
        ({"module": '"other"'}, "", "names 'other', which is not in"),
        ({}, "speed = 3", "unknown key 'speed'"),
        ({}, '[programs]\nflite = ["-x"]', "'programs.flite' must be a list"),
        ({}, '[programs]\nflite = ["a b"]', "'a b' is no name of a package"),
    ],
)
def test_a_wrong_manifest_is_refused_by_file_key_and_remedy(
    tmp_path: Path, changes: dict[str, str], extra: str, message: str
) -> None:
    folder = write(tmp_path / "tiny", extra, **changes)
    if not message:
        assert application.read(folder).python == (3, 1)
        return
    with pytest.raises(UsageError, match=r"app\.toml") as caught:
        application.read(folder)
    assert message in str(caught.value)


def test_the_voice_assistant_is_found_by_name() -> None:
    app = application.find("voice_assistant")
    assert (app.folder / app.model / "config.json").is_file()
    assert {"flite", "arecord", "aplay"} == set(app.programs)
    with pytest.raises(UsageError, match="no application of that name"):
        application.find("no_such_application")


@pytest.fixture
def board(tmp_path: Path) -> FakeRemote:
    home = tmp_path / "board"
    home.mkdir()
    return FakeRemote(home)


def without(board: FakeRemote, tmp_path: Path, *programs: str) -> None:
    """Gives the board a PATH with everything of this machine but some programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if "python3" not in programs:
        (folder / "python3").symlink_to(sys.executable)
    for place in ("/usr/bin", "/bin"):
        for path in Path(place).iterdir():
            if not path.name.startswith(programs) and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    board._environment["PATH"] = str(folder)


def test_a_missing_python_is_named(tmp_path: Path, board: FakeRemote) -> None:
    without(board, tmp_path, "python3")
    app = application.read(write(tmp_path / "tiny"))
    with pytest.raises(UnsuitableError, match=r"python3 is missing on fake, and tiny needs it: install it there"):
        app_install.look(board, facts(board), app)


def facts(board: FakeRemote) -> Facts:
    return probe(board)


def test_an_old_python_and_a_missing_program_are_told(tmp_path: Path, board: FakeRemote) -> None:
    app = application.read(write(tmp_path / "tiny", '[programs]\nno-such-program = ["x"]\nsh = ["dash"]'))
    found = app_install.look(board, facts(board), app)
    assert found.lacks == ("no-such-program",)
    assert found.version >= (3, 10)
    newer = application.read(write(tmp_path / "newer", python='"3.99"'))
    with pytest.raises(UnsuitableError, match=r"tiny needs 3\.99 or newer"):
        app_install.look(board, facts(board), newer)


def test_a_version_is_tried_before_it_is_switched_to(tmp_path: Path, board: FakeRemote) -> None:
    folder, told = write(tmp_path / "tiny"), []
    without(board, tmp_path, "crontab", "sudo")
    here = board.home / ".edgellm" / "apps" / "tiny"

    def install(config: Path | None = None) -> app_install.Installed:
        return app_install.install(board, facts(board), application.read(folder), config, "m", told.append)

    try:
        if service.look(board, str(board.home), "app-tiny").can_systemd:
            pytest.skip("this machine's systemd is not to be touched")
        first = install()
        assert first.sent_bytes > 0
        assert (here / "current").resolve().name == first.version
        wait_for(here / "ran")
        again = install()
        assert (again.version, again.sent_bytes) == (first.version, 0)
        (tmp_path / "bad.toml").write_text("mode = 'broken'\n")
        (folder / "tiny" / "more.py").write_text("X = 1\n")
        with pytest.raises(CommandError, match=r"tiny does not work there: .*no microphone"):
            install(tmp_path / "bad.toml")
        assert (here / "current").resolve().name == first.version
        assert "good" in (here / "config.toml").read_text()
        second = install()
        assert second.version != first.version
        assert (here / "current").resolve().name == second.version
        assert not (here / first.version).exists()
    finally:
        board.script(app_install.STOP, str(here))


def test_removal_ends_it_keeps_the_configuration_and_can_be_repeated(tmp_path: Path, board: FakeRemote) -> None:
    without(board, tmp_path, "crontab", "sudo")
    home, here = str(board.home), board.home / ".edgellm" / "apps" / "tiny"
    if service.look(board, home, "app-tiny").can_systemd:
        pytest.skip("this machine's systemd is not to be touched")
    assert not app_remove.remove(board, home, "tiny", purge=False).anything
    app = application.read(write(tmp_path / "tiny"))
    try:
        done = app_install.install(board, facts(board), app, None, "m", lambda text: None)
        wait_for(here / "ran")
        keeper = int((here / "pid").read_text())
        (here / "config.toml").write_text("mode = 'mine'\n")
        first = app_remove.remove(board, home, "tiny", purge=False)
        assert (first.service, first.versions, first.config) == ("supervised", (done.version,), "kept")
        assert first.freed_bytes > 0
        wait_until_gone(keeper)
        assert [path.name for path in here.iterdir()] == ["config.toml"]
        assert not app_remove.remove(board, home, "tiny", purge=False).anything
        app_install.install(board, facts(board), app, None, "m", lambda text: None)
        assert "mine" in (here / "config.toml").read_text()
        last = app_remove.remove(board, home, "tiny", purge=True)
        assert last.config == "removed"
        assert not here.parent.exists()
    finally:
        board.script(app_install.STOP, str(here))


@pytest.mark.parametrize("name", ["../models", "Tiny", "", "a/b"])
def test_what_is_no_name_is_not_removed(name: str) -> None:
    with pytest.raises(UsageError, match="neither an application's name"):
        app_remove.name_of(name)


def wait_until_gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        subprocess.run(["sleep", "0.05"], check=True)


def wait_for(path: Path) -> None:
    while not path.exists():
        subprocess.run(["sleep", "0.05"], check=True)


def test_wheels_for_a_board_of_another_kind_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    app = application.read(write(tmp_path / "tiny", wheels='["no-such-wheel>=1"]'))
    board = BoardPython("aarch64", (3, 11), (2, 36), ())
    with pytest.raises(UnsuitableError, match=r"tiny: no wheels for aarch64 and Python 3\.11: .*no-such-wheel"):
        application.collect(app, board, lambda text: None)
