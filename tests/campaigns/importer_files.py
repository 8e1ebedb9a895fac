"""What the campaign of mutated checkpoints begins with, and how it is changed."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.oracle.family_checkpoints import DATA

ADAPTER = "adapter"
"""Folder of an adapter below its checkpoint."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HIDDEN, WIDTH, VOCAB = 64, 96, 40


@dataclass(frozen=True)
class Original:
    """A checkpoint that is as it should be. files: relative name -> bytes."""

    kind: str
    files: dict[str, bytes]
    adapter: bool = False

    def write(self, folder: Path) -> None:
        """Puts it where another may lie."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, data in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
LAYER = "model.layers.0."
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}
TEXTS: dict[str, Any] = {
    "tokenizer_config.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ messages }}"},
    "special_tokens_map.json": {"bos_token": "<s>", "pad_token": {"content": "<pad>"}},
    "generation_config.json": {"eos_token_id": [2, 3], "temperature": 0.7},
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
}


def _plain(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    made = {f"{LAYER}{name}.weight": _random(*shape, seed=i) for i, (name, shape) in enumerate(MATRICES.items())}
    made["model.embed_tokens.weight"] = _random(VOCAB, HIDDEN)
    for name in ("model.norm", f"{LAYER}input_layernorm", f"{LAYER}post_attention_layernorm"):
        made[f"{name}.weight"] = _random(HIDDEN)
    return {name: value.astype(dtype) for name, value in made.items()}


def plain() -> list[Original]:
    """One file, and several with an index; chat templates in all their places."""
    texts = {name: _json(value) for name, value in TEXTS.items()}
    listed = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
    more = {"chat_template.json": _json({"chat_template": listed})}
    one = {"config.json": _json(CONFIG), SINGLE: save(_plain()), **texts}
    tensors = sorted(_plain(np.float16).items())
    parts = {f"part-{i}.safetensors": dict(tensors[i::3]) for i in range(3)}
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file in parts for name in parts[file]}}
    several = {"config.json": _json(CONFIG), INDEX: _json(index), **texts, **more}
    several |= {file: save(part) for file, part in parts.items()}
    return [Original("plain", one), Original("shards", several)]


def _packed(method: str, group: int, shuffled: bool) -> dict[str, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(3))
    tensors = _plain(np.float16)
    for name, (out, columns) in MATRICES.items():
        size = group if group > 0 else columns
        del tensors[f"{LAYER}{name}.weight"]
        shape = (columns // 8, out) if method == "gptq" else (columns, out // 8)
        words = {"qweight": shape, "qzeros": (columns // size, out // 8)}
        for part, extents in words.items():
            values = generator.integers(-(1 << 31), 1 << 31, extents, np.int64).astype(np.int32)
            tensors[f"{LAYER}{name}.{part}"] = values
        scales = generator.uniform(0.01, 0.1, (columns // size, out))
        tensors[f"{LAYER}{name}.scales"] = scales.astype(np.float16)
        if method == "gptq":
            g_idx = np.arange(columns, dtype=np.int32) // size
            tensors[f"{LAYER}{name}.g_idx"] = generator.permutation(g_idx) if shuffled else g_idx
    return tensors


def packed(method: str) -> list[Original]:
    """Groups of 32, and one for all inputs; GPTQ's also by activation order, and of both its formats."""
    found = []
    for group, more in ((32, {}), (-1, {"checkpoint_format": "gptq_v2"}), (32, {"desc_act": True})):
        if method == "awq" and "desc_act" in more:
            continue
        said = {"quant_method": method, "bits": 4, "group_size": group, **(more if method == "gptq" else {})}
        config = _json({**CONFIG, "quantization_config": said})
        tensors = _packed(method, group, "desc_act" in more)
        found.append(Original(method, {"config.json": config, SINGLE: save(tensors)}))
    return found


def adapters() -> list[Original]:
    """LoRA by modules and ranks, and DoRA, with an embedding and a module that were trained."""
    found = []
    for more in (
        {"rank_pattern": {"mlp.up_proj": 2, "layers.*.q_proj": 4}, "alpha_pattern": {"up_proj": 10}},
        {"use_dora": True, "use_rslora": True},
    ):
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"], **more}
        tensors = {}
        for name in ("self_attn.q_proj", "mlp.up_proj"):
            rank = 2 if "rank_pattern" in more and name == "mlp.up_proj" else 4
            out, columns = MATRICES[name]
            module = f"base_model.model.{LAYER}{name}"
            tensors[f"{module}.lora_A.weight"] = _random(rank, columns, seed=rank)
            tensors[f"{module}.lora_B.weight"] = _random(out, rank, seed=rank + 1)
            if "use_dora" in more:
                tensors[f"{module}.lora_magnitude_vector"] = np.abs(_random(out)) + 1
        tensors["base_model.model.model.norm.modules_to_save.weight"] = _random(HIDDEN, seed=8)
        if "use_dora" not in more:
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = _random(4, VOCAB, seed=5)
            tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = _random(HIDDEN, 4, seed=6)
        files = {
            "config.json": _json(CONFIG),
            SINGLE: save(_plain()),
            f"{ADAPTER}/adapter_config.json": _json(config),
            f"{ADAPTER}/adapter_model.safetensors": save(tensors),
        }
        found.append(Original("peft", files, adapter=True))
    return found


def configurations() -> list[Original]:
    """config.json of every family, with tensors of the right names and sizes, all zeros."""
    found = []
    for entry in json.loads(DATA.read_text()).values():
        header, at = {}, 0
        for name, shape in entry["tensors"].items():
            n = 2 * int(np.prod(shape))
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + n]}
            at += n
        text = _json(header)
        data = len(text).to_bytes(8, "little") + text + bytes(at)
        found.append(Original("config", {"config.json": _json(entry["config"]), SINGLE: data}))
    return found


KINDS: dict[str, Callable[[], list[Original]]] = {
    "plain": plain,
    "awq": lambda: packed("awq"),
    "gptq": lambda: packed("gptq"),
    "peft": adapters,
    "config": configurations,
}


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 16, 31, 32, 33, 64, 96, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31),
    *(1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 70, -(1 << 63), 10**30, 0.5, -0.5, 1e-9, 1e9),
    *(1e308, -1e308, float("inf"), float("-inf"), float("nan"), 4.0, "", "a", "4", "awq", "gptq", "gemm", "LORA"),
    *("F16", "F32", "BF16", "I32", "I64", "U8", "F8_E4M3", "default", "linear", "dynamic", "yarn", "longrope"),
    *(
        "llama3",
        "a" * 300,
        "line\nbreak",
        "\0",
        "\ud800",
        "../model.safetensors",
        "/",
        ".",
        "..",
        "\u202e",
        "config.json",
    ),
    *([], {}, [None], [1, 2], [[1]], {"a": 1}, ["a", "b"], [1e400, 2], [0, 0], [-1], [1 << 62, 1 << 62], {"": {}}),
    *("(a+)+$", "(.*)*x", "[", "(?P<n>", "\\", ".*.*.*.*.*.*q", "silu", "gelu", "sqrelu", "full_attention"),
)
"""What a field is set to."""
BIG = "9" * 5000
"""More digits than Python turns into a number by itself."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside an object or a list."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            found += _places(value[index], (*path, index))
    return found


def _changed(document: Any, rng: random.Random) -> bytes:
    """A JSON document with a few values changed, removed, added, moved or written twice."""
    text_changes = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(document)
        if not places:
            break
        *way, last = rng.choice(places)
        at = document
        for step in way:
            at = at[step]
        kind = rng.randrange(10)
        if kind <= 3:
            at[last] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4:
            del at[last]
        elif kind == 5 and isinstance(at, dict):
            at[rng.choice(("a", "", "weight", "x" * 200, "model.norm.weight", "rope_scaling"))] = copy.deepcopy(
                at[last]
            )
        elif kind == 6 and isinstance(at, dict):
            other = rng.choice(list(at))
            at[last], at[other] = at[other], at[last]
        elif kind == 8 and isinstance(at, dict):
            at[str(rng.choice(VALUES))] = at.pop(last)
        elif kind == 7 and isinstance(at[last], int):
            at[last] += rng.choice((-1, 1, 8, -8, 32))
        elif rng.random() < 0.1:
            text_changes.append(rng.choice((BIG, "[" * 3000 + "]" * 3000, "1e999", "NaN", "-", "\ufeff1")))
            at[last] = "@@"
    text = json.dumps(document)
    for change in text_changes:
        text = text.replace('"@@"', change, 1)
    return text.encode("utf-8", "surrogatepass")


def _bent(data: bytes, rng: random.Random, end: int) -> bytes:
    """Bytes flipped, cut, doubled; before `end`, where what follows is only numbers."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        at, kind = rng.randrange(max(1, min(end, len(changed)))), rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at : at + rng.randint(1, 20)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 20)]
        else:
            del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def _tensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or other data, or none."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(6)
    if kind <= 2:
        header = _changed(json.loads(header), rng)
    elif kind == 3:
        return _bent(data, rng, 8 + length)
    elif kind == 4:
        return data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + bytes(rng.randint(1, 9))
    else:  # the same header with other numbers
        at = rng.randrange(len(rest)) & ~3
        rest = rest[:at] + rng.choice((b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\xff\x7b\xff\x7b")) + rest[at + 4 :]
    size = len(header) if rng.random() < 0.95 else rng.choice((0, 1, len(header) - 1, 1 << 40, (1 << 64) - 1))
    return size.to_bytes(8, "little") + header + rest


def mutate(folder: Path, original: Original, rng: random.Random) -> None:
    """Changes one file of a checkpoint, or two."""
    names = sorted(original.files)
    if original.adapter:
        names = [name for name in names if name.startswith(ADAPTER)] * 4 + names
    elif original.kind != "plain":
        names += ["config.json"] * (8 if original.kind == "config" else 1)
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(names)
        file, data = folder / name, original.files[name]
        chance = rng.random()
        if chance < 0.01 and file.is_file():
            file.unlink()
        elif chance < 0.02 and file.is_file():
            file.unlink()
            file.mkdir()
        elif not file.is_dir():
            if name.endswith(".safetensors"):
                file.write_bytes(_tensors(data, rng))
            else:
                file.write_bytes(_changed(json.loads(data), rng) if chance < 0.85 else _bent(data, rng, len(data)))
