"""Talk to the model on a board.

Enter sends, Alt-Enter or a backslash before Enter begins a new line. Ctrl-C stops an answer. /help shows what else can
be typed. Answers are shown as markdown; where the output is no terminal they are plain text.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import posixpath
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from edgellm import sensors, transcript
from edgellm.conversation import Chat, Done
from edgellm.errors import RemoteError, RuntimeFailedError, UsageError
from edgellm.probe import home_of
from edgellm.remembered import state_path
from edgellm.runtime_program import InstalledModel
from edgellm.selection import add_board, add_model, add_sampling, sampling_argv, selected_model, utf8_text
from edgellm.terminal import one_line

HELP = """\
/system TEXT   another system prompt; without TEXT: show it
/reset         forget the conversation; the system prompt stays
/retry         answer the last question again
/save FILE     write the conversation to a file
/load FILE     take up a conversation from a file
/stats         tokens, speed, how full the context is, heat and throttling of the board
/help          this
/quit          leave, as Ctrl-D does
Alt-Enter, or \\ and Enter: a new line; ↑: what was said before
Ctrl-C: stop the answer, or clear what is typed"""

_FULL = "the context is full"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm chat --board virtual-rpi5\n"
        '  edgellm chat --board kitchen --system "You are a home assistant." --temperature 0\n'
        "  edgellm chat --board kitchen --load yesterday.json\n"
        "  edgellm chat --board kitchen --session work      go on tomorrow, without computing today's again\n"
        '  echo "Is the door locked?" | edgellm chat --board kitchen'
    )
    add_board(parser)
    add_model(parser)
    parser.add_argument("--system", type=utf8_text, metavar="TEXT", help="the system prompt")
    parser.add_argument("--load", type=Path, metavar="FILE", help="take up a conversation that /save wrote")
    parser.add_argument(
        "--session",
        metavar="NAME",
        help="go on with the conversation of this name, and keep it on the board with what was computed of it; "
        "/reset and /quit remove it",
    )
    parser.add_argument("--plain", action="store_true", help="show answers as they are, not as markdown")
    add_sampling(parser)


def main(args: argparse.Namespace) -> int:
    found = transcript.load(args.load) if args.load is not None else None
    if args.session is not None and not _NAME.fullmatch(args.session):
        raise UsageError("--session: a name has letters, digits, . _ and -, at most 64, and begins with none of these")
    with ExitStack() as stack:
        model = stack.enter_context(selected_model(args))
        file = None
        if args.session is not None:
            file = posixpath.join(home_of(model.remote), ".edgellm", "sessions", args.session)
        chat = stack.enter_context(Chat(model, args.system, sampling_argv(args), file))
        talk = Talk(model, chat, sys.stdin.isatty(), *screen(args.plain))
        for notice in chat.answer.notices:
            aside(notice)
        if chat.messages and talk.is_interactive:
            aside(f"{turns(len(chat.messages))} taken up; last: {one_line(chat.messages[-2]['content'], 70)}")
        if talk.is_interactive:
            aside(f"{model.name} on {model.remote.name}, context {chat.context} (/help for help)")
        if found is not None:
            talk.take_up(found, args.system)
        return talk.run()


def screen(plain: bool) -> tuple[Callable[[], str], Callable[[Iterable[str]], None]]:
    """How lines are read and answers are shown: with care at a terminal, else as plain text."""
    if not sys.stdin.isatty():
        return lambda: input(""), show_plainly
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return lambda: input("> "), show_plainly
    from rich.console import Console  # only here: they take a moment to load

    from edgellm import chat_screen

    names = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
    prompt = chat_screen.Prompt(names, state_path().with_name("chat_history"))
    console = Console(highlight=False)
    return prompt.read, show_plainly if plain else lambda pieces: chat_screen.show(console, pieces)


def show_plainly(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@dataclass
class Talk:
    """One conversation and the person who leads it."""

    model: InstalledModel
    chat: Chat
    is_interactive: bool
    read: Callable[[], str]
    show: Callable[[Iterable[str]], None]
    answers: list[Done] = field(default_factory=list)
    has_explained: bool = False

    def run(self) -> int:
        """Until the user leaves; the exit code."""
        has_warned = False
        while True:
            try:
                line = self.read().strip()
            except EOFError:
                return self._leave()
            except KeyboardInterrupt:
                if has_warned:
                    return self._leave()
                has_warned = True
                aside("\nCtrl-D or /quit leaves; so does Ctrl-C once more")
                continue
            has_warned = False
            word, _, rest = line.partition(" ")
            if word == "/quit":
                return 0
            try:
                if word in COMMANDS:
                    COMMANDS[word](self, rest.strip())
                elif line.startswith("/") and not rest and line.isascii() and "\n" not in line:
                    aside(f"there is no {one_line(line, 40)}\n{HELP}")
                elif line:
                    self.ask(line)
            except (RuntimeFailedError, UsageError) as error:  # this one failed; the conversation goes on
                if not self.is_interactive:
                    raise
                aside(str(error))

    def _leave(self) -> int:
        if self.is_interactive:
            print()
        return 0

    def ask(self, text: str) -> None:
        with interrupts() as presses:
            self.show(self._pieces(text, presses))
        for notice in self.chat.answer.notices:
            aside(notice)
        if done := self.chat.answer.done:
            self.answers.append(done)
            if self.is_interactive:
                aside(statistics(done))
        if any(_FULL in notice for notice in self.chat.answer.notices) and not self.has_explained:
            self.has_explained = True
            aside(
                f"The model sees {self.chat.context} positions: system prompt, conversation and answer share them. "
                "/reset begins anew; `edgellm chat --context N` makes more room where model and memory allow it."
            )

    def _pieces(self, text: str, presses: list[int]) -> Iterator[str]:
        """The answer. Ctrl-C stops it; once more, it leaves, even if the board does not react."""

        def cancelled() -> bool:
            if len(presses) > 1:
                raise KeyboardInterrupt
            return bool(presses)

        return self.chat.ask(text, cancelled)

    def reset(self, _: str) -> None:
        self.chat.reset()
        aside("forgotten")

    def system(self, text: str) -> None:
        if text:
            self.chat.set_system(text)
            aside("from now on")
        else:
            aside(self.chat.system or "there is no system prompt but the model's own; /system TEXT sets one")

    def retry(self, _: str) -> None:
        if not self.chat.messages:
            raise UsageError("nothing was asked yet")
        *before, question, _answer = self.chat.messages
        self.chat.set_history(self.chat.system, before)
        self.ask(question["content"])

    def save(self, name: str) -> None:
        file = Path(name or "conversation.json").expanduser()
        messages = self.chat.messages
        transcript.save(transcript.Transcript(self.model.name, self.chat.system, messages), file)
        aside(f"{turns(len(messages))} in {file}")

    def load(self, name: str) -> None:
        if not name:
            raise UsageError("/load wants the name of a file that /save wrote")
        self.take_up(transcript.load(Path(name).expanduser()))

    def take_up(self, found: transcript.Transcript, system: str | None = None) -> None:
        self.chat.set_history(system or found.system, found.messages)
        other = f", answered by {one_line(found.model, 60)}" if found.model != self.model.name else ""
        aside(f"{turns(len(found.messages))} taken up{other}")
        if found.messages and self.is_interactive:
            aside(f"last: {one_line(found.messages[-2]['content'], 70)}")

    def stats(self, _: str) -> None:
        n_tokens, ms = sum(done.tokens for done in self.answers), sum(done.decode_ms for done in self.answers)
        speed = f", {1000 * n_tokens / ms:.1f} tok/s" if ms > 0 else ""
        aside(f"answers      {len(self.answers)}, {n_tokens} tokens{speed}")
        if self.answers and self.chat.context:
            last = self.answers[-1]
            used = last.prompt_tokens + last.tokens
            aside(f"context      {used} of {self.chat.context} positions, {100 * used / self.chat.context:.0f} %")
        aside(board_state(self.model))

    def help(self, _: str) -> None:
        aside(HELP)


COMMANDS: dict[str, Callable[[Talk, str], None]] = {
    "/reset": Talk.reset,
    "/system": Talk.system,
    "/retry": Talk.retry,
    "/save": Talk.save,
    "/load": Talk.load,
    "/stats": Talk.stats,
    "/help": Talk.help,
}


def turns(n_messages: int) -> str:
    return "1 turn" if n_messages == 2 else f"{n_messages // 2} turns"


def board_state(model: InstalledModel) -> str:
    """Temperature, clock and throttling in lines for people; what cannot be read is said to be so."""
    try:
        with sensors.Sampler(model.remote) as sampler:
            reading = sampler.log.readings[-1] if sampler.log.readings else None
    except RemoteError as error:
        return f"board        its sensors cannot be read: {one_line(str(error), 100)}"
    if reading is None:
        return "board        its sensors cannot be read"
    heat = "no sensor" if reading.temp_c is None else f"{reading.temp_c:.1f} °C"
    clock = "not told" if reading.clock_hz is None else f"{reading.clock_hz / 1e9:.2f} GHz"
    slow = ", ".join(sensors.slowed_down([reading]))
    if not slow:
        slow = "none now" if reading.throttled is not None or reading.cooling or reading.count else "none that is told"
    return f"temperature  {heat}\nclock        {clock}\nthrottling   {slow}"


def statistics(done: Done) -> str:
    """One line about an answer: "12 tokens, 45.1 tok/s; prompt 33 tokens in 0.20 s"."""
    line = f"{done.tokens} tokens, {done.decode_tok_s:.1f} tok/s; "
    line += f"prompt {done.prompt_tokens} tokens in {done.prefill_ms / 1000:.2f} s"
    ends = {"cancelled": "; stopped", "length": "; cut off at the length limit"}
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
