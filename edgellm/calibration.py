"""Runs that predictions are fitted to: bundles of several models in turn on one machine, bandwidth between them."""

from __future__ import annotations

import datetime
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass

from crosscompile.sketch import Sketch
from edgellm import __version__, fit, hub
from edgellm.boards import Board
from edgellm.bundle import Bundle
from edgellm.compile import build
from edgellm.errors import UsageError
from edgellm.measured import Machine, Run
from edgellm.precision import Options
from edgellm.prediction import Coefficients, Memory, Table, Work, decode_work, prefill_work, resident_bytes
from edgellm.sketching import sketches
from edgellm.workbench import GENERATE, Answer, Workbench, context_of

Progress = Callable[[str, int, int], None]

Sketches = Mapping[tuple[str, tuple[str | None, ...]], Sketch]
"""By model and scheme."""

LOGIT_BYTES = 4
TRIES = 4
"""Of a sample that should be quiet and steady."""

STEADY = 0.1
"""How much the bandwidths before and after a steady sample differ at most, of the larger one. A virtual machine whose
two processors are now one core of the host, now two, has half of it in one minute and all of it in the next."""


@dataclass(frozen=True)
class Model:
    """A bundle that is measured, by its name on the command line."""

    name: str
    options: Options
    bundle: Bundle


def prepare(models: Sequence[str], options: Sequence[Options], board: Board, progress: Progress) -> list[Model]:
    """The bundles, from the cache or compiled."""
    return [
        Model(name, each, build(name, board, each, progress=progress).bundle) for each in options for name in models
    ]


def measure(
    models: Sequence[Model],
    bench: Workbench,
    threads: Sequence[int],
    prompts: Sequence[int],
    rounds: int,
    progress: Progress,
) -> list[Run]:
    """`rounds` samples of each cell, in turn; a cell without any is left out. Raises EdgeError.

    The bandwidth counted is the mean of those measured before and after a sample, with as many threads. Where the two
    differ, or others took a thread's core, the sample is taken again, a few times; of those that were disturbed none
    counts, of others the steadiest.
    """
    for at, model in enumerate(models):
        progress(f"first run of {model.name}", at, len(models))
        bench.settle(model.bundle, max(prompts))
    cells = [(model, n, prompt) for model in models for n in threads for prompt in prompts]
    taken: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
    for at in range(rounds * len(cells)):
        index = at % len(cells)
        model, n, prompt = cells[index]
        progress(f"measuring {model.name}, {n} threads", at, rounds * len(cells))
        if (found := _sample(bench, model.bundle, n, prompt)) is not None:
            answer, rate = found
            taken[index, "decode"].append((answer.decode_tok_s, rate, answer.peak_rss_bytes))
            taken[index, "prefill"].append((answer.prefill_tok_s, rate, answer.peak_rss_bytes))
    return [
        Run(
            model=model.name,
            scheme=astuple(model.options),
            threads=n,
            figure=figure,
            tokens=GENERATE if figure == "decode" else prompt,
            depth=prompt if figure == "decode" else 0,
            context=context_of(prompt),
            samples=tuple(taken[index, figure]),
        )
        for index, (model, n, prompt) in enumerate(cells)
        for figure in ("decode", "prefill")
        if taken[index, figure]
    ]


def _sample(bench: Workbench, bundle: Bundle, threads: int, prompt: int) -> tuple[Answer, float] | None:
    """What a process says, and the bandwidth around it. None: every try was disturbed."""
    best: tuple[float, Answer, float] | None = None
    for _ in range(TRIES):
        before = bench.bandwidth(threads)
        answer = bench.bench(bundle, threads, prompt)
        after = bench.bandwidth(threads)
        change = 1 - min(before, after) / max(before, after)
        if answer.quiet and (best is None or change < best[0]):
            best = (change, answer, (before + after) / 2)
        if best is not None and best[0] <= STEADY:
            break
    return best and best[1:]


def work_of(run: Run, sketch: Sketch, table: Table) -> Work:
    """What a run asked for; decoding at the mean depth of its tokens."""
    if run.figure == "decode":
        return decode_work(sketch, table, run.depth + run.tokens / 2)
    return prefill_work(sketch, table, run.tokens)


def resident(run: Run, sketch: Sketch, memory: Memory) -> float:
    """Predicted peak of the process that a decoding run was in. Its prompt is of different tokens."""
    return resident_bytes(sketch, memory, run.depth + run.tokens)


def _peaks(run: Run, sketched: Sketches) -> list[fit.Peak]:
    sketch = sketched[run.model, run.scheme]
    explained = resident_bytes(sketch, Memory(0, 0, 1), run.depth + run.tokens, looked_up=0)
    looked_up = run.depth + run.tokens
    return [fit.Peak(peak, explained, sketch.vocab_size, sketch.lookup_bytes, looked_up) for _, _, peak in run.samples]


def bytes_per_entry(models: Sequence[Model]) -> float:
    """Of tokenizer and logits, which a process has in memory besides the weights."""
    shares = [
        (model.bundle.path / "tokenizer.bin").stat().st_size / int(model.bundle.manifest["model"]["vocab_size"])
        for model in models
    ]
    return statistics.mean(shares) + LOGIT_BYTES


@dataclass(frozen=True)
class Comparison:
    """A run beside its prediction. Medians; error: relative, of the prediction to what was measured.

    It is the median of each sample's own error, as each is predicted at the bandwidth of its minute.
    """

    run: Run
    measured: float
    predicted: float
    error: float


def looked_at(runs: Sequence[Run], tier: str, progress: Progress) -> Sketches:
    """Sketches of all models that were run, by (model, scheme)."""
    found = {}
    for model, scheme in dict.fromkeys((run.model, run.scheme) for run in runs):
        config, _ = hub.read_config(model, progress)
        found[model, scheme] = sketches(config, [tier], [Options(*scheme)], progress)[0][tier]  # type: ignore[arg-type]
    return found


def compare(
    runs: Sequence[Run],
    coefficients: Coefficients,
    table: Table,
    sketched: Sketches,
) -> list[Comparison]:
    """Speeds: each sample is predicted at its own bandwidth."""
    found = []
    for run in runs:
        work = work_of(run, sketched[run.model, run.scheme], table)
        guesses = [work.tokens / work.seconds(coefficients, run.threads, rate) for _, rate, _ in run.samples]
        found.append(_comparison(run, [speed for speed, _, _ in run.samples], guesses))
    return found


def _comparison(run: Run, measured: Sequence[float], predicted: Sequence[float]) -> Comparison:
    error = statistics.median(guess / value - 1 for guess, value in zip(predicted, measured, strict=True))
    return Comparison(run, statistics.median(measured), statistics.median(predicted), error)


def compare_memory(runs: Sequence[Run], memory: Memory, sketched: Sketches) -> list[Comparison]:
    """Peaks: one comparison for each process, which is a decode run."""
    return [
        _comparison(
            run,
            [peak for *_, peak in run.samples],
            [resident(run, sketched[run.model, run.scheme], memory)] * len(run.samples),
        )
        for run in runs
        if run.figure == "decode"
    ]


def fit_machine(
    board: Board, runs: Sequence[Run], fitted_on: Sequence[str], table: Table, per_entry: float, progress: Progress
) -> tuple[Machine, list[Comparison], list[Comparison]]:
    """The machine, and how well it says what was measured: speeds, memory.

    per_entry: bytes of tokenizer and logits per entry of the vocabulary. Raises UsageError without runs to fit to.
    """
    sketched = looked_at(runs, board.target().tier.name, progress)
    chosen = [run for run in runs if run.model in fitted_on]
    if not chosen:
        raise UsageError("there are no runs of the models to fit to; name models that were measured")
    samples = [
        fit.Sample(work := work_of(run, sketched[run.model, run.scheme], table), run.threads, rate, work.tokens / speed)
        for run in chosen
        for speed, rate, _ in run.samples
    ]
    coefficients = fit.fit_speed(samples)
    memory = fit.fit_memory(
        [peak for run in chosen if run.figure == "decode" for peak in _peaks(run, sketched)], per_entry
    )
    speeds, peaks = compare(runs, coefficients, table, sketched), compare_memory(runs, memory, sketched)
    machine = Machine(
        cpu=board.cpu,
        n_cores=board.n_cores,
        tier=board.target().tier.name,
        taken=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgellm=__version__,
        fitted_on=tuple(fitted_on),
        bandwidth_bytes_per_s={
            n: statistics.median(rate for run in runs if run.threads == n for _, rate, _ in run.samples)
            for n in sorted({run.threads for run in runs})
        },
        coefficients=coefficients,
        memory=memory,
        errors=errors_of(speeds, peaks, fitted_on),
        runs=tuple(runs),
    )
    return machine, speeds, peaks


def errors_of(speeds: Sequence[Comparison], peaks: Sequence[Comparison], fitted_on: Sequence[str]) -> dict[str, float]:
    """Largest error by figure of runs that nothing was fitted to, or of all if there are no such runs."""
    found: dict[str, float] = {}
    for figure, every in (
        ("decode", [each for each in speeds if each.run.figure == "decode"]),
        ("prefill", [each for each in speeds if each.run.figure == "prefill"]),
        ("memory", list(peaks)),
    ):
        foreign = [each for each in every if each.run.model not in fitted_on]
        found[figure] = round(max(abs(each.error) for each in foreign or every), 4)
    return found
