"""The Llama family: Llama 1, 2 and 3.x, Vicuna, TinyLlama, SmolLM2, and Mistral with its sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from crosscompile.errors import ConfigError
from crosscompile.kernels.attention import attention
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rotary import rope_append, rope_table
from crosscompile.kernels.rows import gather
from crosscompile.models.architecture import Architecture, Network, constant, integer, multiple
from crosscompile.models.rope import rope_parameters

Tensor = Any


@dataclass(frozen=True)
class LlamaConfig:
    """The fields of config.json that matter, checked."""

    hidden: int
    intermediate: int
    layers: int
    heads: Heads
    vocab: int
    context: int
    epsilon: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def parse(cls, config: Mapping[str, Any], activation: str = "silu") -> LlamaConfig:
        hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
        n_heads = integer(config, "num_attention_heads")
        n_kv = integer(config, "num_key_value_heads", n_heads)
        dim = integer(config, "head_dim", hidden // n_heads)
        if n_heads % n_kv:
            raise ConfigError(f"config.json: {n_heads} attention heads cannot share {n_kv} key-value heads evenly")
        multiple(config, "head_dim", dim, 16)
        multiple(config, "num_attention_heads * head_dim", n_heads * dim, 32)
        if dim > 256:
            raise ConfigError(f"config.json: head_dim {dim} is larger than the 256 that edgellm supports")
        found = config.get("hidden_act", activation)
        if found != activation:
            raise ConfigError(
                f"config.json: hidden_act {found!r} is not supported for this architecture; {activation} is"
            )
        epsilon = config.get("rms_norm_eps", 1e-6)
        if not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
            raise ConfigError(f"config.json: rms_norm_eps must lie between 0 and 1, not {epsilon!r}")
        window = config.get("sliding_window") or 0
        if isinstance(window, bool) or not isinstance(window, int) or window < 0:
            raise ConfigError(f"config.json: sliding_window must be a number of positions or null, not {window!r}")
        # only Mistral's configuration means it; Llama's never applies one
        window = window if config["architectures"] == ["MistralForCausalLM"] else 0
        context = integer(config, "max_position_embeddings", 2048)
        intermediate = multiple(config, "intermediate_size", integer(config, "intermediate_size"), 32)
        return cls(
            hidden,
            intermediate,
            integer(config, "num_hidden_layers"),
            Heads(n_heads, n_kv, dim, "f16", window),
            integer(config, "vocab_size"),
            context,
            float(epsilon),
            bool(config.get("tie_word_embeddings", False)),
            bool(config.get("attention_bias", False)),
            bool(config.get("mlp_bias", False)),
        )


class Attention(nn.Module):
    """Grouped-query attention over the block KV cache. QKV are one matmul."""

    def __init__(self, config: LlamaConfig) -> None:
        heads = config.heads
        self.heads = heads
        width = (heads.query + 2 * heads.kv) * heads.dim
        self.qkv_proj = nn.Linear(config.hidden, width, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads.query * heads.dim, config.hidden, bias=config.attention_bias)

    def forward(self, x: Tensor, rows_: Rows, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, heads = x.shape[0], self.heads
        state = (rows_.positions, rows_.slots, rows_.block_table, k, v)
        out = nn.Tensor.placeholder((n, heads.query * heads.dim), "float32")
        k, v, q = op.tensor_ir_inplace_op(
            rope_append(n, heads),
            "rope_append",
            [self.qkv_proj(x), rows_.rope, *state],
            inplace_indices=[5, 6, -1],
            out=[k, v, out],
        )
        mixed = op.tensor_ir_op(attention(n, heads), "attention", [q, *state[:3], k, v], out=out)
        return self.o_proj(mixed), k, v


@dataclass
class Rows:
    """What every layer is told about the rows of a step."""

    positions: Tensor
    slots: Tensor
    block_table: Tensor
    rope: Tensor


class FeedForward(nn.Module):
    """SwiGLU. Gate and up are one matmul."""

    def __init__(self, config: LlamaConfig) -> None:
        self.gate_up_proj = nn.Linear(config.hidden, 2 * config.intermediate, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(op.silu(gate) * up)


class Layer(nn.Module):
    """One transformer block."""

    def __init__(self, config: LlamaConfig, feed_forward: type[nn.Module]) -> None:
        self.input_layernorm = nn.RMSNorm(config.hidden, -1, config.epsilon, bias=False)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, -1, config.epsilon, bias=False)
        self.mlp = feed_forward(config)

    def forward(self, x: Tensor, rows_: Rows, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, k, v = self.self_attn(self.input_layernorm(x), rows_, k, v)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Decoder(nn.Module):
    """Embedding and blocks."""

    def __init__(self, config: LlamaConfig, feed_forward: type[nn.Module]) -> None:
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList([Layer(config, feed_forward) for _ in range(config.layers)])


class Body(nn.Module):
    """tokens, positions, slots, block table and states to hidden rows and states."""

    def __init__(self, config: LlamaConfig, inv_freq: Any, scaling: float, feed_forward: type[nn.Module]) -> None:
        self.model = Decoder(config, feed_forward)
        self.inv_freq = inv_freq
        self.scaling = scaling

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, block_table: Tensor, states: Any) -> Any:
        n, half = tokens.shape[0], len(self.inv_freq)
        rope = op.tensor_ir_op(
            rope_table(n, half, self.scaling),
            "rope_table",
            [positions, constant(self.inv_freq)],
            out=nn.Tensor.placeholder((n, 2 * half), "float32"),
        )
        shared = Rows(positions, slots, block_table, rope)
        x, new = self.model.embed_tokens(tokens), list(states)
        for i, layer in enumerate(self.model.layers):
            x, new[2 * i], new[2 * i + 1] = layer(x, shared, new[2 * i], new[2 * i + 1])
        return [x, *new]


class Norm(nn.Module):
    """Holds the final norm under its checkpoint name."""

    def __init__(self, config: LlamaConfig) -> None:
        self.norm = nn.RMSNorm(config.hidden, -1, config.epsilon, bias=False)


class Head(nn.Module):
    """Rows of hidden, chosen by index, to logits."""

    def __init__(self, config: LlamaConfig) -> None:
        self.model = Norm(config)
        self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        n, width = rows.shape[0], hidden.shape[1]
        x = op.tensor_ir_op(
            gather(n, hidden.shape[0], width),
            "gather",
            [hidden, rows],
            out=nn.Tensor.placeholder((n, width), "float32"),
        )
        return self.lm_head(self.model.norm(x))


def build(
    config: Mapping[str, Any], kv: str, feed_forward: type[nn.Module] = FeedForward, activation: str = "silu"
) -> Network:
    """The network of a Llama-family config.json.

    kv: dtype of the cache, "f16" or "f32". feed_forward: the module of each layer's MLP, made from a LlamaConfig, and
    activation, the hidden_act it stands for. ConfigError names what does not fit.
    """
    parsed = LlamaConfig.parse(config, activation)
    heads = Heads(parsed.heads.query, parsed.heads.kv, parsed.heads.dim, kv, parsed.heads.window)
    parsed = LlamaConfig(**{**parsed.__dict__, "heads": heads})
    inv_freq, scaling = rope_parameters(config)
    sources: dict[str, tuple[str, ...]] = {}
    for layer in range(parsed.layers):
        prefix = f"model.layers.{layer}."
        for kind, biased in (("weight", True), ("bias", parsed.attention_bias)):
            if biased:
                parts = tuple(f"{prefix}self_attn.{p}_proj.{kind}" for p in "qkv")
                sources[f"{prefix}self_attn.qkv_proj.{kind}"] = parts
        for kind, biased in (("weight", True), ("bias", parsed.mlp_bias)):
            if biased:
                parts = tuple(f"{prefix}mlp.{p}_proj.{kind}" for p in ("gate", "up"))
                sources[f"{prefix}mlp.gate_up_proj.{kind}"] = parts
    if parsed.tied:
        sources["lm_head.weight"] = ("model.embed_tokens.weight",)
    return Network(
        Body(parsed, inv_freq, scaling, feed_forward),
        Head(parsed),
        sources,
        (heads,) * parsed.layers,
        parsed.vocab,
        parsed.hidden,
        parsed.context,
        parsed.tied,
    )


LLAMA = Architecture(build)
