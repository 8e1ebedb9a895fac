"""Matrices that are larger than what a GPU binds at once: cut by rows into tensors of their own.

A step that reads such a tensor becomes one for each part: of a linear layer, each writes its columns of the result; of
an embedding, each writes the rows of the tokens that it has; of a mixture of experts, whose weights are one matrix,
each computes what it has of the experts that rows go to, wherever one ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from crosscompile.arithmetic import constant
from crosscompile.compiled import Parameter
from crosscompile.errors import CodegenError
from crosscompile.gpu.build import PART_ROWS
from crosscompile.gpu.choose import linear_of
from crosscompile.gpu.grouped import declare_activation, declare_weight, grouped_linear
from crosscompile.gpu.linear import Linear
from crosscompile.kernels.build import Builder, kernel, kernel_maker, origin_of
from crosscompile.kernels.linear import KIND
from crosscompile.packing import Packing
from crosscompile.passes.lower_operators import Stored
from crosscompile.plan import Function, Kernels, Weights
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import Target


def parts_of(packing: str, shape: tuple[int, ...], gpu: Gpu) -> list[tuple[int, int]]:
    """(first row, rows) of each part of a tensor; none where it is whole."""
    form = Packing.parse(packing)
    if form.kind == "vec":
        return []
    out, columns = shape
    sizes = form.stored(PART_ROWS, columns).values()
    each = max(dtype.itemsize * prod(size) for size, dtype in sizes) // PART_ROWS
    if out * each <= gpu.binding_bytes:
        return []
    most = max(gpu.binding_bytes // each // PART_ROWS, 1) * PART_ROWS
    rows = -(-out // -(-out // most) // PART_ROWS) * PART_ROWS  # as many parts as need be, of one size
    return [(first, min(rows, out - first)) for first in range(0, out, rows)]


def part_name(tensor: str, part: int) -> str:
    return f"{tensor}.{part}"


def split_parameters(parameters: Iterable[Parameter], gpu: Gpu) -> tuple[Parameter, ...]:
    """The bundle's tensors, with parts instead of what is too large."""
    made = []
    for each in parameters:
        parts = parts_of(each.packing, each.shape, gpu)
        for i, (first, rows) in enumerate(parts):
            name, shape = part_name(each.name, i), (rows, *each.shape[1:])
            made.append(replace(each, name=name, shape=shape, part_of=(each, first)))
        made += [] if parts else [each]
    return tuple(made)


def split_large(
    functions: Sequence[Function], kernels: Kernels, weights: Weights, stored: Mapping[str, Stored], target: Target
) -> tuple[list[Function], Weights]:
    """The functions with steps for parts, and the tensors that they read; `kernels` gets what computes parts."""
    gpu = target.gpu
    assert gpu is not None
    cut = {
        place.tensor: (place, parts)
        for place in stored.values()
        if (parts := parts_of(place.packing, place.shape, gpu))
    }
    names, made = list(weights.positions), Weights(constants=weights.constants)

    def argument(kind: str, value: Any) -> tuple[str, Any]:
        return (kind, made.index(names[value], weights.bytes_of[names[value]])) if kind == "w" else (kind, value)

    def steps_of(symbol: str, args: tuple[tuple[str, Any], ...]) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
        tensor = next((names[value] for kind, value in args if kind == "w" and names[value] in cut), None)
        if tensor is None:
            return [(symbol, tuple(argument(*each) for each in args))]
        place, parts = cut[tensor]
        suffixes = {tensor + suffix: suffix for suffix in Packing.parse(place.packing).stored(*place.shape)}
        found = []
        for i, (first, rows) in enumerate(parts):
            name = f"{symbol}_part{i}"
            if name not in kernels.functions:
                kernels.functions[name] = _part(symbol, kernels.functions[symbol], tensor, first, rows, target)
            sizes = Packing.parse(place.packing).stored(rows, place.shape[1])
            taken = []
            for kind, value in args:
                suffix = suffixes.get(names[value]) if kind == "w" else None
                if suffix is None:
                    taken.append(argument(kind, value))
                    continue
                shape, dtype = sizes[suffix]
                taken.append(("w", made.index(part_name(tensor, i) + suffix, prod(shape) * dtype.itemsize)))
            found.append((name, tuple(taken)))
        return found

    changed = [
        replace(each, steps=tuple(step for symbol, args in each.steps for step in steps_of(symbol, args)))
        for each in functions
    ]
    return changed, made


def _part(symbol: str, function: Any, tensor: str, first: int, rows: int, target: Target) -> Any:
    """What computes, for planning, of a kernel's matrix `rows` rows from `first` on."""
    origin = origin_of(function)
    if KIND.search(symbol):
        work = linear_of(symbol, function, target)
        return linear_part(replace(work, rows=rows, first=first, whole=work.rows))
    if origin is not None and origin.name == "embed":
        return embed_part(**{**origin.arguments, "vocab": rows, "first": first})
    if origin is not None and origin.name == "expert_linear":
        return expert_part(**{k: v for k, v in origin.arguments.items() if k != "tier"}, first=first, held=rows)
    if origin is not None and origin.name == "grouped_linear":
        return grouped_linear(replace(origin.arguments["work"], first=first, held=rows))
    raise CodegenError(
        f"{tensor} is larger than what the board's GPU binds at once ([vulkan] binding_bytes), and kernel {symbol} "
        "cannot read it in parts; use --device cpu"
    )


@kernel_maker
def linear_part(work: Linear) -> Any:
    """What some rows of a linear layer take and give, for planning; only GPUs have it."""
    form = Packing.parse(work.packing)

    def body(k: Builder) -> None:
        declare_activation(k, form, work.n, work.columns)
        declare_weight(k, form, work.rows, work.columns)
        for i, bias in enumerate(work.addends):
            k.buffer(f"addend{i}", (work.whole,) if bias else (work.n, work.whole), "float32")
        y = k.buffer("y", (work.n, work.whole), "float32")
        with k.shared(1) as unit:
            k.store(y, constant(0.0, 1), unit, 0)

    return kernel("linear_part", body)


@kernel_maker
def expert_part(
    n: int, rows: int, each: int, out: int, total: int, columns: int, packing: str, first: int, held: int
) -> Any:
    """What some rows of all experts' weights take and give, for planning; only GPUs have it."""
    form = Packing.parse(packing)

    def body(k: Builder) -> None:
        declare_activation(k, form, rows // each, columns)
        k.buffer("ids", (rows,), "int32")
        k.buffer("tokens", (n,), "int32")
        declare_weight(k, form, held, columns)
        y = k.buffer("y", (rows, out), "float32")
        with k.shared(1) as unit:
            k.store(y, constant(0.0, 1), unit, 0)

    return kernel("expert_part", body)


@kernel_maker
def embed_part(n: int, vocab: int, columns: int, packing: str, times: float, padded: bool, first: int) -> Any:
    """What an embedding of the tokens from `first` on takes and gives, for planning; only GPUs have it."""

    def body(k: Builder) -> None:
        k.buffer("tokens", (n,), "int32")
        declare_weight(k, Packing.parse(packing), vocab, columns)
        x = k.buffer("x", (n, columns), "float32")
        with k.shared(1) as unit:
            k.store(x, constant(0.0, 1), unit, 0)

    return kernel("embed_part", body)
