"""Speed and work on lavapipe beside llama.cpp's Vulkan backend: one interleaved run, and what a token makes a GPU do.

    python -m tests.campaigns.vulkan_peer --work DIR [random:smollm2-135m …] [--prompt 64 128] [--rounds 5]

Both sides compute the same weights, w4a8 beside Q4_0 with the head in 8 bits, on the same device, in turn. A layer
(runtime_c/probe/vulkan_count.c) counts dispatches, barriers and submissions, of a run of few tokens and of one of more.
Fails where a ratio is below 1 or a count is not below the peer's.

llama.cpp is built out of the sources that `edgellm bench --peer` uses. Its Vulkan backend needs libvulkan-dev, glslc
and spirv-headers (Debian), and newer headers than Debian 12's: --headers DIR has Debian 13's (`apt-get download
libvulkan-dev/trixie`, `dpkg -x`). --peer-build DIR takes a build that exists. Its shaders take 15 minutes to compile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosscompile import checkpoint
from edgellm import hub
from edgellm.compile import build
from edgellm.llama_cpp import build_peer, gguf_of
from edgellm.precision import Options
from edgellm.terminal import one_line
from tests.shaders import lavapipe
from tests.vulkan_layer import build_layer, count

COUNTS = ("dispatches", "barriers", "submits")


@dataclass(frozen=True)
class Side:
    """One of the two: what runs `prompt` tokens (0: a few) and then generates some, and reads its speed."""

    name: str
    command: Callable[[int, int], list[str]]
    speed: Callable[[str, int], float]
    environment: Mapping[str, str]

    def run(self, prompt: int, generate: int) -> str:
        env = {**lavapipe(), **self.environment}
        done = subprocess.run(self.command(prompt, generate), capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise SystemExit(f"{self.name}: {one_line(done.stderr.strip().splitlines()[-1])}")
        return done.stdout

    def per_token(self, layer: Path, tokens: int = 8) -> dict[str, float]:
        """What one token of decoding adds, in what the device is asked to do."""
        few, more = (count(layer, self.command(0, n), **self.environment) for n in (4, 4 + tokens))
        return {key: (getattr(more, key) - getattr(few, key)) / tokens for key in COUNTS}


def ours(bundle: Path) -> Side:
    """edgellm-rt, each figure in a process of its own."""

    def command(prompt: int, generate: int) -> list[str]:
        sizes = ["--prompt", str(prompt or 1), "--generate", str(max(generate, 1)), "--repeat", "1"]
        return [str(bundle / "edgellm-rt"), "bench", str(bundle), "--json", *sizes]

    def speed(out: str, generate: int) -> float:
        return float(json.loads(out)["decode_tok_s" if generate else "prefill_tok_s"])

    return Side("edgellm", command, speed, {})


def peers(program: Path, model: Path) -> Side:
    """llama-bench with all layers on the first device, which is lavapipe: it takes none that is a processor unasked."""

    def command(prompt: int, generate: int) -> list[str]:
        sizes = ["-p", str(prompt), "-n", str(generate)]
        return [str(program), "-m", str(model), "-ngl", "99", "-r", "1", "-o", "json", *sizes]

    def speed(out: str, generate: int) -> float:
        return float(json.loads(out)[0]["avg_ts"])

    return Side("llama.cpp", command, speed, {"GGML_VK_VISIBLE_DEVICES": "0"})


def measure(sides: Sequence[Side], figure: tuple[int, int], rounds: int) -> bool:
    """One figure, (prompt, generate), of which one is 0: a line with medians and their ratio."""
    prompt, generate = figure
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    for round_ in range(rounds):
        for side in sides if round_ % 2 == 0 else reversed(sides):
            speeds[side.name].append(side.speed(side.run(prompt, generate), generate))
    mine, other = (statistics.median(speeds[side.name]) for side in sides)
    pairs = [a / b for a, b in zip(*speeds.values(), strict=True)]
    name = f"decode {generate}" if generate else f"prefill {prompt}"
    ratio = f"{mine / other:8.2f} ×   ({min(pairs):.2f}–{max(pairs):.2f})"
    print(f"  {name:12}{mine:10.2f}{other:10.2f} tok/s{ratio}", flush=True)
    return mine >= other


def compare(model: str, program: Path, layer: Path, arguments: argparse.Namespace) -> bool:
    path, _ = hub.resolve(model, lambda what, done, total: None)
    made = build(model, "local", Options("w4a8"), device="vulkan").bundle
    theirs = gguf_of(checkpoint.load(path), made, lambda what, done, total: None)
    sides = (ours(made.path), peers(program, theirs))
    print(f"{model:14}{'edgellm':>10}{'llama.cpp':>10}", flush=True)
    figures = [(0, arguments.generate), *((n, 0) for n in arguments.prompt)]
    good = [measure(sides, figure, arguments.rounds) for figure in figures]
    mine, other = (side.per_token(layer) for side in sides)
    for key in COUNTS:
        print(f"  {key:12}{mine[key]:10.0f}{other[key]:10.0f} a token", flush=True)
    return all(good) and all(mine[key] < other[key] for key in ("dispatches", "barriers")) and mine["submits"] == 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["random:smollm2-135m"], metavar="MODEL")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for what is built and not kept")
    parser.add_argument("--peer-build", type=Path, metavar="DIR", help="has llama-bench with the Vulkan backend")
    parser.add_argument("--headers", type=Path, metavar="DIR", help="has vulkan/vulkan.hpp, of 1.4 or newer")
    parser.add_argument("--prompt", type=int, nargs="+", default=[64, 128], metavar="N")
    parser.add_argument("--generate", type=int, default=16, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    arguments = parser.parse_args(argv)
    flags = {"GGML_NATIVE": "ON", "GGML_VULKAN": "ON"}
    if arguments.headers:
        flags["Vulkan_INCLUDE_DIR"] = str(arguments.headers.absolute())
    folder = arguments.peer_build or build_peer("vulkan", flags, ["llama-bench"], progress) / "bin"
    os.environ.update({key: lavapipe()[key] for key in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES")})
    layer = build_layer(arguments.work.absolute())
    good = [compare(model, folder.absolute() / "llama-bench", layer, arguments) for model in arguments.models]
    return 0 if all(good) else 1


def progress(what: str, done: int, total: int) -> None:
    if total == 0:
        print(f"{what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
