"""What `make demo` runs: a language model is compiled for a Raspberry Pi 5, sent to an emulated one, and answers.

Every step is a command that could be typed; nothing is done behind its back. Where an emulated board cannot run, this
machine's own processor stands in: behind a real SSH server if that is possible, else directly.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from edgellm import virtual
from edgellm.board_cli import shown_progress
from edgellm.boards import load_board

EDGELLM = Path(sys.executable).with_name("edgellm")
MODEL = Path(__file__).parent / "voice_assistant" / "model"
BUNDLE = "build/demo"
QUESTIONS = ("Is the coffee machine on?", "is the front door locked", "turn off the kitchen light")


def say(text: str = "") -> None:
    print(text, flush=True)


def heading(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def edgellm(*arguments: str) -> None:
    """Shows a command as one would type it, runs it, and stops the demo if it fails."""
    say("$ " + shlex.join(["edgellm", *arguments]))
    done = subprocess.run([EDGELLM, *arguments], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def choose_board() -> str:
    """The best stand-in for a Raspberry Pi 5 that this machine can run; says why, if it is not the emulated one."""
    for board_id in ("virtual-rpi5", "virtual-local"):
        reason = virtual.availability(load_board(board_id))
        if reason is None:
            return board_id
        say(f"{board_id} cannot run on this machine: {reason}")
    return "local"


def main() -> None:
    board = choose_board()
    if board == "virtual-rpi5":
        say("A language model goes from a folder on this machine to a Raspberry Pi 5 (emulated here), over SSH.")
    else:
        say(f"No emulated Raspberry Pi here: the demo uses this machine's own processor ({board}).")
    model = str(MODEL.relative_to(Path.cwd())) if MODEL.is_relative_to(Path.cwd()) else str(MODEL)
    heading("1. Compile the model for the board's processor")
    edgellm("compile", model, "--board", board, "-o", BUNDLE)
    heading("2. Send it to the board, verify it there, switch it on")
    if board != "local":
        with shown_progress() as progress:
            virtual.start(load_board(board), progress)
    edgellm("deploy", "--board", board, BUNDLE)
    heading("3. Ask it")
    say("Its chat template tells it about a home: kitchen light and porch lamp on, coffee machine off.")
    for question in QUESTIONS:
        say()
        edgellm("run", "--board", board, "-p", question)
    heading("Your turn")
    say(f"  .venv/bin/edgellm chat --board {board}")
    say("  .venv/bin/edgellm deploy --board rpi5 --host pi@raspberrypi.local " + model)
    if board != "local":
        say(f"  .venv/bin/edgellm board stop {board}")


if __name__ == "__main__":
    main()
