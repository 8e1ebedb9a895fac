"""Architectures: a table from config.json's `architectures` entry to how the network is built."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from crosscompile.errors import ConfigError
from crosscompile.models.design import Design

if TYPE_CHECKING:
    from crosscompile.models.architecture import Architecture


@dataclass(frozen=True)
class Family:
    """One line of the table: an architecture that config.json may name.

    title     what people call it; special: what it has that Llama has not
    parser    "module.function" of crosscompile.models.families: config.json -> Design
    """

    title: str
    parser: str
    special: str = ""

    def design(self, config: Mapping[str, Any]) -> Design:
        """The Design of a config.json. Raises ConfigError for what is not supported."""
        module, _, name = self.parser.partition(".")
        made: Design = getattr(importlib.import_module(f"crosscompile.models.families.{module}"), name)(config)
        return made


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama 1–3.x, Vicuna, TinyLlama, SmolLM2", "llama.llama"),
    "MistralForCausalLM": Family("Mistral", "llama.mistral", "sliding window"),
    "Qwen2ForCausalLM": Family("Qwen2, Qwen2.5", "llama.qwen2", "biases of queries, keys and values"),
    "Qwen3ForCausalLM": Family("Qwen3", "llama.qwen3", "norms of queries and keys"),
    "SmolLM3ForCausalLM": Family("SmolLM3", "llama.smollm3", "layers without RoPE"),
    "Phi3ForCausalLM": Family("Phi-3, Phi-3.5, Phi-4", "llama.phi3", "fused weights, LongRoPE, partial RoPE"),
    "GraniteForCausalLM": Family("Granite 3", "llama.granite", "multipliers"),
    "Olmo2ForCausalLM": Family("OLMo 2", "llama.olmo2", "norms behind attention and feed-forward"),
    "GemmaForCausalLM": Family("Gemma", "gemma.gemma", "GELU, scaled embeddings"),
    "Gemma2ForCausalLM": Family("Gemma 2", "gemma.gemma2", "alternating windows, soft caps, norms around"),
    "Gemma3ForCausalLM": Family(
        "Gemma 3 (text)", "gemma.gemma3", "windows with a RoPE of their own, norms of queries and keys"
    ),
    "StableLmForCausalLM": Family("StableLM", "parallel.stablelm", "layer norms, partial RoPE"),
    "GPT2LMHeadModel": Family("GPT-2", "parallel.gpt2", "a table of positions, transposed matrices"),
    "GPTNeoXForCausalLM": Family("GPT-NeoX, Pythia", "parallel.gpt_neox", "parallel residual, partial RoPE"),
    "FalconForCausalLM": Family("Falcon", "parallel.falcon", "parallel blocks, multi-query"),
    "MixtralForCausalLM": Family("Mixtral", "mixtures.mixtral", "mixture of experts"),
    "OlmoeForCausalLM": Family("OLMoE", "mixtures.olmoe", "mixture of experts, norms of queries and keys"),
    "Qwen2MoeForCausalLM": Family(
        "Qwen1.5-MoE, Qwen2-MoE", "mixtures.qwen2_moe", "mixture of experts, one shared by all tokens"
    ),
    "Qwen3MoeForCausalLM": Family("Qwen3-MoE", "mixtures.qwen3_moe", "mixture of experts, norms of queries and keys"),
    "MambaForCausalLM": Family("Mamba", "recurrent.mamba", "no attention: a state of one size"),
    "FalconMambaForCausalLM": Family(
        "Falcon Mamba", "recurrent.falcon_mamba", "Mamba with norms of time steps, B and C"
    ),
    "Mamba2ForCausalLM": Family("Mamba 2", "recurrent.mamba2", "no attention: a state of one size, by heads"),
    "RWKV7ForCausalLM": Family("RWKV-7", "rwkv.rwkv7", "no attention: a state of one size, changed by a delta rule"),
}
"""Built in; more come from installed packages through the entry-point group `edgellm.architectures`."""

ENTRY_POINTS = "edgellm.architectures"


def architecture_for(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    """Name and table entry of a checkpoint's architecture. ConfigError names the nearest one that is known."""
    from crosscompile.models.architecture import Architecture
    from crosscompile.models.decoder import network

    name = name_of(config)
    if name in FAMILIES:
        family = FAMILIES[name]
        return name, Architecture(lambda config, kv: network(family.design(config), kv))
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            loaded = point.load()
            if not isinstance(loaded, Architecture):
                raise ConfigError(
                    f"entry point {ENTRY_POINTS}:{name} gives a {type(loaded).__name__}, not Architecture"
                )
            return name, loaded
    raise unknown(name, config)


def installed() -> tuple[str, ...]:
    """Architectures that installed packages add."""
    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - FAMILIES.keys()))


def name_of(config: Mapping[str, Any]) -> str:
    """The one architecture that config.json names."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(f"config.json: 'architectures' must name exactly one architecture, not {names!r}")
    return names[0]


class _Asked(Mapping[str, Any]):
    """config.json, noting which fields a family asks for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config, self.asked = config, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self._config[key]

    def __contains__(self, key: object) -> bool:
        return key in self._config

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


_NOT_THE_NETWORK = re.compile(
    r"architectures|model_type|auto_map|(torch_)?dtype|transformers_version|use_cache|_.*|.*_token_id|.*dropout|.*_pdrop|"
    r"initializer_.*|pretraining_tp|.*_aux_loss.*|output_.*|id2label|label2id|is_decoder|tokenizer_class|unsloth_.*"
)
"""Fields that change nothing about how logits are computed."""


def unknown(name: str, config: Mapping[str, Any]) -> ConfigError:
    """The error for an architecture that is not in the table: the nearest family, and what differs from it."""
    like = {known: difflib.SequenceMatcher(None, name, known).ratio() for known in FAMILIES}
    found = {}
    for known, family in FAMILIES.items():
        asked, why = _Asked(config), ""
        try:
            family.design(asked)
        except ConfigError as error:
            why = str(error).removeprefix("config.json: ")
        left = sorted(k for k in config if k not in asked.asked and config[k] and not _NOT_THE_NETWORK.fullmatch(k))
        found[known] = (bool(why), len(left) - 3 * like[known], left, why)
    near = min(found, key=lambda known: found[known][:2])
    _, _, left, why = found[near]
    differs = [f"it does not know {', '.join(left)}"] if left else []
    differs += [why] if why else []
    return ConfigError(
        f"config.json: architecture {name!r} is not supported; `edgellm models` lists those that are. The nearest is "
        f"{near}; {' and '.join(differs) or 'its configuration has the same fields'}. If the network is the same, "
        f"change 'architectures', else add it through the entry point {ENTRY_POINTS} (crosscompile/EXTENDING.md)"
    )
