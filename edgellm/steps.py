"""plan.json as data for the host: functions, their steps, what each is bound to, and how much work it is.

A plan may come from a board, so everything in it is checked, although the runtime there checked it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crosscompile.kinds import KINDS
from edgellm.errors import BundleError

_CAP_BYTES = 1 << 48
_CAP_ENTRIES = 65536
_ROWS_CAP = 1024
KV_BLOCK = 64
"""Positions of a block of the KV cache."""

_ELEMENTS_PER_BYTE = {"f16": 0.5, "f32": 0.25, **{kind.name: float(kind.fields) for kind in KINDS.values()}}
_KINDS = "|".join(_ELEMENTS_PER_BYTE)
_LINEAR = re.compile(rf"linear_({_KINDS})")
_LAYER = re.compile(r"^model\.(layers\.\d+\.)?")
_SYMBOL = re.compile(r"^(body|head)\d+_")
_EXPERTS = re.compile(rf"experts(\d+)_({_KINDS})")
_GROUPED = re.compile(r"_(\d+)grouped")
_NUMBERED = re.compile(rf"(linear_(?:{_KINDS}))\d*|([a-z])\d+(?=_|$)")


@dataclass(frozen=True)
class Argument:
    """What a step passes for one parameter.

    access   "r", "w" or "rw"
    bind     "w" weight, "a" arena, "s" state, "i" input
    value    index of the weight or state, offset in the arena, name of the input
    n_bytes  that the kernel may touch; times `symbol`, a number the runtime knows, where there is one
    """

    access: str
    bind: str
    value: int | str
    n_bytes: int
    symbol: str | None


@dataclass(frozen=True)
class Step:
    """One launch. kernel: the symbol; tensor: the weight it is about, "" if none."""

    kernel: str
    tensor: str
    arguments: tuple[Argument, ...]

    @property
    def operation(self) -> str:
        """What the kernel computes, without the numbers that make symbols unique: "linear_w4", "rms_norm_quant"."""
        bare = _SYMBOL.sub("", self.kernel)
        if experts := _EXPERTS.match(bare):
            return f"experts_{experts[2]}"
        return _NUMBERED.sub(r"\1\2", bare)

    @property
    def place(self) -> str:
        """The weight without its layer, and without ".weight": steps that differ in the layer alone have the same."""
        return _LAYER.sub("", self.tensor).removesuffix(".weight")

    @property
    def outputs(self) -> tuple[int, ...]:
        """Positions of the arguments that it writes."""
        return tuple(i for i, argument in enumerate(self.arguments) if argument.access != "r")


@dataclass(frozen=True)
class Function:
    """A list of launches for n rows. role: "body" or "head"."""

    role: str
    n: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Plan:
    """functions by (role, rows); state_bytes: of a block, by state, or, of the last n_fixed, of a session."""

    functions: dict[tuple[str, int], Function]
    state_bytes: tuple[int, ...]
    n_fixed: int = 0

    def fitting(self, role: str, n_rows: int) -> Function:
        """The smallest function that holds n_rows rows. BundleError if none does."""
        fits = [n for name, n in self.functions if name == role and n >= n_rows]
        if not fits:
            raise BundleError(f"plan.json: no {role} function holds {n_rows} rows; ask for fewer at a time")
        return self.functions[role, min(fits)]


@dataclass(frozen=True)
class Work:
    """What a step moves, in bytes, and how many multiply-adds it does."""

    weight_bytes: int = 0
    activation_bytes: int = 0
    kv_bytes: int = 0
    multiply_adds: int = 0

    @property
    def n_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    def __add__(self, other: Work) -> Work:
        return Work(
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
            self.kv_bytes + other.kv_bytes,
            self.multiply_adds + other.multiply_adds,
        )


def work_of(step: Step, plan: Plan, n: int, first: int, rows: int, vocab: int, window: int) -> Work:
    """The work of one launch, from the extents of its arguments.

    n: rows of its function, padding included, which linear layers compute like any other. first, rows: position of the
    first row and how many are no padding; vocab: rows of the embedding; window: of the attention, 0 for none.
    Look-ups touch n rows of their table, mixtures as many experts as rows chose, if each chose others. Attention reads
    whole blocks, those that some row sees, once.
    """
    sizes = dict.fromkeys("wasi", 0)
    for argument in step.arguments:
        times = 2 if argument.access == "rw" else 1
        if argument.symbol is None:
            sizes[argument.bind] += times * argument.n_bytes
    if step.operation.startswith("embed"):
        return Work(sizes["w"] * n // max(vocab, n), sizes["a"] + sizes["i"])
    if step.operation.startswith("gather"):
        written = sum(argument.n_bytes for argument in step.arguments if argument.access == "w")
        return Work(0, 2 * written + sizes["i"])
    if experts := _EXPERTS.search(step.kernel):
        ids = next(i for i, argument in enumerate(step.arguments) if argument.bind == "i") - 1
        grouped, total = _GROUPED.search(step.kernel), int(experts[1])
        chosen = int(grouped[1]) if grouped else step.arguments[ids].n_bytes // 4
        data = next(a.n_bytes for a in step.arguments if a.bind == "w") // total
        read = sizes["w"] * min(chosen, total) // total
        return Work(read, sizes["a"] + sizes["i"], 0, round(data * _ELEMENTS_PER_BYTE[experts[2]]) * chosen)
    states = sum(plan.state_bytes[int(a.value)] for a in step.arguments if a.bind == "s")
    kv_bytes, multiply_adds = 0, 0
    if any(a.bind == "s" and int(a.value) >= len(plan.state_bytes) - plan.n_fixed for a in step.arguments):
        kv_bytes, multiply_adds = 2 * states, states // 2 * rows  # read and written; two a number
    elif states and any(argument.bind == "s" and argument.access != "r" for argument in step.arguments):
        kv_bytes = states * rows // KV_BLOCK
    elif states and rows:
        lowest = max(0, first + 1 - window) if window else 0
        n_blocks = (first + rows - 1) // KV_BLOCK - lowest // KV_BLOCK + 1
        kv_bytes = states * n_blocks
        queries = max(a.n_bytes for a in step.arguments if a.bind == "a") // (4 * n)
        seen = sum(min(p + 1, window) if window else p + 1 for p in range(first, first + rows))
        multiply_adds = 2 * queries * seen  # scores and weighted sum, for each of the heads' dimensions
    if kind := _LINEAR.search(step.operation):
        data = next(a.n_bytes for a in step.arguments if a.bind == "w")
        multiply_adds = round(data * _ELEMENTS_PER_BYTE[kind[1]]) * n
    return Work(sizes["w"], sizes["a"] + sizes["i"], kv_bytes, multiply_adds)


class _Reader:
    """Takes a plan apart; the first thing that is wrong raises BundleError."""

    def __init__(self, where: str) -> None:
        self._where = where

    def bad(self, text: str) -> BundleError:
        return BundleError(f"{self._where}: {text}; compile and deploy the model again")

    def items(self, holder: Mapping[str, Any], key: str, n_most: int = _CAP_ENTRIES) -> list[Any]:
        value = holder.get(key)
        if not isinstance(value, list) or len(value) > n_most:
            raise self.bad(f"{key} must be a list of at most {n_most}")
        return value

    def object(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.bad(f"{what} is no object")
        return value

    def whole(self, value: Any, what: str, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.bad(f"{what} must be a whole number from {least} to {most}")
        return value

    def text(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= 512 or not value.isprintable():
            raise self.bad(f"{what} must be a name")
        return value

    def parameters(self, kernel: dict[str, Any]) -> list[tuple[str, int, str | None]]:
        made = []
        for item in self.items(kernel, "args", 12):
            entry = self.object(item, "a kernel's argument")
            access, extent, symbol = entry.get("access"), entry.get("bytes"), None
            if isinstance(extent, list) and len(extent) == 2:
                extent, symbol = extent[0], self.text(extent[1], "an extent's symbol")
            if access not in ("r", "w", "rw"):
                raise self.bad('access must be "r", "w" or "rw"')
            made.append((str(access), self.whole(extent, "bytes", 0, _CAP_BYTES), symbol))
        return made

    def step(self, item: Any, kernels: list[tuple[str, Any]], weights: list[str], n_states: int) -> Step:
        entry = self.object(item, "a step")
        name, parameters = kernels[self.whole(entry.get("kernel"), "a step's kernel", 0, len(kernels) - 1)]
        arguments, tensor = [], ""
        given = self.items(entry, "args", 12)
        if len(given) != len(parameters):
            raise self.bad(f"a step and its kernel {name} differ in the number of arguments")
        for pair, (access, n_bytes, symbol) in zip(given, parameters, strict=True):
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in ("w", "a", "s", "i"):
                raise self.bad(f"an argument of {name} is no [kind, value]")
            bind, value = str(pair[0]), pair[1]
            most = {"w": len(weights) - 1, "s": n_states - 1, "a": _CAP_BYTES}
            place = self.text(value, "an input") if bind == "i" else self.whole(value, "a place", 0, most[bind])
            if bind == "w" and not tensor:
                tensor = weights[int(place)]
            arguments.append(Argument(access, bind, place, n_bytes, symbol))
        return Step(name, tensor, tuple(arguments))


def read_plan(text: bytes, where: str) -> Plan:
    """plan.json, checked. where: what messages call it. Raises BundleError."""
    reader = _Reader(where)
    root = _json_object(text, reader.bad)
    weights = [reader.text(reader.object(w, "a weight").get("tensor"), "tensor") for w in reader.items(root, "weights")]
    states, n_fixed = [], 0
    for item in reader.items(root, "states"):
        entry = reader.object(item, "a state")
        fixed = n_fixed > 0 or "bytes_per_session" in entry
        key = "bytes_per_session" if fixed else "bytes_per_block"
        states.append(reader.whole(entry.get(key), key, 1, 1 << 32))
        n_fixed += fixed
    kernels = []
    for item in reader.items(root, "kernels"):
        kernel = reader.object(item, "a kernel")
        kernels.append((reader.text(kernel.get("name"), "a kernel's name"), reader.parameters(kernel)))
    functions = {}
    for item in reader.items(root, "functions"):
        entry = reader.object(item, "a function")
        role, n = entry.get("name"), reader.whole(entry.get("n"), "n", 1, _ROWS_CAP)
        if role not in ("body", "head"):
            raise reader.bad('a function is called neither "body" nor "head"')
        steps = tuple(reader.step(step, kernels, weights, len(states)) for step in reader.items(entry, "steps"))
        functions[str(role), n] = Function(str(role), n, steps)
    if {role for role, _ in functions} != {"body", "head"}:
        raise reader.bad("it lacks a body or a head function")
    return Plan(functions, tuple(states), n_fixed)


def _json_object(text: bytes, bad: Callable[[str], BundleError]) -> dict[str, Any]:
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad("it is not JSON") from error
    if not isinstance(root, dict):
        raise bad("it is no JSON object")
    return root
