"""The wake word as a phrase of any words, with pocketsphinx."""

from __future__ import annotations

from collections import deque
from typing import Any

from voice_assistant.audio import FRAME_S
from voice_assistant.config import WakeTable
from voice_assistant.errors import ConfigError
from voice_assistant.listening import Endpoint
from voice_assistant.phones import likeness

_STRICT, _LOOSE = 1e-25, 1e-50
_LIKENESS = 0.6
_LEAD = 10
"""Frames before speech, and after it, that the search hears, too: a word's beginning is soft."""
_KEPT = 96


class KeyPhrase:
    """Two searches for the phrase, run only while somebody speaks, so that noise cannot wake.

    What the strict one finds wakes. The loose one also finds it in other words: what it finds is written down by a
    recogniser of all English, and wakes if that sounds like the phrase.
    """

    def __init__(self, table: WakeTable, vad_threshold: float) -> None:
        """Raises ConfigError if the phrase has words that the dictionary does not know."""
        from pocketsphinx import Decoder, get_model_path

        model: dict[str, Any] = {
            "hmm": get_model_path("en-us/en-us"),
            "dict": get_model_path("en-us/cmudict-en-us.dict"),
            "loglevel": "FATAL",
        }
        self._free = Decoder(lm=get_model_path("en-us/en-us.lm.bin"), maxhmmpf=3000, maxwpf=10, **model)
        self._phrase = self._phones(table.phrase)
        if not self._phrase or any(self._free.lookup_word(word) is None for word in table.phrase.split()):
            raise ConfigError(
                f"wake.phrase: '{table.phrase}' has words that are not in CMU's dictionary; choose others"
            )
        self._strict, self._loose = (
            Decoder(keyphrase=table.phrase, kws_threshold=threshold, lm=None, **model)
            for threshold in (table.threshold or _STRICT, _LOOSE)
        )
        self._threshold = vad_threshold
        self._before: deque[bytes] = deque(maxlen=_LEAD)
        self._fed: deque[bytes] = deque(maxlen=_KEPT)
        self._n_fed = self._n_silent = self._n_speech = 0
        self._running = False

    def feed(self, frame: bytes, probability: float) -> int | None:
        speech = probability >= self._threshold
        if not self._running:
            self._before.append(frame)
            if not speech:
                return None
            self._begin()
        else:
            self._process(frame)
        self._n_silent = 0 if speech else self._n_silent + 1
        self._n_speech += speech
        if self._n_speech * FRAME_S >= Endpoint.LEAST_S:
            if (after := self._found(self._strict)) is not None:
                self._stop()
                return after
            if (after := self._found(self._loose)) is not None:
                if self._sounds_right(after):
                    self._stop()
                    return after
                self._loose.end_utt()  # it may come yet
                self._loose.start_utt()
        if self._n_silent > _LEAD:
            self._stop()
        return None

    def reset(self) -> None:
        if self._running:
            self._stop()
        self._before.clear()

    def _begin(self) -> None:
        self._strict.start_utt()
        self._loose.start_utt()
        self._running, self._n_fed, self._n_silent, self._n_speech = True, 0, 0, 0
        self._loose_begin = 0
        for earlier in self._before:
            self._process(earlier)
        self._before.clear()

    def _process(self, frame: bytes) -> None:
        self._strict.process_raw(frame, False, False)
        self._loose.process_raw(frame, False, False)
        self._fed.append(frame)
        self._n_fed += 1

    def _stop(self) -> None:
        self._strict.end_utt()
        self._loose.end_utt()
        self._fed.clear()
        self._running = False

    def _found(self, decoder: Any) -> int | None:
        """How many frames follow the phrase, if it was found."""
        if decoder.hyp() is None:
            return None
        begin = self._loose_begin if decoder is self._loose else 0
        ends = [segment.end_frame for segment in decoder.seg() or ()]
        # Decoder frames are 10 ms, counted from the first that it was fed.
        return max(0, self._n_fed - begin - int(ends[-1] * 0.01 / FRAME_S) - 1) if ends else 0

    def _sounds_right(self, n_after: int) -> bool:
        """Whether a recogniser of all English hears the phrase, or what sounds like it, in the second before."""
        frames = list(self._fed)
        end = len(frames) - max(0, n_after - 3)
        self._free.start_utt()
        self._free.process_raw(b"".join(frames[max(0, end - 36) : end]), False, True)
        self._free.end_utt()
        self._loose_begin = self._n_fed
        hypothesis = self._free.hyp()
        heard = self._phones(hypothesis.hypstr) if hypothesis is not None else []
        least, most = max(1, len(self._phrase) - 3), len(self._phrase) + 3
        return any(
            likeness(self._phrase, heard[start:end]) >= _LIKENESS
            for start in range(len(heard))
            for end in range(start + least, min(len(heard), start + most) + 1)
        )

    def _phones(self, text: str) -> list[str]:
        return [phone for word in text.split() for phone in (self._free.lookup_word(word) or "").split()]
