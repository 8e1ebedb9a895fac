"""WAV in, WAV out, with the real engines and the demo model behind `edgellm-rt serve`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from evaluation.speakers import HELD_OUT, TUNED_ON, hush, noise
from voice_assistant.audio import write_wav

from tests.server import Server

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/voice_assistant"


def converse(folder: Path, server: Server, pcm: bytes, config: Path = EXAMPLE / "home.toml") -> list[dict[str, Any]]:
    """Runs the program on what was said; its events."""
    write_wav(folder / "in.wav", pcm)
    argv = [sys.executable, "-m", "voice_assistant", str(config), "--url", server.url]
    argv += ["--wav-in", str(folder / "in.wav"), "--wav-out", str(folder / "out.wav")]
    done = subprocess.run(argv, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def test_a_conversation_from_sound_to_sound(tmp_path: Path, server: Server) -> None:
    parts = [hush(1)]
    for text in (
        "okay nabu, turn on the desk lamp.",
        "okay nabu, is the front door locked?",
        "okay nabu, set a timer for five minutes.",
    ):
        parts += [TUNED_ON[0].say(text), hush(1.2)]
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


def test_what_has_nothing_to_do_with_the_home_switches_nothing(tmp_path: Path, server: Server) -> None:
    said = HELD_OUT[0].say("okay nabu, what is the capital of france?")
    events = converse(tmp_path, server, noise("music", 8, -30, 1) + hush(1) + said + hush(1.2))
    assert len(of(events, "wake")) == 1  # the music did not
    assert not of(events, "tool")
    assert of(events, "say")


def test_another_engine_by_configuration(tmp_path: Path, server: Server) -> None:
    program = tmp_path / "recognize.py"
    program.write_text(
        "import sys, wave, io\nfrom pocketsphinx import Decoder\n"
        "d = Decoder(loglevel='FATAL')\nf = wave.open(io.BytesIO(sys.stdin.buffer.read()))\n"
        "d.start_utt(); d.process_raw(f.readframes(f.getnframes()), False, True); d.end_utt()\nprint(d.hyp().hypstr)\n"
    )
    changes = f'stt = {{ engine = "command", command = ["{sys.executable}", "{program}"] }}\n'
    changes += 'wake = { engine = "none" }\ntts = { engine = "command", command = ["flite", "-voice", "awb", "-f", '
    changes += '"/dev/stdin", "-o", "{file}"] }\n'
    text = (EXAMPLE / "home.toml").read_text()
    config = tmp_path / "other.toml"
    config.write_text(changes + text[text.index("[home]") :])
    pcm = hush(1) + TUNED_ON[0].say("what time is it?") + hush(1.2)
    events = converse(tmp_path, server, pcm, config)
    assert [event["text"] for event in of(events, "heard")] == ["what time is it"]
    assert of(events, "say")[0]["text"].startswith("It is ")
