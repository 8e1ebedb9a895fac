"""Audio as the whole program passes it on: 16 kHz, one channel, signed 16-bit little-endian, in frames of 32 ms."""

from __future__ import annotations

import io
import math
import wave
from array import array
from pathlib import Path

from voice_assistant.errors import AudioError

RATE_HZ = 16000
FRAME_SAMPLES = 512
"""What the voice activity detector takes at once."""
FRAME_BYTES = 2 * FRAME_SAMPLES
FRAME_S = FRAME_SAMPLES / RATE_HZ
SILENCE = bytes(FRAME_BYTES)


def seconds(pcm: bytes) -> float:
    return len(pcm) / (2 * RATE_HZ)


def loudness(pcm: bytes) -> float:
    """The root of the mean square of the samples."""
    samples = array("h", pcm)
    return math.sqrt(sum(sample * sample for sample in samples) / max(1, len(samples)))


def silence(duration_s: float) -> bytes:
    return bytes(2 * round(duration_s * RATE_HZ))


def resample(pcm: bytes, rate_hz: int) -> bytes:
    """16-bit samples at `rate_hz` to RATE_HZ, by linear interpolation: good enough for a voice that is played."""
    if rate_hz == RATE_HZ:
        return pcm
    samples = array("h", pcm)
    n_out = len(samples) * RATE_HZ // rate_hz
    out = array("h", bytes(2 * n_out))
    for index in range(n_out):
        whole, part = divmod(index * rate_hz, RATE_HZ)
        left = samples[whole]
        right = samples[whole + 1] if whole + 1 < len(samples) else left
        out[index] = left + (right - left) * part // RATE_HZ
    return out.tobytes()


def read_wav(path: Path) -> bytes:
    """The samples of a WAV file in the program's own format. Raises AudioError for any other format."""
    try:
        with wave.open(str(path), "rb") as file:
            shape = file.getnchannels(), file.getsampwidth()
            rate_hz, pcm = file.getframerate(), file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise AudioError(f"{path}: no WAV file that can be read: {error}") from error
    if shape != (1, 2):
        raise AudioError(
            f"{path}: {shape[0]} channel(s) of {8 * shape[1]} bits; convert it: sox {path} -c 1 -r 16000 -b 16 out.wav"
        )
    return resample(pcm, rate_hz)


def wav_bytes(pcm: bytes, channels: int = 1) -> bytes:
    """The contents of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes(pcm)
    return file.getvalue()


def write_wav(path: Path, pcm: bytes, channels: int = 1) -> None:
    """Raises AudioError if the file cannot be written."""
    try:
        path.write_bytes(wav_bytes(pcm, channels))
    except OSError as error:
        raise AudioError(f"{path}: cannot be written: {error.strerror}") from error


def stereo(left: bytes, right: bytes) -> bytes:
    """Two mono tracks as one with two channels; the shorter is padded with silence."""
    n_bytes = max(len(left), len(right))
    out = array("h", bytes(2 * n_bytes))
    out[0::2] = array("h", left.ljust(n_bytes, b"\0"))
    out[1::2] = array("h", right.ljust(n_bytes, b"\0"))
    return out.tobytes()
