"""What `edgellm-rt trace` runs and says: the launches of a prompt in their order, and what each wrote on a machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.errors import CommandError
from edgellm.runtime_program import InstalledModel, failure
from edgellm.steps import Argument, Function, Plan, Step
from edgellm.terminal import one_line

_TRACE_S = 3600.0
_LIMIT_BYTES = 1 << 32
_BINDS = {"weight": "w", "arena": "a", "state": "s", "input": "i"}


@dataclass(frozen=True)
class Launch:
    """One launch of a traced prompt. number: over all; first: position of its first row; rows: that are no padding."""

    number: int
    function: Function
    index: int
    first: int
    rows: int

    @property
    def step(self) -> Step:
        return self.function.steps[self.index]

    @property
    def name(self) -> str:
        """For people: "step 66, body 4: fused_linear_w4_residual_add model.layers.0.mlp.down_proj.weight"."""
        about = f"{self.step.operation} {self.step.tensor}".strip()
        return f"step {self.number}, {self.function.role} {self.index}: {about}"


@dataclass(frozen=True)
class Output:
    """What a launch wrote to one argument: rows without padding, or the blocks of the KV cache it wrote to."""

    argument: int
    n_bytes: int
    sha256: str
    data: bytes = b""


@dataclass(frozen=True)
class Whole:
    """One launch with all its buffers. before: bytes of the arguments that it reads; after: of those that it writes."""

    groups: int
    grain: int
    scalars: tuple[int, ...]
    names: tuple[str, ...]
    before: dict[int, bytes]
    after: dict[int, bytes]


def launches(plan: Plan, n_tokens: int, n_rows: int) -> list[Launch]:
    """The launches of n_tokens tokens, fed n_rows at a time; after each piece the head runs for its last row."""
    made: list[Launch] = []
    for first in range(0, n_tokens, n_rows):
        rows = min(n_rows, n_tokens - first)
        for function, start, count in (
            (plan.fitting("body", rows), first, rows),
            (plan.fitting("head", 1), first + rows - 1, 1),
        ):
            for index in range(len(function.steps)):
                made.append(Launch(len(made), function, index, start, count))
    return made


def trace(
    model: InstalledModel, plan: Plan, tokens: Sequence[int], n_rows: int, options: Sequence[str], data: bool = False
) -> Iterator[tuple[Launch, list[Output]]]:
    """Runs a prompt on a machine and yields what each launch wrote. data: with the bytes, not only their SHA-256.

    Raises RemoteError or RuntimeFailedError; CommandError also where the answer does not fit the plan.
    """
    text = run_trace(model, plan, tokens, n_rows, options, data)
    yield from read_trace(text, model.remote.name, plan, len(tokens), n_rows, data)


def run_trace(
    model: InstalledModel, plan: Plan, tokens: Sequence[int], n_rows: int, options: Sequence[str], data: bool = False
) -> bytes:
    """What `edgellm-rt trace` prints. Raises RemoteError or RuntimeFailedError, which name the step it ended in."""
    argv = [*_argv(model, tokens, n_rows, options), *(["--data"] if data else [])]
    result = model.remote.run(argv, silence_s=_TRACE_S, limit_bytes=_LIMIT_BYTES)
    if result.status != 0:
        error = failure(model.remote, "edgellm-rt trace", result.status, result.stderr)
        reached = _reached(result.stdout, model.remote.name, plan, len(tokens), n_rows, data)
        error.args = (f"{error}{reached}", *error.args[1:])
        raise error
    return result.stdout


def _reached(text: bytes, where: str, plan: Plan, n_tokens: int, n_rows: int, data: bool) -> str:
    """In which step a trace ended that is not whole; "" if it did not begin."""
    n = 0
    with contextlib.suppress(CommandError):
        for _ in read_trace(text, where, plan, n_tokens, n_rows, data):
            n += 1
    every = launches(plan, n_tokens, n_rows)
    return f"; it ended in {every[n].name} (kernel {every[n].step.kernel})" if text and n < len(every) else ""


def read_trace(
    text: bytes, where: str, plan: Plan, n_tokens: int, n_rows: int, data: bool
) -> Iterator[tuple[Launch, list[Output]]]:
    """What each launch of a trace wrote. CommandError where the text does not fit the plan."""
    reader = _Reader(text, where)
    reader.head()
    for launch in launches(plan, n_tokens, n_rows):
        yield launch, reader.outputs(launch, data)
    reader.end()


def trace_head(text: bytes, where: str) -> dict[str, Any]:
    """The first line of a trace: what ran. CommandError if there is none."""
    return _Reader(text, where).head()


def show_launch(
    model: InstalledModel, launch: Launch, tokens: Sequence[int], n_rows: int, options: Sequence[str]
) -> Whole:
    """Runs the prompt up to one launch, and returns that with all its buffers."""
    argv = [*_argv(model, tokens, n_rows, options), "--at", str(launch.number)]
    result = model.remote.run(argv, silence_s=_TRACE_S, limit_bytes=_LIMIT_BYTES)
    if result.status != 0:
        raise failure(model.remote, "edgellm-rt trace", result.status, result.stderr)
    return _Reader(result.stdout, model.remote.name).whole(launch)


def _argv(model: InstalledModel, tokens: Sequence[int], n_rows: int, options: Sequence[str]) -> list[str]:
    text = ",".join(map(str, tokens))
    return model.argv("trace", "--tokens", text, "--step", str(n_rows), "--context", str(len(tokens)), *options)


class _Reader:
    """JSON lines with raw bytes between them, from a machine that nobody vouches for."""

    def __init__(self, text: bytes, where: str) -> None:
        self._text, self._at, self._where = text, 0, where
        self._last = b""

    def bad(self) -> CommandError:
        said = one_line(self._last.decode("utf-8", "replace"), 120)
        return CommandError(f"{self._where}: edgellm-rt trace said something unexpected: {said}")

    def line(self) -> dict[str, Any]:
        end = self._text.find(b"\n", self._at)
        self._last = self._text[self._at : end if end >= 0 else self._at + 200]
        try:
            value = json.loads(self._last) if end >= 0 else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self.bad()
        self._at = end + 1
        return value

    def head(self) -> dict[str, Any]:
        line = self.line()
        if line.get("trace") != 1:
            raise self.bad()
        return line

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > len(self._text) - self._at:
            raise self.bad()
        self._at += n_bytes
        return self._text[self._at - n_bytes : self._at]

    def end(self) -> None:
        if self._at != len(self._text):
            raise self.bad()

    def whole_number(self, value: Any, most: int = 1 << 48) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.bad()
        return value

    def place(self, launch: Launch) -> dict[str, Any]:
        """The next line, which must be about this launch."""
        line = self.line()
        function = launch.function
        expected = (launch.number, function.role, function.n, launch.rows, launch.index, launch.step.kernel)
        if tuple(line.get(key) for key in ("number", "function", "n", "rows", "step", "kernel")) != expected:
            raise self.bad()
        return line

    def outputs(self, launch: Launch, data: bool) -> list[Output]:
        entries = self.place(launch).get("outputs")
        if not isinstance(entries, list) or len(entries) != len(launch.step.outputs):
            raise self.bad()
        made = []
        for argument, entry in zip(launch.step.outputs, entries, strict=True):
            digest = entry.get("sha256") if isinstance(entry, dict) else None
            if not isinstance(digest, str) or len(digest) != 64 or entry.get("argument") != argument:
                raise self.bad()
            made.append(Output(argument, self.whole_number(entry.get("bytes")), digest))
        if not data:
            return made
        return [Output(o.argument, o.n_bytes, o.sha256, self.take(o.n_bytes)) for o in made]

    def whole(self, launch: Launch) -> Whole:
        line = self.place(launch)
        entries, scalars = line.get("arguments"), line.get("scalars")
        arguments = launch.step.arguments
        if not isinstance(entries, list) or len(entries) != len(arguments) or not isinstance(scalars, list):
            raise self.bad()
        sizes, names = [], []
        for argument, entry in zip(arguments, entries, strict=True):
            if not isinstance(entry, dict):
                raise self.bad()
            sizes.append(self._size(argument, entry))
            name = entry.get("name")
            names.append(one_line(name, 200) if isinstance(name, str) else "")
        before = {i: self.take(sizes[i]) for i, argument in enumerate(arguments) if "r" in argument.access}
        after = {i: self.take(sizes[i]) for i, argument in enumerate(arguments) if "w" in argument.access}
        self.end()
        numbers = tuple(self.whole_number(scalar) for scalar in scalars)
        groups, grain = (self.whole_number(line.get(key), 1 << 31) for key in ("groups", "grain"))
        return Whole(groups, grain, numbers, tuple(names), before, after)

    def _size(self, argument: Argument, entry: dict[str, Any]) -> int:
        n_bytes = self.whole_number(entry.get("bytes"))
        fits = n_bytes == argument.n_bytes if argument.symbol is None else n_bytes % max(argument.n_bytes, 1) == 0
        if (entry.get("access"), _BINDS.get(str(entry.get("bind")))) != (argument.access, argument.bind) or not fits:
            raise self.bad()
        return n_bytes
