"""The Llama family in NumPy with the runtime's arithmetic: the same operations in the same order.

Independent of packing, kernels and planning: what the compiled model computes is compared with this. Every FMA is
exact (one rounding). Subnormals, which the runtime flushes, are not modelled: no sensible network meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crosscompile.checkpoint import Checkpoint
from crosscompile.models.rope import rope_parameters
from crosscompile.packing import GROUP, KINDS, dequantize, quantize

F32 = np.float32
LANES = 16
KV_BLOCK = 64
MAGIC = F32(12582912.0)
HALFWAY, BELOW_F32 = 0x10000000, 0x1FFFFFFF
"""Of a float64's bits: those below float32's last place, and the pattern that lies halfway."""


class Scheme(Protocol):
    """What this module needs of a scheme (crosscompile.models.Scheme)."""

    @property
    def body(self) -> str: ...
    @property
    def embedding(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def kv(self) -> str: ...


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """a · b + c in float32 with one rounding.

    The product is exact in float64. Its sum with c is rounded twice, which matters only where the first rounding
    lands halfway between two float32 values: there the sum's error decides.
    """
    product, addend = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    suspect = (total.view(np.int64) & BELOW_F32) == HALFWAY
    if suspect.any():
        p, q = (np.broadcast_to(x, total.shape)[suspect] for x in (product, addend))
        s = total[suspect]
        part = s - p
        error = (p - (s - part)) + (q - part)
        total[suspect] = np.where(error == 0, s, np.nextafter(s, np.where(error > 0, np.inf, -np.inf)))
    rounded: np.ndarray = total.astype(F32)
    return rounded


def exp(x: np.ndarray) -> np.ndarray:
    """e^x as the kernels compute it (Cephes expf), x clamped to [-87.3, 88]."""
    x = np.maximum(np.minimum(x, F32(88.0)), F32(-87.3))
    power = fma(x, F32(1.44269504), MAGIC)
    n = power - MAGIC
    r = fma(n, F32(2.12194440e-4), fma(n, F32(-0.693359375), x))
    p: Any = F32(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(p, r, F32(coefficient))
    y = fma(p, r * r, r) + F32(1)
    exponent = (n.astype(np.int32) + np.int32(127)) << np.int32(23)
    return y * exponent.view(F32)


def sin_cos(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sin x, cos x) as the kernels compute them: three-part reduction by π/2, Cephes' polynomials."""
    power = fma(x, F32(0.636619772367581343), MAGIC)
    k = power - MAGIC
    r = x
    for part in (-1.5703125, -4.837512969970703125e-4, -7.54978995489188216e-8):
        r = fma(k, F32(part), r)
    z = r * r
    s = fma(fma(F32(-1.9515295891e-4), z, F32(8.3321608736e-3)), z, F32(-1.6666654611e-1))
    s = fma(s, z * r, r)
    c = fma(fma(F32(2.443315711809948e-5), z, F32(-1.388731625493765e-3)), z, F32(4.166664568298827e-2))
    c = fma(c, z * z, fma(F32(-0.5), z, F32(1)))
    quadrant = k.astype(np.int64) & 3
    odd = (quadrant & 1) == 1
    sine, cosine = np.where(odd, c, s), np.where(odd, s, c)
    return np.where(quadrant & 2, -sine, sine), np.where((quadrant + 1) & 2, -cosine, cosine)


def tree_sum(x: np.ndarray) -> np.ndarray:
    """Sum over the last axis of a power of two: lanes l and l + n/2, then l + n/4, …"""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """x, (n, K), divided by its root mean square, times weight (K,)."""
    squares = np.zeros((x.shape[0], LANES), F32)
    for start in range(0, x.shape[1], LANES):
        lane = x[:, start : start + LANES]
        squares = fma(lane, lane, squares)
    mean = tree_sum(squares) / F32(x.shape[1])
    factor = F32(1) / np.sqrt(mean + F32(epsilon))
    return (x * factor[:, None]) * weight


def act_quant(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x, (n, K), as q (n, K / 32, 32), whole numbers, and scale (n, K / 32)."""
    groups = x.reshape(x.shape[0], -1, GROUP)
    largest = np.abs(groups).max(-1)
    inverse = np.divide(F32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(groups.astype(np.float64) * inverse[..., None].astype(np.float64))
    return q.astype(F32), largest * F32(1.0 / 127.0)


@dataclass(frozen=True)
class Linear:
    """A weight, (out, in), under a scheme. plain: float32 values; or q, whole numbers, and scale."""

    plain: np.ndarray | None
    q: np.ndarray | None = None
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None

    @classmethod
    def of(cls, weight: np.ndarray, scheme: str, bias: np.ndarray | None = None) -> Linear:
        if (kind := scheme.removesuffix("a8")) in KINDS:
            q, scale = quantize(kind, weight)
            return cls(None, q, scale, bias)
        return cls(weight.astype(np.float16).astype(F32) if scheme == "f16" else weight, bias=bias)

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Rows as float32: an embedding's look-up."""
        if self.plain is not None:
            return self.plain[rows]
        assert self.q is not None
        assert self.scale is not None
        return dequantize(self.q[rows], self.scale[rows])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x, (n, in), to (n, out); groups, or columns, in ascending order."""
        if self.plain is not None:
            y = np.zeros((x.shape[0], self.plain.shape[0]), F32)
            columns = np.ascontiguousarray(self.plain.T)
            for k in range(x.shape[1]):
                y = fma(columns[k], x[:, k, None], y)
        else:
            assert self.q is not None
            assert self.scale is not None
            y = np.zeros((x.shape[0], self.q.shape[0]), F32)
            a, scale_a = act_quant(x)
            w = self.q.reshape(self.q.shape[0], -1, GROUP).astype(F32)
            for b in range(a.shape[1]):
                dot = a[:, b] @ w[:, b].T  # whole numbers below 2²⁴: exact in any order
                scale = self.scale[:, b * self.scale.shape[1] // a.shape[1]].astype(F32)
                y = fma(dot, scale * scale_a[:, b, None], y)
        return y if self.bias is None else y + self.bias


def rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Rotary embedding of x, (n, heads, dim), by cosine and sine (n, dim / 2); pairs are (i, i + dim / 2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    c, s = cosine[:, None], sine[:, None]
    turned = (fma(first, c, -(second * s)), fma(second, c, first * s))
    return np.concatenate(turned, -1)


def cached(x: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values (n, Hkv, D) as the cache gives them back: numbers (n, Hkv, D) and, for i8, scales, else ones."""
    if dtype == "i8":
        largest = np.abs(x).max(-1)
        inverse = np.divide(F32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        q = np.rint(x.astype(np.float64) * inverse[..., None].astype(np.float64))
        return q.astype(F32), largest * F32(1.0 / 127.0)
    return x.astype(np.float16 if dtype == "f16" else F32).astype(F32), np.ones(x.shape[:2], F32)


def attention(
    q: np.ndarray, keys_: tuple[np.ndarray, np.ndarray], values_: tuple[np.ndarray, np.ndarray], window: int
) -> np.ndarray:
    """Causal attention of q (n, Hq, D) over what `cached` gave, in blocks of 64 positions; row i is position i."""
    n, heads, dim = q.shape
    shared = heads // keys_[0].shape[1]
    (k, k_scale), (v, v_scale) = (tuple(np.repeat(x, shared, axis=1) for x in pair) for pair in (keys_, values_))
    out = np.zeros((n, heads, dim), F32)
    total = np.zeros((n, heads), F32)
    largest = np.full((n, heads), F32(-3.0e38))
    rows = np.arange(n)[:, None]
    for start in range(0, n, KV_BLOCK):
        keys, values = k[start : start + KV_BLOCK], v[start : start + KV_BLOCK]
        columns = start + np.arange(len(keys))[None]
        visible = columns <= rows
        if window:
            visible &= columns > rows - window
        scores = np.zeros((n, heads, len(keys)), F32)
        for d in range(dim):
            scores = fma(q[:, :, d, None], keys[:, :, d].T[None], scores)
        scores = (scores * k_scale[start : start + KV_BLOCK].T[None]) * F32(dim**-0.5)
        scores = np.where(visible[:, None], scores, F32(-3.0e38))
        highest = np.maximum(largest, scores.max(-1))
        alpha = np.where(total > 0, exp(largest - highest), F32(0))
        p = np.where(visible[:, None], exp(scores - highest[..., None]), F32(0))
        lanes = np.zeros((n, heads, KV_BLOCK), F32)
        lanes[..., : len(keys)] = p
        parts = lanes.reshape(n, heads, KV_BLOCK // LANES, LANES)
        summed = ((parts[:, :, 0] + parts[:, :, 1]) + parts[:, :, 2]) + parts[:, :, 3]
        seen: np.ndarray = np.asarray(visible.any(axis=1, keepdims=True))
        total = np.where(seen, fma(total, alpha, tree_sum(summed)), total)
        p = p * v_scale[start : start + KV_BLOCK].T[None]
        new = out * alpha[..., None]
        for j in range(len(keys)):
            new = np.where(visible[:, j, None, None], fma(p[:, :, j, None], values[j][None], new), new)
        out = np.where(seen[..., None], new, out)
        largest = np.where(seen, highest, largest)
    return out / total[..., None]


Note = Callable[..., None]
"""Called with the name of an operation and what it computed, for all rows; in the order of a compiled plan's steps."""


class Llama:
    """A Llama or Mistral checkpoint under a scheme. Weights are read, and quantized, once.

    note: is told every operation: rope_table, embed, then for each layer rms_norm, linear (q, k and v), rope_append
    (query, keys, values, as `rotate` and `cached` give them), attention, act_quant (what is quantized), linear (with
    the residual), rms_norm, linear (gate and up), silu_mul, linear (with the residual); gather, rms_norm, linear.
    """

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, note: Note | None = None) -> None:
        self.note: Note = note or (lambda name, *values: None)
        self.config: Mapping[str, Any] = checkpoint.config
        self.scheme = scheme
        self.heads = int(self.config["num_attention_heads"])
        self.kv_heads = int(self.config.get("num_key_value_heads") or self.heads)
        self.dim = int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)
        self.epsilon = float(self.config.get("rms_norm_eps", 1e-6))
        mistral = self.config.get("architectures") == ["MistralForCausalLM"]
        self.window = int(self.config.get("sliding_window") or 0) if mistral else 0
        self.inv_freq, self.scaling = rope_parameters(self.config)
        self._checkpoint = checkpoint
        self._linears: dict[tuple[str, str], Linear] = {}

    def linear(self, name: str, scheme: str) -> Linear:
        """The layer of tensor `name`.weight, with its bias where the checkpoint has one that the model uses."""
        key = (name, scheme)
        if key not in self._linears:
            source = self._checkpoint
            biased = self.config.get("attention_bias" if ".self_attn." in name else "mlp_bias") and ".layers." in name
            bias = source.read(f"{name}.bias") if biased else None
            self._linears[key] = Linear.of(source.read(f"{name}.weight"), scheme, bias)
        return self._linears[key]

    def layer(self, x: np.ndarray, prefix: str, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        """One transformer block on all rows at once."""
        read, body = self._checkpoint.read, self.scheme.body
        h = rms_norm(x, read(f"{prefix}.input_layernorm.weight"), self.epsilon)
        self.note("rms_norm", h)
        q, k, v = (self.linear(f"{prefix}.self_attn.{part}_proj", body)(h) for part in "qkv")
        self.note("linear", np.concatenate((q, k, v), -1))
        n = x.shape[0]
        query = rotate(q.reshape(n, self.heads, self.dim), cosine, sine)
        keys = cached(rotate(k.reshape(n, self.kv_heads, self.dim), cosine, sine), self.scheme.kv)
        values = cached(v.reshape(n, self.kv_heads, self.dim), self.scheme.kv)
        self.note("rope_append", query.reshape(n, -1), keys, values)
        mixed = attention(query, keys, values, self.window).reshape(n, -1)
        self.note("attention", mixed)
        self.note("act_quant", mixed)
        x = x + self.linear(f"{prefix}.self_attn.o_proj", body)(mixed)
        self.note("linear", x)
        h = rms_norm(x, read(f"{prefix}.post_attention_layernorm.weight"), self.epsilon)
        self.note("rms_norm", h)
        x = x + self.feed_forward(h, prefix)
        self.note("linear", x)
        return x

    def feed_forward(self, h: np.ndarray, prefix: str) -> np.ndarray:
        """SwiGLU of one block."""
        gate, up = (self.linear(f"{prefix}.mlp.{part}_proj", self.scheme.body)(h) for part in ("gate", "up"))
        self.note("linear", np.concatenate((gate, up), -1))
        activated = (gate / (exp(F32(0) - gate) + F32(1))) * up
        self.note("silu_mul", activated)
        return self.linear(f"{prefix}.mlp.down_proj", self.scheme.body)(activated)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after each token, (n, vocab) float32."""
        ids = np.asarray(tokens, np.int64)
        angle = np.arange(len(ids), dtype=F32)[:, None] * self.inv_freq[None]
        sine, cosine = (part * F32(self.scaling) for part in sin_cos(angle))
        self.note("rope_table", np.concatenate((cosine, sine), -1))
        tied = bool(self.config.get("tie_word_embeddings", False))
        x = self.linear("model.embed_tokens", self.scheme.embedding).values(ids)
        self.note("embed", x)
        for index in range(int(self.config["num_hidden_layers"])):
            x = self.layer(x, f"model.layers.{index}", cosine, sine)
        self.note("gather", x)
        x = rms_norm(x, self._checkpoint.read("model.norm.weight"), self.epsilon)
        self.note("rms_norm", x)
        result = self.linear("model.embed_tokens" if tied else "lm_head", self.scheme.head)(x)
        self.note("linear", result)
        return result


def logits(checkpoint: Checkpoint, tokens: Sequence[int], scheme: Scheme) -> np.ndarray:
    """Logits of every position of a token list, (n, vocab) float32."""
    return Llama(checkpoint, scheme).logits(tokens)
