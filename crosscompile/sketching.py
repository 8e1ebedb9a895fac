"""What a model will take, from its config.json alone: weights, memory, launches and multiplications. No code is made.

Lowering stops before code generation, so the figures are those of the plan that compiling would write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crosscompile.compiled import Parameter
from crosscompile.lower import lower
from crosscompile.models import architecture_for
from crosscompile.models.architecture import Network, Scheme
from crosscompile.models.design import EMBEDDING, HEAD, POSITIONS
from crosscompile.packing import Packing
from crosscompile.passes.lower_operators import Stored
from crosscompile.plan import Function, Kernels, Weights, arena_layout, read_function
from crosscompile.program import FULL_LADDER, parameters_of, place_parameter, state_memory, trace
from crosscompile.quantize import stored_slots
from crosscompile.sketch import Matrix, Sketch
from crosscompile.target import Target


def sketch(config: Mapping[str, Any], target: Target, scheme: Scheme) -> Sketch:
    """The Sketch of a config.json. Raises ConfigError for what is not supported, PlanError where lowering fails."""
    return sketches(config, [target], scheme)[target.tier.name]


def sketches(config: Mapping[str, Any], targets: Sequence[Target], scheme: Scheme) -> dict[str, Sketch]:
    """The Sketch for each of several tiers, by name, in little more time than for one.

    The network is lowered for the first: launches are the same on all, and arenas differ by a hundredth.
    """
    name, architecture = architecture_for(config)
    network = architecture.build(config, scheme.kv)
    weights, kernels = Weights(), Kernels()
    # The largest functions decide the arena, the smallest decode.
    sizes = (("body", 1), ("body", max(FULL_LADDER.body)), ("head", 1), ("head", max(FULL_LADDER.head)))
    shapes: dict[str, tuple[int, ...]] = {}
    functions = [_function(*size, network, scheme, targets[0], shapes, weights, kernels) for size in sizes]
    found = {}
    for target in targets:
        stored = {tensor: place_parameter(tensor, shape, network, scheme, target) for tensor, shape in shapes.items()}
        head_rows = Packing.parse(stored[HEAD].packing).padded_rows(network.vocab_size)
        arena = arena_layout(functions, 4 * network.hidden_size, 4 * head_rows).n_bytes
        found[target.tier.name] = _sketch(
            name, network, functions, parameters_of(stored, network, weights), stored, arena
        )
    return found


def _sketch(
    name: str,
    network: Network,
    functions: Sequence[Function],
    parameters: Sequence[Parameter],
    stored: Mapping[str, Stored],
    arena: int,
) -> Sketch:
    sizes = {p.name: sum(slot.n_bytes for slot in stored_slots(p).values()) for p in parameters}
    head, lookup = stored[HEAD].tensor, EMBEDDING
    matrices = [p for p in parameters if len(p.shape) == 2 and p.packing != "vec" and p.value is None]
    memory = state_memory(network)
    windows = {heads.window for heads in network.heads}
    return Sketch(
        architecture=name,
        parameters=sum(int(np.prod(p.shape, dtype=np.int64)) for p in parameters if p.value is None),
        weight_bytes=sum(sizes.values()),
        lookup_bytes=(0 if head == lookup else sizes[lookup]) + sizes.get(POSITIONS, 0),
        vector_bytes=sum(sizes.values()) - sum(sizes[p.name] for p in matrices),
        body=_matrices([p for p in matrices if p.name not in (lookup, head, POSITIONS)], sizes, network.shares),
        head=_matrices([p for p in matrices if p.name == head], sizes, {}),
        arena_bytes=arena,
        kv_bytes_per_token=memory["kv_bytes_per_token"],
        state_bytes=memory.get("state_bytes_per_session", 0),
        attention=sum(heads.query * heads.dim for heads in network.heads),
        window=windows.pop() if len(windows) == 1 else 0,
        launches={f"{f.role} {f.n}": len(f.steps) for f in functions},
        context_length=network.context_length,
        vocab_size=network.vocab_size,
        n_layers=network.depth,
    )


def _function(
    role: str,
    n: int,
    network: Network,
    scheme: Scheme,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
    weights: Weights,
    kernels: Kernels,
) -> Function:
    """One lowered function; notes its parameters' shapes."""
    traced, parameters = trace(network, role, n, max(FULL_LADDER.body))
    stored: dict[str, Stored] = {}
    for parameter, tensor in parameters:
        shapes[parameter] = tuple(int(extent) for extent in tensor.shape)
        stored[parameter] = place_parameter(parameter, shapes[parameter], network, scheme, target)
    lowered = lower(traced, [parameter for parameter, _ in parameters], stored, target.tier)
    return read_function(role, n, lowered, kernels.add(role, n, lowered), weights)


def _matrices(parameters: list[Parameter], sizes: Mapping[str, int], shares: Mapping[str, float]) -> tuple[Matrix, ...]:
    """Added up by kind; padding rows are multiplied too. shares: of mixtures, what one token needs of them."""
    found: dict[str, tuple[int, int]] = {}
    for parameter in parameters:
        form, share = Packing.parse(parameter.packing), shares.get(parameter.name, 1.0)
        out, columns = parameter.shape
        kind = form.about.base if form.quantized else form.kind  # instructions do not depend on how many share a scale
        products, n_bytes = found.get(kind, (0, 0))
        products += round(form.padded_rows(out) * columns * share)
        found[kind] = (products, n_bytes + round(sizes[parameter.name] * share))
    return tuple(Matrix(kind, *values) for kind, values in found.items())
