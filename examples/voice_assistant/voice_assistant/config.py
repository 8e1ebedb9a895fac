"""The assistant's one configuration file, in TOML, read and checked.

Every table is a frozen dataclass below; a key that it does not have, a value of another type or out of its range is
refused with the file, the key and the remedy. Names end in their unit.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from voice_assistant.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
STATES = {"light": ("on", "off"), "switch": ("on", "off"), "door": ("locked", "unlocked"), "cover": ("open", "closed")}
"""What each kind of device can be."""


def _one_of(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


def _within(default: float, least: float, most: float) -> Any:
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class CaptureTable:
    """Where sound comes from.

    command          prints raw 16 kHz mono 16-bit samples; `{device}` is replaced
    device           ALSA's name, as in `arecord -L`
    echo_cancelled   what is heard does not contain what is played: a conference microphone, or PulseAudio's
                     module-echo-cancel. Needed for interruption by speech.
    """

    command: tuple[str, ...] = (
        "arecord", "-q", "-D", "{device}", "-t", "raw", "-f", "S16_LE", "-r", "16000", "-c", "1",
        "--buffer-time=100000", "--period-time=8000",
    )  # fmt: skip
    device: str = "default"
    echo_cancelled: bool = False


@dataclass(frozen=True)
class PlaybackTable:
    """Where sound goes. command: reads raw 16 kHz mono 16-bit samples. buffer_ms: how much it is given ahead."""

    command: tuple[str, ...] = (
        "aplay", "-q", "-D", "{device}", "-t", "raw", "-f", "S16_LE", "-r", "16000", "-c", "1", "--buffer-time=80000",
        "--period-time=20000",
    )  # fmt: skip
    device: str = "default"
    buffer_ms: float = _within(80, 20, 1000)


@dataclass(frozen=True)
class WakeTable:
    """How a conversation begins.

    engine        "micro_wake_word" hears "okay nabu", "hey jarvis", "hey mycroft" and "alexa", in noise, too;
                  "pocketsphinx" hears any phrase, but less well; "auto" takes the first for its phrases; "none":
                  whatever is said is meant for the assistant
    model_path    a network of yours for "micro_wake_word": the .json of its training
    threshold     from which the phrase is believed, 0: the engine's own. micro_wake_word: a probability. pocketsphinx:
                  1e-40 hears more, 1e-10 less (1e-25); below it, down to 1e-50, the phrase is believed if what was
                  heard sounds like it
    follow_up_s   how long after an answer one may go on without the wake word
    """

    engine: str = _one_of("auto", "micro_wake_word", "pocketsphinx", "none")
    phrase: str = "okay nabu"
    model_path: str = ""
    threshold: float = _within(0, 0, 1)
    follow_up_s: float = _within(0, 0, 60)


@dataclass(frozen=True)
class VadTable:
    """When somebody speaks.

    threshold        probability of speech from which a frame of 32 ms counts
    end_silence_ms   so much silence ends an utterance
    wait_s           how long the assistant listens for the first word
    longest_s        an utterance is cut off after this
    """

    threshold: float = _within(0.5, 0.01, 0.99)
    end_silence_ms: float = _within(600, 100, 5000)
    wait_s: float = _within(5, 1, 60)
    longest_s: float = _within(12, 2, 60)


@dataclass(frozen=True)
class SpeechToTextTable:
    """What turns speech into text.

    engine     "pocketsphinx", or "command": a program of yours
    agreement  pocketsphinx: how alike, in phones, what the grammar and the free recogniser heard must be, 0 to 1
    command    reads a WAV file on standard input, writes the text to standard output: whisper.cpp is
               ["whisper-cli", "-m", "MODEL", "-np", "-nt", "-f", "-"]
    """

    engine: str = _one_of("pocketsphinx", "command")
    agreement: float = _within(0.7, 0, 1)
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextToSpeechTable:
    """What turns text into speech.

    engine   flite, espeak_ng, piper (needs voice_path: an .onnx file of yours), or command
    voice    flite's and espeak-ng's name of it
    command  reads text on standard input, writes a WAV file to `{file}`, or to standard output
    """

    engine: str = _one_of("flite", "espeak_ng", "piper", "command")
    voice: str = ""
    voice_path: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class LlmTable:
    """The language model's server, with OpenAI's API.

    model          which one, where a server has several
    history_turns  how many of the last requests the model is told, with their answers
    """

    url: str = "http://127.0.0.1:11434"
    model: str = ""
    persona: str = "Ember"
    max_tokens: int = _within(200, 1, 4096)
    timeout_s: float = _within(60, 1, 600)
    history_turns: int = _within(4, 0, 100)


@dataclass(frozen=True)
class InterruptTable:
    """How an answer can be interrupted.

    by          "speech" (needs capture.echo_cancelled), "wake_word", or "nothing"
    threshold   probability from which 32 ms count as speech; they are looked at every 16 ms
    pause_ms    so much speech silences the answer; what is surely speech counts twice
    confirm_ms  so much speech ends it; with less, it goes on where it was
    """

    by: str = _one_of("wake_word", "speech", "nothing")
    threshold: float = _within(0.5, 0.01, 0.99)
    pause_ms: float = _within(32, 16, 1000)
    confirm_ms: float = _within(320, 32, 3000)


@dataclass(frozen=True)
class WyomingTable:
    """The engines for others, such as Home Assistant, instead of a microphone of its own.

    uri   where they are to be had: "tcp://127.0.0.1:10700", or "tcp://0.0.0.0:10700" for everybody in the network, for
          the protocol has no passwords; "": nowhere
    """

    uri: str = ""


@dataclass(frozen=True, kw_only=True)
class NamedTable:
    """What devices and rooms have. mqtt_topic, entity_id: where the backend finds it."""

    name: str
    mqtt_topic: str = ""
    entity_id: str = ""


@dataclass(frozen=True, kw_only=True)
class DeviceTable(NamedTable):
    """One device. kind: light, switch, door or cover. state: at the start."""

    kind: str = field(metadata={"choices": ("light", "switch", "door", "cover")})
    state: str = ""


@dataclass(frozen=True, kw_only=True)
class RoomTable(NamedTable):
    """One room whose temperature is known or can be set."""

    degrees: int = _within(20, -20, 60)


@dataclass(frozen=True)
class HomeTable:
    """The home.

    backend    "simulated", "mqtt" (mqtt_host, mqtt_port) or "home_assistant" (url, and token_path: a file with a
               long-lived access token)
    weather    and outside_c: what is said about outside, if they are known
    """

    backend: str = _one_of("simulated", "mqtt", "home_assistant")
    mqtt_host: str = "127.0.0.1"
    mqtt_port: int = _within(1883, 1, 65535)
    url: str = "http://127.0.0.1:8123"
    token_path: str = ""
    weather: str = ""
    outside_c: int = _within(20, -60, 60)
    devices: tuple[DeviceTable, ...] = ()
    rooms: tuple[RoomTable, ...] = ()


@dataclass(frozen=True)
class Config:
    """The whole file; tables that it leaves out have their defaults."""

    capture: CaptureTable = field(default_factory=CaptureTable)
    playback: PlaybackTable = field(default_factory=PlaybackTable)
    wake: WakeTable = field(default_factory=WakeTable)
    vad: VadTable = field(default_factory=VadTable)
    stt: SpeechToTextTable = field(default_factory=SpeechToTextTable)
    tts: TextToSpeechTable = field(default_factory=TextToSpeechTable)
    llm: LlmTable = field(default_factory=LlmTable)
    interrupt: InterruptTable = field(default_factory=InterruptTable)
    wyoming: WyomingTable = field(default_factory=WyomingTable)
    home: HomeTable = field(default_factory=HomeTable)


def read_config(path: Path) -> Config:
    """Reads and checks a configuration. Raises ConfigError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
    config = _table(Config, table, str(path), "")
    _check_whole(config, str(path))
    return config


def _table(kind: type[T], table: Any, file: str, where: str) -> T:
    """One table as its dataclass. where: the keys that lead to it, "home.devices[2]"."""
    label = f"{file}: {where}" if where else file
    if not isinstance(table, dict):
        raise ConfigError(f"{label}: must be a table, not {_named(table)}; write [{where}]")
    assert is_dataclass(kind)
    known = {item.name: item for item in fields(kind)}
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{label}: unknown key '{key}'; {hint}")
    hints, values = get_type_hints(kind), {}
    for name, item in known.items():
        path = f"{where}.{name}" if where else name
        if name in table:
            values[name] = _value(hints[name], table[name], file, path, item.metadata)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{label}: '{name}' is missing; add it")
    return kind(**values)


def _value(hint: Any, value: Any, file: str, path: str, rules: Any) -> Any:
    if is_dataclass(hint):
        return _table(hint, value, file, path)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if not isinstance(value, list):
            raise ConfigError(f"{file}: {path}: must be a list, not {_named(value)}")
        return tuple(_value(item, one, file, f"{path}[{index}]", {}) for index, one in enumerate(value))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{file}: {path}: must be {_TYPES[hint]}, not {_named(value)}")
    if "choices" in rules and value not in rules["choices"]:
        raise ConfigError(f"{file}: {path}: '{value}' is none of {', '.join(rules['choices'])}")
    if "range" in rules:
        least, most = rules["range"]
        if not least <= value <= most:  # refuses nan, too
            raise ConfigError(f"{file}: {path}: {value} is not within {least:g} to {most:g}")
    return value


_TYPES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _named(value: Any) -> str:
    return _TYPES.get(type(value), {"dict": "a table", "list": "a list"}.get(type(value).__name__, "a date"))


_NAME = re.compile(r"[a-z][a-z' ]*[a-z]")


def _check_whole(config: Config, file: str) -> None:
    """What no single key can be blamed for."""

    def refuse(key: str, why: str) -> None:
        raise ConfigError(f"{file}: {key}: {why}")

    if config.interrupt.by == "speech" and not config.capture.echo_cancelled:
        refuse(
            "interrupt.by", "'speech' needs a microphone that does not hear the speaker; see capture.echo_cancelled, "
            "or use 'wake_word'",
        )  # fmt: skip
    if config.tts.engine == "piper" and not Path(config.tts.voice_path).is_file():
        refuse("tts.voice_path", f"piper needs a voice of yours, and '{config.tts.voice_path}' is no file")
    for name, engine, command in (
        ("stt", config.stt.engine, config.stt.command),
        ("tts", config.tts.engine, config.tts.command),
    ):
        if engine == "command" and not command:
            refuse(f"{name}.command", "is missing; name a program, with its arguments, as a list")
    if not config.llm.url.startswith("http://"):
        refuse("llm.url", f"'{config.llm.url}' does not begin with http://; the server is meant to be on this machine")
    taken: set[str] = set()
    things: list[tuple[str, NamedTable]] = [
        *((f"home.devices[{index}]", device) for index, device in enumerate(config.home.devices)),
        *((f"home.rooms[{index}]", room) for index, room in enumerate(config.home.rooms)),
    ]
    for place, thing in things:
        if not _NAME.fullmatch(thing.name):
            refuse(f"{place}.name", f"'{thing.name}' must be lower-case words, as one says them")
        if thing.name in taken:
            refuse(f"{place}.name", f"'{thing.name}' is there twice; give each its own name")
        taken.add(thing.name)
        if isinstance(thing, DeviceTable) and thing.state not in ("", *STATES[thing.kind]):
            refuse(f"{place}.state", f"'{thing.state}' is none of {', '.join(STATES[thing.kind])}")
        needed = {"mqtt": "mqtt_topic", "home_assistant": "entity_id"}.get(config.home.backend)
        if needed and not getattr(thing, needed):
            refuse(f"{place}.{needed}", f"is missing; the backend {config.home.backend} needs it")
    if config.home.backend == "home_assistant" and not Path(config.home.token_path).is_file():
        refuse("home.token_path", f"'{config.home.token_path}' is no file; write a long-lived access token into one")
