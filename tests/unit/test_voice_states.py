"""The voice assistant's states, with ears and a voice that do as they are told; what is between them is real."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from voice_assistant.answering import Answer
from voice_assistant.assistant import Assistant, Parts, events
from voice_assistant.audio import SILENCE
from voice_assistant.config import CaptureTable, Config, DeviceTable, HomeTable, InterruptTable
from voice_assistant.errors import EngineError
from voice_assistant.home import Home, Simulated
from voice_assistant.recognition import Heard
from voice_assistant.streams import Halfway

HOME = HomeTable(devices=(DeviceTable(name="desk lamp", kind="light"),))
SPEECH, QUIET = 0.95, 0.0


class Ears:
    """Source, detector, wake word and recogniser: frames are what a script says they are."""

    patient = False

    def __init__(self, *texts: str) -> None:
        self.texts, self.probability, self.wakes = list(texts), QUIET, False
        self.sound = SILENCE
        self.halfway: Halfway | None = None
        self.script: Iterator[tuple[float, bool]] = iter(())

    def frames(self) -> Iterator[tuple[bytes, float]]:
        for probability, wakes in self.script:
            self.probability, self.wakes = probability, wakes
            yield self.sound, 0.0

    def close(self) -> None:
        pass

    def __call__(self, frame: bytes) -> float:
        return self.probability

    def reset(self) -> None:
        pass

    def begin(self) -> None:
        pass

    def feed(self, frame: bytes, probability: float | None = None) -> int | None:
        return 0 if self.wakes and probability is not None else None

    def end(self) -> Heard:
        text = self.texts.pop(0)
        if text == "broken":
            raise EngineError("no ears")
        return Heard(text)


class Voice:
    """Synthesizer and player: a piece sounds until the script lets it end, or it is stopped."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.log: list[str] = []

    def say(self, text: str) -> bytes:
        return text.encode()

    def play(self, pcm: bytes) -> float:
        self.log.append(f"play {pcm.decode()}")
        assert self.done.wait(60)
        return 0.5 if self.log[-1] == "stop" else 1.0

    def pause(self) -> None:
        self.log.append("pause")

    def resume(self) -> None:
        self.log.append("resume")

    def stop(self) -> None:
        self.log.append("stop")
        self.done.set()

    def allow(self) -> None:
        self.done.clear()


class Room:
    """An assistant among Ears and Voice, and what it told."""

    def __init__(self, config: Config, *texts: str, two_detectors: bool = False) -> None:
        self.ears, self.voice = Ears(*texts), Voice()
        self.events: list[tuple[str, dict[str, Any]]] = []
        parts = Parts(
            self.ears,
            self.voice,
            self.ears,
            self.ears,
            self.ears,
            self.voice,
            Home(config.home, Simulated()),  # type: ignore[arg-type]
            self.ears if two_detectors else None,
        )
        self.assistant = Assistant(config, parts, lambda name, data: self.events.append((name, data)))

    def run(self, script: Iterator[tuple[float, bool]]) -> None:
        self.ears.script = script
        self.assistant.run()

    @property
    def states(self) -> list[str]:
        return [data["state"] for name, data in self.events if name == "state"]

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def utterance(self) -> Iterator[tuple[float, bool]]:
        """The wake word, half a second of speech, and silence until it is answered aloud."""
        yield SPEECH, True
        yield from [(SPEECH, False)] * 16
        while self.assistant.state == "listening":
            yield QUIET, False
        while self.assistant.state == "thinking":
            yield QUIET, False


CONFIG = Config(home=HOME)
BY_SPEECH = replace(CONFIG, capture=CaptureTable(echo_cancelled=True), interrupt=InterruptTable(by="speech"))


def test_idle_listening_thinking_speaking_idle() -> None:
    room = Room(CONFIG, "what time is it")

    def script() -> Iterator[tuple[float, bool]]:
        yield QUIET, False
        yield from room.utterance()
        assert room.assistant.state == "speaking"
        room.voice.done.set()
        while room.assistant.state != "idle":
            yield QUIET, False

    room.run(script())
    assert room.states == ["idle", "listening", "thinking", "speaking", "idle"]
    assert room.names()[1:3] == ["wake", "state"]


def test_nobody_speaks_after_the_wake_word() -> None:
    room = Room(CONFIG, "")
    room.run(iter([(QUIET, True)] + [(QUIET, False)] * 200))
    assert room.states == ["idle", "listening", "idle"]


def test_an_engine_that_fails_is_told_and_the_assistant_goes_on() -> None:
    room = Room(CONFIG, "broken")
    room.run(iter([(SPEECH, True)] + [(SPEECH, False)] * 16 + [(QUIET, False)] * 30))
    assert room.states == ["idle", "listening", "idle"]
    assert ("error", {"text": "no ears"}) in room.events


def test_speech_over_an_answer_silences_it_then_ends_it_and_is_listened_to() -> None:
    room = Room(BY_SPEECH, "what time is it", "never mind")

    def script() -> Iterator[tuple[float, bool]]:
        yield from room.utterance()
        assert room.voice.log[-1].startswith("play It is")
        yield SPEECH, False  # 32 ms, surely speech
        yield QUIET, False
        assert room.voice.log[-1] == "pause"
        yield from [(SPEECH, False)] * 10
        assert room.assistant.state == "listening"
        while room.assistant.state != "idle":
            yield QUIET, False

    room.run(script())
    assert room.names().count("interrupted") == 1
    assert [data["text"] for name, data in room.events if name == "heard"] == ["what time is it", "never mind"]
    assert "stop" in room.voice.log
    assert [data["interrupted"] for name, data in room.events if name == "turn"] == [True, False]


def test_a_cough_does_not_end_an_answer() -> None:
    room = Room(BY_SPEECH, "what time is it")

    def script() -> Iterator[tuple[float, bool]]:
        yield from room.utterance()
        yield from [(SPEECH, False)] * 3
        yield from [(QUIET, False)] * 12
        assert room.voice.log[-2:] == ["pause", "resume"]
        room.voice.done.set()
        while room.assistant.state != "idle":
            yield QUIET, False

    room.run(script())
    assert "interrupted" not in room.names()


LOUD, FAINT = b"\x00\x10" * 512, b"\x40\x00" * 512


def test_what_is_far_softer_than_the_question_is_an_echo_and_does_not_silence() -> None:
    room = Room(BY_SPEECH, "what time is it")

    def script() -> Iterator[tuple[float, bool]]:
        room.ears.sound = LOUD
        yield from room.utterance()
        room.ears.sound = FAINT
        yield from [(SPEECH, False)] * 20
        assert room.voice.log[-1].startswith("play")
        room.ears.sound = LOUD
        yield SPEECH, False
        yield QUIET, False
        assert room.voice.log[-1] == "pause"
        room.voice.done.set()
        while room.assistant.state != "idle":
            yield QUIET, False

    room.run(script())


def test_an_answer_is_silenced_in_the_middle_of_a_frame() -> None:
    room = Room(BY_SPEECH, "what time is it", two_detectors=True)

    def script() -> Iterator[tuple[float, bool]]:
        yield from room.utterance()
        assert room.ears.halfway is not None
        room.ears.probability = SPEECH
        assert room.voice.log[-1].startswith("play")
        room.ears.halfway(SILENCE, 0.0)
        assert room.voice.log[-1] == "pause"
        room.voice.done.set()
        while room.assistant.state != "idle":
            room.ears.halfway(SILENCE, 0.0)
            yield QUIET, False

    room.run(script())
    assert "interrupted" not in room.names()


@pytest.mark.parametrize(("by", "interrupted"), [("wake_word", True), ("nothing", False)])
def test_the_wake_word_interrupts_where_it_may(by: str, interrupted: bool) -> None:
    room = Room(replace(CONFIG, interrupt=InterruptTable(by=by)), "what time is it", "")

    def script() -> Iterator[tuple[float, bool]]:
        yield from room.utterance()
        yield SPEECH, True
        yield QUIET, False
        room.voice.done.set()
        while room.assistant.state != "idle":
            yield QUIET, False

    room.run(script())
    assert ("interrupted" in room.names()) is interrupted


def test_a_timer_rings_and_only_what_was_heard_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(CONFIG)
    monkeypatch.setattr(room.assistant.timers, "_clock", lambda: 0.0)
    room.assistant.timers.start(60)
    monkeypatch.setattr(room.assistant.timers, "_clock", lambda: 61.0)

    def script() -> Iterator[tuple[float, bool]]:
        yield QUIET, False
        while not room.voice.log:
            yield QUIET, False
        room.voice.done.set()
        while room.assistant.state != "idle":
            yield QUIET, False

    room.run(script())
    assert room.voice.log == ["play The timer of 1 minute is done."]
    assert room.assistant.context.history == []
    assert isinstance(room.assistant._answer, Answer | None)


def test_events_of_two_threads_do_not_mix() -> None:
    printed: list[str] = []

    def slowly(line: str) -> None:
        for letter in line + "\n":
            printed.append(letter)
            time.sleep(0)  # lets the other thread run

    tell = events(slowly)
    threads = [threading.Thread(target=lambda: [tell("say", {"text": "x"}) for _ in range(50)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(json.loads(line)["text"] == "x" for line in "".join(printed).splitlines())
    assert printed.count("\n") == 100
