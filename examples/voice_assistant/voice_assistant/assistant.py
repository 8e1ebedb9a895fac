"""The assistant: idle until its wake word is heard, then listening, thinking, speaking, and idle again.

One thread, the caller's, takes every frame of sound and decides; an answer runs in another (answering.py), so that
one is heard while one is answered.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from voice_assistant.answering import Answer, Context, Listener
from voice_assistant.audio import FRAME_S, loudness
from voice_assistant.commands import LocalCommands
from voice_assistant.config import Config
from voice_assistant.errors import EngineError
from voice_assistant.home import Home
from voice_assistant.latency import Marks
from voice_assistant.listening import Detector, Endpoint, WakeWord
from voice_assistant.recognition import Recognizer
from voice_assistant.streams import Player, Source
from voice_assistant.synthesis import Synthesizer
from voice_assistant.timers import Timers, in_words

IDLE, LISTENING, THINKING, SPEAKING = "idle", "listening", "thinking", "speaking"
_KEPT_FRAMES = 64
"""About two seconds of the past, for words that began before it was known."""
_SURE = 0.8
"""Probability from which it is surely speech."""
_AS_LOUD = 0.15
"""An interruption is at least so loud, as a share of the question: an echo canceller leaves less of the answer."""
_PRE_ROLL = 10
"""Frames before an interruption was noticed that belong to it."""


@dataclass
class Parts:
    """The engines, opened."""

    source: Source
    player: Player
    detector: Detector
    wake_word: WakeWord
    recognizer: Recognizer
    synthesizer: Synthesizer
    home: Home
    between: Detector | None = None
    """A second detector, for the frames that begin in the middle of others, while an answer can be interrupted."""


class Assistant:
    """state: idle, listening, thinking or speaking."""

    def __init__(self, config: Config, parts: Parts, listener: Listener) -> None:
        self._config, self._parts, self._tell = config, parts, listener
        self.timers = Timers(time.monotonic)
        now = datetime.now
        self.context = Context(
            config.llm, parts.home, LocalCommands(self.timers, now), parts.synthesizer, parts.player, listener, now
        )
        self._past: deque[bytes] = deque(maxlen=_KEPT_FRAMES)
        self._endpoint = Endpoint(config.vad)
        self._answer: Answer | None = None
        self._n_loud = self._n_sure = self._n_quiet = 0
        self._paused = False
        self._loudnesses: list[float] = []
        self._user_loudness = 0.0
        self._hop_ms = FRAME_S * 1000 / (1 if parts.between is None else 2)
        if config.interrupt.by == "speech" and parts.between is not None:
            parts.source.halfway = self._hear_between
        self.state = ""
        self._become(IDLE)

    def run(self) -> None:
        """Until the source ends; an answer that is being given then is finished."""
        for frame, heard_at in self._parts.source.frames():
            self._hear(frame, heard_at)
            if self._parts.source.patient:
                self._wait()
        if self.state == LISTENING:
            self._end_utterance(time.monotonic())
        self._wait()

    def _become(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._tell("state", {"state": state})

    # ---- each frame ----

    def _hear(self, frame: bytes, heard_at: float) -> None:
        probability = self._parts.detector(frame)
        self._past.append(frame)
        self._follow_answer()
        if self.state == LISTENING:
            self._listen(frame, probability, heard_at)
        elif self.state == IDLE:
            self._ring()
            if self.state == IDLE and (after := self._parts.wake_word.feed(frame, probability)) is not None:
                self._tell("wake", {})
                self._begin_utterance(after)
        elif self._config.interrupt.by == "wake_word":
            if (after := self._parts.wake_word.feed(frame, probability)) is not None:
                self._interrupt(after)
        elif self._config.interrupt.by == "speech":
            self._mind_speech(frame, probability, heard_at)

    def _hear_between(self, frame: bytes, heard_at: float) -> None:
        if self.state in (THINKING, SPEAKING):
            assert self._parts.between is not None
            self._mind_speech(frame, self._parts.between(frame), heard_at)

    def _listen(self, frame: bytes, probability: float, heard_at: float) -> None:
        self._parts.recognizer.feed(frame)
        if probability >= self._config.vad.threshold:
            self._loudnesses.append(loudness(frame))
        verdict = self._endpoint.add(probability)
        if verdict == "nothing":
            self._parts.recognizer.end()
            self._become(IDLE)
        elif verdict == "end":
            self._end_utterance(heard_at)

    def _begin_utterance(self, n_past: int, spoken: bool = False, wait_s: float | None = None) -> None:
        """Listens, from `n_past` frames ago on."""
        vad = self._config.vad if wait_s is None else replace(self._config.vad, wait_s=wait_s)
        self._endpoint = Endpoint(vad, spoken)
        self._parts.wake_word.reset()
        self._parts.recognizer.begin()
        self._loudnesses.clear()
        for frame in list(self._past)[len(self._past) - n_past :] if n_past else ():
            self._parts.recognizer.feed(frame)
        self._become(LISTENING)

    def _end_utterance(self, heard_at: float) -> None:
        if self._loudnesses:
            self._user_loudness = sorted(self._loudnesses)[3 * len(self._loudnesses) // 4]
        marks = Marks(heard_at - self._endpoint.silent_s)
        marks.mark("endpoint", max(time.monotonic(), heard_at))
        try:
            heard = self._parts.recognizer.end()
        except EngineError as error:
            self._tell("error", {"text": str(error)})
            self._become(IDLE)
            return
        marks.mark("stt", time.monotonic())
        self._tell("heard", {"text": heard.text, "usual": heard.usual})
        if heard.text:
            self._start(Answer(self.context, heard, marks))
        else:
            self._become(IDLE)

    # ---- the answer ----

    def _start(self, answer: Answer) -> None:
        self._parts.player.allow()
        self._n_loud = self._n_sure = self._n_quiet = 0
        self._paused = False
        self._answer = answer
        if self._parts.between is not None:
            self._parts.between.reset()
        self._become(THINKING)
        answer.start()

    def _follow_answer(self) -> None:
        """Notices that the answer has begun to be heard, or has ended."""
        answer = self._answer
        if answer is None:
            return
        if answer.speaking.is_set() and self.state == THINKING:
            self._become(SPEAKING)
        if not answer.is_alive():
            self._answer = None
            if answer.error is not None:
                raise answer.error
            follow_up_s = self._config.wake.follow_up_s
            self._parts.wake_word.reset()
            if follow_up_s > 0 and not answer.aborted.is_set():
                self._begin_utterance(0, wait_s=follow_up_s)
            else:
                self._become(IDLE)

    def _wait(self) -> None:
        """Until the answer that is being given is over."""
        if (answer := self._answer) is not None:
            answer.speaking.wait(timeout=0)
            while answer.is_alive():
                answer.join(timeout=0.02)
                if answer.speaking.is_set() and self.state == THINKING:
                    self._become(SPEAKING)
            self._follow_answer()

    def _interrupt(self, n_past: int, spoken: bool = False) -> None:
        """Ends the answer and listens."""
        answer = self._answer
        assert answer is not None
        answer.abort()
        answer.join()
        self._answer = None
        self._tell("interrupted", {})
        if answer.error is not None:
            raise answer.error
        self._begin_utterance(n_past, spoken)

    def _mind_speech(self, frame: bytes, probability: float, heard_at: float) -> None:
        """Speech over an answer: a little silences it, more ends it; if there is no more, it goes on."""
        table = self._config.interrupt
        if probability >= table.threshold and loudness(frame) >= _AS_LOUD * self._user_loudness:
            self._n_loud, self._n_quiet = self._n_loud + 1, 0
            self._n_sure += probability >= _SURE
        else:
            self._n_quiet += 1
        if self._n_loud * self._hop_ms >= table.confirm_ms:
            n_frames = round(self._n_loud * self._hop_ms / (FRAME_S * 1000))
            self._interrupt(min(len(self._past), n_frames + _PRE_ROLL), spoken=True)
        elif (self._n_loud + self._n_sure) * self._hop_ms >= table.pause_ms and not self._paused:
            self._paused = True
            self._parts.player.pause()
            self._tell("paused", {"behind_ms": round(1000 * (time.monotonic() - heard_at))})
        elif self._n_quiet * self._hop_ms >= table.confirm_ms:
            self._n_loud = self._n_sure = 0
            if self._paused:
                self._paused = False
                self._parts.player.resume()
                self._tell("resumed", {})

    # ---- timers ----

    def _ring(self) -> None:
        """Says that a timer has run out."""
        for timer in self.timers.run_out():
            text = f"The timer of {in_words(timer.duration_s)} is done."
            self._start(Answer(self.context, text, Marks(time.monotonic())))
            return


def events(printer: Any) -> Listener:
    """A listener that prints one JSON object a line: for logs, lamps and measurements."""
    import json

    alone = threading.Lock()  # two threads tell, and their lines must not mix

    def tell(event: str, data: dict[str, Any]) -> None:
        with alone:
            printer(json.dumps({"time_s": round(time.monotonic(), 4), "event": event, **data}))

    return tell
