"""A system prompt that is computed when the bundle is compiled: the same answers, without computing it again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgellm import bundle as bundles
from edgellm import prefix
from edgellm.cli import main
from edgellm.compile import build
from edgellm.errors import UsageError
from edgellm.precision import Options
from edgellm.prefix import Prefix
from tests.server import MODEL, QUESTIONS, SYSTEM, Server

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "turn_on",
            "description": "Turns a light on.",
            "parameters": {"type": "object", "properties": {"light": {"type": "string"}}, "required": ["light"]},
        },
    }
]


@pytest.fixture(scope="module")
def shipped(bundle: Path) -> Path:
    return build(MODEL, "local", Options("w4a8"), prefix=Prefix(SYSTEM)).bundle.path


def run(bundle: Path, *arguments: str) -> Any:
    argv = [str(bundle / "edgellm-rt"), "run", str(bundle), *arguments, "--temperature", "0", "-n", "24", "--json"]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def ask(server: Server, *messages: dict[str, str], **more: Any) -> tuple[str, int, int]:
    """(answer, tokens of the prompt, tokens of it that were not computed)."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 24, **more}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, answer
    usage = answer["usage"]
    return (
        answer["choices"][0]["message"]["content"] or "",
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )


def test_greedy_answers_are_the_same_and_nothing_is_computed_twice(bundle: Path, shipped: Path) -> None:
    n_tokens = bundles.read(shipped).manifest["prefix"]["tokens"]
    assert n_tokens > 30
    for question in QUESTIONS:
        for threads in ("1", "2"):
            before = run(bundle, "-p", question, "--system", SYSTEM, "--threads", threads)
            after = run(shipped, "-p", question, "--system", SYSTEM, "--threads", threads)
            assert after["ids"] == before["ids"]
            assert (before["reused_tokens"], after["reused_tokens"]) == (0, n_tokens)
    other = run(shipped, "-p", QUESTIONS[0], "--system", "You are a parrot.")
    assert other["ids"] == run(bundle, "-p", QUESTIONS[0], "--system", "You are a parrot.")["ids"]
    assert other["reused_tokens"] < n_tokens


def test_the_logits_behind_it_are_the_same_bits(bundle: Path, shipped: Path, tmp_path: Path) -> None:
    """A state that began with the shipped one is, byte for byte, one that was computed whole."""
    states = []
    for directory in (bundle, shipped):
        file = tmp_path / f"{directory.name}.state"
        argv = [
            str(directory / "edgellm-rt"),
            "prefix",
            str(directory),
            "--system",
            SYSTEM + "\nBe brief.",
            "-o",
            str(file),
        ]
        subprocess.run(argv, capture_output=True, check=True)
        data = file.read_bytes()
        head = 8 + int.from_bytes(data[:8], "little")
        states.append(data[head + 64 :])  # without the checksum
    assert states[0] == states[1]


def test_sessions_of_a_server_begin_with_it(bundle: Path, shipped: Path) -> None:
    n_tokens = bundles.read(shipped).manifest["prefix"]["tokens"]
    without, server = Server(bundle), Server(shipped, "--sessions", "2")
    system = {"role": "system", "content": SYSTEM}
    try:
        for question in QUESTIONS[:3]:
            user = {"role": "user", "content": question}
            expected = ask(without, system, user)[0]
            text, n_prompt, n_cached = ask(server, system, user)
            assert text == expected
            assert n_tokens <= n_cached < n_prompt
            assert ask(server, user)[:2] == (expected, n_prompt)  # it is the model's own where a client brings none
            assert ask(server, {"role": "system", "content": ""}, user)[1] < n_prompt
        status, answer = server.post(
            "/api/chat", {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": False}
        )
        assert (status, answer["prompt_eval_count"]) == (
            200,
            ask(server, system, {"role": "user", "content": QUESTIONS[0]})[1],
        )
        assert server.post("/api/show", {"model": "voice_assistant"})[1]["system"] == SYSTEM
        assert "system" not in without.post("/api/show", {"model": "voice_assistant"})[1]
    finally:
        assert (without.stop(), server.stop()) == (0, 0)


def test_tools_are_in_it_for_clients_that_offer_the_same(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS, indent=2))
    wanted = prefix.read(SYSTEM, tmp_path / "tools.json")
    made = build(MODEL, "local", Options("w4a8"), prefix=wanted).bundle
    assert made.manifest["prefix"]["tools"] is True
    without, server = Server(bundle), Server(made.path)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTIONS[0]}]
    try:
        expected = ask(without, *messages, tools=TOOLS)[0]
        text, _, n_cached = ask(server, *messages, tools=TOOLS)
        assert (text, n_cached) == (expected, made.manifest["prefix"]["tokens"])
        assert ask(server, *messages)[0] == ask(without, *messages)[0]
    finally:
        assert (without.stop(), server.stop()) == (0, 0)


def test_compile_shows_it_and_a_damaged_one_is_refused(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "system.txt").write_text(f"{SYSTEM}\n")
    output = tmp_path / "bundle"
    argv = [
        "compile",
        str(MODEL),
        "--board",
        "local",
        "--system-prompt",
        str(tmp_path / "system.txt"),
        "-o",
        str(output),
    ]
    assert main(argv) == 0
    assert "tokens of system prompt" in capsys.readouterr().out
    assert bundles.read(output).sha256 == bundles.read(shipped).sha256
    program = str(output / "edgellm-rt")
    shown = subprocess.run([program, "info", str(output)], capture_output=True, text=True, check=True).stdout
    assert "computed already: system prompt" in shown
    answered = subprocess.run([program, "golden", str(output), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(answered.stdout)["prompts"] == 4
    file = output / prefix.FILE
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.unlink()
    file.write_bytes(data)
    done = subprocess.run([program, "info", str(output)], capture_output=True, text=True, check=False)
    assert (done.returncode, "weights/prefix.safetensors" in done.stderr) == (21, True)


def test_one_of_another_shape_is_refused_by_name(shipped: Path, tmp_path: Path) -> None:
    """Sealed again with an 8-bit cache's plan, the hashes are right and the sizes are not."""
    other = build(MODEL, "local", Options("w4a8", kv="i8")).bundle
    mixed = bundles.copy(other, tmp_path / "mixed").path
    shutil.copyfile(shipped / prefix.FILE, mixed / prefix.FILE)
    manifest = {k: v for k, v in other.manifest.items() if k not in ("format", "files")}
    bundles.seal(mixed, {**manifest, "prefix": {"file": prefix.FILE, "tokens": 37, "tools": False}})
    done = subprocess.run([str(mixed / "edgellm-rt"), "info", str(mixed)], capture_output=True, text=True, check=False)
    assert done.returncode == 22
    assert "BUNDLE_FORMAT: weights/prefix.safetensors: kv.0 must have" in done.stderr


@pytest.mark.parametrize(
    ("system", "tools", "what"),
    [
        ("", None, "1 to"),
        ("x\0y", None, "NUL"),
        ("x" * 200_000, None, "200000 bytes"),
        (None, "{", "not JSON"),
        (None, "{}", "an array"),
        (None, '[{"function": {}}]', "tool 0"),
    ],
)
def test_what_makes_no_prefix(system: str | None, tools: str | None, what: str, tmp_path: Path) -> None:
    file = None if tools is None else tmp_path / "tools.json"
    if file is not None and tools is not None:
        file.write_text(tools)
    with pytest.raises(UsageError, match=what):
        prefix.read(system, file)


def test_templates_that_cannot_have_one() -> None:
    with pytest.raises(UsageError, match="today's date"):
        prefix.check(Prefix("x"), "{{ strftime_now('%d %b %Y') }}")
    with pytest.raises(UsageError, match="no chat template"):
        prefix.check(Prefix(None, "[]"), None)
    prefix.check(Prefix("x"), None)
