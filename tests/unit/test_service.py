"""The systemd unit, what it may take, and what boards say about servers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.errors import CommandError, UnsuitableError
from edgellm.service_options import Wanted, read_options
from edgellm.serving import Background, read_background
from edgellm.unit import UnitOptions, memory_max_bytes, unit_text

MANIFEST = {
    "memory": {"weight_bytes": 700_000_000, "arena_bytes": 2_000_000, "kv_bytes_per_token": 22_528},
    "model": {"context_length": 2048},
}


def options(**changes: object) -> UnitOptions:
    values: dict[str, object] = {
        "home": "/home/pi",
        "user": "pi",
        "model": "assistant",
        "port": 11434,
        "options": ("--sessions", "2"),
        "memory_max_bytes": 1 << 30,
        "own_user": True,
        "has_key": False,
    }
    return UnitOptions(**{**values, **changes})  # type: ignore[arg-type]


def test_memory_is_the_plans_and_a_quarter_more() -> None:
    needed = 700_000_000 + 2_000_000 + 22_528 * 2048 * 4 + (128 << 20)
    assert needed * 1.25 <= memory_max_bytes(MANIFEST, None, None) < needed * 1.25 + (1 << 20)
    assert (
        memory_max_bytes(MANIFEST, 1, 512) < memory_max_bytes(MANIFEST, 1, None) < memory_max_bytes(MANIFEST, 8, None)
    )


def test_a_unit_has_no_rights_and_runs_what_is_in_use() -> None:
    lines = unit_text(options()).splitlines()
    assert (
        "ExecStart=/home/pi/.edgellm/edgellm-rt serve /home/pi/.edgellm/models/assistant/current"
        " --port 11434 --sessions 2"
    ) in lines
    for line in ("DynamicUser=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "MemoryMax=1073741824"):
        assert line in lines
    assert not any(line.startswith("LoadCredential") for line in lines)
    other = unit_text(options(own_user=False, has_key=True))
    assert "User=pi\n" in other
    assert "LoadCredential=weights.key:/home/pi/.edgellm/weights.key\n" in other


def test_kept_sessions_have_the_only_folder_that_can_be_written() -> None:
    text = unit_text(options(keep=True))
    lines = text.splitlines()
    assert lines[lines.index("Type=notify") + 1].endswith(" --sessions 2 --keep /var/lib/edgellm/assistant")
    for line in ("StateDirectory=edgellm/assistant", "StateDirectoryMode=0700", "UMask=0077"):
        assert line in lines
    assert not any(line.startswith(("ReadWritePaths", "BindPaths")) for line in lines)
    assert "ProtectSystem=strict" in lines
    plain = unit_text(options())
    assert "StateDirectory" not in plain
    assert "--keep" not in plain


@pytest.mark.parametrize(
    "change", [{"home": "/home/a b"}, {"home": "/home/%h"}, {"user": "pi\nExecStart=x", "own_user": False}]
)
def test_what_a_unit_cannot_hold_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UnsuitableError, match="cannot stand in a systemd unit"):
        unit_text(options(**change))


@pytest.mark.parametrize("keep", [False, True])
def test_systemd_rates_it_well(tmp_path: Path, keep: bool) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "edgellm-assistant.service"
    unit.write_text(unit_text(options(keep=keep)))
    # An exposure of 2.0 of 10 or less is what systemd calls OK.
    argv = [tool, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at units that are not installed")
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_what_a_supervisor_says_is_checked() -> None:
    text = '{"state":"running","pid":7,"server":9,"starts":2,"address":"127.0.0.1","port":11434,"running":true}'
    assert read_background(text, "kitchen") == Background(True, "running", 11434, 9, 2)
    assert read_background('{"running":false}', "kitchen") == Background(False)
    deep = '{"running":true,"state":' + "[" * 100_000
    for wrong in ("", "rubbish", "[]", "{}", '{"running":true,"port":"x"}', '{"running":true,"port":1e999}', deep):
        with pytest.raises(CommandError, match="kitchen: edgellm-rt supervise said something unexpected"):
            read_background(wrong, "kitchen")


def test_options_are_read_back_as_they_were_given() -> None:
    words = "--port 8080 --sessions 2 --threads 3 --newer-option --keep /var/lib/edgellm/assistant".split()
    found = read_options(words, "kitchen")
    assert found == Wanted(8080, ("--sessions", "2", "--threads", "3", "--newer-option"), keep=True)
    assert (found.sessions, found.context) == (2, None)
    unit = unit_text(options(port=found.port, options=found.options, keep=found.keep))
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert read_options(line.split()[3:], "kitchen") == found


def test_an_option_is_changed_where_it_stands() -> None:
    now = Wanted(options=("--sessions", "2", "--threads", "3"))
    assert now.with_options({}) == now.options
    assert now.with_options({"sessions": 2}) == now.options
    assert now.with_options({"context": 512, "sessions": 8}) == (
        *("--sessions", "8", "--threads", "3"),
        *("--context", "512"),
    )
    assert Wanted(options=("--sessions",)).sessions is None
    assert Wanted(options=("--sessions", "many")).sessions is None


@pytest.mark.parametrize(
    "words", ["", "--port", "--port x", "--port -1", "--port 123456789", "--sessions 2", "\x1b[2J"]
)
def test_options_without_a_port_are_refused(words: str) -> None:
    with pytest.raises(CommandError, match="kitchen: the service there has no port") as raised:
        read_options(words.split(), "kitchen")
    assert "edgellm service install" in str(raised.value)
    assert "\x1b" not in str(raised.value)
