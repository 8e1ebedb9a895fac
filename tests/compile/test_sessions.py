"""Conversations and sessions that outlive the program: taken up without computing them again, or not used at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgellm import bundle as bundles
from edgellm.conversation import Chat
from edgellm.local_remote import LocalRemote
from edgellm.runtime_program import InstalledModel
from tests.server import QUESTIONS, SYSTEM, Server


def talk(
    bundle: Path,
    session: Path | None,
    *messages: dict[str, Any],
    expect: int = 0,
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What a run of `edgellm-rt chat --jsonl` says to some messages."""
    argv = [str(bundle / "edgellm-rt"), "chat", str(bundle), "--jsonl", "--temperature", "0", "--system", SYSTEM]
    argv += ["-n", "24", *(("--session", str(session)) if session is not None else ()), *options]
    text = "".join(json.dumps(message) + "\n" for message in messages)
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=300, check=False, env=env)
    assert done.returncode == expect, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def asked(question: str) -> dict[str, Any]:
    return {"type": "user", "text": question}


def told(messages: list[dict[str, Any]]) -> str:
    return "".join(message["text"] for message in messages if message["type"] == "text")


def other_bundle(bundle: Path, folder: Path) -> Path:
    """The same model under another name: another bundle."""
    copied = bundles.copy(bundles.read(bundle), folder)
    manifest = {k: v for k, v in copied.manifest.items() if k not in ("format", "files")}
    return bundles.seal(folder, {**manifest, "model": {**manifest["model"], "name": "another"}}).path


def test_a_conversation_goes_on_without_being_computed_again(bundle: Path, tmp_path: Path) -> None:
    session = tmp_path / "new folder" / "work"
    whole = talk(bundle, None, asked(QUESTIONS[0]), asked(QUESTIONS[1]))
    first = talk(bundle, session, asked(QUESTIONS[0]))
    assert first[0]["messages"] == [{"role": "system", "content": SYSTEM}]
    assert session.stat().st_mode & 0o777 == 0o600
    second = talk(bundle, session, asked(QUESTIONS[1]))
    assert [message["role"] for message in second[0]["messages"]] == ["system", "user", "assistant"]
    assert told(first) + told(second) == told(whole)
    done = second[-1]
    assert done["reused_tokens"] == whole[-1]["reused_tokens"] > 40
    assert done["prompt_tokens"] == whole[-1]["prompt_tokens"]
    talk(bundle, session, {"type": "reset"})
    assert not session.exists()  # forgotten


def test_one_of_another_bundle_is_computed_anew(bundle: Path, tmp_path: Path) -> None:
    session = tmp_path / "work"
    first = talk(bundle, session, asked(QUESTIONS[0]))
    again = talk(other_bundle(bundle, tmp_path / "other"), session, asked(QUESTIONS[1]))
    assert "computed anew" in again[0]["text"]
    assert again[-1]["reused_tokens"] == 0
    assert told(first) + told(again) == told(talk(bundle, None, asked(QUESTIONS[0]), asked(QUESTIONS[1])))


def test_a_damaged_one_is_refused_and_left_alone(bundle: Path, tmp_path: Path) -> None:
    session = tmp_path / "work"
    talk(bundle, session, asked(QUESTIONS[0]))
    data = bytearray(session.read_bytes())
    for content in (data[:-1], data[:70_000], b"", b"rubbish", data[:-900] + bytes([data[-900] ^ 4]) + data[-899:]):
        session.write_bytes(content)
        assert talk(bundle, session, expect=70) == []
        assert session.read_bytes() == content


def test_a_session_of_python_s_chat(bundle: Path, tmp_path: Path) -> None:
    session = str(tmp_path / "work")
    model = InstalledModel(LocalRemote(), "voice_assistant", str(bundle), None)
    with Chat(model, SYSTEM, ["--temperature", "0", "-n", "24"], session) as chat:
        first = "".join(chat.ask(QUESTIONS[0]))
        assert chat.messages[0] == {"role": "user", "content": QUESTIONS[0]}
    with Chat(model, None, ["--temperature", "0", "-n", "24"], session) as chat:
        assert (chat.system, chat.messages[1]["content"]) == (SYSTEM, first)
        assert "".join(chat.ask(QUESTIONS[1]))
        assert chat.answer.done is not None
        assert chat.answer.notices == []
    shutil.copy(session, f"{session}.2")
    foreign = InstalledModel(LocalRemote(), "another", str(other_bundle(bundle, tmp_path / "other")), None)
    with Chat(foreign, None, [], f"{session}.2") as chat:
        assert "computed anew" in chat.answer.notices[0]
        assert len(chat.messages) == 4


def test_a_server_s_sessions_outlive_it(bundle: Path, tmp_path: Path) -> None:
    def ask(server: Server, question: str) -> tuple[str, int]:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        status, answer = server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 24})
        assert status == 200, answer
        cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["message"]["content"], cached

    kept = tmp_path / "kept"
    server = Server(bundle, "--keep", str(kept), "--sessions", "2")
    expected = [ask(server, question)[0] for question in QUESTIONS[:3]]
    assert server.stop() == 0
    assert [file.name for file in kept.iterdir()] == ["session-0"]  # one after another, they took one session
    assert kept.stat().st_mode & 0o777 == 0o700
    server = Server(bundle, "--keep", str(kept), "--sessions", "2")
    again = [ask(server, question) for question in QUESTIONS[:3]]
    assert server.stop() == 0
    assert [text for text, _ in again] == expected
    assert all(cached > 30 for _, cached in again)
    for damage in (b"", (kept / "session-0").read_bytes()[:-3]):
        (kept / "session-0").write_bytes(damage)
        server = Server(bundle, "--keep", str(kept), "--sessions", "1")
        assert ask(server, QUESTIONS[0]) == (expected[0], 0)
        assert server.stop() == 0
    server = Server(other_bundle(bundle, tmp_path / "other"), "--keep", str(kept), "--sessions", "1")
    assert ask(server, QUESTIONS[0]) == (expected[0], 0)
    assert server.stop() == 0
