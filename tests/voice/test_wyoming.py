"""The engines over the Wyoming protocol, spoken by the protocol's own client, as Home Assistant speaks it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.speakers import TUNED_ON, hush, noise
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize
from wyoming.wake import Detect, Detection, NotDetected

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/voice_assistant"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    argv = [sys.executable, "-m", "voice_assistant", "home.toml", "--wyoming", f"tcp://127.0.0.1:{port}"]
    with subprocess.Popen(argv, cwd=EXAMPLE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        assert json.loads(line)["event"] == "serving"
        yield port
        with socket.create_connection(("127.0.0.1", port)) as speaker:  # its utterance has begun
            speaker.sendall(b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1}}\n')
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def talk(port: int, *events: Event, until: str) -> list[Event]:
    """Sends events, and reads until one of the kind `until`, or the end."""

    async def both() -> list[Event]:
        got: list[Event] = []
        async with AsyncTcpClient("127.0.0.1", port, read_timeout=120) as client:
            for event in events:
                await client.write_event(event)
            while (event := await client.read_event()) is not None:  # type: ignore[assignment]
                got.append(event)
                if event.type == until:
                    break
        return got

    return asyncio.run(both())


def sound(pcm: bytes, step: int = 2048, **shape: int) -> list[Event]:
    form: dict[str, Any] = {"rate": 16000, "width": 2, "channels": 1} | shape
    chunks = [AudioChunk(**form, audio=pcm[at : at + step]).event() for at in range(0, len(pcm), step)]
    return [AudioStart(**form).event(), *chunks, AudioStop().event()]


def heard(port: int, pcm: bytes, **shape: int) -> str:
    return Transcript.from_event(
        talk(port, Transcribe(language="en").event(), *sound(pcm, **shape), until="transcript")[-1]
    ).text


def test_it_says_what_it_has(port: int) -> None:
    found = Info.from_event(talk(port, Describe().event(), until="info")[-1])
    assert [model.name for model in found.asr[0].models] == ["pocketsphinx"]
    assert [voice.name for voice in found.tts[0].voices] == ["slt"]
    assert [(model.name, model.phrase) for model in found.wake[0].models] == [("okay_nabu", "okay nabu")]
    assert Pong.from_event(talk(port, Ping("here").event(), until="pong")[-1]).text == "here"


def test_speech_becomes_text_and_text_speech(port: int) -> None:
    said = talk(port, Synthesize("Turn on the desk lamp.").event(), until="audio-stop")
    assert [event.type for event in (said[0], said[-1])] == ["audio-start", "audio-stop"]
    pcm = b"".join(AudioChunk.from_event(event).audio for event in said[1:-1])
    assert 1 < len(pcm) / 32000 < 4
    assert heard(port, hush(0.3) + pcm + hush(0.3)) == "turn on the desk lamp"


def test_other_sounds_are_converted_and_two_at_once_wait_for_each_other(port: int) -> None:
    import numpy as np

    one, other = (np.frombuffer(hush(0.3) + TUNED_ON[0].say(text) + hush(0.3), np.int16) for text in (
        "is the front door locked?", "set a timer for five minutes."))  # fmt: skip
    stereo_48k = np.repeat(np.repeat(one, 3), 2).astype(np.int16).tobytes()

    async def together() -> list[str]:
        tasks = (
            asyncio.to_thread(heard, port, stereo_48k, rate=48000, channels=2),
            asyncio.to_thread(heard, port, other.tobytes()),
        )
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(together()) == ["is the front door locked", "set a timer for five minutes"]


def test_the_wake_word_is_found_and_music_is_not_one(port: int) -> None:
    ask = Detect(names=["okay_nabu"]).event()
    found = talk(port, ask, *sound(hush(1) + TUNED_ON[0].say("okay nabu") + hush(1)), until="detection")[-1]
    assert Detection.from_event(found).name == "okay_nabu"
    none = talk(port, ask, *sound(noise("music", 5, -25, 1)), until="not-detected")
    assert [NotDetected.is_type(event.type) for event in none] == [True]
    (refused,) = talk(port, Detect(names=["computer"]).event(), until="error")
    assert "okay_nabu" in Error.from_event(refused).text


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"1\n",
        b"{" * 70000 + b"\n",
        b"[" * 50000 + b"\n",
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n' + b"x" * 100000,
        b'{"type": "audio-chunk", "data": {"rate": 0, "width": 9, "channels": 1}, "payload_length": 4}\nabcd',
        b'{"type": "audio-chunk", "data": {"rate": 16000, "width": 2, "channels": 1}, "payload_length": 3}\nabc',
        b'{"type": "audio-chunk", "data": [], "data_length": 2}\n{}',
        b'{"type": "synthesize", "data": {"text": 5}}\n',
        b'{"type": "detect", "data": {"names": 5}}\n{"type": "transcribe"}\n{"type": "audio-start"',
    ],
)
def test_rubbish_ends_its_own_connection_only(port: int, rubbish: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        except OSError:  # it was closed before all of it was sent
            pass
    assert talk(port, Ping("still here").event(), until="pong")
