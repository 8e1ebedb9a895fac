"""python -m evaluation.accuracy BUNDLE: what the assistant does when people speak to it whom it was not tuned on.

Everything is real: voices, engines, and the model behind `edgellm-rt serve`. Run it in examples/voice_assistant with
the extra [voice] installed; flite, festival with festvox-kdlpc16k, and sox are Debian's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


def count(bench: Bench, speakers: Sequence[Speaker], trials: Sequence[homes.Trial], snr_db: float | None,
          log: Any) -> Counter[str]:  # fmt: skip
    """right: exactly what was expected was done; wrong: anything else was; asleep: the wake word was missed."""
    result: Counter[str] = Counter()
    kinds = list(NOISES)
    for index, (speaker, trial) in enumerate((speaker, trial) for speaker in speakers for trial in trials):
        kind = kinds[index % len(kinds)]
        backend, told = bench.hear(recording(speaker, bench.config.wake.phrase, trial.text, kind, snr_db, index))
        done = tuple(backend.done)
        woke = any(event["event"] == "wake" for event in told)
        result["all"] += 1
        result["woke"] += woke
        result["right"] += woke and done == trial.expected
        result["wrong"] += bool(done) and done != trial.expected
        heard = [event["text"] for event in told if event["event"] == "heard"]
        log.write(json.dumps({"speaker": speaker.name, "noise": kind if snr_db is not None else "", "snr_db": snr_db,
                              "said": trial.text, "heard": heard, "woke": woke, "done": [str(one) for one in done],
                              "right": done == trial.expected}) + "\n")  # fmt: skip
        log.flush()
    return result


def wakes(bench: Bench, pieces: Iterable[bytes]) -> tuple[int, float]:
    """How often sound without the wake word wakes, and how many minutes of it there were."""
    n_wakes, n_bytes = 0, 0
    for pcm in pieces:
        _, told = bench.hear(pcm)
        n_wakes += sum(event["event"] == "wake" for event in told)
        n_bytes += len(pcm)
    return n_wakes, n_bytes / 2 / 16000 / 60


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
    parser.add_argument("--minutes", type=float, default=10, help="of each noise that must not wake")
    parser.add_argument(
        "--only", choices=("said", "wakes"), help="what is said after the wake word, or what must not wake"
    )
    parser.add_argument("--log", type=Path, default=Path("accuracy.jsonl"), help="each trial, one JSON object a line")
    arguments = parser.parse_args()
    speakers = TUNED_ON if arguments.tuned else HELD_OUT
    with served(arguments.bundle) as url, arguments.log.open("w") as log:
        bench = Bench(url, arguments.phrase)
        print(f"speakers: {'; '.join(speaker.name for speaker in speakers)}", flush=True)
        if arguments.only != "said":
            show_wakes(bench, speakers, arguments.minutes)
        if arguments.only != "wakes":
            show_said(bench, speakers, arguments.every, log)


def show_wakes(bench: Bench, speakers: Sequence[Speaker], minutes: float) -> None:
    """Noise, `minutes` of each kind and level, and talk: what must not wake."""
    for level_db in (-35, -20):
        for kind in NOISES:
            n, duration = wakes(bench, [noise(kind, 60 * minutes, level_db, 5)])
            print(f"{duration:.1f} minutes of {kind} at {level_db} dB of full scale: {n} wakes", flush=True)
    talk = [hush(1) + s.say(t.text) + hush(1) for s in speakers for t in homes.unrelated(4, 24)]
    n, duration = wakes(bench, talk)
    print(f"{duration:.1f} minutes of talk without the wake word ({len(talk)} sentences): {n} wakes", flush=True)


def show_said(bench: Bench, speakers: Sequence[Speaker], every: int, log: Any) -> None:
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
            c = count(bench, speakers, trials[::every], snr_db, log)
            level = "quiet" if snr_db is None else f"{snr_db:.0f} dB"
            rate = f"{c['right']} of {c['all']} ({100 * c['right'] / c['all']:.1f} %)"
            print(f"| {label} | {level} | {c['woke']} of {c['all']} | {rate} | {c['wrong']} |", flush=True)


if __name__ == "__main__":
    main()
