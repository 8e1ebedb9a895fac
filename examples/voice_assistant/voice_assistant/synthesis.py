"""Text to speech: each engine is a program that is run once for each piece of text, with the text as its input."""

from __future__ import annotations

import io
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path

from voice_assistant.audio import resample
from voice_assistant.config import TextToSpeechTable
from voice_assistant.errors import EngineError

_TIMEOUT_S = 60


class Synthesizer:
    """Runs the configured engine. `say` can be called from any thread."""

    def __init__(self, table: TextToSpeechTable) -> None:
        self._engine = table.engine
        voice = table.voice
        self._argv: Sequence[str]
        if table.engine == "flite":
            self._argv = ("flite", "-voice", voice or "rms", "-f", "/dev/stdin", "-o", "{file}")
        elif table.engine == "espeak_ng":
            self._argv = ("espeak-ng", "--stdin", "--stdout", "-v", voice or "en")
        elif table.engine == "piper":
            self._argv = ("piper", "--model", table.voice_path, "--output_file", "{file}")
        else:
            self._argv = table.command

    def say(self, text: str) -> bytes:
        """16 kHz samples of the text. Raises EngineError."""
        with tempfile.TemporaryDirectory(prefix="voice-") as folder:
            path = Path(folder) / "out.wav"
            argv = [word.replace("{file}", str(path)) for word in self._argv]
            try:
                done = subprocess.run(
                    argv, input=text.encode() + b"\n", capture_output=True, timeout=_TIMEOUT_S, check=False
                )
            except FileNotFoundError as error:
                raise EngineError(f"{argv[0]} is not installed; install it, or choose another tts.engine") from error
            except subprocess.TimeoutExpired as error:
                raise EngineError(f"{argv[0]} took more than {_TIMEOUT_S} s for {len(text)} characters") from error
            data = path.read_bytes() if path.exists() else done.stdout
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise EngineError(f"{argv[0]} failed with status {done.returncode}: {said[-1][:200]}")
        return _samples(data, argv[0])


def _samples(data: bytes, program: str) -> bytes:
    """The samples of a WAV file whose header may not know how long it is, as that of a pipe."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise EngineError(f"{program} gives no mono WAV of 16 bits; choose a voice that does")
            n_frames = min(file.getnframes(), len(data) // 2)
            pcm = file.readframes(n_frames)
            return resample(pcm[: len(pcm) // 2 * 2], file.getframerate())
    except (wave.Error, EOFError) as error:
        raise EngineError(f"{program} gave no WAV file: {error}") from error
