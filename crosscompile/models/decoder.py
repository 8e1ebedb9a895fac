"""The network that a Design describes, as Relax modules: one set of blocks for all families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from crosscompile.kernels.attention import attention
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.recurrent import Recurrent
from crosscompile.kernels.rotary import Turn, rope_append, rope_table
from crosscompile.kernels.rows import gather
from crosscompile.models import design, rwkv
from crosscompile.models.architecture import Network, constant
from crosscompile.models.design import Design, Rwkv
from crosscompile.models.experts import Mixture
from crosscompile.models.rope import Rope
from crosscompile.models.selective import MambaHeads, MambaLayer, states_of

Tensor = Any


def heads_of(made: Design, layer: design.Layer, kv: str) -> Heads:
    """The attention of one layer. kv: dtype of its cache."""
    return Heads(made.heads, made.kv_heads, made.head_dim, kv, layer.window, made.scores, made.scores_cap)


class LayerNorm(nn.Module):
    """Layer normalization, with or without a bias."""

    def __init__(self, width: int, norm: design.Norm) -> None:
        self.width, self.epsilon = width, norm.epsilon
        self.weight = nn.Parameter((width,))
        self.bias = nn.Parameter((width,)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return op.layer_norm(x, self.width, self.weight, self.bias, self.epsilon)


def norm_of(made: Design) -> nn.Module:
    """A norm over hidden rows."""
    if made.norm.kind == "layer":
        return LayerNorm(made.hidden, made.norm)
    return nn.RMSNorm(made.hidden, -1, made.norm.epsilon, bias=False)


class Weights(nn.Module):
    """A vector under a name of its own."""

    def __init__(self, width: int) -> None:
        self.weight = nn.Parameter((width,))


def numbered(function: Any, number: int) -> Any:
    """A kernel under a symbol of its own, where a network has several of the kind; the first keeps its name."""
    return function.with_attr("global_symbol", f"{function.attrs['global_symbol']}{number + 1}") if number else function


class Attention(nn.Module):
    """Grouped-query attention over the block KV cache. QKV are one matmul."""

    def __init__(self, made: Design, layer: design.Layer, kv: str) -> None:
        kinds = list(dict.fromkeys((each.window, each.rope) for each in made.layers))
        self.number = kinds.index((layer.window, layer.rope))
        heads = heads_of(made, layer, kv)
        self.heads, self.rope = heads, layer.rope
        rotated = 0 if layer.rope is None else 2 * len(made.ropes[layer.rope].inv_freq)
        self.turn = Turn(rotated)
        width = (heads.query + 2 * heads.kv) * heads.dim
        self.qkv_proj = nn.Linear(made.hidden, width, bias=made.qkv_bias)
        self.o_proj = nn.Linear(heads.query * heads.dim, made.hidden, bias=made.o_bias)
        if made.qk_norm is not None:
            norm = made.qk_norm.norm
            self.turn = Turn(rotated, made.qk_norm.over, norm.kind == "layer", norm.epsilon)
            self.q_norm, self.k_norm = Weights(heads.query * heads.dim), Weights(heads.kv * heads.dim)

    def forward(self, x: Tensor, rows_: Rows, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, heads = x.shape[0], self.heads
        state = (rows_.positions, rows_.slots, rows_.block_table, k, v)
        out = nn.Tensor.placeholder((n, heads.query * heads.dim), "float32")
        turned = [] if self.rope is None else [rows_.ropes[self.rope]]
        if self.turn.over:
            turned += [self.q_norm.weight, self.k_norm.weight]
        place = 4 + len(turned)
        k, v, q = op.tensor_ir_inplace_op(
            numbered(rope_append(n, heads, self.turn), self.number),
            "rope_append",
            [self.qkv_proj(x), *turned, *state],
            inplace_indices=[place, place + 1, -1],
            out=[k, v, out],
        )
        kernel = numbered(attention(n, heads), self.number)
        mixed = op.tensor_ir_op(kernel, "attention", [q, *state[:3], k, v], out=out)
        return self.o_proj(mixed), k, v


@dataclass
class Rows:
    """What every layer is told about the rows of a step. first_values: what RWKV's first layer leaves to the others."""

    positions: Tensor
    slots: Tensor
    block_table: Tensor
    ropes: list[Tensor | None]
    first_values: Tensor = None


_ACTIVATIONS = {"silu": op.silu, "gelu": op.gelu, "gelu_tanh": lambda x: op.gelu(x, "tanh")}


class FeedForward(nn.Module):
    """SwiGLU and its like. Gate and up are one matmul."""

    def __init__(self, made: Design) -> None:
        self.activation = _ACTIVATIONS[made.activation]
        self.gate_up_proj = nn.Linear(made.hidden, 2 * made.intermediate, bias=made.mlp_bias)
        self.down_proj = nn.Linear(made.intermediate, made.hidden, bias=made.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(self.activation(gate) * up)


class PlainFeedForward(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self, made: Design) -> None:
        self.activation = _ACTIVATIONS[made.activation]
        self.up_proj = nn.Linear(made.hidden, made.intermediate, bias=made.mlp_bias)
        self.down_proj = nn.Linear(made.intermediate, made.hidden, bias=made.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(nn.Module):
    """One transformer block, or one with another mixer in place of attention, which keeps two states, too."""

    def __init__(self, made: Design, layer: design.Layer, kv: str, feed_forward: type[nn.Module]) -> None:
        self.arrangement, self.layer = made.arrangement, layer
        names = design.NORMS[made.arrangement]  # in the order of their use, in which the weights are stored
        first = [name for name in names if name == "input_layernorm"]
        for name in first:
            setattr(self, name, norm_of(made))
        if layer.selective is None:
            self.self_attn = Attention(made, layer, kv)
        elif isinstance(layer.selective, Rwkv):
            self.mixer = rwkv.TimeMix(made.hidden, layer.selective)
        else:
            self.mixer = (MambaHeads if layer.selective.heads else MambaLayer)(made.hidden, layer.selective)
        for name in names[len(first) :]:
            setattr(self, name, norm_of(made))
        mixture = layer.experts
        if mixture is not None:
            self.mlp = Mixture(made, mixture, feed_forward, _ACTIVATIONS[made.activation])
        elif isinstance(layer.selective, Rwkv):
            self.mlp = rwkv.ChannelMix(made.hidden, made.intermediate)
        elif made.arrangement != "mixer":
            self.mlp = feed_forward(made)

    def forward(self, x: Tensor, rows_: Rows, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norms = [getattr(self, name) for name in design.NORMS[self.arrangement]]
        mixer = self.self_attn if self.layer.selective is None else self.mixer
        if self.arrangement.startswith("parallel"):
            h = norms[0](x)
            mixed, k, v = mixer(h, rows_, k, v)
            return x + mixed + self.mlp(norms[1](x) if len(norms) > 1 else h), k, v
        if self.arrangement == "after":
            mixed, k, v = mixer(x, rows_, k, v)
            x = x + norms[0](mixed)
            return x + norms[1](self.mlp(x)), k, v
        mixed, k, v = mixer(norms[0](x), rows_, k, v)
        if self.arrangement == "around":
            x = x + norms[1](mixed)
            return x + norms[3](self.mlp(norms[2](x))), k, v
        x = x + mixed
        if isinstance(self.layer.selective, Rwkv):
            out, k = self.mlp(norms[1](x), rows_, k)
            return x + out, k, v
        return x if self.arrangement == "mixer" else x + self.mlp(norms[1](x)), k, v


class Decoder(nn.Module):
    """Embedding and blocks. Layers that come before them elsewhere keep their numbers, and nothing else."""

    def __init__(self, made: Design, kv: str, feed_forward: type[nn.Module]) -> None:
        if made.first == 0:
            self.embed_tokens = nn.Embedding(made.vocab, made.hidden)
            if made.positions:
                self.embed_positions = nn.Embedding(made.positions, made.hidden)
            if made.embedding_norm:
                self.embed_norm = norm_of(made)
        before: list[nn.Module] = [nn.Module() for _ in range(made.first)]
        self.layers = nn.ModuleList(before + [Block(made, layer, kv, feed_forward) for layer in made.layers])


class Body(nn.Module):
    """tokens, positions, slots, block table and states to hidden rows and states."""

    def __init__(self, made: Design, kv: str, feed_forward: type[nn.Module]) -> None:
        self.model = Decoder(made, kv, feed_forward)
        self.made = made

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, block_table: Tensor, states: Any) -> Any:
        x = self.model.embed_tokens(tokens)
        if self.made.embedding_scale != 1.0:
            x = x * self.made.embedding_scale
        if self.made.positions:
            x = x + self.model.embed_positions(positions)
        if self.made.embedding_norm:
            x = self.model.embed_norm(x)
        return self.blocks(x, positions, slots, block_table, states)

    def blocks(self, x: Tensor, positions: Tensor, slots: Tensor, block_table: Tensor, states: Any) -> Any:
        """The layers."""
        used = {layer.rope for layer in self.made.layers if layer.selective is None}
        ropes = [
            _table(rope, positions, block_table, i) if i in used else None for i, rope in enumerate(self.made.ropes)
        ]
        shared, new = Rows(positions, slots, block_table, ropes), list(states)
        layers = list(self.model.layers)[self.made.first :]
        for layer, at in zip(layers, state_places(self.made), strict=True):
            x, new[at], new[at + 1] = layer(x, shared, new[at], new[at + 1])
        return [x, *new]


class LaterBody(Body):
    """The same behind other layers: from hidden rows. Tokens are there for kernels that say by them what they read."""

    def forward(  # type: ignore[override]  # nobody calls it but the export, which goes by names
        self, arriving: Tensor, tokens: Tensor, positions: Tensor, slots: Tensor, block_table: Tensor, states: Any
    ) -> Any:
        return self.blocks(arriving, positions, slots, block_table, states)


def recurrent_states(made: Design, index: int, layer: design.Layer) -> tuple[Recurrent, ...]:
    """What a layer keeps besides a KV cache."""
    if isinstance(layer.selective, Rwkv):
        return rwkv.states_of(index, made.hidden, layer.selective)
    return states_of(index, layer.selective) if layer.selective is not None else ()


def state_places(made: Design) -> list[int]:
    """Where each layer's two states stand: KV caches come first, then recurrent states."""
    kept = [layer.selective is not None for layer in made.layers]
    first = 2 * kept.count(False)
    return [first + 2 * sum(kept[:i]) if kept[i] else 2 * (i - sum(kept[:i])) for i in range(len(kept))]


def _table(rope: Rope, positions: Tensor, block_table: Tensor, number: int) -> Tensor:
    """Cosines and sines of all rows, one table for all layers that share a rotary embedding."""
    n, half = positions.shape[0], len(rope.inv_freq)
    out = nn.Tensor.placeholder((n, 2 * half), "float32")
    args = [positions, constant(rope.inv_freq)]
    if rope.long is not None:
        args += [constant(rope.long), block_table]
    kernel = rope_table(n, half, rope.scaling, rope.original if rope.long is not None else 0)
    return op.tensor_ir_op(numbered(kernel, number), "rope_table", args, out=out)


class Norm(nn.Module):
    """Holds the final norm under its name."""

    def __init__(self, made: Design) -> None:
        self.norm = norm_of(made)


def chosen(hidden: Tensor, rows: Tensor) -> Tensor:
    """Rows of hidden by index."""
    n, width = rows.shape[0], hidden.shape[1]
    return op.tensor_ir_op(
        gather(n, hidden.shape[0], width),
        "gather",
        [hidden, rows],
        out=nn.Tensor.placeholder((n, width), "float32"),
    )


class Last(nn.Module):
    """Rows of hidden, chosen by index, to what transformers calls the last hidden state, or that times a factor."""

    def __init__(self, made: Design) -> None:
        self.model = Norm(made)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return self.model.norm(chosen(hidden, rows))


class Head(nn.Module):
    """Rows of hidden, chosen by index, to logits."""

    def __init__(self, made: Design) -> None:
        self.model = Norm(made)
        self.cap = made.logits_cap
        self.lm_head = nn.Linear(made.hidden, made.vocab, bias=False)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        logits = self.lm_head(self.model.norm(chosen(hidden, rows)))
        return op.tanh(logits) * self.cap if self.cap else logits


def network(made: Design, kv: str, feed_forward: type[nn.Module] | None = None) -> Network:
    """The network of a Design.

    kv: dtype of the cache. feed_forward: the module of each layer's MLP, made from the Design; None: the Design's own.
    """
    mlp = feed_forward or (FeedForward if made.gated else PlainFeedForward)
    return Network(
        (LaterBody if made.first else Body)(made, kv, mlp),
        Head(made),
        made.sources,
        tuple(heads_of(made, layer, kv) for layer in made.layers if layer.selective is None),
        made.vocab,
        made.hidden,
        made.context,
        made.tied,
        {
            f"{prefix}mlp.experts.{name}.weight": layer.experts.used / layer.experts.total
            for prefix, layer in zip(made.prefixes(), made.layers, strict=True)
            for name in ("gate_up_proj", "down_proj")
            if layer.experts
        },
        tuple(state for i, layer in enumerate(made.layers) for state in recurrent_states(made, i, layer)),
        len(made.layers),
        Last(made),
        lambda first, end: network(made.part(first, end), kv, feed_forward),
    )
