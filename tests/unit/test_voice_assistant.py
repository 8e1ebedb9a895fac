"""The voice assistant's parts that need no engine: what it says, when it listens, what it may switch."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from voice_assistant import service_manager
from voice_assistant.audio import FRAME_S, RATE_HZ, SILENCE, loudness, read_wav, resample, seconds, stereo, write_wav
from voice_assistant.chunker import pieces
from voice_assistant.commands import LocalCommands
from voice_assistant.config import Config, DeviceTable, HomeTable, RoomTable, VadTable, read_config
from voice_assistant.errors import AudioError, ConfigError, DeviceError
from voice_assistant.grounding import grounded
from voice_assistant.home import Action, Home, Simulated, ToolCall
from voice_assistant.latency import Marks, percentile, read_turns, report, table
from voice_assistant.listening import Endpoint
from voice_assistant.phones import likeness
from voice_assistant.recognition import plain
from voice_assistant.spelling import read_number, spell
from voice_assistant.streams import Halfway, _Clock
from voice_assistant.timers import Timers, in_words

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/voice_assistant"
TABLE = HomeTable(
    weather="rain",
    outside_c=7,
    devices=(
        DeviceTable(name="desk lamp", kind="light"),
        DeviceTable(name="porch lamp", kind="light", state="on"),
        DeviceTable(name="front door", kind="door", state="locked"),
        DeviceTable(name="bedroom blind", kind="cover"),
    ),
    rooms=(RoomTable(name="kitchen", degrees=21),),
)
NOON = datetime(2026, 3, 3, 12, 5)


# ---- the service manager and the microphone's clock ----


class Frames:
    """A source of so many frames."""

    patient = False
    halfway: Halfway | None = None

    def __init__(self, count: int) -> None:
        self.count = count

    def frames(self) -> Iterator[tuple[bytes, float]]:
        yield from [(SILENCE, 0.0)] * self.count

    def close(self) -> None:
        pass


def test_systemd_is_told_that_the_first_frame_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setattr(service_manager, "_EVERY_S", 0.0)
        assert len(list(service_manager.Watched(Frames(3)).frames())) == 3
        assert [manager.recv(99) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        assert not list(service_manager.Watched(Frames(0)).frames())
        with pytest.raises(BlockingIOError):  # a microphone that gives nothing is not ready
            manager.recv(99)


def test_the_clock_follows_a_microphone_that_loses_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("voice_assistant.streams.time", SimpleNamespace(monotonic=lambda: now))
    clock = _Clock()
    lags = []
    for index in range(600):
        now += FRAME_S + (0.5 if index == 300 else 0.0)  # half a second is lost once
        late = 0.02 if index % 7 else 0.0
        now += late
        lags.append(now - clock.now(1.0))
        now -= late
    assert max(lags[:300]) == pytest.approx(0.02)
    assert lags[301] > 0.4  # late, for all that is known
    assert max(lags[-100:]) == pytest.approx(0.02)


# ---- the configuration ----


def test_the_example_is_read() -> None:
    config = read_config(EXAMPLE / "home.toml")
    assert config.wake.phrase == "okay nabu"
    assert {device.kind for device in config.home.devices} == {"light", "switch", "door", "cover"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wake = 3", "wake: must be a table, not a whole number; write [wake]"),
        ("[wake]\nphrse = 'x'", "wake: unknown key 'phrse'; did you mean 'phrase'?"),
        ("[vad]\nend_silence_ms = 'long'", "vad.end_silence_ms: must be a number, not text"),
        ("[vad]\nthreshold = 7", "vad.threshold: 7.0 is not within 0.01 to 0.99"),
        ("[vad]\nthreshold = nan", "vad.threshold: nan is not within 0.01 to 0.99"),
        ("[stt]\nengine = 'telepathy'", "stt.engine: 'telepathy' is none of pocketsphinx, command"),
        ("[stt]\nengine = 'command'", "stt.command: is missing"),
        ("[tts]\nengine = 'piper'\nvoice_path = '/no/such'", "tts.voice_path: piper needs a voice of yours"),
        ("[interrupt]\nby = 'speech'", "interrupt.by: 'speech' needs a microphone that does not hear the speaker"),
        ("[llm]\nurl = 'https://far.example'", "llm.url: 'https://far.example' does not begin with http://"),
        ("home.devices = [{ name = 'x' }]", "home.devices[0]: 'kind' is missing; add it"),
        ("home.devices = [{ name = 'a b', kind = 'car' }]", "home.devices[0].kind: 'car' is none of light,"),
        ("home.devices = [{ name = 'Lamp 3', kind = 'light' }]", "home.devices[0].name: 'Lamp 3' must be lower-case"),
        (
            "home.rooms = [{ name = 'hall' }, { name = 'hall' }]",
            "home.rooms[1].name: 'hall' is there twice; give each its own name",
        ),
        (
            "[home]\nbackend = 'mqtt'\ndevices = [{ name = 'lamp', kind = 'light' }]",
            "home.devices[0].mqtt_topic: is missing; the backend mqtt needs it",
        ),
        ("x = ", "no TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_by_file_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "home.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


# ---- text and sound ----


def test_sentences_are_spoken_as_they_come() -> None:
    tokens = ["The **desk", " lamp** is", " on. It is 3", ".5 degrees. Dr", ". No says", " hi! And", " more"]
    taken: list[int] = []

    def stream():
        for index, token in enumerate(tokens):
            taken.append(index)
            yield token

    first = next(pieces(stream()))
    assert (first, taken[-1]) == ("The desk lamp is on.", 2)
    assert list(pieces(tokens)) == ["The desk lamp is on.", "It is 3.5 degrees.", "Dr. No says hi!", "And more"]


def test_only_the_first_piece_may_end_at_a_comma() -> None:
    text = ["I can switch lights and devices, set temperatures and timers, and tell you about this home."]
    assert list(pieces(text)) == [
        "I can switch lights and devices,",
        "set temperatures and timers, and tell you about this home.",
    ]
    assert list(pieces(["Yes, of course."])) == ["Yes, of course."]
    assert list(pieces(["- [one](http://x)\n- two\n"])) == ["one", "two"]
    assert list(pieces([" ", "\n"])) == []


def test_numbers_are_read_as_they_are_spelled() -> None:
    assert [read_number(spell(number).split()) for number in range(101)] == list(range(101))
    assert read_number("one hundred and twenty".split()) == 120
    assert [read_number(words.split()) for words in ("", "lamp", "five twenty", "12", "a")] == [None, None, None, 12, 1]


def test_what_models_write_becomes_what_is_said() -> None:
    assert plain(" [BLANK_AUDIO] Set the desk lamp to 40%, please! (music)") == (
        "set the desk lamp to forty percent please"
    )


def test_sound_survives_a_file(tmp_path: Path) -> None:
    pcm = bytes(range(256)) * 40
    write_wav(tmp_path / "a.wav", pcm)
    assert read_wav(tmp_path / "a.wav") == pcm
    assert len(stereo(pcm, pcm[:100])) == 2 * len(pcm)
    write_wav(tmp_path / "b.wav", stereo(pcm, b""), channels=2)
    with pytest.raises(AudioError, match="2 channel"):
        read_wav(tmp_path / "b.wav")
    with pytest.raises(AudioError, match="no WAV file"):
        read_wav(EXAMPLE / "home.toml")
    assert seconds(resample(bytes(2 * 8000), 8000)) == pytest.approx(1)
    assert RATE_HZ * FRAME_S == 512


def test_words_that_sound_alike_are_near() -> None:
    lamp, clamp, paris = "L AE M P".split(), "K L AE M P".split(), "P EH R IH S".split()
    assert likeness(lamp, lamp) == 1
    assert likeness(lamp, clamp) > 0.8 > 0.4 > likeness(lamp, paris)
    assert likeness([], lamp) < likeness(clamp, lamp)


# ---- when it listens ----


def frames(duration_s: float) -> int:
    return round(duration_s / FRAME_S)


def test_an_utterance_ends_after_silence_and_a_click_is_none() -> None:
    endpoint = Endpoint(VadTable())
    assert {endpoint.add(0.9) for _ in range(3)} == {None}  # a click
    assert {endpoint.add(0.1) for _ in range(frames(1))} == {None}
    assert {endpoint.add(0.9) for _ in range(frames(1))} == {None}
    assert [endpoint.add(0.1) for _ in range(frames(0.6))] == [None] * (frames(0.6) - 1) + ["end"]
    assert endpoint.silent_s == pytest.approx(0.6, abs=FRAME_S)


def test_nobody_speaks_or_somebody_never_stops() -> None:
    endpoint = Endpoint(VadTable(wait_s=2))
    assert [endpoint.add(0.0) for _ in range(frames(2) + 1)][-1] == "nothing"
    endpoint = Endpoint(VadTable(longest_s=3))
    assert [endpoint.add(1.0) for _ in range(frames(3) + 1)][-1] == "end"


# ---- timers and local commands ----


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_local_commands_need_no_model() -> None:
    clock = Clock()
    timers = Timers(clock)
    commands = LocalCommands(timers, lambda: NOON)
    assert commands.answer("what time is it") == "It is 12:05."
    assert commands.answer("please what day is it") == "It is Tuesday, March 3."
    assert commands.answer("set a timer for five minutes") == "The timer is set to 5 minutes."
    assert commands.answer("start a ninety second timer please") == "The timer is set to 1 minute and 30 seconds."
    clock.now_s += 60
    assert commands.answer("how much time is left on the timer") == "30 seconds are left."
    clock.now_s += 31
    assert [timer.duration_s for timer in timers.run_out()] == [90]
    assert timers.run_out() == []
    assert commands.answer("cancel the timer") == "The timer is off."
    assert commands.answer("cancel my timers") == "There is no timer."
    assert commands.answer("never mind") == ""
    for other in ("turn on the desk lamp", "set the kitchen to twenty degrees", "set a timer for many minutes", ""):
        assert commands.answer(other) is None


def test_durations_are_said_as_people_do() -> None:
    assert [in_words(s) for s in (1, 61, 629, 3600, 5400)] == [
        "1 second",
        "1 minute and 1 second",
        "10 minutes",
        "1 hour",
        "1 hour and 30 minutes",
    ]
    with pytest.raises(ValueError, match="one second to a day"):
        Timers(Clock()).start(0)


# ---- devices ----


def test_a_call_changes_the_home_and_what_the_model_is_told() -> None:
    backend = Simulated()
    home = Home(TABLE, backend)
    assert home.prompt("Ember", NOON) == (
        "You are Ember, the assistant of this home.\nTime: 12:05, Tuesday\nOutside: 7 C, rain\nRooms: kitchen 21 C\n"
        "Lights: desk lamp off, porch lamp on\nDoors: front door locked\nCovers: bedroom blind closed"
    )
    assert home.call(ToolCall("set_brightness", {"device": "desk lamp", "percent": 40})) is None
    assert home.call(ToolCall("unlock", {"device": "front door"})) is None
    assert home.call(ToolCall("set_temperature", {"room": "kitchen", "degrees": 19})) is None
    assert "kitchen 19 C" in home.prompt("Ember", NOON)
    assert "desk lamp on 40%" in home.prompt("Ember", NOON)
    assert home.call(ToolCall("turn_off", {"device": "all lights"})) is None
    assert backend.done[-2:] == [Action("desk lamp", "off"), Action("porch lamp", "off")]


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("turn_on", {"device": "pool lamp"}, "no such device"),
        ("turn_on", {"device": ["desk lamp"]}, "no such device"),
        ("turn_on", {"device": "front door"}, "a door cannot do that"),
        ("lock", {"device": "all lights"}, "no such device"),
        ("set_brightness", {"device": "desk lamp", "percent": 400}, "percent must be"),
        ("set_brightness", {"device": "desk lamp", "percent": True}, "percent must be"),
        ("set_temperature", {"room": "kitchen", "degrees": 90}, "degrees must be"),
        ("self_destruct", {}, "no such tool"),
    ],
)
def test_a_wrong_call_does_nothing(name: str, arguments: dict[str, object], why: str) -> None:
    backend = Simulated()
    assert why in str(Home(TABLE, backend).call(ToolCall(name, arguments)))
    assert backend.done == []


def test_a_device_that_does_not_answer_keeps_its_state() -> None:
    class Broken:
        def apply(self, action: Action) -> None:
            raise DeviceError("no answer")

    home = Home(TABLE, Broken())
    before = home.prompt("Ember", NOON)
    assert home.call(ToolCall("turn_on", {"device": "desk lamp"})) == "no answer"
    assert home.prompt("Ember", NOON) == before


@pytest.mark.parametrize(
    ("name", "arguments", "heard", "allowed"),
    [
        ("turn_on", {"device": "desk lamp"}, "turn on the desk lamp", True),
        ("turn_on", {"device": "desk lamp"}, "what does a desk lamp cost", False),
        ("turn_on", {"device": "desk lamp"}, "turn on the radio", False),
        ("turn_off", {"device": "desk lamp"}, "turn on the desk lamp", False),
        ("turn_off", {"device": "porch lamp"}, "and turn it off again", True),  # the target of the turn before
        ("turn_off", {"device": "desk lamp"}, "and turn it off again", False),
        ("turn_off", {"device": "all lights"}, "switch off all the lights", True),
        ("turn_off", {"device": "all lights"}, "switch off the radio", False),
        ("set_brightness", {"device": "desk lamp", "percent": 45}, "set desk lamp to forty five percent", True),
        ("set_brightness", {"device": "desk lamp", "percent": 50}, "set desk lamp to forty five percent", False),
        ("set_timer", {"minutes": 5}, "remind me in five minutes", True),
        ("set_timer", {"minutes": 5}, "what is the capital of france", False),
        ("turn_on", {"device": 7}, "turn on seven", False),
    ],
)
def test_only_what_was_said_is_done(name: str, arguments: dict[str, object], heard: str, allowed: bool) -> None:
    assert grounded(ToolCall(name, arguments), heard, ("porch lamp",)) is allowed


# ---- the latency report ----


def test_latency_is_reported_by_stage() -> None:
    turns = []
    for delay in (0.1, 0.2, 0.3):
        marks = Marks(10.0)
        for number, stage in enumerate(("endpoint", "stt", "tts", "audio"), 1):
            marks.mark(stage, 10.0 + number * delay)
            marks.mark(stage, 99.0)  # only the first time counts
        turns.append(marks.stages_ms())
    rows = {stage: (count, round(middle), round(high)) for stage, count, middle, high in report(turns)}
    assert rows["stt"] == (3, 200, 290)
    assert rows["total"] == (3, 800, 1160)
    assert "llm" not in rows
    assert percentile([5.0], 0.95) == 5
    printed = "\n".join(json.dumps({"event": "turn", "stages_ms": turn}) for turn in turns) + "\nnoise\n"
    assert read_turns(printed) == turns
    assert "| stt: → text | 3 | 200 ms | 290 ms |" in table(report(turns))


def test_defaults_are_safe() -> None:
    config = Config()
    assert config.interrupt.by != "speech"
    assert config.llm.url.startswith("http://127.0.0.1")
    assert replace(config.home, backend="simulated") == config.home


def test_loudness_is_the_root_of_the_mean_square() -> None:
    assert loudness(SILENCE) == 0.0
    assert loudness(b"\x64\x00\x9c\xff" * 8) == 100.0
