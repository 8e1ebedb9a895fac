"""What converting a large checkpoint takes of the host: peak memory, and MB of source weights per second.

    python -m tests.campaigns.conversion --work DIR [--layers 32] [--scheme w4a8] [--board local]

Writes a checkpoint of Llama-2-7B's shape to DIR (bfloat16, random, 13.5 GB of disk at 32 layers; kept for the next
time), compiles it with an empty cache, and watches every process that this starts. Fails above 8 GB of memory or below
150 MB/s while weights are read, rounded, packed and written; the whole command hashes the source before, and builds
kernels and lets the model answer its golden prompts besides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from crosscompile.safetensors_stream import read_header

MOST_BYTES, LEAST_MB_PER_S = 8e9, 150.0
HIDDEN, INTERMEDIATE, HEADS, VOCAB = 4096, 11008, 32, 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}
SAMPLE_S = 0.1


def shards(layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of each file's tensors: a layer a file, and one for what lies outside."""
    yield {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(layers):
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}


def write_shard(file: Path, tensors: dict[str, tuple[int, ...]], generator: np.random.Generator) -> None:
    """Normal values of a usual size, bfloat16: the upper halves of float32."""
    header: dict[str, dict[str, object]] = {}
    at = 0
    for name, shape in tensors.items():
        end = at + 2 * int(np.prod(shape))
        header[name], at = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = file.with_suffix(".part")
    with part.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            values = generator.standard_normal(shape, np.float32) * np.float32(0.02 if len(shape) > 1 else 0.1)
            if len(shape) == 1:
                values += 1
            out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    part.replace(file)


def write_checkpoint(folder: Path, layers: int) -> int:
    """Returns the bytes of its tensors; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    total, index = 0, {}
    for i, tensors in enumerate(shards(layers)):
        file = folder / f"model-{i:05}-of-{layers + 1:05}.safetensors"
        if not file.exists():
            print(f"writing {file.name}", file=sys.stderr)
            write_shard(file, tensors, np.random.default_rng(i))
        total += sum(tensor.n_bytes for tensor in read_header(file)[0].values())
        index |= dict.fromkeys(tensors, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def resident_bytes(process: int) -> int:
    """Of a process and all below it, mapped files included: what they share counts once for each."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        try:
            line = Path(f"/proc/{entry}/stat").read_text() if entry.isdigit() else ""
        except OSError:
            continue
        if line:
            parents.setdefault(int(line.rpartition(")")[2].split()[1]), []).append(int(entry))
    total, left = 0, [process]
    while left:
        one = left.pop()
        left += parents.get(one, [])
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="for the checkpoint, the cache and the bundle")
    parser.add_argument("--layers", type=int, default=32, metavar="N", help="of the 7B shape's 32")
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--board", default="local")
    args = parser.parse_args(argv)
    n_bytes = write_checkpoint(args.work / f"llama-2-7b-{args.layers}", args.layers)
    made = args.work / "made"
    shutil.rmtree(made, ignore_errors=True)
    command = [sys.executable, "-m", "edgellm", "compile", str(args.work / f"llama-2-7b-{args.layers}"), "--json"]
    command += ["--board", args.board, "--scheme", args.scheme, "-o", str(made / "bundle")]
    began, peak = time.monotonic(), 0
    with (made.parent / "answer.json").open("w+") as answer:
        process = subprocess.Popen(command, stdout=answer, env={**os.environ, "EDGELLM_CACHE": str(made / "cache")})
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(SAMPLE_S)
        elapsed = time.monotonic() - began
        if process.returncode:
            return 1
        answer.seek(0)
        told = json.load(answer)
    rate = n_bytes / 1e6 / told["seconds"]["weights"]
    print(f"{n_bytes / 1e9:.2f} GB of weights, converted at {rate:.0f} MB/s; seconds: {told['seconds']}")
    print(f"the whole command: {elapsed:.1f} s, {n_bytes / 1e6 / elapsed:.0f} MB/s")
    print(f"peak memory of all processes {peak / 1e9:.2f} GB")
    shutil.rmtree(made)
    return 0 if peak <= MOST_BYTES and rate >= LEAST_MB_PER_S else 1


if __name__ == "__main__":
    sys.exit(main())
