"""The demo model on the emulated Raspberry Pi 5, by the commands a user types."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from edgellm import bench_result
from edgellm.cli import main
from edgellm.sensors import Sampler
from edgellm.ssh import SshRemote

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
BOARD = "virtual-rpi5"


@pytest.fixture(scope="module")
def deployed(start_board, tmp_path_factory):
    """The first deployment, as JSON; what is remembered about boards lies in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        with SshRemote(start_board(BOARD)) as remote:
            remote.script('rm -rf "$HOME/.edgellm"')  # another file's tests may have used the board
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


def test_bench_measures(deployed, tmp_path, capsys):
    lengths = ("--prompt", "4,8", "--depth", "0,8", "--generate", "2", "--repeat", "2", "--threads", "1")
    report, saved = tmp_path / "report.html", tmp_path / "bench.json"
    shown = run(capsys, "bench", "--board", BOARD, *lengths, "--cold", "--sustained", "0.06", "--json", str(saved),
                "--report", str(report))  # fmt: skip
    measured = bench_result.read(saved)
    figures = {figure.key: figure for figure in bench_result.figures_of(measured)}
    for key in (("prefill", 4, 0), ("prefill", 8, 0), ("decode", 2, 0), ("decode", 2, 8), ("first_token", 8, 0)):
        assert len(figures[(*key, 1)].values) == 2
    assert len(figures["cold_start", 4, 0, 1].values) == 1
    assert measured["cold"]["left_bytes"] < measured["cold"]["bytes"] / 6  # the program runs, so its own pages stay
    assert measured["memory"]["peak_rss_bytes"] > 1_000_000
    assert {rate["threads"] for rate in measured["bandwidth"]} == {1}
    assert [run["threads"] for run in measured["sustained"]] == [1]
    assert "decode at 8" in shown
    assert "Sustained decoding" in report.read_text()


def test_bench_names_what_does_not_fit(deployed, capsys):
    assert main(["bench", "--board", BOARD, "--depth", "5000", "--prompt", "8"]) == 1
    error = capsys.readouterr().err
    assert "--depth 5000 and 64 tokens behind it do not fit the context of 1024" in error
    assert error.count("\n") == 1


def test_the_sensors_script_runs_in_the_boards_own_shell(start_board):
    with SshRemote(start_board(BOARD)) as remote, Sampler(remote, period_s=0.1) as sampler:
        sampler.collect(5.0)
        assert sampler.log.readings[-1].at_s > 0


def test_a_damaged_model_is_refused_and_mended_by_the_next_deployment(deployed, start_board, capsys):
    weights = f"{deployed['path']}/weights"
    flip = 'cd "$1"; set -- *.safetensors; chmod u+w "$1"; printf X | dd of="$1" bs=1 seek=70000 conv=notrunc'
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
