"""Run a model's plan step by step on boards and here, and find the first step whose numbers are wrong.

Each --board runs what was deployed to it; this machine runs the same model too. What every step writes is compared with
a reference: NumPy's (the default; the same operations in the same order, so every bit must agree, on every tier), this
machine's own run, or transformers' (scheme f32 only, within --tolerance). The first difference is written as a
reproducer: a directory with the kernel, its inputs and what was expected, which runs alone.

With --device vulkan, the boards' GPUs are compared with Mesa's lavapipe on this machine, which computes every step from
what the GPU wrote before: so every kernel is judged alone (docs/vulkan.md).
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscompile.target import DEVICES
from edgellm.compile_cli import SCHEMES, StageDisplay
from edgellm.errors import BoardError, UsageError
from edgellm.terminal import one_line

_REFERENCES = ("numpy", "host", "transformers")
_TOLERANCE = 1e-4
Show = Callable[[str, int, int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgellm compare`."""
    parser.epilog = (
        "examples:\n  edgellm compare ./MyModel --board kitchen --board virtual-rpi5\n"
        "  edgellm compare ./MyModel --scheme f32 --reference transformers\n"
        "  edgellm compare --replay reproducer-kitchen-step-66 --board kitchen\n"
        "  edgellm compare ./MyModel --board phone --device vulkan"
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint directory or Hub id (org/name[@revision])"
    )
    parser.add_argument("--board", action="append", default=[], metavar="BOARD", help="may be given several times")
    parser.add_argument(
        "--host", metavar="ADDRESS", help="where the board is, if there is only one: [user@]host[:port], or adb:SERIAL"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="the model's name on the boards, if it was deployed under another"
    )
    parser.add_argument("--reference", choices=_REFERENCES, default="numpy", help="what is right (default: numpy)")
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help=f"for transformers: relative (default {_TOLERANCE})"
    )
    parser.add_argument(
        "--scheme", choices=SCHEMES, metavar="SCHEME", help="of this machine's bundle, without --board (default: w4a8)"
    )
    parser.add_argument(
        "--device",
        choices=DEVICES[:2],
        default="cpu",
        help="what is compared (default: cpu); vulkan: the GPU, with lavapipe here",
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="for vulkan: the board's bundle, if it was not compiled here"
    )
    parser.add_argument(
        "--tokens",
        metavar="N|IDS",
        help="so many arbitrary tokens, or ids as in 1,2,3, (default: 10; of a GPU, as many as try every function)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="tokens fed at a time, 1 to 64 (default: 8; of a GPU, each of its functions of up to 64 rows)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every machine")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where the reproducer is written")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="run a reproducer on --board, or here, instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


@dataclass(frozen=True)
class Outcome:
    """What came of one machine. steps: as they should be; the rest is empty unless something differs."""

    machine: str
    tier: str
    steps: int
    step: str = ""
    difference: str = ""
    cause: str = ""
    detail: str = ""
    reproducer: str = ""
    alone: str = ""


def main(args: argparse.Namespace) -> int:
    """Runs `edgellm compare`. 0: everything is as it should be, 1: something differs."""
    if args.replay is not None:
        return _replay(args)
    if args.model is None and not (args.device == "vulkan" and args.board and args.name):
        raise UsageError("which model? `edgellm compare MODEL --board BOARD`")
    if args.rows is not None and not 1 <= args.rows <= 64:
        raise UsageError(f"--rows {args.rows} is not from 1 to 64")
    if args.host is not None and len(args.board) != 1:
        raise UsageError("--host goes with exactly one --board; give names to several with `edgellm boards add`")
    if args.tolerance is not None and not 0 < args.tolerance < 1:
        raise UsageError(f"--tolerance {args.tolerance} does not lie between 0 and 1")
    if args.device == "vulkan":
        return _main_gpus(args)
    if args.bundle is not None:
        raise UsageError("--bundle goes with --device vulkan")
    args.rows, args.tokens = args.rows or 8, args.tokens or "10"
    with StageDisplay(quiet=args.json) as display:
        reference, outcomes = _compare(args, display.update)
    if args.json:
        print(json.dumps({"reference": reference, "machines": [asdict(outcome) for outcome in outcomes]}))
    else:
        _show(reference, outcomes)
    return int(any(outcome.step for outcome in outcomes))


def _main_gpus(args: argparse.Namespace) -> int:
    from edgellm.gpu_compare_cli import compare_gpus, show_outcomes

    with StageDisplay(quiet=args.json) as display:
        outcomes = compare_gpus(args, display.update)
    if args.json:
        print(json.dumps({"reference": "lavapipe", "machines": [asdict(outcome) for outcome in outcomes]}))
    else:
        show_outcomes(outcomes)
    return int(any(outcome.wrong_steps for outcome in outcomes))


def _compare(args: argparse.Namespace, show: Show) -> tuple[str, list[Outcome]]:
    from crosscompile import checkpoint
    from edgellm import hub, reproducer, stepwise

    path, name = hub.resolve(args.model, show)
    source = checkpoint.load(path)
    outcomes, title, references = [], "", {}
    with contextlib.ExitStack() as stack:
        boards = [stack.enter_context(_board(args, board, name, source, show)) for board in args.board]
        host = _host(args, path, boards[0].scheme if boards else None, show)
        machines = [*([host] if host is not None else []), *boards]
        if not machines:
            raise UsageError("this machine's CPU has no tier, so it cannot take part; name a board with --board")
        ids = parse_tokens(args.tokens, int(source.config["vocab_size"]))
        tolerance = (args.tolerance or _TOLERANCE) if args.reference == "transformers" else 0.0
        for machine in machines:
            if args.reference == "host" and machine is host and len(machines) > 1:
                continue
            show("computing the reference", 0, 0)
            key = machine.scheme
            if key not in references:
                references[key] = _reference(args, source, machine, host, ids)
            reference = references[key](machine.plan)
            title = reference.name
            show(f"comparing {one_line(machine.name, 40)}", 0, 0)
            n_good, finding = stepwise.compare(machine, reference, source, ids, args.rows, tolerance)
            outcome = Outcome(machine.name, machine.tier.name, n_good)
            if finding is not None:
                directory = args.output or reproducer.default_directory(finding)
                reproducer.write(finding, directory)
                show("running the reproducer alone", 0, 0)
                alone = reproducer.replay(machine.model.remote, directory) or "passes alone"
                about = (finding.launch.name, str(finding.difference), finding.cause, finding.detail)
                outcome = Outcome(machine.name, machine.tier.name, n_good, *about, str(directory), alone)
                outcomes.append(outcome)
                break  # a fault everywhere would be found again on every machine
            outcomes.append(outcome)
    return title, outcomes


def _reference(args: argparse.Namespace, source: Any, machine: Any, host: Any, ids: list[int]) -> Callable[[Any], Any]:
    """From a machine's plan to the reference for it."""
    from crosscompile.reference_steps import reference_values
    from edgellm import stepwise
    from edgellm.transformers_reference import transformers_values

    if args.reference == "host":
        if host is None:
            raise UsageError("--reference host: this machine's CPU has no tier to run; use --reference numpy")
        run = stepwise.HostReference.run(host, ids, args.rows)
        return lambda plan: run
    if args.reference == "transformers":
        parts = machine.scheme
        if {parts.body, parts.embedding, parts.head, parts.kv} != {"f32"}:
            raise UsageError(
                f"--reference transformers is for scheme f32, {machine.name} has {parts.body} with a KV cache in "
                f"{parts.kv}; deploy with --scheme f32 for this"
            )
        notes = transformers_values(source.path, ids, parts)
    else:
        notes = reference_values(source, ids, machine.scheme)
    name = {"numpy": "the NumPy reference", "transformers": "transformers"}[args.reference]
    return lambda plan: stepwise.NotedReference(name, notes, plan)


def parse_tokens(text: str, vocab: int) -> list[int]:
    """--tokens: a number of arbitrary ids, or the ids."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--tokens {text}: a number, or ids as in 1,2,3") from None
    if "," not in text and numbers:
        if not 1 <= numbers[0] <= 4096:
            raise UsageError(f"--tokens {text}: 1 to 4096 tokens, or ids as in 1,2,3 (one id: 1,)")
        return [7919 * i % vocab for i in range(1, numbers[0] + 1)]
    if not numbers or not all(0 <= number < vocab for number in numbers):
        raise UsageError(f"--tokens {text}: ids lie from 0 to {vocab - 1}")
    return numbers


@contextlib.contextmanager
def _board(args: argparse.Namespace, board: str, name: str, source: Any, show: Show) -> Iterator[Any]:
    """What is deployed on a board."""
    from edgellm.boards import find_board
    from edgellm.cache import content_hashes, key_of
    from edgellm.connection import connect, model_name
    from edgellm.machine import open_machine
    from edgellm.runtime_program import find_model

    show(f"connecting to {one_line(board, 40)}", 0, 0)
    with connect(find_board(board, args.host), args.host) as remote:
        wanted = args.name or model_name(name)
        try:
            model = find_model(remote, wanted)
        except BoardError as error:
            raise BoardError(f"{error}; send it with `edgellm deploy {args.model} --board {board}`") from error
        machine, manifest = open_machine(remote, model.name, model.path, _options(args))
        provenance = manifest.get("provenance")
        calibrated = isinstance(provenance, dict) and "calibration" in provenance
        if calibrated or manifest["scheme"].get("tensors"):
            raise BoardError(
                f"{remote.name}: {model.name} was calibrated or fitted to a budget, which `edgellm compare` cannot "
                f"make again from the checkpoint; deploy it without --calibrate and --budget to compare"
            )
        made_of = provenance.get("checkpoint") if isinstance(provenance, dict) else None
        hashes = content_hashes(source.paths)
        if made_of is not None and made_of != key_of({file.name: digest for file, digest in hashes.items()}):
            raise BoardError(
                f"{remote.name}: {model.name} there was made from another checkpoint than {args.model}; deploy this one"
            )
        yield machine


def _host(args: argparse.Namespace, path: Path, scheme: Any, show: Show) -> Any:
    """The model compiled for this machine in the boards' scheme; None where no bundle runs here."""
    from edgellm.compile import build
    from edgellm.golden import host_target
    from edgellm.local_remote import LocalRemote
    from edgellm.machine import open_machine
    from edgellm.precision import Options

    if host_target() is None:
        return None
    options = Options(args.scheme or "w4a8")
    if scheme is not None:
        if args.scheme is not None:
            raise UsageError("--scheme is for this machine alone; boards run what was deployed to them")
        options = Options(scheme.body, scheme.embedding, scheme.head, scheme.kv)
    made = build(path, "local", options, progress=show)
    return open_machine(LocalRemote("this machine"), made.bundle.name, str(made.bundle.path), _options(args))[0]


def _options(args: argparse.Namespace) -> tuple[str, ...]:
    return () if args.threads is None else ("--threads", str(args.threads))


def _replay(args: argparse.Namespace) -> int:
    """Runs a reproducer again. 1: it fails, as it should while the fault is there."""
    from edgellm import reproducer
    from edgellm.boards import find_board
    from edgellm.connection import connect

    if len(args.board) > 1:
        raise UsageError("--replay runs on one --board, or without one on this machine")
    board = args.board[0] if args.board else "local"
    with connect(find_board(board, args.host), args.host) as remote:
        wrong = reproducer.replay(remote, args.replay, _options(args))
        if args.json:
            print(json.dumps({"machine": remote.name, "fails": wrong is not None, "text": wrong or ""}))
        else:
            print(f"{one_line(remote.name)}: {wrong or 'what the kernel writes is as it should be'}")
    return int(wrong is not None)


def _show(reference: str, outcomes: list[Outcome]) -> None:
    """Prints a line per machine, and what is wrong."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for outcome in outcomes:
        name = f"{one_line(outcome.machine)} ({outcome.tier})"
        if not outcome.step:
            console.print(f"✓ {name}: {outcome.steps} steps agree with {reference}", style="green")
            continue
        console.print(f"✗ {name}: {outcome.steps} steps agree with {reference}, then", style="red")
        console.print(f"  {one_line(outcome.step)}")
        console.print(f"  {one_line(outcome.difference)}")
        console.print(f"  cause: {outcome.cause}; {one_line(outcome.detail)}")
        console.print(f"  reproducer: {outcome.reproducer}")
        console.print(f"  run alone there: {one_line(outcome.alone)}")
