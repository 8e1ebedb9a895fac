"""The running program, with arecord and aplay, in a room that PulseAudio makes: it is interrupted while it speaks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from evaluation.live import interrupt, live, silent_after_ms
from evaluation.speakers import HELD_OUT

from tests.server import Server


def test_speech_ends_an_answer_and_is_understood(server: Server) -> None:
    with tempfile.TemporaryDirectory(prefix="room-") as name:  # a socket's path must be short
        with live(Path(name), server.url) as (room, program):
            done = interrupt(room, program, HELD_OUT[0], Path(name) / "room.raw")
        tape = np.fromfile(Path(name) / "room.raw", np.int16)
    assert done.ended, done.heard
    assert done.heard
    # `python -m evaluation.live` measures; here it must only be far from the answer's end, 4 s later.
    silent_ms = silent_after_ms(tape, done)
    print(f"silent after {silent_ms:.0f} ms")
    assert silent_ms < 2000
