"""People to test with: synthetic voices of two engines, and the noise around them.

Thresholds and grammar were tuned on TUNED_ON; figures are about HELD_OUT. A voice with an
effect of sox's is another person: higher or lower, faster or slower.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from voice_assistant.audio import RATE_HZ, read_wav


@dataclass(frozen=True)
class Speaker:
    """voice: one of flite's, or "ked" of festival's. effects: sox's, applied to what it says."""

    name: str
    voice: str
    effects: tuple[str, ...] = ()

    def say(self, text: str) -> bytes:
        """16 kHz samples. The programs flite, festival and sox must be installed."""
        with tempfile.TemporaryDirectory(prefix="speech-") as folder:
            raw, out = Path(folder) / "raw.wav", Path(folder) / "out.wav"
            if self.voice == "ked":
                argv = ["text2wave", "-eval", "(voice_ked_diphone)", "-o", str(raw)]
            else:
                argv = ["flite", "-voice", self.voice, "-f", "/dev/stdin", "-o", str(raw)]
            subprocess.run(argv, input=text.encode(), check=True, capture_output=True)
            to_format = ["-r", str(RATE_HZ), "-c", "1", "-b", "16"]
            subprocess.run(["sox", raw, *to_format, out, *self.effects], check=True, capture_output=True)
            return read_wav(out)


TUNED_ON = (Speaker("rms", "rms"), Speaker("kal", "kal16"), Speaker("slt", "slt"))
HELD_OUT = (
    Speaker("awb", "awb"),
    Speaker("awb, higher and faster", "awb", ("pitch", "250", "tempo", "1.12")),
    Speaker("ked", "ked"),
    Speaker("ked, lower and slower", "ked", ("pitch", "-150", "tempo", "0.9")),
)


def hush(duration_s: float, loudness: float = 8.0, seed: int = 1) -> bytes:
    """The faint noise of a quiet room."""
    noise = np.random.default_rng(seed).normal(0, loudness, int(duration_s * RATE_HZ))
    return _samples(noise)


Noise = Callable[[int, np.random.Generator], np.ndarray]
"""So many samples of a noise, of about unit power."""


def _white(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=n)


def _pink(n: int, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.normal(size=n))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return _unit(np.fft.irfft(spectrum, n))


def _hum(n: int, rng: np.random.Generator) -> np.ndarray:
    """Mains and its harmonics, as a fridge or a cheap amplifier."""
    t = np.arange(n) / RATE_HZ
    return _unit(sum(np.sin(2 * np.pi * 50 * k * t + rng.uniform(0, 6)) / k for k in range(1, 9)) + np.zeros(n))


def _fan(n: int, rng: np.random.Generator) -> np.ndarray:
    """Pink noise whose loudness turns with the blades."""
    return _unit(_pink(n, rng) * (1 + 0.5 * np.sin(2 * np.pi * 7 * np.arange(n) / RATE_HZ)))


def _knocks(n: int, rng: np.random.Generator) -> np.ndarray:
    """Dishes: short bursts that ring, a few in a second."""
    out = np.zeros(n)
    for start in rng.integers(0, max(1, n - 4000), max(1, n * 3 // RATE_HZ)):
        t = np.arange(min(4000, n - start)) / RATE_HZ
        out[start : start + len(t)] += np.exp(-t * rng.uniform(20, 60)) * np.sin(2 * np.pi * rng.uniform(300, 4000) * t)
    return _unit(out)


def _music(n: int, rng: np.random.Generator) -> np.ndarray:
    """Plucked chords, four in a second."""
    out = np.zeros(n)
    for start in range(0, n, RATE_HZ // 4):
        t = np.arange(min(RATE_HZ, n - start)) / RATE_HZ
        for step in rng.choice([0, 3, 4, 7, 10, 12], 3, replace=False):
            pitch = 220 * 2 ** ((step + rng.choice([0, 5, 7])) / 12)
            out[start : start + len(t)] += np.exp(-4 * t) * sum(
                np.sin(2 * np.pi * pitch * k * t) / k for k in (1, 2, 3)
            )
    return _unit(out)


NOISES: dict[str, Noise] = {
    "white": _white,
    "pink": _pink,
    "hum": _hum,
    "fan": _fan,
    "dishes": _knocks,
    "music": _music,
}


def noise(kind: str, duration_s: float, level_db: float, seed: int) -> bytes:
    """A noise at a level relative to full scale."""
    rng = np.random.default_rng(seed)
    return _samples(32768 * 10 ** (level_db / 20) * NOISES[kind](int(duration_s * RATE_HZ), rng))


def in_noise(pcm: bytes, kind: str, snr_db: float, seed: int) -> bytes:
    """Speech in a noise that is `snr_db` weaker, measured over the loud half of the speech."""
    speech = np.frombuffer(pcm, np.int16).astype(np.float64)
    loud = np.sort(speech**2)[len(speech) // 2 :].mean()
    added = NOISES[kind](len(speech), np.random.default_rng(seed))
    return _samples(speech + added * np.sqrt(loud / 2) * 10 ** (-snr_db / 20))


def _unit(samples: np.ndarray) -> np.ndarray:
    return samples / max(float(np.sqrt(np.mean(samples**2))), 1e-9)


def _samples(values: np.ndarray) -> bytes:
    return np.clip(np.round(values), -32768, 32767).astype(np.int16).tobytes()
