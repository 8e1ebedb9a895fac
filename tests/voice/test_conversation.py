"""WAV in, WAV out, with the real engines and the demo model behind `edgellm-rt serve`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.speakers import HELD_OUT, hush
from voice_assistant.audio import write_wav

from tests.server import Server, compile_demo

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/voice_assistant"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(compile_demo(tmp_path_factory.mktemp("demo")))
    yield server
    assert server.stop() == 0


def converse(folder: Path, server: Server, pcm: bytes) -> list[dict[str, Any]]:
    """Runs the program on what was said; its events."""
    write_wav(folder / "in.wav", pcm)
    argv = [sys.executable, "-m", "voice_assistant", "home.toml", "--url", server.url]
    argv += ["--wav-in", str(folder / "in.wav"), "--wav-out", str(folder / "out.wav")]
    done = subprocess.run(argv, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def test_a_conversation_from_sound_to_sound(tmp_path: Path, server: Server) -> None:
    parts = [hush(1)]
    for text in (
        "hey ember, turn on the desk lamp.",
        "hey ember, is the front door locked?",
        "hey ember, set a timer for five minutes.",
    ):
        parts += [HELD_OUT[0].say(text), hush(1.2)]
    events = converse(tmp_path, server, b"".join(parts))
    assert [event["text"] for event in of(events, "heard")] == [
        "turn on the desk lamp",
        "is the front door locked",
        "set a timer for five minutes",
    ]
    assert [(event["name"], event["arguments"]) for event in of(events, "tool")] == [
        ("turn_on", {"device": "desk lamp"})
    ]
    assert [event["text"] for event in of(events, "say")] == [
        "The desk lamp is now on.",
        "The front door is locked.",
        "The timer is set to 5 minutes.",
    ]
    turns = [event["stages_ms"] for event in of(events, "turn")]
    assert ["llm" in turn for turn in turns] == [True, True, False]
    states = [event["state"] for event in of(events, "state")]
    assert states == ["idle"] + ["listening", "thinking", "speaking", "idle"] * 3
