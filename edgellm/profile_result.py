"""What `edgellm-rt profile` measured, checked and joined with the plan: time, bytes and multiply-adds of every step."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgellm.errors import BundleError, CommandError
from edgellm.remote import Remote
from edgellm.runtime_program import InstalledModel, failure
from edgellm.steps import Function, Plan, Step, Work, read_plan, work_of
from edgellm.terminal import one_line

_PROFILE_S = 3600.0
_LIMIT_BYTES = 256 << 20
_PHASES = ("decode", "prefill")


@dataclass(frozen=True)
class Timed:
    """One launch of a run.

    call        number of the function call within the run
    ns          mean of the faster half of the runs, which adds up to a run; median_ns: of all runs
    """

    call: int
    function: Function
    index: int
    ns: float
    median_ns: float
    work: Work

    @property
    def step(self) -> Step:
        return self.function.steps[self.index]


@dataclass(frozen=True)
class Phase:
    """One kind of work.

    tokens, depth       how many tokens a run computes, behind how many positions
    plain_ns            of a run that nobody watches; watched_ns with the clock read between steps
    steps               in their order
    """

    name: str
    tokens: int
    depth: int
    runs: int
    threads: int
    plain_ns: float
    watched_ns: float
    steps: tuple[Timed, ...]

    @property
    def steps_ns(self) -> float:
        return sum(timed.ns for timed in self.steps)

    @property
    def share(self) -> float:
        """Of the undisturbed time that the steps add up to."""
        return self.steps_ns / self.plain_ns


@dataclass(frozen=True)
class Profile:
    """All phases of one model on one board."""

    model: str
    scheme: str
    tier: str
    phases: tuple[Phase, ...]


def fetch(remote: Remote, path: str, limit_bytes: int = 64 << 20) -> bytes:
    """A small file of a board. Raises CommandError."""
    result = remote.run(["cat", path], limit_bytes=limit_bytes)
    if result.status != 0:
        raise remote.failure(f"reading {path}", result.status, result.stderr)
    return result.stdout


def profile(model: InstalledModel, options: list[str]) -> Profile:
    """Measures on the board. options: of edgellm-rt profile. Raises RemoteError, BundleError or RuntimeFailedError."""
    remote = model.remote
    result = remote.run(model.argv("profile", *options), silence_s=_PROFILE_S, limit_bytes=_LIMIT_BYTES)
    if result.status != 0:
        raise failure(remote, "edgellm-rt profile", result.status, result.stderr)
    manifest = fetch(remote, f"{model.path}/manifest.json")
    name = _plan_name(manifest, options, remote.name)
    plan = read_plan(fetch(remote, f"{model.path}/{name}"), f"{remote.name}: {name}")
    return read_profile(result.stdout, plan, manifest, remote.name)


def _plan_name(manifest: bytes, options: list[str], where: str) -> str:
    """The file of the plan that was measured: a bundle for both has two."""
    try:
        is_both = json.loads(manifest)["target"]["device"] == "both"
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BundleError(f"{where}: manifest.json says nothing of the target's device; deploy it again") from error
    return "plan-vulkan.json" if is_both and "vulkan" in options else "plan.json"


class _Lines:
    """JSON objects, one per line, from a board."""

    def __init__(self, text: bytes, where: str) -> None:
        self._where = where
        self._lines = iter(text.splitlines())

    def bad(self, line: object) -> CommandError:
        return CommandError(f"{self._where}: edgellm-rt profile said something unexpected: {one_line(str(line), 120)}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise self.bad(line.decode("utf-8", "replace"))
            yield value

    def whole(self, line: dict[str, Any], key: str, least: int = 0, most: int = 1 << 31) -> int:
        value = line.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.bad(line)
        return value

    def ns(self, line: dict[str, Any], key: str) -> float:
        value = line.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self.bad(line)
        return float(value)

    def text(self, line: dict[str, Any], key: str) -> str:
        value = line.get(key)
        if not isinstance(value, str) or len(value) > 512:
            raise self.bad(line)
        return one_line(value)


def read_profile(text: bytes, plan: Plan, manifest: bytes, where: str) -> Profile:
    """The board's answer, line by line: every step must be the plan's. Raises CommandError or BundleError."""
    vocab, window = _model_numbers(manifest, where)
    lines = _Lines(text, where)
    source = iter(lines)
    head = next(source, {})
    if head.get("profile") != 1:
        raise lines.bad(head)
    if head.get("manifest") != hashlib.sha256(manifest).hexdigest():
        raise CommandError(f"{where}: the model was replaced while it was measured; run this again")
    phases: list[Phase] = []
    for line in source:
        if line.get("phase") not in _PHASES:
            raise lines.bad(line)
        phases.append(_read_phase(lines, source, line, plan, vocab, window))
    if not phases:
        raise lines.bad("nothing was measured")
    return Profile(lines.text(head, "name"), lines.text(head, "scheme"), lines.text(head, "tier"), tuple(phases))


def _read_phase(
    lines: _Lines, source: Iterator[dict[str, Any]], head: dict[str, Any], plan: Plan, vocab: int, window: int
) -> Phase:
    name, tokens, depth = str(head["phase"]), lines.whole(head, "tokens", 1), lines.whole(head, "depth")
    timed: list[Timed] = []
    call, first, rows, done = -1, depth, 0, 0
    for line in source:
        if "done" in line:
            if line["done"] != name or not timed or timed[-1].index + 1 != len(timed[-1].function.steps):
                raise lines.bad(line)
            plain, watched = lines.ns(line, "plain_ns"), lines.ns(line, "watched_ns")
            if plain == 0:
                raise lines.bad(line)
            threads = lines.whole(head, "threads_decode" if name == "decode" else "threads_prefill", 1, 1024)
            return Phase(name, tokens, depth, lines.whole(head, "runs", 1), threads, plain, watched, tuple(timed))
        number, index = lines.whole(line, "call"), lines.whole(line, "step")
        function = plan.functions.get((str(line.get("function")), lines.whole(line, "n", 1)))
        follows = (call, timed[-1].index + 1) if timed and number == call else (call + 1, 0)
        if function is None or (number, index) != follows or index >= len(function.steps):
            raise lines.bad(line)
        if number != call:
            if timed and timed[-1].index + 1 != len(timed[-1].function.steps):
                raise lines.bad(line)
            call = number
            if function.role == "body":
                first, rows = depth + done, min(function.n, tokens - done)
                done += rows
        step = function.steps[index]
        if line.get("kernel") != step.kernel:
            raise lines.bad(line)
        work = work_of(step, plan, function.n, first, rows, vocab, window)
        times = (lines.ns(line, "ns"), lines.ns(line, "median_ns"))
        timed.append(Timed(number, function, index, *times, work))
    raise lines.bad(f"the {name} phase has no end")


def _model_numbers(manifest: bytes, where: str) -> tuple[int, int]:
    """(vocab_size, sliding_window) of a board's manifest."""
    try:
        model = json.loads(manifest)["model"]
        vocab, window = model["vocab_size"], model["sliding_window"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{where}: manifest.json says nothing of the model's size; deploy it again") from error
    if not all(isinstance(number, int) and 0 <= number < 1 << 31 for number in (vocab, window)):
        raise BundleError(f"{where}: manifest.json: model: vocab_size and sliding_window are no sizes; deploy it again")
    return vocab, window


def trace_events(result: Profile) -> dict[str, Any]:
    """The profile as a Trace Event document, which Perfetto (ui.perfetto.dev) and chrome://tracing show.

    A process per phase; its steps follow each other as in a run. Times in microseconds.
    """
    events: list[dict[str, Any]] = []
    for pid, phase in enumerate(result.phases, 1):
        title = f"{phase.name}: {phase.tokens} tokens behind {phase.depth}, {phase.threads} threads"
        events.append({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "ts": 0, "args": {"name": title}})
        for tid, name in ((1, "functions"), (2, "steps")):
            events.append({"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}})
        at = 0.0
        begin = 0.0
        for index, timed in enumerate(phase.steps):
            step, work, us = timed.step, timed.work, timed.ns / 1e3
            arguments = {
                "tensor": step.tensor,
                "weight_bytes": work.weight_bytes,
                "activation_bytes": work.activation_bytes,
                "kv_bytes": work.kv_bytes,
                "multiply_adds": work.multiply_adds,
                "gb_s": round(rate(work.n_bytes, timed.ns), 3),
                "gops": round(rate(2 * work.multiply_adds, timed.ns), 3),
            }
            span = {"ph": "X", "pid": pid, "ts": round(at, 3), "dur": round(us, 3)}
            events.append({"name": step.operation, "cat": phase.name, **span, "tid": 2, "args": arguments})
            at += us
            if index + 1 == len(phase.steps) or phase.steps[index + 1].call != timed.call:
                function = timed.function
                whole = {"ph": "X", "pid": pid, "ts": round(begin, 3), "dur": round(at - begin, 3), "tid": 1}
                events.append({"name": f"{function.role} of {function.n} rows", "cat": phase.name, **whole, "args": {}})
                begin = at
    about = {"model": result.model, "scheme": result.scheme, "tier": result.tier}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def rate(amount: float, ns: float) -> float:
    """Amount per nanosecond, which is 10⁹ per second; 0 where no time was seen to pass."""
    return amount / ns if ns > 0 else 0.0
