"""The demo model on the emulated Raspberry Pi 5, by the commands a user types."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.ssh import SshRemote

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
BOARD = "virtual-rpi5"


@pytest.fixture(scope="module")
def deployed(start_board, tmp_path_factory):
    """The first deployment, as JSON; what is remembered about boards lies in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        start_board(BOARD)
        with pytest.MonkeyPatch.context() as streams:
            out = io.StringIO()
            streams.setattr("sys.stdout", out)
            assert main(["deploy", MODEL, "--board", BOARD, "--json"]) == 0
        yield json.loads(out.getvalue())


def run(capsys, *argv: str) -> str:
    capsys.readouterr()
    code = main(list(argv))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_a_second_deployment_sends_nothing(deployed, capsys):
    assert deployed["sent_bytes"] > 1_000_000
    again = json.loads(run(capsys, "deploy", MODEL, "--board", BOARD, "--json"))
    assert (again["unchanged"], again["sent_bytes"], again["path"]) == (True, 0, deployed["path"])


def test_run_streams_the_answer_and_json_has_it_too(deployed, capsys):
    prompt = "turn on the kitchen light"
    text = run(capsys, "run", "--board", BOARD, "-p", prompt)
    answer = json.loads(run(capsys, "run", "--board", BOARD, "-p", prompt, "--json"))
    assert '"turn_on"' in text
    assert answer["text"].strip() == text.strip()
    assert answer["tokens"] == len(answer["ids"])


def test_chat_remembers_what_was_said(deployed, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nturn on the kitchen light\n/reset\nhello\n"))
    system = "You are Ember, the assistant of this home.\nLights: kitchen light off, desk lamp on"
    lines = run(capsys, "chat", "--board", BOARD, "--system", system).splitlines()
    assert '"turn_on"' in "".join(lines)
    assert lines[0] == lines[-1]  # after /reset the same question has the same answer


def test_bench_measures(deployed, capsys):
    arguments = ("bench", "--board", BOARD, "--prompt", "8", "--generate", "4", "--repeat", "1")
    measured = json.loads(run(capsys, *arguments, "--json"))
    assert min(measured[key] for key in ("prefill_tok_s", "decode_tok_s", "ttft_ms", "load_ms")) > 0
    assert measured["peak_rss_bytes"] > 1_000_000
    assert "time to first token" in run(capsys, *arguments)


def test_a_damaged_model_is_refused_and_mended_by_the_next_deployment(deployed, start_board, capsys):
    weights = f"{deployed['path']}/weights"
    flip = 'cd "$1"; set -- *.safetensors; printf X | dd of="$1" bs=1 seek=70000 conv=notrunc 2>/dev/null'
    with SshRemote(start_board(BOARD)) as remote:
        remote.script(flip, weights)
    assert main(["run", "--board", BOARD, "-p", "hello"]) == 1
    error = capsys.readouterr().err
    assert "BUNDLE_CORRUPT" in error
    assert error.count("\n") == 1
    mended = json.loads(run(capsys, "deploy", MODEL, "--board", BOARD, "--json"))
    assert 0 < mended["sent_bytes"] < deployed["sent_bytes"]
    assert run(capsys, "run", "--board", BOARD, "-p", "hello").strip()


def test_a_bundle_for_another_processor_is_refused_before_it_is_sent(deployed, tmp_path, capsys):
    run(capsys, "compile", MODEL, "--board", BOARD, "-o", str(tmp_path / "bundle"))
    assert main(["deploy", str(tmp_path / "bundle"), "--board", "local"]) == 1
    assert "was compiled for aarch64" in capsys.readouterr().err
