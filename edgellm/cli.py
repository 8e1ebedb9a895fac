"""The `edgellm` command: finds the command's module, runs it, and is the only place that prints errors or exits.

A command lives in its noun's module, which has `add_arguments(parser)` and `main(args) -> int`. The modules are
imported when they are needed, so that `edgellm --help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.errors import EdgeError


@dataclass(frozen=True)
class Command:
    """One line of the command table. module: has add_arguments(parser) and main(args) -> exit code."""

    summary: str
    module: str


COMMANDS: dict[str, Command] = {
    "compile": Command("turn a checkpoint into a bundle for one board", "edgellm.compile_cli"),
    "deploy": Command("compile if needed, check the board, send what differs, switch over", "edgellm.deploy_cli"),
    "rollback": Command("go back to the version of a model that was in use before", "edgellm.rollback_cli"),
    "undeploy": Command("remove a model from a board", "edgellm.undeploy_cli"),
    "status": Command("what is deployed on a board", "edgellm.status_cli"),
    "logs": Command("what a board has recorded", "edgellm.logs_cli"),
    "gc": Command("remove from a board what no model needs", "edgellm.gc_cli"),
    "chat": Command("talk to the model on a board", "edgellm.chat"),
    "serve": Command("give programs OpenAI's and Ollama's API, computed on a board", "edgellm.serve_cli"),
    "service": Command("make the model on a board a service that starts with it", "edgellm.service_cli"),
    "run": Command("answer one prompt on a board", "edgellm.run"),
    "bench": Command("measure speed and memory on a board", "edgellm.bench"),
    "profile": Command("show where the time goes on a board, step by step", "edgellm.profile_cli"),
    "compare": Command("find the first step whose numbers differ between machines", "edgellm.compare_cli"),
    "tune": Command("search faster schedules for a model's kernels on a board", "edgellm.tune_cli"),
    "eval": Command("measure how much a scheme changes the model", "edgellm.evaluate_cli"),
    "plan": Command("predict speed and memory on every board, before any download", "edgellm.plan_cli"),
    "doctor": Command("look at this machine or a board, and say what to mend", "edgellm.doctor_cli"),
    "models": Command("list the families of models that can be compiled", "edgellm.models_cli"),
    "boards": Command("list, show and add boards", "edgellm.boards_cli"),
    "keygen": Command("make a key to sign bundles with", "edgellm.keygen_cli"),
    "export": Command("put a bundle into one file, for people who never compile", "edgellm.export_cli"),
    "import": Command("take a bundle out of such a file, checked to the byte", "edgellm.import_cli"),
    "trust": Command("whose bundles a board takes: list, pin and unpin keys", "edgellm.trust_cli"),
    "board": Command("start, stop and look at a virtual board", "edgellm.board_cli"),
}

EXAMPLES = """\
from a checkpoint to a conversation:
  edgellm deploy --board rpi5 --host pi@raspberrypi.local ./MyModel
  edgellm chat --board rpi5

without a board, on an emulated Raspberry Pi 5:
  edgellm deploy --board virtual-rpi5 ./MyModel
  edgellm run --board virtual-rpi5 -p "Turn on the kitchen light."

more:
  edgellm boards                            what can be deployed to
  edgellm boards add kitchen rpi5 pi@host   give your board a name: --board kitchen
  edgellm compile ./MyModel --board rpi5 -o bundle/
  edgellm bench --board kitchen
  edgellm COMMAND --help                    every option of a command
"""


def build_parser() -> argparse.ArgumentParser:
    """The top-level parser; a command's own options are added only when that command runs."""
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="edgellm",
        usage="edgellm COMMAND [options]",
        description="Compile a language model for a board, deploy it over SSH, and talk to it.\n\ncommands:\n" + table,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def dispatch(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Errors are raised."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from edgellm import __version__

        print(f"edgellm {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    if args.command not in COMMANDS:
        parser.error(f"there is no command '{args.command}'; commands: {', '.join(COMMANDS)}")
    command = COMMANDS[args.command]
    module = importlib.import_module(command.module)
    subparser = argparse.ArgumentParser(
        prog=f"edgellm {args.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(subparser)
    return int(module.main(subparser.parse_args(args.rest)))


def is_ours(error: Exception) -> bool:
    """True for errors meant for the user: EdgeError, and CompileError if the compiler was ever imported."""
    compiler = sys.modules.get("crosscompile.errors")
    return isinstance(error, EdgeError) or (compiler is not None and isinstance(error, compiler.CompileError))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. 0: done, 1: an error that was explained, 2: wrong arguments, 130: Ctrl-C."""
    try:
        code = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `edgellm boards | head`: the reader left; flushing again at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not is_ours(error):
            raise
        print(f"edgellm: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
