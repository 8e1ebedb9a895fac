"""A decoder's forward pass over whole texts in NumPy's own float32, for measuring what its layers are given.

It computes what a Design says, for every family, as fast as the machine's BLAS does; the arithmetic of the format, to
the bit, is crosscompile.reference's. A Stream is what one version of the model, exact or rounded, makes of all texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crosscompile.errors import ConfigError
from crosscompile.models.design import EMBEDDING, HEAD, NORMS, POSITIONS, Design, Experts, Layer, Norm
from crosscompile.packing import GROUP
from crosscompile.pieces import Rows, Source, Tensors

CHUNK = 2048
"""Rows that pass a feed-forward at once."""

Linear = Callable[[str, np.ndarray], np.ndarray]
"""(parameter without its layer's prefix and `.weight`, rows (n, in)) -> rows (n, out), with the bias."""


class Values:
    """Parameters by their names in a bundle, float32, read when they are asked for."""

    def __init__(self, tensors: Tensors, made: Design) -> None:
        self.tensors, self.made = tensors, made

    def sources(self, name: str) -> tuple[Source, ...]:
        return tuple(self.made.sources.get(name, (name,)))

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """A parameter, (out, in) or (length,), or some of its rows."""
        start, stop = rows.start or 0, rows.stop
        parts, at = [], 0
        for source in self.sources(name):
            stored = Rows(self.tensors, source)
            n = stored.shape[0]
            low, high = max(start - at, 0), n if stop is None else min(stop - at, n)
            if low < high:
                parts.append(stored.read(low, high))
            at += n
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """(out, in) or (length,)."""
        found = [Rows(self.tensors, source).shape for source in self.sources(name)]
        return (sum(shape[0] for shape in found), *found[0][1:])


@dataclass
class Stream:
    """Hidden rows of all texts, (n, hidden), one text after another. lengths: of the texts.

    rounded: whether what a linear layer of a layer is given is rounded to 8 bits, as a board does.
    """

    x: np.ndarray
    lengths: Sequence[int]
    rounded: bool = False

    def spans(self) -> Iterator[slice]:
        at = 0
        for length in self.lengths:
            yield slice(at, at + length)
            at += length

    def chunks(self) -> Iterator[slice]:
        for at in range(0, len(self.x), CHUNK):
            yield slice(at, min(at + CHUNK, len(self.x)))

    def given(self, h: np.ndarray) -> np.ndarray:
        """What a linear layer sees of its input."""
        return round_rows(h) if self.rounded else h


def round_rows(h: np.ndarray) -> np.ndarray:
    """Rows rounded to 8 bits with a scale per 32 columns, as float32."""
    blocks = h.reshape(len(h), -1, GROUP)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    q = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    made: np.ndarray = (q * scale).reshape(h.shape)
    return made


def normalize(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, norm: Norm) -> np.ndarray:
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    factor = np.float32(1) / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(norm.epsilon))
    made: np.ndarray = x * factor * weight
    return made if bias is None else made + bias


def _erf(x: np.ndarray) -> np.ndarray:
    """Abramowitz and Stegun 7.1.26, |error| < 1.5e-7."""
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * np.abs(x))
    poly = ((((1.061405429 * t - 1.453152027) * t) + 1.421413741) * t - 0.284496736) * t + 0.254829592
    made: np.ndarray = (np.sign(x) * (1 - poly * t * np.exp(-x * x))).astype(np.float32)
    return made


def activated(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "silu":
        made: np.ndarray = x / (np.float32(1) + np.exp(-np.maximum(x, np.float32(-80))))
    elif kind == "gelu":
        made = np.float32(0.5) * x * (1 + _erf(x * np.float32(2**-0.5)))
    else:
        made = np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))
    return made.astype(np.float32, copy=False)


def softmax(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    made /= made.sum(-1, keepdims=True)
    return made


class Block:
    """One transformer block, part by part, so that a layer can be changed between two of them."""

    def __init__(self, values: Values, index: int) -> None:
        self.values, self.made, self.index = values, values.made, index
        self.layer: Layer = self.made.layers[index]
        self.prefix = self.made.prefixes()[index]
        self.norms = [self._norm(name) for name in NORMS[self.made.arrangement]]

    def _norm(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        weight = self.values.read(f"{self.prefix}{name}.weight")
        bias = self.values.read(f"{self.prefix}{name}.bias") if self.made.norm.bias else None
        return lambda x: normalize(x, weight, bias, self.made.norm)

    def to_attention(self, x: np.ndarray) -> np.ndarray:
        """What the first linear layer is given."""
        return x if self.made.arrangement == "after" else self.norms[0](x)

    def behind_attention(self, x: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """The residual stream, given what the second linear layer made. With parallel branches, what is added to it."""
        kind = self.made.arrangement
        return x + (self.norms[0](mixed) if kind == "after" else self.norms[1](mixed) if kind == "around" else mixed)

    def to_feed_forward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x: the block's input, y: what attention left in the residual stream."""
        kind = self.made.arrangement
        if kind == "parallel":
            return self.norms[1](x)
        if kind == "parallel shared":
            return self.norms[0](x)
        return y if kind == "after" else self.norms[2 if kind == "around" else 1](y)

    def behind_feed_forward(self, y: np.ndarray, out: np.ndarray) -> np.ndarray:
        kind = self.made.arrangement
        return y + (self.norms[1](out) if kind == "after" else self.norms[3](out) if kind == "around" else out)

    def _heads_normalized(self, x: np.ndarray, which: str) -> np.ndarray:
        """x: (n, heads, dim) of queries or keys."""
        norm = self.made.qk_norm
        if norm is None:
            return x
        weight = self.values.read(f"{self.prefix}self_attn.{which}_norm.weight")
        if norm.over == "row":
            return normalize(x.reshape(len(x), -1), weight, None, norm.norm).reshape(x.shape)
        return normalize(x, weight.reshape(x.shape[1:]), None, norm.norm)

    def _rotated(self, x: np.ndarray) -> np.ndarray:
        """x: (n, heads, dim), row i at position i."""
        if self.layer.rope is None:
            return x
        rope = self.made.ropes[self.layer.rope]
        half = len(rope.inv_freq)
        frequencies = rope.long if rope.long is not None and len(x) > rope.original else rope.inv_freq
        angle = np.arange(len(x), dtype=np.float32)[:, None, None] * frequencies
        cosine, sine = np.cos(angle) * np.float32(rope.scaling), np.sin(angle) * np.float32(rope.scaling)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate((a * cosine - b * sine, b * cosine + a * sine, rest), -1)

    def attention(self, qkv: np.ndarray) -> np.ndarray:
        """qkv: (n, (Hq + 2 Hkv) · dim) of one text -> (n, Hq · dim)."""
        made, n = self.made, len(qkv)
        cut = qkv.reshape(n, made.heads + 2 * made.kv_heads, made.head_dim)
        q = self._rotated(self._heads_normalized(cut[:, : made.heads], "q"))
        k = self._rotated(self._heads_normalized(cut[:, made.heads : made.heads + made.kv_heads], "k"))
        v = cut[:, made.heads + made.kv_heads :]
        distance = np.arange(n)[:, None] - np.arange(n)[None]
        hidden = distance < 0
        if self.layer.window:
            hidden |= distance >= self.layer.window
        scale = np.float32(made.head_dim**-0.5 if made.scores is None else made.scores)
        out = np.empty((n, made.heads, made.head_dim), np.float32)
        for head in range(made.heads):
            shared = head // (made.heads // made.kv_heads)
            scores = (q[:, head] @ k[:, shared].T) * scale
            if made.scores_cap:
                scores = np.tanh(scores / np.float32(made.scores_cap)) * np.float32(made.scores_cap)
            scores[hidden] = -np.inf
            out[:, head] = softmax(scores) @ v[:, shared]
        return out.reshape(n, -1)

    def to_down(self, gate_up: np.ndarray) -> np.ndarray:
        """What the last linear layer is given, from what the one before made."""
        if not self.made.gated:
            return activated(gate_up, self.made.activation)
        half = gate_up.shape[1] // 2
        return activated(gate_up[:, :half], self.made.activation) * gate_up[:, half:]

    def routed(self, h: np.ndarray, experts: Experts) -> np.ndarray:
        """Weights (n, experts) of each row's experts, 0 for those it does not go to."""
        logits = h @ self.values.read(f"{self.prefix}mlp.gate.weight").T
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : experts.used]
        picked = np.take_along_axis(logits if experts.normalized else softmax(logits), chosen, 1)
        weights = np.zeros_like(logits)
        np.put_along_axis(weights, chosen, softmax(picked) if experts.normalized else picked, 1)
        return weights

    @property
    def up_name(self) -> str:
        return "gate_up_proj" if self.made.gated else "up_proj"

    def bias(self, name: str) -> np.ndarray | None:
        """Of a linear layer, by its name without the prefix."""
        made = self.made
        has = made.mlp_bias if name.startswith("mlp.") else made.o_bias if name.endswith("o_proj") else made.qkv_bias
        return self.values.read(f"{self.prefix}{name}.bias") if has else None


def embedded(values: Values, texts: Sequence[Sequence[int]], table: np.ndarray | None = None) -> np.ndarray:
    """Rows of all texts' tokens, (n, hidden). table: (vocab, hidden) where it is not the checkpoint's."""
    made = values.made
    if any(not len(text) or min(text) < 0 or max(text) >= made.vocab for text in texts):
        raise ConfigError(f"a text has no tokens, or one outside the vocabulary of {made.vocab}")
    if table is None:
        table = values.read(EMBEDDING)
    x = table[np.concatenate([np.asarray(text) for text in texts])] * np.float32(made.embedding_scale)
    if made.positions:
        places = values.read(POSITIONS)
        x = x + places[np.concatenate([np.arange(len(text)) for text in texts])]
    return np.ascontiguousarray(x, np.float32)


def final_norm(values: Values) -> Callable[[np.ndarray], np.ndarray]:
    """The norm before the head."""
    weight = values.read("model.norm.weight")
    bias = values.read("model.norm.bias") if values.made.norm.bias else None
    return lambda x: normalize(x, weight, bias, values.made.norm)


def plain_linear(block: Block) -> Linear:
    """Linear layers with the checkpoint's own weights."""

    def linear(name: str, h: np.ndarray) -> np.ndarray:
        out: np.ndarray = h @ block.values.read(f"{block.prefix}{name}.weight").T
        bias = block.bias(name)
        return out if bias is None else out + bias

    return linear


def feed_forward(block: Block, linear: Linear, h: np.ndarray) -> np.ndarray:
    """What a feed-forward or a mixture of experts makes of rows (n, hidden)."""
    experts = block.layer.experts
    if experts is None:
        return linear("mlp.down_proj", block.to_down(linear(f"mlp.{block.up_name}", h)))
    weights = block.routed(h, experts)
    out = np.zeros_like(h)
    for expert in range(experts.total):
        rows = np.flatnonzero(weights[:, expert])
        if len(rows):
            made = expert_rows(block, expert, h[rows])
            out[rows] += made * weights[rows, expert, None]
    if experts.shared:
        gate = h @ block.values.read(f"{block.prefix}mlp.shared_expert_gate.weight").T
        shared = linear("mlp.shared_expert.down_proj", block.to_down(linear("mlp.shared_expert.gate_up_proj", h)))
        out += shared / (np.float32(1) + np.exp(-gate))
    return out


def expert_rows(block: Block, expert: int, h: np.ndarray) -> np.ndarray:
    experts = block.layer.experts
    assert experts is not None
    up = block.values.read(
        f"{block.prefix}mlp.experts.gate_up_proj.weight",
        slice(expert * 2 * experts.width, (expert + 1) * 2 * experts.width),
    )
    hidden = block.made.hidden
    down = block.values.read(
        f"{block.prefix}mlp.experts.down_proj.weight", slice(expert * hidden, (expert + 1) * hidden)
    )
    made: np.ndarray = block.to_down(h @ up.T) @ down.T
    return made


def advance(block: Block, stream: Stream, linear: Linear | None = None) -> None:
    """Takes a stream through a block, with the checkpoint's weights."""
    linear = linear or plain_linear(block)
    for span in stream.spans():
        x = stream.x[span]
        mixed = linear("self_attn.o_proj", block.attention(linear("self_attn.qkv_proj", block.to_attention(x))))
        y = block.behind_attention(x, mixed)
        stream.x[span] = block.behind_feed_forward(y, feed_forward(block, linear, block.to_feed_forward(x, y)))


def logits(values: Values, ids: Sequence[int]) -> np.ndarray:
    """Logits after each token of one text, (n, vocab): what a test compares."""
    stream = Stream(embedded(values, [ids]), [len(ids)])
    for index in range(len(values.made.layers)):
        advance(Block(values, index), stream)
    out: np.ndarray = final_norm(values)(stream.x) @ values.read(HEAD).T
    cap = values.made.logits_cap
    return np.tanh(out) * np.float32(cap) if cap else out  # the norm's weights divide by it already
