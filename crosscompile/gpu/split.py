"""Embeddings and heads that are larger than what a GPU binds at once: cut by rows into tensors of their own.

A step that reads such a tensor becomes one for each part: of a head, each writes its columns of the result; of an
embedding, each writes the rows of the tokens that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from crosscompile.arithmetic import constant
from crosscompile.compiled import Parameter
from crosscompile.gpu.choose import linear_of
from crosscompile.gpu.linear import Linear
from crosscompile.kernels.build import Builder, kernel, kernel_maker, origin_of
from crosscompile.kernels.linear import KIND
from crosscompile.models.design import EMBEDDING, HEAD, POSITIONS
from crosscompile.packing import GROUP, Packing
from crosscompile.passes.lower_operators import Stored
from crosscompile.pieces import Piece, piece_of
from crosscompile.plan import Function, Kernels, Weights
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import Target

_TOGETHER = 64
"""Of whose multiples parts have rows: a tile of a linear layer."""


def parts_of(tensor: str, packing: str, shape: tuple[int, ...], gpu: Gpu) -> list[tuple[int, int]]:
    """(first row, rows) of each part of a tensor; none where it is whole."""
    if tensor not in (EMBEDDING, POSITIONS, HEAD):
        return []
    out, columns = shape
    sizes = Packing.parse(packing).stored(_TOGETHER, columns).values()
    each = max(dtype.itemsize * prod(size) for size, dtype in sizes) // _TOGETHER
    if out * each <= gpu.binding_bytes:
        return []
    most = max(gpu.binding_bytes // each // _TOGETHER, 1) * _TOGETHER
    rows = -(-out // -(-out // most) // _TOGETHER) * _TOGETHER  # as many parts as need be, of one size
    return [(first, min(rows, out - first)) for first in range(0, out, rows)]


def part_name(tensor: str, part: int) -> str:
    return f"{tensor}.{part}"


def split_parameters(parameters: Iterable[Parameter], gpu: Gpu) -> tuple[Parameter, ...]:
    """The bundle's tensors, with parts instead of what is too large."""
    made = []
    for each in parameters:
        parts = parts_of(each.name, each.packing, each.shape, gpu)
        for i, (first, rows) in enumerate(parts):
            (source,) = each.sources
            own, shape = (_rows_of(piece_of(source), first, rows),), (rows, *each.shape[1:])
            made.append(replace(each, name=part_name(each.name, i), sources=own, shape=shape, part_of=(each, first)))
        made += [] if parts else [each]
    return tuple(made)


def _rows_of(piece: Piece, first: int, rows: int) -> Piece:
    if not piece.ranges:
        return replace(piece, ranges=((first, rows),))
    found, at = [], 0
    for start, count in piece.ranges:
        low, high = max(first, at), min(first + rows, at + count)
        if low < high:
            found.append((start + low - at, high - low))
        at += count
    return replace(piece, ranges=tuple(found))


def split_large(
    functions: Sequence[Function], kernels: Kernels, weights: Weights, stored: Mapping[str, Stored], target: Target
) -> tuple[list[Function], Weights]:
    """The functions with steps for parts, and the tensors that they read; `kernels` gets what computes parts."""
    gpu = target.gpu
    assert gpu is not None
    cut = {
        place.tensor: (place, parts)
        for place in stored.values()
        if (parts := parts_of(place.tensor, place.packing, place.shape, gpu))
    }
    names, made = list(weights.positions), Weights(constants=weights.constants)

    def argument(kind: str, value: Any) -> tuple[str, Any]:
        return (kind, made.index(names[value], weights.bytes_of[names[value]])) if kind == "w" else (kind, value)

    def steps_of(symbol: str, args: tuple[tuple[str, Any], ...]) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
        tensor = next((names[value] for kind, value in args if kind == "w" and names[value] in cut), None)
        function = kernels.functions[symbol]
        origin = origin_of(function)
        embeds = origin is not None and origin.name == "embed"
        if tensor is None or not (embeds or KIND.search(symbol)):
            return [(symbol, tuple(argument(*each) for each in args))]
        place, parts = cut[tensor]
        suffixes = {tensor + suffix: suffix for suffix in Packing.parse(place.packing).stored(*place.shape)}
        found = []
        for i, (first, rows) in enumerate(parts):
            name = f"{symbol}_part{i}"
            if name not in kernels.functions:
                if origin is not None and embeds:
                    kernels.functions[name] = embed_part(**{**origin.arguments, "vocab": rows, "first": first})
                else:
                    work = linear_of(symbol, function, target)
                    kernels.functions[name] = linear_part(replace(work, rows=rows, first=first, whole=work.rows))
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


@kernel_maker
def linear_part(work: Linear) -> Any:
    """What some rows of a linear layer take and give, for planning; only GPUs have it."""
    form = Packing.parse(work.packing)

    def body(k: Builder) -> None:
        if form.quantized:
            k.buffer("a", (work.n, work.columns // GROUP, GROUP), "int8")
            k.buffer("scale_a", (work.n, work.columns // GROUP), "float32")
        else:
            k.buffer("x", (work.n, work.columns), "float32")
        _declare(k, form, work.rows, work.columns)
        for i, bias in enumerate(work.addends):
            k.buffer(f"addend{i}", (work.whole,) if bias else (work.n, work.whole), "float32")
        y = k.buffer("y", (work.n, work.whole), "float32")
        with k.shared(1) as unit:
            k.store(y, constant(0.0, 1), unit, 0)

    return kernel("linear_part", body)


@kernel_maker
def embed_part(n: int, vocab: int, columns: int, packing: str, times: float, padded: bool, first: int) -> Any:
    """What an embedding of the tokens from `first` on takes and gives, for planning; only GPUs have it."""

    def body(k: Builder) -> None:
        k.buffer("tokens", (n,), "int32")
        _declare(k, Packing.parse(packing), vocab, columns)
        x = k.buffer("x", (n, columns), "float32")
        with k.shared(1) as unit:
            k.store(x, constant(0.0, 1), unit, 0)

    return kernel("embed_part", body)


def _declare(k: Builder, form: Packing, rows: int, columns: int) -> None:
    """All that is stored of a weight."""
    for suffix, (shape, dtype) in form.stored(rows, columns).items():
        k.buffer(f"w{suffix.replace('.', '_')}", shape, str(dtype))
