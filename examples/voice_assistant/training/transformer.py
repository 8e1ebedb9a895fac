"""A Llama in plain PyTorch, with parameter names and arithmetic of Hugging Face's LlamaForCausalLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PREVIOUS, MATCH, COPY = 0.2, 2.5, 0.6
"""How strong the parts of `Llama.start_copying` are: four in five looks of an untrained network find what they look for."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocab: int
    hidden: int = 192
    intermediate: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 1000000.0
    norm_eps: float = 1e-5
    positions: int = 1024

    def config(self, eos: int, pad: int) -> dict[str, Any]:
        """The contents of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }


def fake_quantize(weight: Tensor) -> Tensor:
    """The values that scheme w4a8 makes of a weight (out, in): 4 bits, one scale per group of 32 columns."""
    groups = weight.reshape(weight.shape[0], -1, 32)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (extreme / -8).half().float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (torch.clamp(torch.round(groups / scale), -8, 7) * scale).reshape(weight.shape)


class Linear(nn.Linear):
    """A linear layer without bias that can compute with 4-bit weights while the gradient goes to the full ones."""

    quantized = False

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.quantized:
            weight = weight + (fake_quantize(weight.detach()) - weight.detach())
        return functional.linear(x, weight)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = Linear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = Linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = Linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = Linear(shape.heads * shape.head_dim, shape.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shape = self.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, length, heads, shape.head_dim).transpose(1, 2)

        def rotate(y: Tensor) -> Tensor:
            half = shape.head_dim // 2
            return y * cos + torch.cat((-y[..., half:], y[..., :half]), -1) * sin

        q = rotate(split(self.q_proj(x), shape.heads))
        k = rotate(split(self.k_proj(x), shape.kv_heads))
        v = split(self.v_proj(x), shape.kv_heads)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.intermediate)
        self.up_proj = Linear(shape.hidden, shape.intermediate)
        self.down_proj = Linear(shape.intermediate, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Embedding, layers and final norm; the head shares the embedding's weight."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = 0.05 if "embed" in name else shape.hidden**-0.5 * 0.6
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    deviation /= 4 * (2 * shape.layers) ** 0.5
                nn.init.normal_(parameter, std=deviation)
        frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angle = torch.outer(torch.arange(shape.positions).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @torch.no_grad()
    def relate(self, pairs: list[tuple[int, int]]) -> None:
        """Starts the embedding of a piece with a space before it, pairs[i][0], near that of the bare one, pairs[i][1]."""
        rows = self.embed_tokens.weight
        space = torch.randn(rows.shape[1]) * 0.03
        for spaced, bare in pairs:
            rows[spaced] = 0.4 * rows[spaced] + 0.8 * rows[bare] + space

    @torch.no_grad()
    def start_copying(self) -> None:
        """Starts the first two layers as induction heads, which otherwise take a good part of the training to form.

        An induction head looks for an earlier occurrence of the current token and copies what followed there (Olsson et
        al. 2022). Layer 0 writes the tokens one, two and three places back into spaces of their own: its query and key
        depend on nothing but a vector that all embeddings share, turned so that rotary positions agree at that distance.
        Layer 1 compares the current token with the one before each key. All of it is trained further.
        """
        shape, hidden, half = self.shape, self.shape.hidden, self.shape.head_dim // 2
        size, group = shape.head_dim, shape.heads // shape.kv_heads
        frequency = shape.rope_theta ** (-torch.arange(half).float() / half)
        basis = torch.linalg.qr(torch.randn(hidden, hidden))[0].T  # orthonormal rows
        common, token = basis[0], basis[1 : 1 + size]
        rows = self.embed_tokens.weight
        rows -= torch.outer(rows @ common, common)
        rows += common * rows.norm(dim=1).mean()

        first, second = self.layers[0].self_attn, self.layers[1].self_attn
        fast = [pair for pair in range(half) if frequency[pair] > 0.15]
        slow = [part + pair for part in (0, half) for pair in range(half) if frequency[pair] < 0.003]
        first.k_proj.weight[:size] = 0
        first.q_proj.weight[: group * size] = 0
        first.v_proj.weight[:size] = token
        for pair in fast:
            first.k_proj.weight[pair] = 0.8 * common
            for head in range(group):
                angle = (head + 1) * frequency[pair]
                first.q_proj.weight[head * size + pair] = 0.8 * angle.cos() * common
                first.q_proj.weight[head * size + half + pair] = -0.8 * angle.sin() * common
        for head in range(group):
            written = basis[1 + (head + 1) * size : 1 + (head + 2) * size]
            first.o_proj.weight[:, head * size : (head + 1) * size] = PREVIOUS * written.T
        previous = basis[1 + size : 1 + 2 * size]
        for kv in range(shape.kv_heads):
            begin, head = kv * size, kv * group * size
            chosen = torch.randperm(size)[: len(slow)]
            second.k_proj.weight[begin : begin + size] = 0
            second.q_proj.weight[head : head + size] = 0
            second.k_proj.weight[[begin + at for at in slow]] = MATCH * previous[chosen]
            second.q_proj.weight[[head + at for at in slow]] = MATCH * token[chosen]
            value = torch.linalg.qr(torch.randn(hidden, size))[0].T
            value -= torch.outer(value @ common, common)
            second.v_proj.weight[begin : begin + size] = value
            second.o_proj.weight[:, head : head + size] = COPY * value.T

    def forward(self, ids: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits of token ids (batch, length); of the positions marked in `wanted` (batch, length) only, if given."""
        x = self.embed_tokens(ids)
        cos, sin = self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        if wanted is not None:
            x = x[wanted]
        return functional.linear(self.norm(x), self.embed_tokens.weight)

    def quantize(self, quantized: bool) -> None:
        """Whether from here on the layers compute with 4-bit weights."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.quantized = quantized
