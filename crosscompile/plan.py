"""plan.json from lowered functions: a flat list of kernel launches over arena, weights, states and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx

from crosscompile.codegen import Signature
from crosscompile.errors import PlanError
from crosscompile.kernels.kv_cache import KV_BLOCK
from crosscompile.lower import FUNCTION, Lowered

ALIGNMENT = 256
"""Of offsets in the arena, in bytes: the most that Vulkan lets a GPU ask for of what kernels bind."""
INPUTS = ("tokens", "positions", "slots", "rows", "block_table")
CHUNK_BYTES = 16384
"""What a chunk of work should at least touch, so that handing it out costs less than doing it."""


def aligned(size: int) -> int:
    """size rounded up to the arena's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class State:
    """What sessions keep from step to step. n_bytes: of a block of positions, or, per_session, of a whole session."""

    name: str
    n_bytes: int
    per_session: bool = False


@dataclass(frozen=True)
class Function:
    """One function of the plan, before offsets are final.

    steps          (kernel, arguments); an argument is (kind, value) as in plan.json, plus ("escape", 0) for the result
    scratch_bytes  planned storage; unplanned_bytes: what it would be if no two tensors shared storage
    """

    role: str
    n: int
    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    scratch_bytes: int
    unplanned_bytes: int


@dataclass
class Weights:
    """Tensors that kernels read, in order of first use, and constants made at compile time."""

    bytes_of: dict[str, int] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def index(self, name: str, size: int) -> int:
        """Position of a tensor in plan.json's list, which grows by it when it is new."""
        if name not in self.positions:
            self.positions[name] = len(self.positions)
            self.bytes_of[name] = size
        return self.positions[name]

    def constant(self, value: np.ndarray) -> tuple[str, int]:
        """Name and bytes of a constant; equal ones are one."""
        for name, known in self.constants.items():
            if known.dtype == value.dtype and np.array_equal(known, value):
                return name, value.nbytes
        name = f"constant.{len(self.constants)}"
        self.constants[name] = value
        return name, value.nbytes


def _nbytes(shape: Sequence[Any], dtype: str) -> int:
    size = np.dtype(dtype).itemsize
    for extent in shape:
        if not isinstance(extent, (int, tirx.IntImm)):
            raise PlanError(f"a tensor of shape {list(shape)} has no constant size")
        size *= int(extent)
    return size


class _Walker:
    """Follows one lowered function and notes its launches."""

    def __init__(self, role: str, n: int, weights: Weights) -> None:
        self.role, self.n, self.weights = role, n, weights
        self.values: dict[Any, Any] = {}
        self.steps: list[tuple[str, tuple[tuple[str, Any], ...]]] = []
        self.scratch = self.unplanned = 0

    def value(self, expr: Any) -> Any:
        if isinstance(expr, tvm.ir.GenericConst):
            name, size = self.weights.constant(expr.value.numpy())
            return ("w", self.weights.index(name, size))
        if isinstance(expr, relax.Tuple):
            return [self.value(item) for item in expr.fields]
        return self.values[expr]

    def parameter(self, var: Any) -> Any:
        if isinstance(var.ty, relax.TupleType):
            return [("s", i) for i in range(len(var.ty.fields))]
        if var.name in INPUTS:
            return ("i", var.name)
        if var.name == "hidden":
            return ("a", 0)
        if var.name == "arriving":
            return ("arriving", 0)
        return ("w", self.weights.index(var.name, _nbytes(var.ty.shape.values, str(var.ty.dtype))))

    def call(self, var: Any, call: Any) -> Any:
        name = call.op.name if isinstance(call.op, tvm.ir.Op) else call.op.name_hint
        if name == "relax.memory.alloc_storage":
            offset, self.scratch = self.scratch, self.scratch + aligned(int(call.args[0].values[0]))
            return ("scratch", offset)
        if name == "relax.memory.alloc_tensor":
            self.unplanned += aligned(_nbytes(var.ty.shape.values, str(var.ty.dtype)))
            kind, offset = self.values[call.args[0]]
            return (kind, offset + int(call.args[1].value))
        if name == "relax.builtin.alloc_tensor":
            return ("escape", 0)
        if name in ("relax.memory.kill_storage", "relax.memory.kill_tensor"):
            return None
        if isinstance(call.op, tvm.ir.GlobalVar):
            self.steps.append((name, tuple(self.value(argument) for argument in call.args)))
            return None
        raise PlanError(f"{self.role} {self.n}: operator {name} is left after lowering")

    def walk(self, function: Any) -> None:
        for var in function.params:
            self.values[var] = self.parameter(var)
        for block in function.body.blocks:
            for binding in block.bindings:
                value = binding.value
                if isinstance(value, relax.TupleGetItem):
                    self.values[binding.var] = self.values[value.tuple_value][value.index]
                elif isinstance(value, relax.Call):
                    self.values[binding.var] = self.call(binding.var, value)
                else:
                    self.values[binding.var] = self.value(value)
        result = self.value(function.body.body)
        result = result[0] if isinstance(result, list) else result
        if result != ("escape", 0):
            raise PlanError(f"{self.role} {self.n}: the result is {result}, not a tensor of its own")


def read_function(role: str, n: int, lowered: Lowered, symbols: Mapping[str, str], weights: Weights) -> Function:
    """The launches of one lowered function, its kernels renamed to their symbols."""
    walker = _Walker(role, n, weights)
    walker.walk(lowered.module[FUNCTION])
    steps = tuple((symbols[kernel], args) for kernel, args in walker.steps)
    return Function(role, n, steps, walker.scratch, walker.unplanned)


@dataclass
class Kernels:
    """The distinct kernels of all functions by symbol: equal ones, such as the norm of body and head, are one."""

    functions: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    inplace: dict[str, tuple[int, ...]] = field(default_factory=dict)
    by_hash: dict[int, list[str]] = field(default_factory=dict)

    def add(self, role: str, n: int, lowered: Lowered) -> dict[str, str]:
        """Takes in the kernels of a lowered function; returns its names for them -> symbols."""
        symbols = {}
        for variable, function in lowered.module.functions.items():
            name = variable.name_hint
            if name == FUNCTION:
                continue
            alike = self.by_hash.setdefault(tvm_ffi.structural_hash(function), [])
            known = next((k for k in alike if tvm_ffi.structural_equal(self.functions[k], function)), None)
            if known is None:
                known = f"{role}{n}_{name}"
                alike.append(known)
                self.functions[known] = function
                if name in lowered.inplace:
                    self.inplace[known] = lowered.inplace[name]
            symbols[name] = known
        return symbols


def _extent(name: str, shape: Sequence[Any], dtype: str, state: State | None) -> Any:
    """Bytes an argument spans: a number, or [number, symbol]."""
    if state is not None:
        return [_nbytes(shape[1:], dtype), "sessions" if state.per_session else "blocks"]
    if name == "block_table":
        return [4, "table"]
    return _nbytes(shape, dtype)


@dataclass(frozen=True)
class Layout:
    """Offsets in the arena: of rows that arrive from another device (None: none do), of scratch, of logits; its bytes.

    Hidden rows come first, kept from body to head; then those that arrive; then scratch; then logits, or rows behind
    the final norm.
    """

    arriving: int | None
    scratch: int
    logits: int
    n_bytes: int


def arena_layout(functions: Sequence[Function], hidden_row_bytes: int, logits_row_bytes: int) -> Layout:
    """Where everything lies. Without a head, hidden rows are what is left for another device."""
    bodies = [f for f in functions if f.role == "body"]
    heads = [f for f in functions if f.role == "head"]
    norms = [f for f in functions if f.role == "norm"]
    hidden_bytes = aligned(max(f.n for f in bodies) * hidden_row_bytes)
    arrives = any(kind == "arriving" for f in bodies for _, args in f.steps for kind, _ in args)
    scratch = hidden_bytes * (2 if arrives else 1)
    logits = scratch + max((f.scratch_bytes for f in (*heads, *norms)), default=0)
    logits_bytes = aligned(max((f.n for f in heads), default=0) * logits_row_bytes)
    logits_bytes = max(logits_bytes, aligned(max((f.n for f in norms), default=0) * hidden_row_bytes))
    total = max(logits + logits_bytes, scratch + max(f.scratch_bytes for f in bodies))
    return Layout(hidden_bytes if arrives else None, scratch, logits if heads else 0, total)


def work_grain(groups: int, touched_bytes: int) -> int:
    """The fewest row groups of a kernel that are worth a call of their own."""
    return max(1, min(groups, CHUNK_BYTES * groups // max(touched_bytes, 1)))


def write_plan(
    functions: Sequence[Function],
    kernels: Kernels,
    signatures: Mapping[str, Signature],
    weights: Weights,
    states: Sequence[State],
    hidden_row_bytes: int,
    logits_row_bytes: int,
    pooling: str = "mean",
) -> dict[str, Any]:
    """plan.json as a dictionary (runtime_c/FORMAT.md).

    pooling: of embeddings, "mean" or "last"; of use where there is a norm function. Functions without a head are for
    layers whose hidden rows another device goes on with.
    """
    layout = arena_layout(functions, hidden_row_bytes, logits_row_bytes)

    order = list(dict.fromkeys(name for f in functions for name, _ in f.steps))
    index = {name: i for i, name in enumerate(order)}
    bound = {
        name: [states[v] if kind == "s" else None for kind, v in args] for f in functions for name, args in f.steps
    }
    entries = []
    for name in order:
        signature, buffers = signatures[name], kernels.functions[name].params
        changed = kernels.inplace.get(name, ())
        first_output = _first_output(buffers)
        arguments, touched = [], 0
        for i, (buffer, state) in enumerate(zip(buffers, bound[name], strict=True)):
            extent = _extent(buffer.name, buffer.ty.shape, str(buffer.ty.dtype), state)
            access = "rw" if i in changed else "w" if i >= first_output else "r"
            arguments.append({"access": access, "bytes": extent})
            touched += extent if isinstance(extent, int) else 0
        grain = work_grain(signature.groups, touched)
        if any(bound[name]):
            grain = 1
        entry: dict[str, Any] = {"name": signature.name, "args": arguments, "scalars": list(signature.scalars)}
        if signature.grid is not None:
            entry["grid"] = list(signature.grid)
        else:
            entry |= {"groups": signature.groups, "grain": grain}
        entries.append(entry)

    def place(role: str, argument: tuple[str, Any]) -> list[Any]:
        kind, value = argument
        if kind == "escape":
            return ["a", 0 if role == "body" else layout.logits]
        if kind == "arriving":
            return ["a", layout.arriving]
        return ["a", layout.scratch + value] if kind == "scratch" else [kind, value]

    def written(f: Function) -> dict[str, Any]:
        steps = [
            {"kernel": index[name], "args": [place(f.role, argument) for argument in args]} for name, args in f.steps
        ]
        return {"name": f.role, "n": f.n, "steps": steps}

    norms = [written(f) for f in functions if f.role == "norm"]
    left = [f.n for f in functions] if not any(f.role == "head" for f in functions) else []
    hidden = {"arena": 0, "bytes_per_row": hidden_row_bytes}
    return {
        "format": 1,
        "arena_bytes": layout.n_bytes,
        "kv_block": KV_BLOCK,
        "weights": [{"tensor": name, "bytes": size} for name, size in weights.bytes_of.items()],
        "states": [
            {"name": state.name, "bytes_per_session" if state.per_session else "bytes_per_block": state.n_bytes}
            for state in states
        ],
        "kernels": entries,
        "functions": [
            *(written(f) for f in functions if f.role != "norm"),
            *({"name": "head", "n": n, "steps": []} for n in left),  # what they give is the hidden rows
        ],
        **({"embedding": {"pooling": pooling, "functions": norms}} if norms else {}),
        "hidden": hidden,
        **({"arriving": {**hidden, "arena": layout.arriving}} if layout.arriving is not None else {}),
        "logits": hidden if left else {"arena": layout.logits, "bytes_per_row": logits_row_bytes},
    }


def _first_output(buffers: Sequence[Any]) -> int:
    """Index of a kernel's first output.

    It is the last buffer, or of rows that are quantized q, of routes to experts ids; where attention's workgroups are
    counted (gpu/attention_whole.py) turns, and of a layer with the next norm (gpu/fused.py) total.
    """
    names = [buffer.name for buffer in buffers]
    if "turns" in names:
        return names.index("turns")
    if names[-3:] == ["total", "q", "scale"]:
        return len(names) - 3
    if names[-2:] == ["ids", "weights"]:
        return len(names) - 2
    return names.index("q") if names[-1] in ("scale", "sum") else len(names) - 1
