"""Answer one prompt on a board and print the answer as it comes."""

from __future__ import annotations

import argparse
import codecs
import json
import sys

from edgellm.errors import UsageError
from edgellm.runtime_program import InstalledModel, failure, run_json
from edgellm.selection import add_board, add_model, add_sampling, sampling_argv, selected_model, utf8_text
from edgellm.terminal import printable

_ANSWER_S = 600.0
_PROMPT_CAP_BYTES = 100_000  # Linux takes 128 KiB in one argument of a command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        '  edgellm run --board virtual-rpi5 -p "Turn on the kitchen light."\n'
        "  edgellm run --board kitchen --json -p - < question.txt"
    )
    add_board(parser)
    add_model(parser)
    prompt_help = "the prompt; -: read standard input"
    parser.add_argument("-p", "--prompt", required=True, type=utf8_text, metavar="TEXT", help=prompt_help)
    parser.add_argument("--system", type=utf8_text, metavar="TEXT", help="the system prompt")
    parser.add_argument("--raw", action="store_true", help="the prompt as it is, without the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the answer and statistics")
    add_sampling(parser)


def main(args: argparse.Namespace) -> int:
    prompt = _standard_input() if args.prompt == "-" else args.prompt
    if len(prompt.encode()) > _PROMPT_CAP_BYTES:
        raise UsageError(f"the prompt is longer than {_PROMPT_CAP_BYTES} bytes; use `edgellm chat` for long texts")
    options = ["-p", prompt, *sampling_argv(args)]
    if args.system is not None:
        options += ["--system", args.system]
    if args.raw:
        options.append("--raw")
    with selected_model(args) as model:
        if args.json:
            print(json.dumps(run_json(model.remote, model.argv("run", *options), "edgellm-rt run", _ANSWER_S)))
        else:
            stream_answer(model, options)
    return 0


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"-p -: standard input is not UTF-8: byte {error.start}") from error


def stream_answer(model: InstalledModel, options: list[str]) -> None:
    """Prints the answer on standard output as it comes, then the statistics on standard error."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with model.remote.start(model.argv("run", *options), silence_s=_ANSWER_S) as process:
        process.close_input()
        ends_line = True
        while piece := process.read(4096):
            text = printable(decoder.decode(piece))
            ends_line = text.endswith("\n") if text else ends_line
            print(text, end="", flush=True)
        status = process.wait()
        if not ends_line:
            print(flush=True)
        if status != 0:
            raise failure(model.remote, "edgellm-rt run", status, process.errors())
        if statistics := printable(process.errors()).strip():
            print(f"\x1b[2m{statistics}\x1b[0m" if sys.stderr.isatty() else statistics, file=sys.stderr)
