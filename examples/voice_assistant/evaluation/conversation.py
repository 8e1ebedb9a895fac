"""python -m evaluation.conversation BUNDLE OUT.ogg: a conversation to listen to, from WAV to WAV.

Somebody whose voice nothing was tuned on speaks; the program hears the WAV file as it would hear a microphone, and
writes what it heard (left) and said (right) into another: the time that it took to think is left out. sox makes OUT
of that. Prints what was heard, done and said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from voice_assistant.audio import write_wav
from voice_assistant.config import read_config

from evaluation.accuracy import served
from evaluation.speakers import HELD_OUT, hush

HOME = Path(__file__).parents[1] / "home.toml"
SAID = (
    "turn on the desk lamp.",
    "is the front door locked?",
    "what is the capital of france?",
    "set a timer for five minutes.",
    "close the bedroom blind.",
)
"""Each after the wake word."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of the demo model, for this machine")
    parser.add_argument("out", type=Path, help="a sound file of any kind that sox writes")
    arguments = parser.parse_args()
    wake = read_config(HOME).wake.phrase
    pcm = hush(0.5) + b"".join(HELD_OUT[0].say(f"{wake}, {text}") + hush(1, seed=n) for n, text in enumerate(SAID))
    with tempfile.TemporaryDirectory(prefix="talk-") as name, served(arguments.bundle) as url:
        said, talk = Path(name) / "said.wav", Path(name) / "talk.wav"
        write_wav(said, pcm)
        argv = [sys.executable, "-m", "voice_assistant", str(HOME), "--url", url]
        argv += ["--wav-in", str(said), "--wav-out", str(talk)]
        done = subprocess.run(argv, cwd=HOME.parent, stdout=subprocess.PIPE, text=True, check=True)
        subprocess.run(["sox", str(talk), str(arguments.out)], check=True)
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if event["event"] in ("heard", "tool", "say", "error"):
            print(", ".join(str(value) for key, value in event.items() if key not in ("time_s", "usual")))


if __name__ == "__main__":
    main()
