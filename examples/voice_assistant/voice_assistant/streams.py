"""Where frames come from and where speech goes: programs such as arecord and aplay, or WAV files."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Protocol

from voice_assistant.audio import FRAME_BYTES, FRAME_S, RATE_HZ, seconds
from voice_assistant.config import CaptureTable, PlaybackTable
from voice_assistant.errors import AudioError

Halfway = Callable[[bytes, float], None]


class Source(Protocol):
    """Frames as they are heard.

    patient: it waits while the assistant answers, as a person would who lets others finish; else time goes on.
    halfway: is told, in the middle of a frame, the last FRAME_SAMPLES until then and the time, for what cannot wait.
    """

    patient: bool
    halfway: Halfway | None

    def frames(self) -> Iterator[tuple[bytes, float]]:
        """Each frame with the time, on the monotonic clock, at which its last sample was heard."""

    def close(self) -> None: ...


class Player(Protocol):
    """Plays one piece after the other. All but `play` may be called from another thread."""

    def play(self, pcm: bytes) -> float:
        """Plays to the end, or until `stop`; how much was heard, 0 to 1."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stop(self) -> None:
        """Ends what is played, and refuses more until `allow`."""

    def allow(self) -> None: ...


def _filled(command: Sequence[str], device: str) -> list[str]:
    return [word.replace("{device}", device) for word in command]


def _started(argv: Sequence[str], **pipes: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, bufsize=0, stderr=subprocess.PIPE, **pipes)  # type: ignore[call-overload,no-any-return]
    except OSError as error:
        raise AudioError(f"{argv[0]} cannot be started: {error.strerror}; install it (Debian: alsa-utils)") from error


class CommandSource:
    """A program that prints raw samples, as arecord does."""

    patient = False

    def __init__(self, table: CaptureTable) -> None:
        self._argv = _filled(table.command, table.device)
        self._process = _started(self._argv, stdout=subprocess.PIPE)
        self._closed = False
        self.halfway: Halfway | None = None

    def frames(self) -> Iterator[tuple[bytes, float]]:
        stream = self._process.stdout
        assert stream is not None
        clock, late = _Clock(), bytes(FRAME_BYTES // 2)
        while True:
            early = _exactly(stream, FRAME_BYTES // 2)
            if self.halfway is not None and len(early) == FRAME_BYTES // 2:
                self.halfway(late + early, clock.now(0.5))
            late = _exactly(stream, FRAME_BYTES // 2)
            if len(late) < FRAME_BYTES // 2:
                if self._closed:
                    return
                raise AudioError(f"{self._argv[0]} ended: {_last_line(self._process)}; see `arecord -L` for devices")
            yield early + late, clock.now(1.0)

    def close(self) -> None:
        self._closed = True
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class _Clock:
    """When frames were heard: one that was read late was heard when its number says.

    The earliest that was read in the last few seconds sets the clock, for samples get lost, and no two crystals agree.
    """

    _MEMORY = round(5.0 / FRAME_S)

    def __init__(self) -> None:
        self._n_frames = 0
        self._begin = self._begin_before = float("inf")

    def now(self, part: float) -> float:
        """The time at which this part of the next frame, which was just read, was heard; 1.0 is all of it."""
        position = (self._n_frames + part) * FRAME_S
        self._begin = min(self._begin, time.monotonic() - position)
        heard = min(self._begin, self._begin_before) + position
        if part == 1.0:
            self._n_frames += 1
            if self._n_frames % self._MEMORY == 0:
                self._begin, self._begin_before = float("inf"), self._begin
        return heard


class CommandPlayer:
    """A program that reads raw samples, as aplay does: one run per piece, killed to fall silent."""

    _BLOCK_S = 0.02

    def __init__(self, table: PlaybackTable) -> None:
        self._argv = _filled(table.command, table.device)
        self._ahead_s = table.buffer_ms / 1000
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = self._stopped = False

    def play(self, pcm: bytes) -> float:
        position = 0
        while position < len(pcm):
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or not self._paused)
                if self._stopped:
                    break
                self._process = process = _started(self._argv, stdin=subprocess.PIPE)
            position = self._feed(process, pcm, position)
        return position / len(pcm) if pcm else 1.0

    def _feed(self, process: subprocess.Popen[bytes], pcm: bytes, start: int) -> int:
        """Plays from byte `start` on; the byte that was heard last, or all if it came to its end."""
        assert process.stdin is not None
        block, position, began = 2 * int(self._BLOCK_S * RATE_HZ), start, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it was killed, or failed: its status says which
            while position < len(pcm) and process.poll() is None:
                process.stdin.write(pcm[position : position + block])
                position += block
                wait = seconds(pcm[start:position]) - self._ahead_s - (time.monotonic() - began)
                if wait > 0:
                    time.sleep(wait)
            process.stdin.close()
        status = process.wait()
        with self._changed:
            self._process = None
            halted = self._paused or self._stopped
        failed = status != 0 and not halted
        message = _last_line(process) if failed else ""
        with contextlib.suppress(OSError):
            process.stdin.close()
        if process.stderr is not None:
            process.stderr.close()
        if failed:
            raise AudioError(f"{self._argv[0]} failed: {message}; see `aplay -L` for devices")
        if status == 0:
            return len(pcm)
        heard = start + 2 * int(max(0.0, time.monotonic() - began - self._ahead_s) * RATE_HZ)
        return min(heard, position, len(pcm))

    def pause(self) -> None:
        self._halt(paused=True)

    def stop(self) -> None:
        self._halt(stopped=True)

    def _halt(self, paused: bool = False, stopped: bool = False) -> None:
        with self._changed:
            self._paused, self._stopped = self._paused or paused, self._stopped or stopped
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def allow(self) -> None:
        with self._changed:
            self._paused = self._stopped = False


_WAITED_S = 1.0
"""Whoever took so long for a frame was answering, and the next one is spoken only now."""


class WavConversation:
    """Both sides of a conversation as WAV: a source that waits for answers, and a player that keeps them.

    heard and said are two tracks of one time line, without the time that computing took.
    """

    patient = True

    def __init__(self, pcm: bytes, paced: bool = False) -> None:
        """paced: frames come at the speed at which they were spoken, else as fast as they are taken."""
        self._pcm, self._paced = pcm, paced
        self.heard, self.said = bytearray(), bytearray()
        self.halfway: Halfway | None = None  # never told: it lets others finish
        self._stopped = False

    def frames(self) -> Iterator[tuple[bytes, float]]:
        due = time.monotonic()
        for start in range(0, len(self._pcm), FRAME_BYTES):
            frame = self._pcm[start : start + FRAME_BYTES].ljust(FRAME_BYTES, b"\0")
            self.heard += frame
            self.said += bytes(max(0, len(self.heard) - len(self.said)))
            if self._paced:
                due += FRAME_S
                time.sleep(max(0.0, due - time.monotonic()))
            given = time.monotonic()
            yield frame, due if self._paced else given
            if time.monotonic() - given > _WAITED_S:
                due = time.monotonic()

    def close(self) -> None:
        pass

    def play(self, pcm: bytes) -> float:
        if self._stopped:
            return 0.0
        self.said += pcm
        self.heard += bytes(max(0, len(self.said) - len(self.heard)))
        return 1.0

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def stop(self) -> None:
        self._stopped = True

    def allow(self) -> None:
        self._stopped = False


def _exactly(stream: IO[bytes], n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes and (piece := stream.read(n_bytes - len(data))):
        data += piece
    return data


def _last_line(process: subprocess.Popen[bytes]) -> str:
    text = process.stderr.read(4096).decode("utf-8", "replace") if process.stderr is not None else ""
    return (text.strip().splitlines() or ["no message"])[-1][:200]
