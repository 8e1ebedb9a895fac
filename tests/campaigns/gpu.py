"""What a GPU reaches: its memory's bandwidth, and uploads, prompts and answers of models beside it, in one table.

    python -m tests.campaigns.gpu --work DIR [MODEL …] [--peer-build DIR] [--json FILE]
    python -m tests.campaigns.gpu --stage DIR [MODEL …]       then, elsewhere: python3 DIR/gpu_run.py DIR

Compiles each model in w4a8 for this machine's GPU and runs the golden prompts on it; then, in rounds, prompts of 128,
512 and 2048 tokens and answers behind 128 and 2048, each in a process of its own that uploads the weights. Decoding's
share is of what the GPU can read, the upload's of what it copies (`edgellm-rt bench --bandwidth --device vulkan`). With
--peer-build, which has bin/llama-bench with the Vulkan backend (tests.campaigns.vulkan_peer makes one), llama.cpp
computes the same weights in Q4_0, in turn; medians count.

--stage makes a folder, and packs it, for a machine with a GPU, but without network, compilers or this project: it needs
python3 and the driver. Large weights are left out and made there out of a few rows of each tensor, so that the folder
is small; they are other weights then, so golden prompts show only that logits are numbers, and the demo model's come
along whole. --gpus has what `edgellm-rt gpus` says there; without it kernels are for NVIDIA's Hopper.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosscompile import checkpoint
from crosscompile.gguf_file import read_header
from edgellm import bundle as bundles
from edgellm import gpu_facts, hub
from edgellm.boards import Board, find_board
from edgellm.compile import build
from edgellm.llama_cpp import gguf_of
from edgellm.precision import Options
from tests.campaigns import gpu_run

MODELS = ("random:llama-2-7b", "random:smollm2-135m")
DEMO = Path(__file__).resolve().parents[2] / "examples" / "voice_assistant" / "model"
WHOLE_BYTES, PATTERN_BYTES = 8 << 20, 8 << 10
HOPPER = {
    "type": "gpu", "name": "NVIDIA Hopper", "kind": "discrete", "driver": "NVIDIA", "version": "580", "lacks": None,
    "vulkan": "1.4.312", "vendor": 4318, "invocations": 1024, "shared_bytes": 49152, "storage_buffers": 1048576,
    "binding_bytes": 4294967295, "subgroup": 32, "halves": True, "bytes": True, "sums": True, "dot": True,
    "mixed": False, "matrices": True,
}  # fmt: skip
"""As an H100's driver answers."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--work", type=Path, metavar="DIR", help="for what is built; measure here")
    where.add_argument("--stage", type=Path, metavar="DIR", help="make a folder to carry to the machine with the GPU")
    parser.add_argument("--gpus", type=Path, metavar="FILE", help="with --stage: what `edgellm-rt gpus` says there")
    parser.add_argument("--peer-build", type=Path, metavar="DIR", help="has bin/llama-bench with the Vulkan backend")
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 512, 2048], metavar="N")
    parser.add_argument("--depth", type=int, nargs="+", default=[128, 2048], metavar="N")
    parser.add_argument("--generate", type=int, default=64, metavar="N", help="tokens to decode for a figure")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample")
    arguments = parser.parse_args(argv)
    folder = (arguments.stage or arguments.work).absolute()
    (folder / "bundles").mkdir(parents=True, exist_ok=True)
    plan: dict[str, Any] = {key: getattr(arguments, key) for key in ("prompt", "depth", "generate", "rounds")}
    if arguments.peer_build:
        plan["llama_bench"] = bring_peer(arguments.peer_build.absolute(), folder)
    board = board_there(arguments.gpus) if arguments.stage else find_board("local")
    names = [*arguments.models, *([str(DEMO)] if arguments.stage and DEMO.is_dir() else [])]
    plan["models"] = [bring(name, board, folder, arguments) for name in names]
    (folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    if arguments.stage is None:
        return gpu_run.run(folder, plan, arguments.json)
    shutil.copy(gpu_run.__file__, folder / "gpu_run.py")
    packed = Path(shutil.make_archive(str(folder), "gztar", folder.parent, folder.name))
    print(f"{packed}: {packed.stat().st_size / 1e6:.0f} MB; there: python3 {folder.name}/gpu_run.py {folder.name}")
    return 0


def board_there(gpus: Path | None) -> Board:
    """This machine's kind of board with the GPU that is there."""
    text = gpus.read_text() if gpus is not None else json.dumps(HOPPER)
    devices = gpu_facts.read(text, str(gpus))
    device = gpu_facts.chosen(devices) or next((each for each in devices if each.lacks is None), None)
    if device is None:
        raise SystemExit(f"{gpus} names no GPU; it must have what `edgellm-rt gpus` printed there")
    return replace(find_board("local"), vulkan=gpu_facts.asked(gpu_facts.VulkanSection(device.name), device))


def bring(name: str, board: Board, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles a model into the folder; with --stage without its weights, if they are large."""
    print(f"{name}: compiling …", file=sys.stderr, flush=True)
    path, short = hub.resolve(name, lambda what, done, total: None)
    target = folder / "bundles" / short
    shutil.rmtree(target, ignore_errors=True)
    made = build(name, board, Options("w4a8"), target, device="vulkan").bundle
    model: dict[str, Any] = {"name": short, "bundle": str(target.relative_to(folder))}
    peer = None
    if arguments.peer_build and name not in (str(DEMO),):
        peer = gguf_of(checkpoint.load(path), made, lambda what, done, total: None)
        model["peer"] = f"peer/{short}.gguf"
        there = folder / model["peer"]
        there.unlink(missing_ok=True)
        if arguments.stage is None:
            there.symlink_to(peer)
    if arguments.stage is not None:
        model["recipes"] = leave_out(made, folder)
        if peer is not None:
            model["recipes"].append(write_recipe(peer, folder / model["peer"], gguf_parts(peer), folder))
    return model


def bring_peer(build_: Path, folder: Path) -> str:
    """llama-bench and its libraries, copied: where from there."""
    (folder / "peer").mkdir(exist_ok=True)
    names = {file.name for file in (build_ / "bin").iterdir()}
    for file in sorted((build_ / "bin").iterdir()):
        plain = file.suffix == ".so" and f"{file.name}.0" not in names
        if file.name == "llama-bench" or plain or re.search(r"\.so\.\d+$", file.name):  # as the program asks for them
            shutil.copy(file, folder / "peer" / file.name)
            subprocess.run(["strip", str(folder / "peer" / file.name)], check=False)
    return "peer/llama-bench"


# ---- weights that are made there ----

Parts = list[tuple[int, int]]
"""[bytes, of a pattern of so many]: what a file consists of."""


def leave_out(made: bundles.Bundle, folder: Path) -> list[dict[str, Any]]:
    """Fills large weights as they will be made there, seals the bundle anew and takes them away again."""
    shards = [file for file in sorted((made.path / "weights").glob("*.safetensors")) if file.stem != "constants"]
    if sum(file.stat().st_size for file in shards) <= WHOLE_BYTES:
        return []
    recipes = [write_recipe(file, file, safetensors_parts(file), folder) for file in shards]
    patterns = {recipe["file"]: folder / (recipe["file"] + ".patterns") for recipe in recipes}
    kept = {}
    for recipe in recipes:  # nothing but the bundle's own files is sealed
        place = patterns[recipe["file"]]
        kept[place] = place.read_bytes()
        gpu_run.fill(folder / recipe["file"], recipe, place)
        place.unlink()
    manifest = {key: value for key, value in made.manifest.items() if key not in ("format", "files")}
    manifest["golden"] = [{key: it[key] for key in it if key != "logits"} for it in manifest.get("golden", [])]
    bundles.seal(made.path, manifest)
    for recipe in recipes:
        (folder / recipe["file"]).unlink()
    for place, content in kept.items():
        place.write_bytes(content)
    (made.path / bundles.STAMP).unlink(missing_ok=True)
    return recipes


def write_recipe(source: Path, there: Path, parts: Iterator[tuple[int, int]], folder: Path) -> dict[str, Any]:
    """The recipe of a file that is made from a little of `source`, which is left beside `there`."""
    said: Parts = []
    with source.open("rb") as file, there.with_name(there.name + ".patterns").open("wb") as patterns:
        at = 0
        for n_bytes, period in parts:
            file.seek(at)
            patterns.write(file.read(period))
            said.append((n_bytes, period))
            at += n_bytes
    return {"file": str(there.relative_to(folder)), "bytes": source.stat().st_size, "parts": said}


def repeated(n_bytes: int, row_bytes: int) -> int:
    """How much of a tensor is kept: whole rows, or the tensor where it is small."""
    rows = max(1, PATTERN_BYTES // max(row_bytes, 1))
    return min(n_bytes, rows * row_bytes)


def safetensors_parts(file: Path) -> Iterator[tuple[int, int]]:
    """The head as it is, then each tensor's first rows over and over."""
    with file.open("rb") as opened:
        (n,) = struct.unpack("<Q", opened.read(8))
        head = json.loads(opened.read(n))
    yield 8 + n, 8 + n
    end = 0
    tensors = [value for key, value in head.items() if key != "__metadata__"]
    for tensor in sorted(tensors, key=lambda it: it["data_offsets"]):
        start, end = tensor["data_offsets"]
        if end > start:
            rows = tensor["shape"][0] if tensor["shape"] else 1
            yield end - start, repeated(end - start, (end - start) // max(rows, 1))


def gguf_parts(file: Path) -> Iterator[tuple[int, int]]:
    """The same of a GGUF file."""
    at = 0
    for tensor in sorted(read_header(file).tensors.values(), key=lambda it: it.offset_bytes):
        if tensor.offset_bytes > at:
            yield tensor.offset_bytes - at, tensor.offset_bytes - at
        yield tensor.n_bytes, repeated(tensor.n_bytes, tensor.row_bytes)
        at = tensor.offset_bytes + tensor.n_bytes
    if (rest := file.stat().st_size - at) > 0:
        yield rest, rest


if __name__ == "__main__":
    sys.exit(main())
