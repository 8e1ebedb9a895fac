"""Comparing a plan step by step: the first launch that wrote something else than the reference says, and why.

On processors the contract is equality of bits, whatever the tier, so SHA-256 is enough until something differs. With a
tolerance (a reference that computes in another order) the numbers themselves are compared.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from crosscompile.checkpoint import Checkpoint
from crosscompile.packing import pack
from crosscompile.reference_steps import Blocks, Notes, Value, decode
from edgellm.errors import UsageError
from edgellm.launches import Launch, Output, Whole, launches, show_launch, trace
from edgellm.machine import Machine
from edgellm.steps import Argument, Plan

_KINDS = ("linear", "rms_norm", "silu_mul", "rope_table", "rope_append", "attention", "act_quant", "embed", "gather")
_STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_CACHE = {"f32": "<f4", "f16": "<f2", "i8": "u1"}


class Reference(Protocol):
    """What every launch must write. name: for people."""

    @property
    def name(self) -> str: ...

    def values(self, launch: Launch) -> list[Value]:
        """In the order of the launch's outputs. Raises UsageError if the reference does not know the plan."""


def _kind(operation: str) -> str:
    """The kind of a kernel, as the reference calls it."""
    bare = operation.removeprefix("fused_")
    return next((kind for kind in _KINDS if bare.startswith(kind)), operation)


@dataclass
class NotedReference:
    """What a model in Python computed, matched with a plan: the k-th step of a kind is the k-th operation of it."""

    name: str
    notes: Notes
    plan: Plan
    _indices: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def values(self, launch: Launch) -> list[Value]:
        function = launch.function
        key = (function.role, function.n)
        if key not in self._indices:
            self._indices[key] = self._match(function.role, [_kind(step.operation) for step in function.steps])
        quantized = launch.step.operation.endswith("_quant")
        index = self._indices[key][launch.index]
        return self.notes.value(function.role, index, quantized, launch.first, launch.rows)

    def _match(self, role: str, kinds: list[str]) -> list[int]:
        noted = self.notes.body if role == "body" else self.notes.head
        places: dict[str, list[int]] = {}
        for index, operation in enumerate(noted):
            places.setdefault(operation.name, []).append(index)
        if "act_quant" not in kinds:
            places.pop("act_quant", None)  # rows that stay float32
        counts = {kind: len(found) for kind, found in places.items()}
        if counts != Counter(kinds):
            raise UsageError(
                f"{self.name} does not know the steps of this model's plan; compare with this machine's own run: "
                f"--reference host"
            )
        waiting = {kind: iter(found) for kind, found in places.items()}
        return [next(waiting[kind]) for kind in kinds]


@dataclass
class HostReference:
    """What a bundle for this machine wrote, decoded from its tier's form."""

    name: str
    known: dict[int, tuple[str, list[Value]]]

    @classmethod
    def run(cls, host: Machine, tokens: Sequence[int], n_rows: int) -> HostReference:
        known = {}
        for launch, outputs in trace(host.model, host.plan, tokens, n_rows, host.options, data=True):
            known[launch.number] = (launch.step.operation, _decoded(host, launch, outputs))
        return cls(f"{host.name}'s own run", known)

    def values(self, launch: Launch) -> list[Value]:
        operation, values = self.known.get(launch.number, ("", []))
        if operation != launch.step.operation:
            raise UsageError(f"{launch.name} is another step than on this machine; compile and deploy the model again")
        return values


def _decoded(host: Machine, launch: Launch, outputs: Sequence[Output]) -> list[Value]:
    packing, quantized = host.packing(launch.function.role), launch.step.operation.endswith("_quant")
    if quantized:
        return [decode([output.data for output in outputs], launch.rows, True, host.tier, packing)]
    made: list[Value] = []
    for output in outputs:
        if launch.step.arguments[output.argument].bind == "s":
            made.append(Blocks(np.frombuffer(output.data, np.uint8)))
        else:
            made.append(decode([output.data], launch.rows, False, host.tier, packing))
    return made


def expected_arrays(
    machine: Machine, launch: Launch, sizes: Sequence[int], values: Iterable[Value]
) -> list[np.ndarray]:
    """What the launch must write on this machine, one array per output. sizes: bytes of each, without padding rows."""
    made: list[np.ndarray] = []
    for value in values:
        row_bytes = [size // launch.rows for size in sizes[len(made) :]]
        made += value.encode(row_bytes, machine.tier, machine.packing(launch.function.role)) if row_bytes else []
    if [array.nbytes for array in made] != list(sizes):
        raise UsageError(
            f"{machine.name}: {launch.name} writes {list(sizes)} bytes, the reference "
            f"{[array.nbytes for array in made]}; the bundle is of another model or scheme: deploy this one"
        )
    return made


@dataclass(frozen=True)
class Difference:
    """Where one output of a launch differs.

    n_wrong of n_elements differ, the first at `first`, where `found` stands instead of `expected`; largest: of the
    |differences|
    """

    argument: int
    n_wrong: int
    n_elements: int
    first: int
    found: float
    expected: float
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.n_wrong} of {self.n_elements} elements differ, first element {self.first}: {self.found:.9g} "
            f"instead of {self.expected:.9g}; at most by {self.largest:.3g}"
        )


def difference(argument: int, data: bytes, expected: np.ndarray, tolerance: float) -> Difference | None:
    """Compares bits, or with a tolerance |difference| against tolerance · max|expected|; NaN is never close."""
    found = np.frombuffer(data, expected.dtype)
    wanted = np.ascontiguousarray(expected).reshape(-1)
    wide, wide_wanted = (values.astype(np.float64) for values in (found, wanted))
    with np.errstate(invalid="ignore"):
        distance = np.abs(wide - wide_wanted)
    if tolerance:
        wrong = ~(distance <= tolerance * np.abs(wide_wanted).max(initial=0.0))
    else:
        bits = f"u{expected.dtype.itemsize}"
        wrong = found.view(bits) != wanted.view(bits)
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    finite = distance[wrong & np.isfinite(distance)]
    largest = float(finite.max()) if finite.size else float("nan")
    numbers = (float(wide[first]), float(wide_wanted[first]))
    return Difference(argument, int(np.count_nonzero(wrong)), wrong.size, first, *numbers, largest)


@dataclass(frozen=True)
class Finding:
    """The first launch of a machine that is wrong.

    cause    "weights": the bundle's are not what the checkpoint gives; "inputs": something wrote into what it read;
             "kernel": with the right inputs it computes something else
    whole    the launch with its buffers; expected: by output argument, without padding rows
    """

    machine: Machine
    launch: Launch
    difference: Difference
    cause: str
    detail: str
    whole: Whole
    expected: dict[int, np.ndarray]
    tolerance: float


def compare(
    machine: Machine,
    reference: Reference,
    source: Checkpoint,
    tokens: Sequence[int],
    n_rows: int,
    tolerance: float = 0.0,
) -> tuple[int, Finding | None]:
    """Runs a prompt on a machine: (launches that were as they should be, the first that was not).

    tolerance: 0 for equality of bits, else relative to the largest expected value of each buffer.
    """
    n_good = 0
    for launch, outputs in trace(machine.model, machine.plan, tokens, n_rows, machine.options, data=tolerance > 0):
        expected = expected_arrays(machine, launch, [o.n_bytes for o in outputs], reference.values(launch))
        if tolerance:
            pairs = zip(outputs, expected, strict=True)
            same = not any(difference(o.argument, o.data, _numbers(a, machine), tolerance) for o, a in pairs)
        else:
            same = all(_digest(a) == o.sha256 for o, a in zip(outputs, expected, strict=True))
        if not same:
            return n_good, _examine(machine, reference, source, launch, tokens, n_rows, expected, tolerance)
        n_good += 1
    return n_good, None


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _numbers(array: np.ndarray, machine: Machine) -> np.ndarray:
    """Bytes of the KV cache as the numbers they are."""
    return array.reshape(-1).view(_CACHE[machine.scheme.kv]) if array.dtype == np.uint8 else array


def _examine(
    machine: Machine,
    reference: Reference,
    source: Checkpoint,
    launch: Launch,
    tokens: Sequence[int],
    n_rows: int,
    expected: list[np.ndarray],
    tolerance: float,
) -> Finding:
    """Looks at the launch with all its buffers and says what is wrong with it."""
    whole = show_launch(machine.model, launch, tokens, n_rows, machine.options)
    arrays = {a: _numbers(array, machine) for a, array in zip(launch.step.outputs, expected, strict=True)}
    found = None
    for argument, array in arrays.items():
        data = written(launch, whole, argument, array.nbytes)
        found = found or difference(argument, data, array, tolerance)
    if found is None:
        raise UsageError(
            f"{machine.name}: {launch.name} was wrong once and right the second time: the machine does not compute "
            f"reliably (heat, voltage, memory), or its bundle was replaced; run this again"
        )
    cause, detail = "kernel", "its weights and inputs are as they should be"
    if wrong := _wrong_weights(machine, launch, whole, source):
        cause, detail = "weights", wrong
    elif wrong := _wrong_inputs(machine, reference, launch, whole, tokens, n_rows, tolerance):
        cause, detail = "inputs", wrong
    return Finding(machine, launch, found, cause, detail, whole, arrays, tolerance)


def written(launch: Launch, whole: Whole, argument: int, n_bytes: int) -> bytes:
    """What a launch wrote, without padding rows: the buffer's beginning, or the blocks of the cache that it touched."""
    data = whole.after[argument]
    if launch.step.arguments[argument].bind != "s":
        return data[:n_bytes]
    numbers = blocks_touched(launch, whole)
    size = n_bytes // len(numbers)
    return b"".join(data[number * size : (number + 1) * size] for number in numbers)


def blocks_touched(launch: Launch, whole: Whole) -> list[int]:
    """The pool's blocks that hold the launch's rows, in order of position."""
    place = next(i for i, a in enumerate(launch.step.arguments) if a.value == "block_table")
    table = np.frombuffer(whole.before[place], "<i4")
    first, last = launch.first // 64, (launch.first + launch.rows - 1) // 64
    return [int(number) for number in table[first : last + 1]]


def _wrong_weights(machine: Machine, launch: Launch, whole: Whole, source: Checkpoint) -> str:
    """The first weight that is not what the checkpoint gives under the scheme; "" if all are."""
    packing = _weight_packing(machine, launch)
    tensors = [(i, whole.names[i]) for i, a in enumerate(launch.step.arguments) if a.bind == "w"]
    for place, name in tensors:
        base = re.sub(r"\.(scale|high|zero)$", "", name)
        names = _sources(base)
        if any(part not in source.tensors for part in names):
            continue  # a constant, or a layer that another package's architecture made
        made = pack(packing if len(source.tensors[names[0]].shape) == 2 else "vec", _stacked(source, names))
        wanted = made[name[len(base) :]].reshape(-1)
        data = np.frombuffer(whole.before[place], np.uint8)
        if wanted.nbytes != data.nbytes:
            return f"{name} has {data.nbytes} bytes, the checkpoint gives {wanted.nbytes}"
        found = difference(place, data.tobytes(), wanted, 0.0)
        if found is not None:
            return f"{name} is not what the checkpoint gives: {found}"
    return ""


def _sources(name: str) -> list[str]:
    """The checkpoint's tensors that are stacked in a bundle's tensor."""
    for stacked, parts in _STACKED.items():
        if f".{stacked}." in name:
            return [name.replace(stacked, part) for part in parts]
    return [name]


def _stacked(source: Checkpoint, names: Sequence[str]) -> np.ndarray:
    return np.concatenate([source.read(name) for name in names])


def _weight_packing(machine: Machine, launch: Launch) -> str:
    scheme = machine.scheme.body if launch.function.role == "body" else machine.scheme.head
    scheme = machine.scheme.embedding if launch.step.operation.startswith("embed") else scheme
    return machine.tier.packing(scheme[:2] if scheme.endswith("a8") else scheme)


def _wrong_inputs(
    machine: Machine,
    reference: Reference,
    launch: Launch,
    whole: Whole,
    tokens: Sequence[int],
    n_rows: int,
    tolerance: float,
) -> str:
    """The first buffer of the arena that no longer holds what an earlier step, which was right, wrote; "" if none."""
    earlier = launches(machine.plan, len(tokens), n_rows)[: launch.number]
    for place, argument in enumerate(launch.step.arguments):
        if argument.bind != "a" or "r" not in argument.access:
            continue
        writer = _writer(earlier, argument)
        if writer is None:
            continue
        before, output = writer
        sizes = [before.step.arguments[i].n_bytes // before.function.n * before.rows for i in before.step.outputs]
        if any(before.step.arguments[i].bind == "s" for i in before.step.outputs):
            sizes = []  # rope_append: its query is the last value
        values = reference.values(before)
        if not sizes:
            last = before.step.arguments[output]
            expected = values[-1].encode([last.n_bytes // before.function.n], machine.tier, None)[0]
        else:
            expected = expected_arrays(machine, before, sizes, values)[before.step.outputs.index(output)]
        data = whole.before[place][: expected.nbytes]
        if (found := difference(place, data, expected, tolerance)) is not None:
            return f"argument {place}, which {before.name} had written rightly, was changed before it was read: {found}"
    return ""


def _writer(earlier: Sequence[Launch], read: Argument) -> tuple[Launch, int] | None:
    """The last launch that wrote to this place of the arena as much as is read now, and with which argument.

    Where none wrote as much, the last that wrote there: the head reads the hidden rows of the largest function.
    """
    last = None
    for launch in reversed(earlier):
        for output in launch.step.outputs:
            argument = launch.step.arguments[output]
            if (argument.bind, argument.value) != ("a", read.value):
                continue
            if argument.n_bytes == read.n_bytes:
                return launch, output
            last = last or (launch, output)
    return last
