"""The wake word as one of the phrases that microWakeWord has models for: the small neural networks of Home Assistant's
voice devices. They come with the package, under Apache 2.0."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from voice_assistant.audio import FRAME_S
from voice_assistant.config import WakeTable
from voice_assistant.errors import ConfigError, EngineError
from voice_assistant.listening import Endpoint

PHRASES = ("okay nabu", "hey jarvis", "hey mycroft", "alexa")
_AFTER = 3
"""Frames that are taken for what follows the phrase: so late it is noticed, on average, where one goes on at once."""
_SPEECH_S = 1.5
"""There must have been speech within so much time, so that noise cannot wake."""


class MicroWakeWord:
    """One network, fed with all that is heard, because it measures the noise of the room: 0.5 % of a slow core."""

    def __init__(self, table: WakeTable, vad_threshold: float) -> None:
        """Raises EngineError without the package, ConfigError for a phrase or a file that it cannot take."""
        try:
            from pymicro_wakeword import MicroWakeWord as Network
            from pymicro_wakeword import MicroWakeWordFeatures, Model
        except ImportError as error:
            raise EngineError(
                'pymicro-wakeword is not installed; pip install pymicro-wakeword, or set wake.engine = "pocketsphinx"'
            ) from error
        if table.model_path:
            self._network: Any = _own(Network, Path(table.model_path))
        elif table.phrase in PHRASES:
            self._network = Network.from_builtin(Model(table.phrase.replace(" ", "_")))
        else:
            raise ConfigError(
                f"wake.phrase: '{table.phrase}' is none of {', '.join(PHRASES)}; choose one of them, name a network of "
                'yours as wake.model_path, or set wake.engine = "pocketsphinx", which hears any phrase'
            )
        self._features: Any = MicroWakeWordFeatures()
        self._threshold = table.threshold or self._network.probability_cutoff
        self._vad_threshold = vad_threshold
        self._spoken: deque[bool] = deque(maxlen=round(_SPEECH_S / FRAME_S))

    def feed(self, frame: bytes, probability: float) -> int | None:
        self._spoken.append(probability >= self._vad_threshold)
        heard = False
        for features in self._features.process_streaming(frame):
            heard |= (self._network.process_streaming_prob(features) or 0.0) > self._threshold
        return _AFTER if heard and sum(self._spoken) * FRAME_S >= Endpoint.LEAST_S else None

    def reset(self) -> None:
        self._network.reset()
        self._spoken.clear()


def _own(network: Any, path: Path) -> Any:
    """A network of the user's: the .json of microWakeWord's training, beside its .tflite."""
    try:
        return network.from_config(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"wake.model_path: '{path}' is not the .json of a microWakeWord model beside its .tflite: {error!r}"
        ) from error
