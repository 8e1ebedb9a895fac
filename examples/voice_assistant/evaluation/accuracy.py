"""python -m evaluation.accuracy BUNDLE: what the assistant does when people speak to it whom it was not tuned on.

Everything is real: voices, engines, and the model behind `edgellm-rt serve`. Run it in examples/voice_assistant with
the extra [voice] installed; flite, festival with festvox-kdlpc16k, and sox are Debian's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from voice_assistant.assistant import Assistant, Parts
from voice_assistant.config import Config
from voice_assistant.home import Home, Simulated
from voice_assistant.listening import open_detector, open_wake_word
from voice_assistant.recognition import open_recognizer
from voice_assistant.streams import WavConversation
from voice_assistant.synthesis import Synthesizer

from evaluation import homes
from evaluation.speakers import HELD_OUT, NOISES, TUNED_ON, Speaker, hush, in_noise, noise

SNR_DB = (None, 20.0, 10.0)
"""Levels of noise: None is a quiet room."""


class Bench:
    """One set of engines, used for every trial: they take seconds to open."""

    def __init__(self, url: str, phrase: str) -> None:
        """phrase: the wake word; it decides the engine."""
        wake = replace(Config().wake, phrase=phrase)
        self.config = replace(Config(home=homes.UNSEEN), llm=replace(Config().llm, url=url), wake=wake)
        table = self.config.home
        self._detector = open_detector()
        self._wake_word = open_wake_word(self.config.wake, self.config.vad)
        self._recognizer = open_recognizer(self.config, Home(table, Simulated()).devices, [r.name for r in table.rooms])
        self._synthesizer = Synthesizer(self.config.tts)

    def hear(self, pcm: bytes) -> tuple[Simulated, list[dict[str, Any]]]:
        """A fresh home hears `pcm`: what was done there, and the events."""
        told: list[dict[str, Any]] = []
        conversation, backend = WavConversation(pcm), Simulated()
        self._detector.reset()
        parts = Parts(
            conversation,
            conversation,
            self._detector,
            self._wake_word,
            self._recognizer,
            self._synthesizer,
            Home(self.config.home, backend),
        )
        Assistant(self.config, parts, lambda event, data: told.append({"event": event, **data})).run()
        return backend, told


def recording(speaker: Speaker, wake: str, text: str, kind: str, snr_db: float | None, seed: int) -> bytes:
    """The wake word and a sentence in one breath, with a second of room before and after."""
    said = hush(1.0, seed=seed) + speaker.say(f"{wake}, {text}.") + hush(1.2, seed=seed + 1)
    return said if snr_db is None else in_noise(said, kind, snr_db, seed)


_opened: list[Bench] = []
"""The engines of this process."""


def _open(url: str, phrase: str) -> None:
    _opened.append(Bench(url, phrase))


def _try(speaker: Speaker, trial: homes.Trial, snr_db: float | None, index: int) -> dict[str, Any]:
    """One trial; index decides which noise it is in, and seeds it."""
    (bench,) = _opened
    kind = list(NOISES)[index % len(NOISES)]
    backend, told = bench.hear(recording(speaker, bench.config.wake.phrase, trial.text, kind, snr_db, index))
    return {
        "speaker": speaker.name,
        "noise": kind if snr_db is not None else "",
        "snr_db": snr_db,
        "said": trial.text,
        "heard": [event["text"] for event in told if event["event"] == "heard"],
        "woke": any(event["event"] == "wake" for event in told),
        "done": [str(one) for one in backend.done],
        "right": tuple(backend.done) == trial.expected,
    }


def count(pool: Executor, speakers: Sequence[Speaker], trials: Sequence[homes.Trial], snr_db: float | None,
          log: Any) -> Counter[str]:  # fmt: skip
    """right: exactly what was expected was done; wrong: anything else was; woke: the wake word was heard."""
    result: Counter[str] = Counter()
    pairs = [(speaker, trial) for speaker in speakers for trial in trials]
    for one in pool.map(_try, *zip(*pairs, strict=True), [snr_db] * len(pairs), range(len(pairs))):
        result["all"] += 1
        result["woke"] += one["woke"]
        result["right"] += one["woke"] and one["right"]
        result["wrong"] += bool(one["done"]) and not one["right"]
        log.write(json.dumps(one) + "\n")
        log.flush()
    return result


def _wakes(what: tuple[str, float, float] | tuple[Speaker, str]) -> tuple[int, float]:
    """How often a sound without the wake word wakes, and how many minutes of it there were.

    what: a noise, its minutes and its level in dB of full scale; or who says what.
    """
    if isinstance(what[0], Speaker):
        pcm = hush(1) + what[0].say(str(what[1])) + hush(1)
    else:
        kind, minutes, level_db = what  # type: ignore[misc]
        pcm = noise(kind, 60 * minutes, level_db, 5)
    _, told = _opened[0].hear(pcm)
    return sum(event["event"] == "wake" for event in told), len(pcm) / 2 / 16000 / 60


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The URL of a server of the bundle."""
    argv = [str(bundle / "edgellm-rt"), "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                sys.exit(f"{argv[0]} does not start")
            yield f"http://127.0.0.1:{json.loads(line)['port']}"
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of the demo model, for this machine: edgellm compile --board local")
    parser.add_argument("--tuned", action="store_true", help="the voices that thresholds were tuned on, instead")
    parser.add_argument("--phrase", default=Config().wake.phrase, help="the wake word (%(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth sentence")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="at a time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="of each noise that must not wake")
    parser.add_argument("--only", choices=("said", "wakes"), help="what is said to it, or what must not wake it")
    parser.add_argument("--log", type=Path, default=Path("accuracy.jsonl"), help="each trial, one JSON object a line")
    arguments = parser.parse_args()
    speakers = TUNED_ON if arguments.tuned else HELD_OUT
    with served(arguments.bundle) as url, arguments.log.open("w") as log, ExitStack() as stack:
        pool = stack.enter_context(
            ProcessPoolExecutor(arguments.jobs, initializer=_open, initargs=(url, arguments.phrase))
        )
        print(f"speakers: {'; '.join(speaker.name for speaker in speakers)}", flush=True)
        if arguments.only != "said":
            show_wakes(pool, speakers, arguments.minutes)
        if arguments.only != "wakes":
            show_said(pool, speakers, arguments.every, log)


def show_wakes(pool: Executor, speakers: Sequence[Speaker], minutes: float) -> None:
    """Noise, `minutes` of each kind and level, and talk: what must not wake."""
    noises = [(kind, minutes, level_db) for level_db in (-35, -20) for kind in NOISES]
    for (kind, _, level_db), (n, duration) in zip(noises, pool.map(_wakes, noises), strict=True):
        print(f"{duration:.1f} minutes of {kind} at {level_db} dB of full scale: {n} wakes", flush=True)
    talk = list(pool.map(_wakes, [(s, t.text) for s in speakers for t in homes.unrelated(4, 24)]))
    n, duration = sum(n for n, _ in talk), sum(duration for _, duration in talk)
    print(f"{duration:.1f} minutes of talk without the wake word ({len(talk)} sentences): {n} wakes", flush=True)


def show_said(pool: Executor, speakers: Sequence[Speaker], every: int, log: Any) -> None:
    """A table of what each `every`th sentence after the wake word does, in quiet and in noise."""
    print("\n| what | noise | woke | right | wrong device or state |\n|---|---|---|---|---|", flush=True)
    for snr_db in SNR_DB:
        for label, trials in (
            ("usual commands", list(homes.usual(homes.UNSEEN, 1))),
            ("unusual commands", list(homes.unusual(homes.UNSEEN, 2))),
            ("unrelated: nothing is done", list(homes.unrelated(3, 32))),
        ):
            if label.startswith("unusual") and snr_db is not None:
                continue
            c = count(pool, speakers, trials[::every], snr_db, log)
            level = "quiet" if snr_db is None else f"{snr_db:.0f} dB"
            rate = f"{c['right']} of {c['all']} ({100 * c['right'] / c['all']:.1f} %)"
            print(f"| {label} | {level} | {c['woke']} of {c['all']} | {rate} | {c['wrong']} |", flush=True)


if __name__ == "__main__":
    main()
