"""python -m voice_assistant: runs the assistant with a microphone, or on a WAV file."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from voice_assistant.assistant import Assistant, Parts, events
from voice_assistant.audio import read_wav, stereo, write_wav
from voice_assistant.config import Config, read_config
from voice_assistant.devices import open_backend
from voice_assistant.errors import VoiceError
from voice_assistant.home import Home
from voice_assistant.listening import open_detector, open_wake_word
from voice_assistant.recognition import open_recognizer
from voice_assistant.service_manager import Watched
from voice_assistant.streams import CommandPlayer, CommandSource, Player, Source, WavConversation
from voice_assistant.synthesis import Synthesizer


def open_parts(config: Config, source: Source, player: Player) -> Parts:
    """Every engine that the configuration names. Raises VoiceError."""
    home = Home(config.home, open_backend(config.home))
    return Parts(
        source,
        player,
        open_detector(),
        open_wake_word(config.wake, config.vad),
        open_recognizer(config, home.devices, list(home.rooms)),
        Synthesizer(config.tts),
        home,
        open_detector() if config.interrupt.by == "speech" else None,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="voice_assistant", description=__doc__)
    parser.add_argument("config", type=Path, help="the configuration, e.g. home.toml")
    parser.add_argument("--check", action="store_true", help="read the configuration, open every engine, and end")
    parser.add_argument("--url", help="the language model's server, instead of llm.url")
    parser.add_argument("--wav-in", type=Path, metavar="FILE", help="listen to a WAV file instead of a microphone")
    parser.add_argument("--wav-out", type=Path, metavar="FILE", help="... and write the conversation to another, "
                        "left what was heard, right what was said")  # fmt: skip
    parser.add_argument("--wyoming", metavar="URI", help="serve the engines to Home Assistant, instead of wyoming.uri")
    parser.add_argument("--paced", action="store_true", help="take the WAV file at the speed of speech")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return _run(arguments)
    except VoiceError as error:
        print(f"voice_assistant: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.config)
    if arguments.url:
        from dataclasses import replace

        config = replace(config, llm=replace(config.llm, url=arguments.url))
    if (uri := arguments.wyoming or config.wyoming.uri) and not arguments.wav_in:
        from voice_assistant import wyoming_server

        if arguments.check:
            wyoming_server.Engines(config)
        else:
            wyoming_server.serve(config, uri)
        return 0
    tell = events(lambda line: print(line, flush=True))
    if arguments.check or arguments.wav_in:
        pcm = read_wav(arguments.wav_in) if arguments.wav_in else b""
        conversation = WavConversation(pcm, arguments.paced)
        parts = open_parts(config, conversation, conversation)
        if arguments.check:
            return 0
        Assistant(config, parts, tell).run()
        if arguments.wav_out:
            write_wav(arguments.wav_out, stereo(bytes(conversation.heard), bytes(conversation.said)), channels=2)
        return 0
    source = Watched(CommandSource(config.capture))
    try:
        Assistant(config, open_parts(config, source, CommandPlayer(config.playback)), tell).run()
    finally:
        source.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
