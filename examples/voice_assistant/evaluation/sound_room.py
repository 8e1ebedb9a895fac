"""A room without hardware: PulseAudio with a speaker, a microphone that hears it and whoever speaks, and echo
cancellation, in a server of its own that no other program sees."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
from voice_assistant.audio import RATE_HZ

_SETUP = """\
load-module module-native-protocol-unix socket={folder}/socket auth-anonymous=1
load-module module-null-sink sink_name=speaker rate=16000 channels=1
load-module module-null-sink sink_name=room rate=16000 channels=1
load-module module-loopback source=speaker.monitor sink=room latency_msec=20 source_dont_move=true sink_dont_move=true
load-module module-remap-source master=room.monitor source_name=mic
load-module module-echo-cancel source_master=mic sink_master=speaker source_name=clear sink_name=out aec_method=webrtc \
rate=16000 channels=1 aec_args="analog_gain_control=0 digital_gain_control=0 noise_suppression=0"
"""
CAPTURE, PLAYBACK = "pulse:clear", "pulse:out"
"""ALSA's names of the microphone after echo cancellation, and of the speaker."""
_START_S = 20.0


class SoundRoom:
    """The room while it is open. environment: for programs that are to be in it."""

    def __init__(self, folder: Path) -> None:
        """folder: empty, with a short path, for it holds a socket."""
        self._folder = folder
        self.environment = os.environ | {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_SERVER": f"unix:{folder}/socket",
        }
        (folder / "room.pa").write_text(_SETUP.format(folder=folder))
        argv = ["pulseaudio", "-n", "-F", str(folder / "room.pa"), "--daemonize=no", "--exit-idle-time=-1"]
        with (folder / "pulseaudio.log").open("wb") as log:
            self._server = subprocess.Popen(
                [*argv, "--use-pid-file=no", "--log-target=stderr"], env=self.environment, stderr=log, stdout=log
            )
        self._tapes: list[subprocess.Popen[bytes]] = []
        give_up = time.monotonic() + _START_S
        while "clear" not in self._sources():
            if self._server.poll() is not None or time.monotonic() > give_up:
                self.close()
                raise RuntimeError((folder / "pulseaudio.log").read_text()[-500:])
            time.sleep(0.1)

    def _sources(self) -> str:
        done = subprocess.run(
            ["pactl", "list", "short", "sources"], env=self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout

    def tape(self, source: str, path: Path) -> None:
        """Records a source until the room is closed: room.monitor has everything that sounds there."""
        argv = ["parec", f"--device={source}", "--raw", "--rate=16000", "--channels=1", "--format=s16le"]
        with path.open("wb") as file:
            self._tapes.append(subprocess.Popen([*argv, "--latency-msec=20"], env=self.environment, stdout=file))

    def speak(self, pcm: bytes) -> subprocess.Popen[bytes]:
        """Somebody in the room says something; the process ends when that was said."""
        argv = ["pacat", "--playback", "--device=room", "--raw", "--rate=16000", "--channels=1", "--format=s16le"]
        process = subprocess.Popen([*argv, "--latency-msec=40"], env=self.environment, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(pcm)
        process.stdin.close()
        return process

    def close(self) -> None:
        for process in (*self._tapes, self._server):
            if process.poll() is None:
                process.terminate()
            process.wait()

    def __enter__(self) -> SoundRoom:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def locate(tape: np.ndarray, said: np.ndarray) -> int:
    """Where in a recording `said` begins, by correlation."""
    part = tape.astype(np.float64)
    n = 1 << (len(part) + len(said)).bit_length()
    product = np.fft.irfft(np.fft.rfft(part, n) * np.conj(np.fft.rfft(said.astype(np.float64), n)), n)[: len(part)]
    return int(np.argmax(product))


def overlap_ms(tape: np.ndarray, said: np.ndarray) -> float:
    """How long something else went on after somebody began to speak, from one recording of both.

    tape: everything in the room, with `said` in it once. What is said is known to the sample, so it is taken away, and
    what is left is the speaker's sound.
    """
    start = locate(tape, said)
    rest = tape[start : start + len(said)].astype(np.float64)
    rest -= said[: len(rest)]  # the room changes no volume, so that nothing of it is left
    onset = _first_loud(said)
    step = RATE_HZ // 200  # 5 ms
    frames = rest[: len(rest) // step * step].reshape(-1, step)
    loud = np.sqrt(np.mean(frames**2, axis=1)) > 60
    loud[: onset // step] = False
    # From the onset on, until the first silence of 150 ms.
    end = onset // step
    for index in range(onset // step, len(loud)):
        if loud[index]:
            end = index + 1
        elif index - end > 30:
            break
    return max(0.0, (end * step - onset) * 1000 / RATE_HZ)


def _first_loud(samples: np.ndarray) -> int:
    """The first sample of speech: a hundredth of its greatest amplitude, at least 100."""
    return int(np.argmax(np.abs(samples) > max(100, np.abs(samples).max() // 100)))
