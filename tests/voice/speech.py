"""Speech to test with: several voices of two engines, said once and kept for the session."""

from __future__ import annotations

import random
import subprocess
from array import array
from pathlib import Path

from voice_assistant.audio import RATE_HZ, read_wav


def say(folder: Path, voice: str, text: str, *effects: str) -> bytes:
    """What `voice` sounds like when it says `text`: flite's voices by name, "ked" of festival. effects: sox's."""
    raw, out = folder / "raw.wav", folder / "out.wav"
    if voice == "ked":
        argv = ["text2wave", "-eval", "(voice_ked_diphone)", "-o", str(raw)]
    else:
        argv = ["flite", "-voice", voice, "-f", "/dev/stdin", "-o", str(raw)]
    subprocess.run(argv, input=text.encode(), check=True, capture_output=True)
    subprocess.run(["sox", raw, "-r", str(RATE_HZ), "-c", "1", "-b", "16", out, *effects], check=True)
    return read_wav(out)


def hush(duration_s: float, loudness: int = 12, seed: int = 1) -> bytes:
    """The faint noise of a quiet room."""
    rng = random.Random(seed)
    return array("h", (rng.randint(-loudness, loudness) for _ in range(int(duration_s * RATE_HZ)))).tobytes()
