"""The demo model on the emulated Android device, by the commands a user types, with adb on PATH as a user has it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import bundle as bundles
from edgellm.address import AdbAddress
from edgellm.cli import main

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
PROMPT = "turn on the kitchen light"


@pytest.fixture(scope="module")
def deployed(
    start_board: Callable[[str], AdbAddress], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The first deployment to `phone`, as JSON, with what it noted."""
    where = start_board("virtual-android")
    assert where.program is not None
    assert where.server is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("PATH", f"{where.program.parent}:{os.environ['PATH']}")
        patch.setenv("ADB_SERVER_SOCKET", where.server)
        patch.delenv("ANDROID_NDK_HOME", raising=False)
        assert main(["boards", "add", "phone", "android-arm64", f"adb:{where.serial}"]) == 0
        with pytest.MonkeyPatch.context() as streams:
            out, errors = io.StringIO(), io.StringIO()
            streams.setattr("sys.stdout", out)
            streams.setattr("sys.stderr", errors)
            code = main(["deploy", MODEL, "--board", "phone"])
        assert code == 0, errors.getvalue()
        yield {"out": out.getvalue(), "notes": errors.getvalue()}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    code = main([*argv, "--board", "phone"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_a_deployment_is_proved_on_the_device_though_it_may_not_link(
    deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "3 golden prompts" in deployed["out"]
    assert "has no hard links" in deployed["notes"]
    assert "in use" in deployed["out"]
    again = json.loads(run(capsys, "deploy", MODEL, "--json"))
    assert (again["unchanged"], again["sent_bytes"]) == (True, 0)
    assert again["path"].startswith("/data/local/tmp/edgellm/.edgellm/models/voice_assistant/")


def test_it_answers_and_talks(
    deployed: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.loads(run(capsys, "run", "-p", PROMPT, "--temperature", "0", "--json"))
    assert '"turn_on"' in answer["text"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\n{PROMPT}\n/reset\nhello\n"))
    lines = run(capsys, "chat", "--temperature", "0").splitlines()
    assert lines[0] == lines[-1]


def test_the_only_device_is_meant_without_an_address(
    deployed: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["status", "--board", "android-arm64", "--json"]) == 0
    assert "voice_assistant" in capsys.readouterr().out


def test_bench_measures(deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ("--prompt", "4", "--depth", "0", "--generate", "2", "--repeat", "2", "--threads", "1")
    assert "decode at 0" in run(capsys, "bench", *lengths)


def test_a_version_can_be_gone_back_to_and_all_of_it_removed(
    deployed: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = json.loads(run(capsys, "status", "--json"))["models"]["voice_assistant"]["current"]
    run(capsys, "compile", MODEL, "-o", str(tmp_path / "other"))
    manifest = bundles.read(tmp_path / "other").manifest
    bundles.seal(tmp_path / "other", {**manifest, "provenance": {**manifest["provenance"], "tool": "another"}})
    run(capsys, "deploy", str(tmp_path / "other"))
    model = json.loads(run(capsys, "status", "--json"))["models"]["voice_assistant"]
    assert (model["previous"], model["current"] != first) == (first, True)
    run(capsys, "rollback")
    assert json.loads(run(capsys, "status", "--json"))["models"]["voice_assistant"]["current"] == first
    assert "promote" in run(capsys, "logs")
    assert '"turn_on"' in run(capsys, "run", "-p", PROMPT, "--temperature", "0")
    run(capsys, "undeploy", "--model", "voice_assistant")
    run(capsys, "gc")
    assert json.loads(run(capsys, "status", "--json"))["models"] == {}
