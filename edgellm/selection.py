"""Which board and which model on it a command means, and the options that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crosscompile.target import DEVICES
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.errors import UsageError
from edgellm.remembered import recall
from edgellm.runtime_program import InstalledModel, find_model

_FORM_CAP_BYTES = 100_000  # Linux takes 128 KiB in one argument of a command


def add_board(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--board", required=required, metavar="BOARD", help="a board's name or type; see `edgellm boards`"
    )
    parser.add_argument(
        "--host", metavar="ADDRESS", help="where it is, if not in `edgellm boards`: [user@]host[:port], or adb:SERIAL"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="a model on the board; default: the one deployed last")


def add_computing_device(parser: Any, default: str = "the GPU, where it works and is faster") -> None:
    """--device, for commands that run a model. default: what a bundle for both does without it."""
    parser.add_argument(
        "--device", choices=DEVICES[:2], help=f"what computes, where the bundle is for both (default: {default})"
    )


@contextmanager
def selected_model(args: argparse.Namespace) -> Iterator[InstalledModel]:
    """Connects to the board of --board and --host, and finds the model of --model there."""
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        yield find_model(remote, args.model, recall(board.label).model)


def utf8_text(value: str) -> str:
    """A type for argparse: a text for a model. What the terminal gave as other bytes than UTF-8 is refused."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from error
    return value


def _number(low: float, high: float = math.inf) -> Callable[[str], str]:
    """A type for argparse that checks a number's range and hands its text on."""

    def number(text: str) -> str:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return text

    return number


def _count(low: int) -> Callable[[str], str]:
    def whole_number(text: str) -> str:
        if int(text) < low:
            raise ValueError
        return text

    return whole_number


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options that go to edgellm-rt as they are; what is not given is the model's own recommendation."""
    group = parser.add_argument_group("sampling", "what is not given is taken from the model's generation_config.json")
    group.add_argument("-n", type=_count(1), metavar="N", help="stop after N tokens")
    group.add_argument("--temperature", type=_number(0), metavar="T", help="0: always the likeliest token")
    group.add_argument("--top-k", type=_count(0), metavar="K", help="choose among the K likeliest (0: off)")
    group.add_argument("--top-p", type=_number(0, 1), metavar="P", help="… that together have probability P (1: off)")
    group.add_argument("--min-p", type=_number(0, 1), metavar="P", help="… at least P times as likely as the likeliest")
    group.add_argument("--seed", type=_count(0), metavar="N", help="the same seed gives the same answer on every board")
    group.add_argument(
        "--stop", type=utf8_text, action="append", metavar="TEXT", help="stop before TEXT; can be given several times"
    )
    group.add_argument("--json-schema", metavar="FILE", help="the answer is JSON that satisfies the schema in FILE")
    group.add_argument("--grammar", metavar="FILE", help="the answer is as the grammar in FILE says, a subset of GBNF")
    group.add_argument("--threads", type=_count(1), metavar="N", help="threads on the board")
    group.add_argument("--context", type=_count(1), metavar="N", help="positions to make room for")
    add_computing_device(group)


def sampling_argv(args: argparse.Namespace) -> list[str]:
    """The part of edgellm-rt's command line that `add_sampling` has parsed."""
    argv: list[str] = []
    for name in ("n", "temperature", "top_k", "top_p", "min_p", "seed", "threads", "context", "device"):
        value = getattr(args, name)
        if value is not None:
            argv += ["-n" if name == "n" else "--" + name.replace("_", "-"), value]
    for text in args.stop or ():
        argv += ["--stop", text]
    return argv + _form_argv(args)


def _form_argv(args: argparse.Namespace) -> list[str]:
    """What the answer must be, as text: the file lies on this machine. The runtime tells text from a file."""
    argv: list[str] = []
    for option, path in (("--json-schema", args.json_schema), ("--grammar", args.grammar)):
        if path is None:
            continue
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{option} {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
        if option == "--json-schema" and not text.startswith("{"):
            raise UsageError(f"{option} {path}: a schema is a JSON object")
        if option == "--grammar" and "::=" not in text:
            raise UsageError(f'{option} {path}: a grammar has rules, as in \'root ::= "yes" | "no"\'')
        if len(text.encode()) > _FORM_CAP_BYTES:
            raise UsageError(f"{option} {path}: more than {_FORM_CAP_BYTES} bytes")
        argv += [option, text]
    return argv
