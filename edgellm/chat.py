"""Talk to the model on a board.

Ctrl-C stops an answer; once more, or at the prompt, it leaves. /help shows what else can be typed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from edgellm.conversation import Chat, Done
from edgellm.errors import RuntimeFailedError
from edgellm.selection import add_board, add_model, add_sampling, sampling_argv, selected_model

HELP = """\
/reset   forget the conversation; the system prompt stays
/help    this
/quit    leave, as Ctrl-D does
Ctrl-C   stop the answer; twice: leave"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm chat --board virtual-rpi5\n"
        '  edgellm chat --board kitchen --system "You are a home assistant." --temperature 0'
    )
    add_board(parser)
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    add_sampling(parser)


def main(args: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # gives input() line editing and history
    with selected_model(args) as model, Chat(model, args.system, sampling_argv(args)) as chat:
        if sys.stdin.isatty():
            aside(f"{model.name} on {model.remote.name} (/help for help)")
        return converse(chat)


def converse(chat: Chat) -> int:
    """Reads lines from standard input and shows the answers until the user leaves."""
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            if interactive:
                print()
            return 0
        if line == "/quit":
            return 0
        if line == "/reset":
            chat.reset()
            aside("forgotten")
        elif line.startswith("/") and line.split()[0].isascii() and " " not in line:
            aside(HELP if line == "/help" else f"there is no {line}\n{HELP}")
        elif line:
            with interrupts() as presses:
                try:
                    for piece in chat.ask(line, cancelled=lambda: bool(presses)):
                        print(piece, end="", flush=True)
                        if len(presses) > 1:
                            break
                    print()
                except RuntimeFailedError as error:
                    if not interactive:
                        raise
                    aside(str(error))
                if len(presses) > 1:
                    return 130
            for notice in chat.answer.notices:
                aside(notice)
            if interactive and chat.answer.done:
                aside(statistics(chat.answer.done))


def statistics(done: Done) -> str:
    """One line about an answer: "12 tokens, 45.1 tok/s; prompt 33 tokens in 0.20 s"."""
    line = f"{done.tokens} tokens, {done.decode_tok_s:.1f} tok/s; "
    line += f"prompt {done.prompt_tokens} tokens in {done.prefill_ms / 1000:.2f} s"
    ends = {"cancelled": "; cancelled", "length": "; cut off at the length limit"}
    return line + ends.get(done.reason, "")


def aside(text: str) -> None:
    """Shows something that is not the model's answer, on standard error."""
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Inside, Ctrl-C only adds an entry to the list. An exception could strike in the middle of a packet."""
    presses: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        presses.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
