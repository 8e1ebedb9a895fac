"""The line from config.json to kernels.so and plan.json: trace, lower, generate code, plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.relax.frontend import nn

from crosscompile.codegen import Signature, compile_kernels
from crosscompile.compiled import CompiledModel, Parameter
from crosscompile.errors import ConfigError
from crosscompile.kernels.kv_cache import KV_BLOCK, SESSIONS_CAP, kv_dtype, state_bytes, state_shapes
from crosscompile.kernels.linear import Tuned, Workload, workload
from crosscompile.kinds import KINDS, check_columns
from crosscompile.lower import FUNCTION, linear_layers, lower
from crosscompile.models import architecture_for
from crosscompile.models.architecture import WEIGHT_KINDS, Architecture, Network, Scheme
from crosscompile.models.decoder import LaterBody
from crosscompile.models.design import EMBEDDING, HEAD, POSITIONS
from crosscompile.packing import Packing
from crosscompile.passes.lower_operators import Stored
from crosscompile.plan import Function, Kernels, State, Weights, read_function, write_plan
from crosscompile.target import Target

GATES = (
    ".mlp.gate.weight",
    ".mlp.shared_expert_gate.weight",
    ".mixer.dt_low.weight",
    ".mixer.dt_proj.weight",
    ".mixer.bc_proj.weight",
    *(f".mixer.{letter}.{which}_proj.weight" for letter in "wav" for which in ("down", "up")),
)
"""What decides which experts a token goes to, or stands in exponents: small, and not to be rounded to integers."""
RATES = (".mixer.A", ".mixer.r_k")
"""Tables of numbers that no matrix multiplication reads."""


@dataclass(frozen=True)
class Ladder:
    """Row counts that functions exist for. A prompt is covered by the largest that fit, its tail by masking.

    Logits do not depend on it, bit for bit: a short ladder only costs speed.
    """

    body: tuple[int, ...]
    head: tuple[int, ...]


FULL_LADDER = Ladder((1, 2, 4, 8, 32, 64), (1, 2, 4, 8))
GPU_LADDER = Ladder((1, 8, 32, 128), (1, 8))
"""What a GPU gets: a few rows while weights pass by, and tiles that fill it."""
MATRIX_LADDER = Ladder((*GPU_LADDER.body, 512), GPU_LADDER.head)
"""With matrix units, which take more to be filled."""
SPLIT_LADDER = Ladder((1, 8, 32, 64), (1, 8))
"""What both halves get where layers are split between a GPU and the processor."""
SHORT_LADDER = Ladder((1, 8), (1,))
"""Quick to compile: for golden prompts on the host."""


def ladder_for(target: Target) -> Ladder:
    """What a whole network gets."""
    if target.gpu is None:
        return FULL_LADDER
    return MATRIX_LADDER if target.gpu.has_matrices else GPU_LADDER


Layers = tuple[int, int | None]
"""[first, end) of a network. Those that do not begin it take hidden rows in place of tokens; None: to the last and the
head, else hidden rows are what they leave."""

NORM_LADDER = (1, 8)
"""For embeddings. No longer than the head's, so that it needs no more of the arena."""


def compile_model(
    config: Mapping[str, Any],
    target: Target,
    scheme: Scheme,
    dump: Path | None = None,
    ladder: Ladder = FULL_LADDER,
    tuned: Tuned | None = None,
    pooling: str | None = "mean",
    layers: Layers | None = None,
) -> CompiledModel:
    """Compiles a config.json for a target.

    dump: a folder that gets the IR after each phase. tuned: knobs that tuning found, by workload; speed, never bits.
    pooling: how embeddings are made of a text's tokens, "mean" or "last"; None: there are none, nor on a GPU.
    layers: some of them alone, for a device that shares the network with another one.
    Raises ConfigError for what is not supported, CodegenError and PlanError where lowering fails.
    """
    name, architecture = architecture_for(config)
    network = _network(architecture, config, scheme, layers)
    leaves_rows = layers is not None and layers[1] is not None
    tier = target.tier
    stored: dict[str, Stored] = {}
    functions, kernels = [], Kernels()
    weights, seconds = Weights(), {"trace": 0.0, "lower": 0.0}

    roles = [("body", ladder.body), *([] if leaves_rows else [("head", ladder.head)])]
    embeds = not leaves_rows and pooling is not None and network.norm is not None and target.gpu is None
    roles += [("norm", NORM_LADDER)] if embeds else []
    for role, counts in roles:
        for n in counts:
            start = time.monotonic()
            traced, parameters = trace(network, role, n, max(ladder.body))
            for parameter, tensor in parameters:
                shape = tuple(int(extent) for extent in tensor.shape)
                stored[parameter] = place_parameter(parameter, shape, network, scheme, target)
            seconds["trace"] += time.monotonic() - start
            start = time.monotonic()
            folder = dump / f"{role}-{n}" if dump else None
            names = [parameter for parameter, _ in parameters]
            lowered = lower(traced, names, stored, tier, folder, tuned, schedule=target.gpu is None)
            symbols = kernels.add(role, n, lowered)
            functions.append(read_function(role, n, lowered, symbols, weights))
            seconds["lower"] += time.monotonic() - start

    start = time.monotonic()
    if target.gpu is not None:
        from crosscompile.gpu.split import split_large

        functions, weights = split_large(functions, kernels, weights, stored, target)
    code, signatures = _generate(kernels.functions, functions, weights, target, dump, tuned)
    seconds["generate code"] = time.monotonic() - start
    states = states_of(network)
    row_bytes = 4 * network.hidden_size, 0
    if not leaves_rows:
        row_bytes = 4 * network.hidden_size, 4 * Packing.parse(stored[HEAD].packing).padded_rows(network.vocab_size)
    plan = write_plan(functions, kernels, signatures, weights, states, *row_bytes, pooling or "")
    parameters_ = _bound(parameters_of(stored, network, weights), target)
    goes_on = layers is not None and layers[0] > 0  # a tied head is the embedding of layers elsewhere
    counted = [p for p in parameters_ if p.value is None and not (goes_on and p.name == EMBEDDING)]
    count = sum(int(np.prod(p.shape)) for p in counted)
    windows = {heads.window for heads in network.heads}
    return CompiledModel(
        code,
        plan,
        parameters_,
        {
            "arena_bytes": plan["arena_bytes"],
            "arena_unplanned_bytes": max(f.unplanned_bytes for f in functions),
            **state_memory(network),
        },
        {
            "architecture": name,
            "vocab_size": network.vocab_size,
            "context_length": network.context_length,
            "sliding_window": windows.pop() if len(windows) == 1 else 0,
            "n_layers": network.depth,
            "parameters": count,
        },
        seconds,
    )


def _generate(
    kernels: Mapping[str, Any],
    functions: Sequence[Function],
    weights: Weights,
    target: Target,
    dump: Path | None,
    tuned: Tuned | None,
) -> tuple[bytes, dict[str, Signature]]:
    """kernels.so or kernels.spv, and how each kernel is called. dump: gets a GPU's, each as SPIR-V and GLSL."""
    if target.gpu is None:
        return compile_kernels(kernels, target)
    from crosscompile.gpu.choose import check_sizes, compile_shaders, glsl_of

    check_sizes(weights.bytes_of, target.gpu)
    used = {name for function in functions for name, _ in function.steps}
    kept = {name: kernels[name] for name in kernels if name in used}
    code, signatures, shaders = compile_shaders(kept, target, tuned)
    if dump:
        for name, shader in shaders.items():
            (dump / f"{name}.spv").write_bytes(shader.code)
            (dump / f"{name}.comp").write_text(glsl_of(name, kernels[name], target, tuned))
    return code, signatures


def _network(architecture: Architecture, config: Mapping[str, Any], scheme: Scheme, layers: Layers | None) -> Network:
    """The network, or some of its layers."""
    whole = architecture.build(config, scheme.kv)
    if layers is None:
        return whole
    if whole.part is None:
        raise ConfigError("config.json: a network of this architecture cannot be split between devices")
    return whole.part(*layers)


def outline(
    config: Mapping[str, Any], target: Target, scheme: Scheme, layers: Layers | None = None
) -> tuple[tuple[Parameter, ...], dict[str, int]]:
    """(parameters from the checkpoint, state_memory), without compiling: what can be checked first.

    Raises ConfigError for what is not supported.
    """
    _, architecture = architecture_for(config)
    network = _network(architecture, config, scheme, layers)
    leaves_rows = layers is not None and layers[1] is not None
    stored: dict[str, Stored] = {}
    for role in ("body",) if leaves_rows else ("body", "head"):
        for parameter, tensor in trace(network, role, 1, 1)[1]:
            shape = tuple(int(extent) for extent in tensor.shape)
            stored[parameter] = place_parameter(parameter, shape, network, scheme, target)
    return _bound(parameters_of(stored, network, Weights()), target), state_memory(network)


@dataclass(frozen=True)
class LinearLayer:
    """One kernel that tuning can look for a better schedule of.

    function  not scheduled; calls: how often the network calls it for one pass over n rows
    """

    work: Workload
    function: Any
    calls: int


def linear_layers_of(
    config: Mapping[str, Any], target: Target, scheme: Scheme, ladder: Ladder = FULL_LADDER
) -> tuple[LinearLayer, ...]:
    """The unique linear layers of a model, for every row count of the ladder. Raises ConfigError."""
    _, architecture = architecture_for(config)
    network = architecture.build(config, scheme.kv)
    found: dict[str, LinearLayer] = {}
    for role, counts in (("body", ladder.body), ("head", ladder.head)):
        for n in counts:
            traced, parameters = trace(network, role, n, max(ladder.body))
            stored = {
                name: place_parameter(name, tuple(int(e) for e in tensor.shape), network, scheme, target)
                for name, tensor in parameters
            }
            for function, packing, calls in linear_layers(
                traced, [name for name, _ in parameters], stored, target.tier
            ):
                work = workload(function, packing)
                earlier = found[work.key].calls if work.key in found else 0
                found[work.key] = LinearLayer(work, function, earlier + calls)
    return tuple(found.values())


def trace(network: Network, role: str, n: int, most: int) -> tuple[tvm.IRModule, list[tuple[str, Any]]]:
    """The Relax function of one row count, and its parameters in order."""
    if role in ("head", "norm"):
        spec: dict[str, Any] = {
            "hidden": nn.spec.Tensor((most, network.hidden_size), "float32"),
            "rows": nn.spec.Tensor((n,), "int32"),
        }
        module = network.head if role == "head" else network.norm
        assert module is not None
    else:
        states = []
        for heads in network.heads:
            states += [nn.spec.Tensor(shape, kv_dtype(heads.dtype)) for shape in state_shapes(heads)]
        states += [nn.spec.Tensor(state.shape, "float32") for state in network.recurrent]
        arriving = {"arriving": nn.spec.Tensor((n, network.hidden_size), "float32")}
        spec = {
            **(arriving if isinstance(network.body, LaterBody) else {}),
            "tokens": nn.spec.Tensor((n,), "int32"),
            "positions": nn.spec.Tensor((n,), "int32"),
            "slots": nn.spec.Tensor((n,), "int32"),
            "block_table": nn.spec.Tensor((SESSIONS_CAP, "table_cap"), "int32"),
            "states": states,
        }
        module = network.body
    return module.export_tvm(spec={FUNCTION: spec})


def place_parameter(name: str, shape: tuple[int, ...], network: Network, scheme: Scheme, target: Target) -> Stored:
    """Where and how a parameter is stored. A tied head shares the embedding's tensor if it is packed alike."""
    if len(shape) != 2 or name.endswith(RATES):
        return Stored(name, "vec", shape)
    if name.endswith(GATES):
        return Stored(name, target.tier.packing("f32" if scheme.body == "f32" else "f16"), shape)
    parts = {EMBEDDING: "embedding", POSITIONS: "embedding", HEAD: "head"}
    own = scheme.of(name, parts.get(name, "body"))
    if name == HEAD and network.tied and own == scheme.of(EMBEDDING, "embedding"):
        name = EMBEDDING
    kind = WEIGHT_KINDS[own]
    if kind in KINDS:
        check_columns(name, shape[1], kind)
    return Stored(name, target.tier.packing(kind), shape)


def states_of(network: Network) -> list[State]:
    """Every state, in the order of the plan."""
    states = []
    for layer, heads in enumerate(network.heads):
        size = state_bytes(heads)
        states += [State(f"k.{layer}", size), State(f"v.{layer}", size)]
    return states + [State(each.name, each.n_bytes, per_session=True) for each in network.recurrent]


def state_memory(network: Network) -> dict[str, int]:
    """kv_bytes_per_token, and, where a session keeps a state of one size, state_bytes_per_session."""
    states = states_of(network)
    memory = {"kv_bytes_per_token": sum(state.n_bytes for state in states if not state.per_session) // KV_BLOCK}
    fixed = sum(state.n_bytes for state in states if state.per_session)
    return memory | ({"state_bytes_per_session": fixed} if fixed else {})


def parameters_of(stored: Mapping[str, Stored], network: Network, weights: Weights) -> tuple[Parameter, ...]:
    made: dict[str, Parameter] = {}
    for place in stored.values():
        if place.tensor in made:
            continue
        parts = place.tensor.split(".")
        shard = f"layer-{int(parts[2]):03}" if parts[:2] == ["model", "layers"] else "head"
        shard = "embedding" if place.tensor in (EMBEDDING, POSITIONS) else shard
        sources = network.sources.get(place.tensor, (place.tensor,))
        made[place.tensor] = Parameter(place.tensor, tuple(sources), place.shape, place.packing, shard)
    for name, value in weights.constants.items():
        made[name] = Parameter(name, (), value.shape, "vec", "constants", value)
    return tuple(made.values())


def _bound(parameters: tuple[Parameter, ...], target: Target) -> tuple[Parameter, ...]:
    """The tensors of the bundle as the target's device binds them."""
    if target.gpu is None:
        return parameters
    from crosscompile.gpu.split import split_parameters

    return split_parameters(parameters, target.gpu)
