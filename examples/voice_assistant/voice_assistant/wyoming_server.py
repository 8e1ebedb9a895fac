"""The engines of this assistant for others, Home Assistant above all, over the Wyoming protocol: speech to text with
the home's grammar, text to speech, and the wake word. https://github.com/OHF-voice/wyoming

The protocol knows no passwords: whoever reaches the address may use the engines. What comes is checked: an event of
more than a few MB, a sound that cannot be, or an utterance without an end closes that connection, and no other.
"""

from __future__ import annotations

import asyncio
import json
import queue
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlparse

from voice_assistant.audio import FRAME_BYTES, RATE_HZ, SILENCE
from voice_assistant.config import Config
from voice_assistant.errors import ConfigError, EngineError, VoiceError
from voice_assistant.home import Home, Simulated
from voice_assistant.listening import Detector, WakeWord, open_detector, open_wake_word
from voice_assistant.recognition import open_recognizer
from voice_assistant.service_manager import notify
from voice_assistant.synthesis import Synthesizer

try:
    from wyoming import asr, audio, error, info, ping, tts, wake
    from wyoming.event import Event, async_read_event
    from wyoming.server import AsyncEventHandler, AsyncServer
except ImportError as missing:
    raise EngineError("wyoming is not installed; pip install wyoming") from missing

_MOST_EVENT_BYTES = 4 << 20
_MOST_CONNECTIONS = 32
_MOST_CHARACTERS = 2000
_LONGEST_S = 60
_SILENT_S = 30.0
"""A connection that owes the rest of an utterance so long has lost it."""
_WATCHDOG_S = 20.0


class Engines:
    """What all connections share. One utterance is recognised at a time; the next ones wait."""

    def __init__(self, config: Config) -> None:
        """Raises VoiceError."""
        self.config = config
        devices = Home(config.home, Simulated()).devices
        self._recognizer = open_recognizer(config, devices, [room.name for room in config.home.rooms])
        self._synthesizer = Synthesizer(config.tts)
        open_wake_word(config.wake, config.vad)  # so that a wrong phrase is found now
        self._ears = ThreadPoolExecutor(1, "recognizer")
        self._mouths = ThreadPoolExecutor(2, "synthesizer")
        self.n_connections = 0

    async def transcribe(self, frames: queue.Queue[bytes | None]) -> str:
        """What the frames say, which are heard while they come; None ends them."""
        return await asyncio.get_running_loop().run_in_executor(self._ears, self._transcribe, frames)

    def _transcribe(self, frames: queue.Queue[bytes | None]) -> str:
        self._recognizer.begin()
        lost = False
        try:
            while (frame := frames.get(timeout=_SILENT_S)) is not None:
                self._recognizer.feed(frame)
        except queue.Empty:
            lost = True
        text = self._recognizer.end().text  # in any case: it must be ready for the next one
        if lost:
            raise EngineError(
                f"the rest of the utterance did not come within {_SILENT_S:.0f} s; end it with audio-stop"
            )
        return text

    async def say(self, text: str) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._mouths, self._synthesizer.say, text)

    def describe(self) -> info.Info:
        """Who is here, as the protocol wants it."""
        config = self.config

        def of(kind: Callable[..., Any], name: str, who: str, url: str, what: str, **more: Any) -> Any:
            by = info.Attribution(who, url)
            return kind(name=name, attribution=by, installed=True, description=what, version=None, **more)

        stt, phrase = config.stt.engine, config.wake.phrase
        cmu = ("CMU", "https://github.com/cmusphinx/pocketsphinx")
        model = of(info.AsrModel, stt, *cmu, "this home's sentences, and English", languages=["en"])
        voice = of(info.TtsVoice, config.tts.voice or config.tts.engine, "edgellm", "", "", languages=["en"])
        word = of(info.WakeModel, _wake_name(phrase), "edgellm", "", phrase, languages=["en"], phrase=phrase)
        return info.Info(
            asr=[of(info.AsrProgram, "voice_assistant", *cmu, "speech to text for one home", models=[model])],
            tts=[of(info.TtsProgram, config.tts.engine, "edgellm", "", "text to speech", voices=[voice])],
            wake=[of(info.WakeProgram, "voice_assistant", "edgellm", "", "the wake word", models=[word])],
        )


def _wake_name(phrase: str) -> str:
    return phrase.replace(" ", "_")


class _Limited:
    """A stream of which nobody can make this program read more than it should at once."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def readline(self) -> bytes:
        return await self._reader.readline()

    async def readexactly(self, n: int) -> bytes:
        if type(n) is not int or n > _MOST_EVENT_BYTES:
            raise ValueError("an event is too long")
        return await self._reader.readexactly(n)

    def feed_eof(self) -> None:
        self._reader.feed_eof()


class _Client(AsyncEventHandler):
    """One connection."""

    def __init__(self, engines: Engines, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._input: Any = _Limited(reader)
        self._engines = engines
        self._frames: queue.Queue[bytes | None] | None = None
        self._text: asyncio.Task[str] | None = None
        self._wake_word: WakeWord | None = None
        self._detector: Detector | None = None
        self._detects = self._detected = False
        self._converter = audio.AudioChunkConverter(rate=RATE_HZ, width=2, channels=1)
        self._pcm = bytearray()
        self._n_frames = 0

    async def run(self) -> None:
        self._engines.n_connections += 1
        try:
            if self._engines.n_connections > _MOST_CONNECTIONS:
                await self.write_event(error.Error("too many connections; try again later", "busy").event())
                return
            while (event := await async_read_event(self._input)) is not None:
                if not await self.handle_event(event):
                    break
        except (asyncio.IncompleteReadError, AttributeError, KeyError, TypeError, RecursionError, OSError):
            pass  # no event, half of one, or a client that left: it is let go
        finally:
            self._engines.n_connections -= 1
            await self.disconnect()
            self.writer.close()

    async def disconnect(self) -> None:
        self._end_frames()
        if self._text is not None:
            self._text.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._text = None

    async def handle_event(self, event: Event) -> bool:
        try:
            await self._handle(event)
        except VoiceError as problem:
            await self.write_event(error.Error(str(problem), type(problem).__name__).event())
            return False
        return True

    async def _handle(self, event: Event) -> None:
        kind = event.type
        if info.Describe.is_type(kind):
            await self.write_event(self._engines.describe().event())
        elif ping.Ping.is_type(kind):
            await self.write_event(ping.Pong(ping.Ping.from_event(event).text).event())
        elif asr.Transcribe.is_type(kind):
            self._detects = False
        elif wake.Detect.is_type(kind):
            await self._open_wake_word(event)
        elif audio.AudioStart.is_type(kind):
            self._begin()
        elif audio.AudioChunk.is_type(kind):
            if not self._detects and self._text is None:
                self._begin()
            await self._hear(self._samples(event))
        elif audio.AudioStop.is_type(kind):
            await self._end()
        elif tts.Synthesize.is_type(kind):
            await self._say(tts.Synthesize.from_event(event).text)

    # ---- sound that comes ----

    def _begin(self) -> None:
        self._end_frames()
        self._pcm.clear()
        self._n_frames, self._detected = 0, False
        if not self._detects:
            self._frames = queue.Queue()
            self._text = asyncio.create_task(self._engines.transcribe(self._frames))

    def _samples(self, event: Event) -> bytes:
        """Of a chunk, in the program's own format. Raises EngineError for a sound that cannot be."""
        chunk = audio.AudioChunk.from_event(event)
        shape = (chunk.rate, chunk.width, chunk.channels)
        good = all(type(number) is int for number in shape) and 8000 <= chunk.rate <= 96000
        if not good or chunk.width not in (1, 2, 4) or chunk.channels not in (1, 2):
            raise EngineError(f"no sound that is understood: {str(shape)[:60]}; send 16000 Hz, 2 bytes, 1 channel")
        if len(chunk.audio) % (chunk.width * chunk.channels):
            raise EngineError(f"{len(chunk.audio)} bytes are no whole number of samples")
        return bytes(self._converter.convert(chunk).audio)

    async def _hear(self, pcm: bytes) -> None:
        self._pcm += pcm
        while len(self._pcm) >= FRAME_BYTES:
            frame = bytes(self._pcm[:FRAME_BYTES])
            del self._pcm[:FRAME_BYTES]
            await self._feed(frame)

    async def _feed(self, frame: bytes) -> None:
        self._n_frames += 1
        if self._frames is not None:
            if self._n_frames * FRAME_BYTES > _LONGEST_S * RATE_HZ * 2:
                raise EngineError(f"an utterance of more than {_LONGEST_S} s; end it with audio-stop")
            self._frames.put(frame)
        elif (
            self._wake_word is not None
            and self._detector is not None
            and self._wake_word.feed(frame, self._detector(frame)) is not None
        ):
            self._wake_word.reset()
            self._detected = True
            at_ms = self._n_frames * FRAME_BYTES * 1000 // (2 * RATE_HZ)
            name = _wake_name(self._engines.config.wake.phrase)
            await self.write_event(wake.Detection(name=name, timestamp=at_ms).event())

    async def _end(self) -> None:
        if self._pcm:
            await self._feed(bytes(self._pcm) + SILENCE[len(self._pcm) :])
            self._pcm.clear()
        self._end_frames()
        if self._text is not None:
            text, self._text = self._text, None
            await self.write_event(asr.Transcript(await text, language="en").event())
        elif self._detects and not self._detected:
            await self.write_event(wake.NotDetected().event())

    def _end_frames(self) -> None:
        if self._frames is not None:
            self._frames.put(None)
            self._frames = None

    async def _open_wake_word(self, event: Event) -> None:
        config, names = self._engines.config, wake.Detect.from_event(event).names
        name = _wake_name(config.wake.phrase)
        if isinstance(names, list) and names and name not in names:
            raise ConfigError(f"the wake word here is '{name}', and none of those that were asked for")
        self._detects = True
        if self._wake_word is None:
            self._wake_word = await asyncio.to_thread(open_wake_word, config.wake, config.vad)
            self._detector = open_detector()

    # ---- sound that goes ----

    async def _say(self, text: str) -> None:
        if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
            raise EngineError(f"a text of more than {_MOST_CHARACTERS} characters; send it in pieces")
        pcm = await self._engines.say(text) if text.strip() else b""
        shape = {"rate": RATE_HZ, "width": 2, "channels": 1}
        await self.write_event(audio.AudioStart(**shape).event())
        for start in range(0, len(pcm), 2 * FRAME_BYTES):
            await self.write_event(audio.AudioChunk(**shape, audio=pcm[start : start + 2 * FRAME_BYTES]).event())
        await self.write_event(audio.AudioStop().event())


def serve(config: Config, uri: str) -> None:
    """Serves until SIGTERM. Prints one line of JSON when it can be reached. Raises VoiceError."""
    engines = Engines(config)
    try:
        address = urlparse(uri)
        if address.scheme not in ("tcp", "unix"):
            raise ValueError("neither tcp://HOST:PORT nor unix:///PATH")
        server = AsyncServer.from_uri(uri)
    except ValueError as problem:
        raise ConfigError(f"wyoming.uri: '{uri}': {problem}") from problem
    try:
        asyncio.run(_serve(engines, server, uri))
    except OSError as problem:
        raise ConfigError(f"wyoming.uri: '{uri}' cannot be listened at: {problem.strerror}") from problem


async def _serve(engines: Engines, server: AsyncServer, uri: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start(lambda reader, writer: _Client(engines, reader, writer))
    print(json.dumps({"event": "serving", "uri": uri}), flush=True)
    waiting = asyncio.create_task(ended.wait())
    state = "READY=1"
    while not ended.is_set():
        notify(state)
        state = "WATCHDOG=1"
        await asyncio.wait([waiting], timeout=_WATCHDOG_S)
