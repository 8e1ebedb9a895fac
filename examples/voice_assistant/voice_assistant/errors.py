"""What can go wrong, as one tree. `__main__` prints one line for these; anything else is a bug and shows its traceback.

VoiceError
├── ConfigError    a configuration file: names the file, the key and the remedy
├── EngineError    a speech engine or the program behind it
├── AudioError     capture, playback or a WAV file
├── DeviceError    the smart home: a broker or a hub that does not answer
└── ServerError    the language model's server
"""


class VoiceError(Exception):
    """The root of this package's errors."""


class ConfigError(VoiceError):
    """A configuration that cannot be used."""


class EngineError(VoiceError):
    """A speech engine that is missing or failed."""


class AudioError(VoiceError):
    """Audio that cannot be captured, played, read or written."""


class DeviceError(VoiceError):
    """A device, broker or hub that does not answer."""


class ServerError(VoiceError):
    """The language model's server does not answer, or answers with an error."""
