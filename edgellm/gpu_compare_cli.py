"""`edgellm compare --device vulkan`: which kernel a GPU's driver compiles wrongly, by lavapipe on this machine."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import BoardError, UsageError
from edgellm.gpu_compare import GpuBundle, Trial, Wrong, judged, open_gpu_bundle, open_reference, same_bundle
from edgellm.terminal import one_line

Show = Callable[[str, int, int], None]
_ROWS = 64
"""Functions of so many rows are tried unasked: what more write takes gigabytes of a large model."""
_SHOWN = 12


@dataclass(frozen=True)
class GpuOutcome:
    """What came of one GPU. steps: that were compared; the rest is empty unless something differs.

    kernels: all that are wrong; the others are about the first step that is.
    """

    machine: str
    gpu: str
    reference: str
    steps: int
    wrong_steps: int = 0
    kernels: tuple[str, ...] = ()
    step: str = ""
    difference: str = ""
    cause: str = ""
    detail: str = ""
    reproducer: str = ""


def compare_gpus(args: argparse.Namespace, show: Show) -> list[GpuOutcome]:
    """What came of each board, or of this machine's GPU. Raises EdgeError."""
    if args.reference != "numpy" or args.tolerance is not None:
        raise UsageError("a GPU is compared with lavapipe, within the tolerances that docs/vulkan.md states")
    if args.bundle is not None and not args.board:
        raise UsageError("--bundle goes with --board: the same bundle as the board's")
    if args.scheme is not None and args.board:
        raise UsageError("--scheme is for this machine alone; boards run what was deployed to them")
    outcomes = []
    with contextlib.ExitStack() as stack:
        if args.board:
            gpus: list[GpuBundle] = [stack.enter_context(_board(args, board, show)) for board in args.board]
        else:
            gpus = [_host(args, show)]
        for gpu in gpus:
            outcomes.append(_outcome(args, gpu, show))
    return outcomes


def _outcome(args: argparse.Namespace, gpu: GpuBundle, show: Show) -> GpuOutcome:
    from edgellm import gpu_report

    reference = open_reference(same_bundle(gpu.digest, args.bundle, gpu.name) if args.board else Path(gpu.model.path))
    n_steps, verdict, first, kernels, n_wrong = 0, None, None, dict[str, None](), 0
    evidence = None
    for tokens, rows in _prompts(args, gpu):
        show(f"comparing {one_line(gpu.name, 40)}, {rows} rows at a time", 0, 0)
        verdict, found = judged(Trial(gpu, reference, tokens, rows, _options(args)), evidence is None)
        n_steps += verdict.n_steps
        n_wrong += len(verdict.wrong)
        kernels.update(dict.fromkeys(verdict.kernels))
        if found is not None and first is None:
            first, evidence = verdict.wrong[0], found
    assert verdict is not None
    about = (gpu.name, verdict.gpu, verdict.reference, n_steps)
    if first is None or evidence is None:
        return GpuOutcome(*about)
    directory = args.output or gpu_report.default_directory(gpu, first)
    gpu_report.write(reference, verdict, first, evidence, directory)
    return GpuOutcome(
        *about,
        n_wrong,
        tuple(kernels),
        _name(first),
        f"argument {first.difference.argument}: {first.difference}",
        evidence.cause,
        evidence.detail,
        str(directory),
    )


def _name(wrong: Wrong) -> str:
    launch = wrong.launch
    return f"{launch.name} (kernel {launch.step.kernel}, {launch.rows} rows from position {launch.first})"


def _prompts(args: argparse.Namespace, gpu: GpuBundle) -> Iterator[tuple[list[int], int]]:
    """Tokens, and how many at a time: so that every function runs, or the one for --rows."""
    from edgellm.compare_cli import parse_tokens

    sizes = sorted({n for role, n in gpu.plan.functions if role == "body"})
    chosen = [args.rows] if args.rows is not None else [n for n in sizes if 1 < n <= _ROWS] or [1]
    for rows in chosen:
        text = args.tokens or str(rows + 1)  # a single row follows
        yield parse_tokens(text, gpu.vocab), rows


def _options(args: argparse.Namespace) -> tuple[str, ...]:
    return () if args.threads is None else ("--threads", str(args.threads))


@contextlib.contextmanager
def _board(args: argparse.Namespace, board: str, show: Show) -> Iterator[GpuBundle]:
    """What is deployed on a board."""
    from edgellm import hub
    from edgellm.boards import find_board
    from edgellm.connection import connect, model_name
    from edgellm.runtime_program import find_model

    wanted = args.name or model_name(hub.resolve(args.model, show)[1])
    show(f"connecting to {one_line(board, 40)}", 0, 0)
    with connect(find_board(board, args.host), args.host) as remote:
        try:
            model = find_model(remote, wanted)
        except BoardError as error:
            raise BoardError(
                f"{error}; send it with `edgellm deploy --device vulkan {args.model or 'MODEL'} --board {board}`"
            ) from error
        yield open_gpu_bundle(remote, model.name, model.path, model.program)


def _host(args: argparse.Namespace, show: Show) -> GpuBundle:
    """The model compiled for this machine's GPU."""
    from edgellm import hub
    from edgellm.compile import build
    from edgellm.local_remote import LocalRemote
    from edgellm.precision import Options

    path, _ = hub.resolve(args.model, show)
    made = build(path, "local", Options(args.scheme or "w4a8"), device="vulkan", progress=show).bundle
    return open_gpu_bundle(LocalRemote("this machine"), made.name, str(made.path))


def show_outcomes(outcomes: list[GpuOutcome]) -> None:
    """Prints a line per GPU, and what is wrong."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for outcome in outcomes:
        name = f"{one_line(outcome.machine)} ({one_line(outcome.gpu)})"
        if outcome.gpu == outcome.reference:
            console.print(f"note: {name} is lavapipe itself, which is compared with itself", style="yellow")
        if not outcome.wrong_steps:
            console.print(f"✓ {name}: {outcome.steps} steps agree with {outcome.reference}", style="green")
            console.print("  If its proof fails nevertheless, it is what happens between steps: here each runs alone.")
            continue
        console.print(f"✗ {name}: {outcome.wrong_steps} of {outcome.steps} steps are wrong; the first:", style="red")
        console.print(f"  {one_line(outcome.step)}")
        console.print(f"  {one_line(outcome.difference)}")
        console.print(f"  cause: {outcome.cause}; {one_line(outcome.detail)}")
        shown = ", ".join(map(one_line, outcome.kernels[:_SHOWN]))
        rest = f" and {len(outcome.kernels) - _SHOWN} more" if len(outcome.kernels) > _SHOWN else ""
        console.print(f"  wrong kernels: {shown}{rest}")
        console.print(f"  for the driver's maintainers: {outcome.reproducer}")
