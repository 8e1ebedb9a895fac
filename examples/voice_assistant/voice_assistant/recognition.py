"""Speech to text. An engine takes frames as they come and gives the text soon after the last one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from voice_assistant.audio import wav_bytes
from voice_assistant.config import Config
from voice_assistant.errors import ConfigError, EngineError
from voice_assistant.grammar import home_grammar, words_of
from voice_assistant.home import Device
from voice_assistant.phones import likeness
from voice_assistant.spelling import spell

_TIMEOUT_S = 60


@dataclass(frozen=True)
class Heard:
    """What was said. text: lower case, numbers as words. usual: it is a sentence of the home's grammar."""

    text: str
    usual: bool = False


class Recognizer(Protocol):
    """An engine. `begin`, any number of `feed`, `end`; then again."""

    def begin(self) -> None: ...

    def feed(self, frame: bytes) -> None: ...

    def end(self) -> Heard: ...


class PocketSphinx:
    """Two decoders at once: one knows this home's sentences only, the other English.

    The first is right far more often, but hears a command in anything; it is believed where the other heard much the
    same sounds. Both run while one speaks, so that little is left to do at the end.
    """

    def __init__(self, devices: Sequence[Device], rooms: Sequence[str], agreement: float) -> None:
        from pocketsphinx import Decoder, get_model_path

        model = {
            "hmm": get_model_path("en-us/en-us"),
            "dict": get_model_path("en-us/cmudict-en-us.dict"),
            "loglevel": "FATAL",
        }
        self._agreement = agreement
        self._free = Decoder(lm=get_model_path("en-us/en-us.lm.bin"), maxhmmpf=3000, maxwpf=10, **model)
        for word in sorted(words_of(devices, rooms)):
            if self._free.lookup_word(word) is None:
                raise ConfigError(
                    f"the recogniser does not know how '{word}' is pronounced; name the device or room with words that "
                    "are in CMU's dictionary, or use another stt.engine"
                )
        self._usual = Decoder(lm=None, **model)
        self._usual.add_jsgf_string("home", home_grammar(devices, rooms))
        self._usual.activate_search("home")

    def begin(self) -> None:
        self._free.start_utt()
        self._usual.start_utt()

    def feed(self, frame: bytes) -> None:
        self._free.process_raw(frame, False, False)
        self._usual.process_raw(frame, False, False)

    def end(self) -> Heard:
        self._free.end_utt()
        self._usual.end_utt()
        free, usual = (_text(decoder.hyp()) for decoder in (self._free, self._usual))
        if usual and likeness(self._phones(usual), self._phones(free)) >= self._agreement:
            return Heard(usual, usual=True)
        return Heard(free)

    def _phones(self, text: str) -> list[str]:
        return [phone for word in text.split() for phone in (self._free.lookup_word(word) or "").split()]


_LOOSE_ENDS = ("and", "the", "to", "in", "please", "now", "a", "for")


def _text(hypothesis: object) -> str:
    """The words of a decoder's hypothesis, without the small ones that it hears in the noise at the end."""
    words = str(getattr(hypothesis, "hypstr", "")).split()
    while words and words[-1] in _LOOSE_ENDS:
        words.pop()
    return " ".join(words)


class CommandRecognizer:
    """A program that is given the whole utterance when it has ended: any engine, at the price of its time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._pcm = bytearray()

    def begin(self) -> None:
        self._pcm.clear()

    def feed(self, frame: bytes) -> None:
        self._pcm += frame

    def end(self) -> Heard:
        """Raises EngineError."""
        program = self._command[0]
        try:
            done = subprocess.run(
                self._command, input=wav_bytes(bytes(self._pcm)), capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except OSError as error:
            raise EngineError(f"{program} cannot be started: {error.strerror}; see stt.command") from error
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{program} took more than {_TIMEOUT_S} s; see stt.command") from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise EngineError(f"{program} failed with status {done.returncode}: {said[-1][:200]}")
        return Heard(plain(done.stdout.decode("utf-8", "replace")))


def plain(text: str) -> str:
    """Lower case, numbers as words, no punctuation and no remarks such as [BLANK_AUDIO]: as models hear speech."""
    text = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", text.lower()).replace("%", " percent ")
    text = re.sub(r"\d+", lambda match: spell(int(match[0])) if int(match[0]) <= 100 else match[0], text)
    return " ".join(re.sub(r"[^\w' ]+", " ", text).split())


def open_recognizer(config: Config, devices: Sequence[Device], rooms: Sequence[str]) -> Recognizer:
    """The configured engine. Raises ConfigError or EngineError."""
    if config.stt.engine == "pocketsphinx":
        return PocketSphinx(devices, rooms, config.stt.agreement)
    return CommandRecognizer(config.stt.command)
