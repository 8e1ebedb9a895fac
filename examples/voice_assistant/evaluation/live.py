"""python -m evaluation.live BUNDLE: conversations with the running program in a room that PulseAudio makes.

The program is started as on a board, with arecord and aplay. Somebody asks for a long answer, speaks over it, and what
is measured is in one recording of the room: from the first sound of the interruption to the last sound of the answer.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from voice_assistant.audio import RATE_HZ, write_wav
from voice_assistant.config import read_config
from voice_assistant.latency import report, table

from evaluation.accuracy import served
from evaluation.sound_room import CAPTURE, PLAYBACK, SoundRoom, overlap_ms
from evaluation.speakers import HELD_OUT, TUNED_ON, Speaker

HOME = Path(__file__).parents[1] / "home.toml"
WAKE = read_config(HOME).wake.phrase
PATIENCE_S = 30.0


class Running:
    """The program in the room; `wait` gives its next event of a kind."""

    def __init__(self, room: SoundRoom, folder: Path, url: str) -> None:
        config = folder / "live.toml"
        config.write_text(
            f'capture = {{ device = "{CAPTURE}", echo_cancelled = true }}\nplayback = {{ device = "{PLAYBACK}" }}\n'
            f'interrupt = {{ by = "speech" }}\n{HOME.read_text()}'
        )
        argv = [sys.executable, "-m", "voice_assistant", str(config), "--url", url]
        self.process = subprocess.Popen(argv, env=room.environment, stdout=subprocess.PIPE, text=True, cwd=HOME.parent)
        self.events: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def wait(self, name: str, **values: Any) -> dict[str, Any]:
        """The next event called `name` with these values. Raises TimeoutError."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, give_up - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no {name} {values} within {PATIENCE_S:.0f} s") from None
            if event is None:
                raise TimeoutError("the program ended")
            self.events.append(event)
            if event["event"] == name and all(event.get(key) == value for key, value in values.items()):
                return event

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def live(folder: Path, url: str) -> Iterator[tuple[SoundRoom, Running]]:
    """The room and the program in it, ready to listen."""
    with SoundRoom(folder) as room:
        room.tape("room.monitor", folder / "room.raw")
        program = Running(room, folder, url)
        try:
            program.wait("state", state="idle")
            time.sleep(2)  # the canceller settles
            yield room, program
        finally:
            program.close()


@dataclass(frozen=True)
class Round:
    """One interruption. pcm: what was said; begin: the sample of the tape before which it was not; heard: as text."""

    speaker: str
    pcm: np.ndarray
    begin: int
    ended: bool
    heard: str


def interrupt(room: SoundRoom, program: Running, speaker: Speaker, tape: Path) -> Round:
    """A question with a long answer, and an interruption of it by `speaker`.

    The question is put by somebody whose wake word is surely heard, for that is not what is measured.
    """
    question = TUNED_ON[0].say(f"{WAKE}, what can you do?")
    interruption = speaker.say("turn on the desk lamp.")
    pcm, begin = np.frombuffer(interruption, np.int16), 0
    try:
        room.speak(question).wait()
        program.wait("state", state="speaking")
        time.sleep(1.5)
        begin = max(0, tape.stat().st_size // 2 - RATE_HZ // 2)
        room.speak(interruption).wait()
        program.wait("interrupted")
        heard = str(program.wait("heard")["text"])
        program.wait("state", state="idle")
        return Round(speaker.name, pcm, begin, True, heard)
    except TimeoutError as error:
        return Round(speaker.name, pcm, begin, False, str(error))


def converse(room: SoundRoom, program: Running) -> None:
    """The conversation that the README has as a recording: commands, questions, a timer, and an interruption."""
    speaker = TUNED_ON[0]
    for text in (
        "turn on the desk lamp.",
        "is the front door locked?",
        "what time is it?",
        "set a timer for five minutes.",
    ):
        room.speak(speaker.say(f"{WAKE}, {text}")).wait()
        program.wait("turn")
        time.sleep(0.7)
    room.speak(speaker.say(f"{WAKE}, what can you do?")).wait()
    program.wait("state", state="speaking")
    time.sleep(1.5)
    room.speak(HELD_OUT[0].say("turn off the desk lamp.")).wait()
    program.wait("interrupted")
    program.wait("turn")
    time.sleep(1)


def silent_after_ms(tape: np.ndarray, one: Round) -> float:
    """How long the answer was heard after the interruption had begun."""
    return overlap_ms(tape[one.begin : one.begin + len(one.pcm) + 3 * RATE_HZ], one.pcm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of the demo model, for this machine")
    parser.add_argument("--rounds", type=int, default=3, help="interruptions by each of the held-out speakers")
    parser.add_argument("--save", type=Path, help="where to write the recording of the room, as WAV")
    parser.add_argument("--conversation", action="store_true", help="the README's conversation, instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="room-") as name, served(arguments.bundle) as url:
        folder = Path(name)
        rounds = []
        with live(folder, url) as (room, program):
            if arguments.conversation:
                converse(room, program)
            for speaker in () if arguments.conversation else list(HELD_OUT) * arguments.rounds:
                rounds.append(interrupt(room, program, speaker, folder / "room.raw"))
                time.sleep(1)
        tape = np.fromfile(folder / "room.raw", np.int16)
        show(tape, rounds)
        if arguments.conversation:
            for event in program.events:
                if event["event"] in ("heard", "say", "tool", "interrupted"):
                    print(event)
        turns = [e["stages_ms"] for e in program.events if e["event"] == "turn" and not e["interrupted"]]
        print("\n" + table(report(turns)))
        if arguments.save:
            write_wav(arguments.save, tape.tobytes())


def show(tape: np.ndarray, rounds: Sequence[Round]) -> None:
    times = []
    for one in rounds:
        if not one.ended:
            print(f"{one.speaker}: not interrupted: {one.heard}")
            continue
        times.append(silent_after_ms(tape, one))
        print(f"{one.speaker}: silent after {times[-1]:.0f} ms; heard: {one.heard}", flush=True)
    if times:
        middle = statistics.median(times)
        print(f"{len(times)} of {len(rounds)} interrupted; p50 {middle:.0f} ms, max {max(times):.0f} ms")


if __name__ == "__main__":
    main()
