"""What a decoder is made of, as plain data: what a family says of its config.json, and all that builds a network reads.

Nothing here needs TVM. Parameters have one set of names for all families, Llama's; `sources` says which tensors of the
checkpoint each is made of.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models.rope import Rope
from crosscompile.pieces import Sources

EMBEDDING, POSITIONS, HEAD = "model.embed_tokens.weight", "model.embed_positions.weight", "lm_head.weight"


NORMS = {
    "before": ("input_layernorm", "post_attention_layernorm"),
    "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "parallel": ("input_layernorm", "post_attention_layernorm"),
    "parallel shared": ("input_layernorm",),
    "mixer": ("input_layernorm",),
}
"""The norms of a block by Design.arrangement, in the order of their use."""


@dataclass(frozen=True)
class Norm:
    """kind: "rms", or "layer", which subtracts the mean; bias: added at the end, "layer" only."""

    epsilon: float
    kind: str = "rms"
    bias: bool = False


@dataclass(frozen=True)
class QueryKeyNorm:
    """What normalizes queries and keys before they are rotated.

    over   "head": each head by itself, or "row": all heads together
    """

    over: str
    norm: Norm


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of one feed-forward.

    total, used   experts, and how many of them each token goes to
    width         of an expert's hidden layer
    normalized    whether the weights of the experts used are divided by their sum
    shared        width of an expert that every token goes to, behind a gate of its own; 0 for none
    """

    total: int
    used: int
    width: int
    normalized: bool
    shared: int = 0


@dataclass(frozen=True)
class Selective:
    """A selective state-space layer in place of attention: Mamba 1, or 2 where there are heads.

    inner     channels; states: numbers that each keeps from token to token; width: of the convolution before
    rank      of the projection that makes time steps (Mamba 1)
    epsilon   added to mean squares: of time steps, B and C (Mamba 1; 0: they are not normalized), of what is gated (2)
    heads     of inner / heads channels; groups of them share B and C; limit: of time steps (all Mamba 2)
    bias      of the projections in and out; conv_bias: of the convolution
    """

    inner: int
    states: int
    width: int
    rank: int = 0
    epsilon: float = 0.0
    heads: int = 0
    groups: int = 1
    limit: tuple[float, float] = (0.0, float("inf"))
    bias: bool = False
    conv_bias: bool = True


@dataclass(frozen=True)
class Rwkv:
    """RWKV-7's layer in place of attention, whose feed-forward sees the token before, too.

    head_dim    channels of a head; epsilon: added to the variance of one
    *_rank      of the low-rank projections that make decays, rates of removal, gates, and how far values are those of
                the first layer; value_rank is 0 in that one
    """

    head_dim: int
    decay_rank: int
    rate_rank: int
    gate_rank: int
    value_rank: int
    epsilon: float

    def first(self) -> Rwkv:
        """The first layer's."""
        return replace(self, value_rank=0)


@dataclass(frozen=True)
class Layer:
    """How a block differs from others of its network.

    window     positions that a row sees, 0 for all
    rope       index of its rotary embedding in Design.ropes; None: positions do not matter to it
    experts    None: one feed-forward
    selective  what stands in place of attention; None: attention
    """

    window: int = 0
    rope: int | None = 0
    experts: Experts | None = None
    selective: Selective | Rwkv | None = None


@dataclass(frozen=True, eq=False)
class Design:
    """A decoder, checked.

    kv_heads         that query heads share; head_dim: of one
    scores           what scores are multiplied by; None: 1 / √head_dim
    scores_cap       where tanh flattens scores, 0 for never
    arrangement      of norms and residuals in a block, from x:
                       "before"     y = x + attention(norm x); y + mlp(norm y)
                       "after"      y = x + norm(attention x); y + norm(mlp y)
                       "around"     y = x + norm(attention(norm x)); y + norm(mlp(norm y))
                       "parallel"   x + attention(norm x) + mlp(norm' x), and "parallel shared": both of one norm
                       "mixer"      x + attention(norm x): no feed-forward
    gated            activation(gate x) · (up x), else activation(up x)
    embedding_scale  what embeddings are multiplied by
    logits_cap       where tanh flattens logits, 0 for never
    positions        rows of a table of positions that is added to embeddings, 0 for none
    embedding_norm   whether embeddings are normalized
    first            number of the first layer, where these are but some of a network's
    """

    hidden: int
    intermediate: int
    vocab: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    norm: Norm
    ropes: tuple[Rope, ...]
    tied: bool
    qk_norm: QueryKeyNorm | None = None
    scores: float | None = None
    scores_cap: float = 0.0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    arrangement: str = "before"
    gated: bool = True
    activation: str = "silu"
    embedding_scale: float = 1.0
    logits_cap: float = 0.0
    positions: int = 0
    embedding_norm: bool = False
    sources: Sources = field(default_factory=dict)
    first: int = 0

    def prefixes(self) -> list[str]:
        """How parameter names of each layer begin."""
        return [f"model.layers.{self.first + index}." for index in range(len(self.layers))]

    def part(self, first: int, end: int | None) -> Design:
        """Layers [first, end) alone; None: to the last. ConfigError where they cannot be separated."""
        n, cut = len(self.layers), first or end or 0
        if not 0 < cut < n:
            can = (
                f"1 to {n - 1} can go to the GPU, and leave some, not {cut}" if n > 1 else "none can be left to others"
            )
            raise ConfigError(f"config.json: of {n} layers, {can}")
        if len({layer.selective is None for layer in self.layers}) > 1:
            raise ConfigError("config.json: layers with attention and others cannot be split between devices")
        if any(isinstance(layer.selective, Rwkv) for layer in self.layers):
            raise ConfigError("RWKV's layers read values of the first one, and cannot be split between devices")
        return replace(self, layers=self.layers[first:end], first=self.first + first)


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Names in config.json -> kernels."""


def activation(config: Mapping[str, Any], *keys: str, default: str, known: tuple[str, ...] = ()) -> str:
    """The activation that the first of `keys` names. known: names that this family's checkpoints have; () for all."""
    found = next((config[key] for key in keys if config.get(key) is not None), default)
    names = known or tuple(ACTIVATIONS)
    if found not in names:
        raise ConfigError(
            f"config.json: {keys[0]} {found!r} is not supported for this architecture; {', '.join(names)} "
            f"{'is' if len(names) == 1 else 'are'}"
        )
    return ACTIVATIONS.get(found, found)


MOST = {"num_hidden_layers": 1024, "n_layer": 1024, "num_attention_heads": 1024, "n_head": 1024, "num_heads": 1024}
MOST_OF_ALL = (1 << 31) - 1
"""What no network exceeds: each layer and head costs memory before a tensor is looked at."""


def with_fields(config: Mapping[str, Any], **fields: Any) -> Mapping[str, Any]:
    """config.json with other values for some fields; the others are still read from it one by one."""
    return ChainMap(fields, config)  # type: ignore[arg-type]  # it is never written to


def integer(config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """An integer of config.json; ConfigError names the field."""
    value = config.get(key)
    value = default if value is None else value
    most = MOST.get(key, MOST_OF_ALL)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"config.json: {key!r} must be an integer from {least} to {most}, not {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite positive number of config.json; ConfigError names the field."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ConfigError(f"config.json: {key!r} must be a positive number, not {value!r}")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A truth value of config.json; null is the default."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key!r} must be true or false, not {value!r}")
    return value


def multiple(config: Mapping[str, Any], key: str, value: int, of: int) -> int:
    """Checks a size that kernels cut into groups."""
    if value % of:
        raise ConfigError(f"config.json: {key!r} is {value}; edgellm needs a multiple of {of}")
    return value


def epsilon(config: Mapping[str, Any], key: str, default: float) -> float:
    """What a norm adds to the mean square."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConfigError(f"config.json: {key} must lie between 0 and 1, not {value!r}")
    return float(value)


def window(config: Mapping[str, Any], key: str = "sliding_window") -> int:
    """Positions that attention sees, 0 for all."""
    value = config.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"config.json: {key} must be a number of positions or null, not {value!r}")
    return value


def head_sizes(config: Mapping[str, Any], hidden: int, kv_key: str = "num_key_value_heads") -> tuple[int, int, int]:
    """(query heads, key-value heads, dimension of a head), as kernels can take them."""
    n_heads = integer(config, "num_attention_heads")
    n_kv = integer(config, kv_key, n_heads)
    dim = integer(config, "head_dim", hidden // n_heads)
    if n_heads % n_kv:
        raise ConfigError(f"config.json: {n_heads} attention heads cannot share {n_kv} key-value heads evenly")
    multiple(config, "head_dim", dim, 16)
    multiple(config, "num_attention_heads * head_dim", n_heads * dim, 32)
    if dim > 256:
        raise ConfigError(f"config.json: head_dim {dim} is larger than the 256 that edgellm supports")
    return n_heads, n_kv, dim


def layer_kinds(config: Mapping[str, Any], n_layers: int, otherwise: list[bool]) -> list[bool]:
    """Which layers see a window only: config.json's layer_types, or what the family does where it has none."""
    kinds = config.get("layer_types")
    if kinds is None:
        return otherwise
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in list(known) for kind in kinds):
        raise ConfigError(
            f"config.json: layer_types must name {' or '.join(known)} for each of the {n_layers} layers, not {kinds!r}"
        )
    return [known[kind] for kind in kinds]


def refuse(config: Mapping[str, Any], **expected: Any) -> None:
    """ConfigError for a field that changes the network in a way that is not built."""
    for key, value in expected.items():
        found = config.get(key)
        if found is not None and found != value:
            raise ConfigError(f"config.json: {key} {found!r} is not supported; only {value!r} is")


def parts(prefix: str, kinds: tuple[str, ...], names: tuple[str, ...], into: str) -> Iterator[tuple[str, Any]]:
    """Sources of a parameter that stacks several tensors: its weight, and its bias where `kinds` has that."""
    for kind in kinds:
        yield f"{prefix}{into}.{kind}", tuple(f"{prefix}{name}.{kind}" for name in names)
